"""Runs the demo: `python -m dev.demo`."""

from __future__ import annotations

import json
import sys
import time
from datetime import UTC, datetime
from typing import Any

from rich.live import Live

from dev.cluster.console import RequirementError, console, step
from dev.cluster.kind import DEVELOPMENT
from dev.cluster.run import CommandError
from dev.demo import system, view
from dev.demo.record import Record, record

MANIFESTS = system.ROOT / "dev" / "demo"
NAME = "mnist"
NAMESPACE = "default"
SECONDS = 900
ENDED = ("Completed", "Failed")


def demo() -> None:
    """Start the system, run the study and show it until it ends.

    Raises:
        CommandError: a step or the study failed.
    """
    console.print("[bold]Starting a Kubernetes cluster and installing the operator[/]")
    system.up()
    start()
    with record() as trials:
        study = follow(trials)
    if study["status"]["phase"] != "Completed" or "best" not in study["status"]:
        raise CommandError(f"The study failed. See `kubectl describe tuningstudy {NAME}`.")
    console.print("", view.ending(study))


def start() -> None:
    """Apply the example after deleting the study of an earlier run, whose record the new one replaces."""
    existing = ("tuningstudy", NAME, "-n", NAMESPACE)
    if DEVELOPMENT.kubectl("get", *existing, "--ignore-not-found", "-o", "name"):
        with step("delete the study of an earlier run"):
            DEVELOPMENT.kubectl("delete", *existing, "--timeout=60s")
    with step("kubectl apply -k dev/demo (examples/mnist with 20 trials, four at a time)"):
        DEVELOPMENT.kubectl("apply", "-n", NAMESPACE, "-k", str(MANIFESTS))
        DEVELOPMENT.kubectl("wait", *existing, "--for=condition=Accepted", "--timeout=60s")


def follow(trials: Record) -> dict[str, Any]:
    """Show the study until it ends; return its final state."""
    deadline = time.monotonic() + SECONDS
    printed: set[int] = set()
    with Live(console=console, refresh_per_second=4) as screen:
        while True:
            study = json.loads(DEVELOPMENT.kubectl("get", "tuningstudy", NAME, "-n", NAMESPACE, "-o", "json"))
            current = trials.trials(f"{NAMESPACE}/{NAME}")
            screen.update(view.live(study, current, datetime.now(UTC).replace(tzinfo=None)))
            if not console.is_terminal:
                for trial in current:
                    if trial.state.is_finished() and trial.number not in printed:
                        printed.add(trial.number)
                        console.print(f"  {view.line(trial)}", markup=False, soft_wrap=True)
            if study.get("status", {}).get("phase") in ENDED:
                return study  # type: ignore[no-any-return]
            if time.monotonic() > deadline:
                raise CommandError(f"The study did not end within {SECONDS} s.")
            time.sleep(0.5)


def main() -> None:
    """Run the demo; expected errors are printed without a traceback."""
    try:
        demo()
    except (RequirementError, CommandError) as error:
        console.print(str(error), markup=False, style="red", soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
