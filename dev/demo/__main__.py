"""The command line: `python -m dev.demo` runs the demo."""

from __future__ import annotations

import json
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich.live import Live

from dev.cluster import kind
from dev.cluster.console import LackingError, console, step
from dev.cluster.run import CommandError, wait
from dev.demo import system, view
from dev.demo.record import Record, record

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

MANIFESTS = system.ROOT / "dev" / "demo"
NAME = "mnist"
NAMESPACE = "default"
SECONDS = 900
ENDED = ("Completed", "Failed")


def demo() -> None:
    """Bring everything up and follow the study to its end.

    Raises:
        CommandError: a step failed, or the study did.
    """
    console.print("[bold]A Kubernetes cluster, the images, the chart[/]")
    system.up()
    with record() as trials:
        start(trials)
        study = follow(trials)
    if study["status"]["phase"] != "Completed" or "best" not in study["status"]:
        raise CommandError(f"the study ended badly: see `kubectl describe tuningstudy {NAME}`")
    console.print("", view.ending(study))


def start(trials: Record) -> None:
    """Apply the example; an earlier run of it goes first, with its record."""
    if kind.kubectl("get", "tuningstudy", NAME, "-n", NAMESPACE, "--ignore-not-found", "-o", "name"):
        with step("delete the study of an earlier run"):
            policy = json.dumps({"spec": {"deletionPolicy": "Delete"}})
            kind.kubectl("patch", "tuningstudy", NAME, "-n", NAMESPACE, "--type=merge", f"--patch={policy}")
            kind.kubectl("delete", "tuningstudy", NAME, "-n", NAMESPACE, "--timeout=60s")
            wait("the operator forgets the study", lambda: not trials.has(f"{NAMESPACE}/{NAME}"), 60)
    with step("kubectl apply -k dev/demo (examples/mnist with 20 trials, four at a time)"):
        kind.kubectl("apply", "-n", NAMESPACE, "-k", str(MANIFESTS))


def follow(trials: Record) -> dict[str, Any]:
    """Show the study until it ends; return it as it is then."""
    deadline = time.monotonic() + SECONDS
    told: set[int] = set()
    with Live(console=console, refresh_per_second=4) as screen:
        while True:
            study = json.loads(kind.kubectl("get", "tuningstudy", NAME, "-n", NAMESPACE, "-o", "json"))
            current = trials.trials(f"{NAMESPACE}/{NAME}")
            screen.update(view.live(study, current, datetime.now(UTC).replace(tzinfo=None)))
            if not console.is_terminal:
                _tell(current, told)
            if study.get("status", {}).get("phase") in ENDED:
                return study  # type: ignore[no-any-return]
            if time.monotonic() > deadline:
                raise CommandError(f"the study did not end within {SECONDS} s")
            time.sleep(0.5)


def _tell(trials: list[FrozenTrial], told: set[int]) -> None:
    for trial in trials:
        if trial.state.is_finished() and trial.number not in told:
            told.add(trial.number)
            console.print(f"  {view.line(trial)}", markup=False, soft_wrap=True)


def main() -> None:
    """Run; what goes wrong is told in a few lines, without a traceback."""
    try:
        demo()
    except (LackingError, CommandError) as error:
        console.print(f"[bold red]{type(error).__name__}[/]")
        console.print(str(error), markup=False)
        sys.exit(1)


if __name__ == "__main__":
    main()
