"""Runs Optuna scripts of others, as they are, as trials and as the refit; prints what came of them.

    git clone https://github.com/optuna/optuna-examples
    uv run python -m tests.compat.try_optuna_examples --python PYTHON optuna-examples/sklearn/*.py

PYTHON is one that has the scripts' packages. The study server is real and in this process; processes take the
place of pods. The manifest is what the script asks for, as `kubectl tuning init` finds it.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import optuna
import typer

from tests.support.study_server import RunningServer, running_server
from tests.unit.trainer.pod import Ended, Pod

DEFAULTS = {"sampler": {"name": "TPESampler", "args": {}}, "pruner": {"name": "MedianPruner", "args": {}}}
ASKED = ("directions", "sampler", "pruner", "initialTrials")
"""What of the runtime's `init` document the manifest gets."""


@dataclass
class Tried:
    """What happened to a script."""

    name: str
    manifest: dict[str, Any] = field(default_factory=dict)
    states: Counter[str] = field(default_factory=Counter)
    reports: int = 0
    refit: str = "none"
    messages: list[str] = field(default_factory=list)

    def row(self) -> str:
        """Return the script's row of a Markdown table."""
        states = ", ".join(f"{count} {state}" for state, count in self.states.items())
        cells = [
            self.name,
            _worded(self.manifest),
            states,
            str(self.reports),
            self.refit,
            " / ".join(self.messages),
        ]
        return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


class Trying:
    """One script, its folder and its study."""

    def __init__(
        self, server: RunningServer, script: Path, folder: Path, python: str, arguments: list[str]
    ) -> None:
        self.server = server
        self.script = script
        self.folder = folder
        self.python = python
        self.arguments = arguments
        self.tried = Tried(f"{script.parent.name}/{script.name}")
        self.study = f"{script.parent.name}-{script.stem}".replace("_", "-")

    def run(self, trials: int, seconds: float, patience: float) -> Tried:
        """Run trials until there are enough or the time is over, then the refit."""
        self.tried.manifest = self._init(patience)
        if not self._declare():
            return self.tried
        give_up = time.monotonic() + seconds
        while running := self._ask(trials if time.monotonic() < give_up else 0):
            self._trial(running[0]["number"], patience)
        if self.tried.states["COMPLETE"]:
            self._refit(patience)
        return self.tried

    @property
    def _path(self) -> str:
        return f"/v1/studies/ml/{self.study}"

    def _init(self, patience: float) -> dict[str, Any]:
        """Return what the script asks for; nothing if that is unknown: then its trials report why."""
        pod = Pod(self.folder, "http://127.0.0.1")
        shutil.copy(self.script, pod.source)
        document = self.folder / "init.json"
        command = [self.python, str(pod.zip), "init", "--output", str(document)]
        command += [str(pod.source / self.script.name), *self.arguments]
        home = {"PATH": pod.environ["PATH"], "HOME": str(self.folder)}
        subprocess.run(command, cwd=self.folder, env=home, timeout=patience, capture_output=True, check=False)
        asked = json.loads(document.read_text())["study"] or {}
        return {name: asked[name] for name in ASKED if asked.get(name)}

    def _declare(self) -> bool:
        directions = self.tried.manifest.get("directions", ["minimize"])
        definition: dict[str, Any] = {
            "objectives": [
                {"metric": f"value{i}", "direction": direction} for i, direction in enumerate(directions)
            ],
            **{field: asked for field, asked in self.tried.manifest.items() if field != "directions"},
        }
        reply = self.server.operator().put(self._path, json=definition)
        if reply.is_error:
            self.tried.messages.append(f"manifest: {reply.text}")
        return reply.is_success

    def _ask(self, trials: int) -> list[dict[str, Any]]:
        asked = {"parallelism": 1, "maxTrials": trials}
        summary = self.server.operator().post(f"{self._path}/ask", json=asked).raise_for_status().json()
        return summary["running"]  # type: ignore[no-any-return]

    def _trial(self, number: int, patience: float) -> None:
        url = self.server.trial_url("ml", self.study, number)
        ended = self._pod(url, self.server.pod_token("ml", self.study, number), patience)
        view = self.server.pod("ml", self.study, number).get(url).raise_for_status().json()
        failure = view["trial"].get("failure") or {}
        self.tried.states[view["trial"]["state"]] += 1
        self.tried.reports += len(view["reported"])
        self._note("trial", ended, failure)
        if view["trial"]["state"] == "RUNNING":
            result = {"state": "FAIL", "failure": {"category": "Timeout", "message": "the process ended so"}}
            self.server.operator().post(f"{url}/result", json=result).raise_for_status()

    def _refit(self, patience: float) -> None:
        operator = self.server.operator()
        summary = operator.get(self._path).raise_for_status().json()
        best = next(iter([summary["best"]] if summary.get("best") else summary["paretoFront"]), None)
        if best is None:
            self.tried.refit = "no feasible trial"
            return
        begin = {"trial": best["number"], "digest": "1"}
        operator.put(f"{self._path}/refit", json=begin).raise_for_status()
        token = self.server.pod_token("ml", self.study, "refit")  # type: ignore[arg-type]  its Job is named so
        url = f"{self.server.url}{self._path}/refit"
        ended = self._pod(url, token, patience, TUNING_ROLE="final")
        refit = operator.get(self._path).raise_for_status().json()["refit"]
        failure = refit.get("failure") or {}
        self.tried.refit = "FAIL" if failure else refit["state"]
        self._note("refit", ended, failure)

    def _pod(self, url: str, token: str, patience: float, **environ: str) -> Ended:
        manifest = DEFAULTS | self.tried.manifest
        if len(manifest.get("directions", [])) > 1:
            manifest["pruner"] = {"name": "NopPruner", "args": {}}
        environ |= {"HOME": str(self.folder), "TUNING_CONFIG": json.dumps(manifest)}
        pod = Pod(self.folder, url, **environ)
        pod.token.write_text(token)
        shutil.copy(self.script, pod.source)
        try:
            return pod.run(
                "script", self.script.name, *self.arguments, python=(self.python,), timeout=patience
            )
        except subprocess.TimeoutExpired:
            return Ended(-1, "", f"not within {patience:.0f} s")

    def _note(self, what: str, ended: Ended, failure: dict[str, Any]) -> None:
        if ended.code:
            lines = ended.err.strip().splitlines() or [""]
            message = f"{what}: {failure.get('message') or f'exit code {ended.code}: {lines[-1]}'}"
        else:
            unused = re.findall(r"tuning: (?:the argument )?(.+?)(?: of optimize)? is ignored", ended.err)
            message = f"ignored: {', '.join(dict.fromkeys(unused))}" if unused else ""
        message = message.replace("\n", " ")[:400]
        if message and message not in self.tried.messages:
            self.tried.messages.append(message)
        (self.folder / f"{what}.log").write_text(repr(ended))


def _worded(manifest: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {', '.join(value) if name == 'directions' else json.dumps(value)}"
        for name, value in manifest.items()
    )


def main(
    scripts: Annotated[list[Path], typer.Argument(exists=True, help="Optuna scripts.")],
    python: Annotated[str, typer.Option(help="A Python that has the scripts' packages.")],
    data: Annotated[Path | None, typer.Option(help="A folder to copy into each working directory.")] = None,
    logs: Annotated[Path | None, typer.Option(help="Where to keep the last logs of each script.")] = None,
    arguments: Annotated[str, typer.Option(help="Arguments for the scripts, separated by spaces.")] = "",
    trials: int = 8,
    seconds: Annotated[float, typer.Option(help="How long to begin trials of a script.")] = 60,
    patience: Annotated[float, typer.Option(help="Seconds that a process may take.")] = 300,
) -> None:
    """Try the scripts; print a Markdown table."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    print(
        "| script | manifest | trials | reports | refit | messages |\n|---|---|---|---|---|---|", flush=True
    )
    for script in scripts:
        with running_server() as server, tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            if data:
                shutil.copytree(data, folder, dirs_exist_ok=True)
            trying = Trying(server, script, folder, python, arguments.split())
            print(trying.run(trials, seconds, patience).row(), flush=True)
            for log in folder.glob("*.log"):
                if logs:
                    logs.mkdir(parents=True, exist_ok=True)
                    shutil.copy(log, logs / f"{script.parent.name}-{script.stem}-{log.name}")


if __name__ == "__main__":
    typer.run(main)
