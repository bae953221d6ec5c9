"""Whether studies find as good values as with plain Optuna, and what pruning saves.

    uv run --group bench python -m tests.bench.quality

Both run the same trials in the same order of events, with the same seeds: as many at a time as `parallelism`,
of which the one that has run longest ends first. Ours go through the study server by HTTP. Medians over the
seeds of the best value after all trials. The digits are those of examples/digits, whose trials report their
accuracy after each epoch.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import statistics
import sys
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import optuna
import typer
from optuna.distributions import FloatDistribution

from tests.support.study_server import RunningServer, running_server

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
EPOCHS = 15
Params = dict[str, float]


def branin(x: Params) -> float:
    a, b = 15 * x["a"] - 5, 15 * x["b"]
    first = b - 5.1 / (4 * math.pi**2) * a**2 + 5 / math.pi * a - 6
    return first**2 + 10 * (1 - 1 / (8 * math.pi)) * math.cos(a) + 10


def rosenbrock(x: Params) -> float:
    scaled = [4 * value - 2 for value in x.values()]
    return sum(100 * (b - a * a) ** 2 + (1 - a) ** 2 for a, b in itertools.pairwise(scaled))


def rastrigin(x: Params) -> float:
    scaled = [4 * value - 2 for value in x.values()]
    return sum(value**2 - 10 * math.cos(2 * math.pi * value) + 10 for value in scaled)


FUNCTIONS: dict[str, tuple[Callable[[Params], float], str]] = {
    "Branin, 2 parameters": (branin, "ab"),
    "Rosenbrock, 4 parameters": (rosenbrock, "abcd"),
    "Rastrigin, 6 parameters": (rastrigin, "abcdef"),
}


class Ours:
    """A study on the study server."""

    def __init__(self, server: RunningServer, name: str, parameters: str, seed: int) -> None:
        self._server, self._name, self._path = server, name, f"/v1/studies/ml/{name}"
        self._operator = server.operator()
        space = [{"name": p, "type": "float", "low": 0, "high": 1} for p in parameters]
        definition = {
            "objectives": [{"metric": "loss", "direction": "minimize"}],
            "searchSpace": space,
            "sampler": {"name": "TPESampler", "args": {"seed": seed}},
            "pruner": {"name": "NopPruner"},
        }
        self._operator.put(self._path, json=definition).raise_for_status()
        self._seen: set[int] = set()

    def ask(self, parallelism: int) -> tuple[int, Params]:
        body = {"parallelism": parallelism, "maxTrials": 10**6}
        reply = self._operator.post(f"{self._path}/ask", json=body).raise_for_status()
        [new] = [trial for trial in reply.json()["running"] if trial["number"] not in self._seen]
        self._seen.add(new["number"])
        return new["number"], new["parameters"]

    def tell(self, number: int, value: float) -> None:
        pod = self._server.pod("ml", self._name, number)
        url = f"{self._server.trial_url('ml', self._name, number)}/result"
        pod.post(url, json={"state": "COMPLETE", "values": [value]}).raise_for_status()
        pod.close()


class Optunas:
    """A study of plain Optuna."""

    def __init__(self, parameters: str, seed: int) -> None:
        self._study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
        self._space = {p: FloatDistribution(0, 1) for p in parameters}

    def ask(self, _: int) -> tuple[int, Params]:
        trial = self._study.ask(self._space)
        return trial.number, trial.params

    def tell(self, number: int, value: float) -> None:
        self._study.tell(number, value)


def main(
    seeds: Annotated[int, typer.Option(help="How many seeds.")] = 20,
    trials: Annotated[int, typer.Option(help="Trials of each study.")] = 60,
) -> None:
    """Measure, and print the tables as Markdown."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    print("| function | parallelism | Optuna | ours | studies with the same trials |\n|---|---|---|---|---|")
    with running_server() as server:
        for function in FUNCTIONS:
            for parallelism in (1, 4, 16):
                print(_row(server, function, parallelism, seeds, trials), flush=True)
    print("\n| digits | epochs | accuracy |\n|---|---|---|")
    for line in _savings(min(seeds, 5)):
        print(line, flush=True)


def _row(server: RunningServer, function: str, parallelism: int, seeds: int, trials: int) -> str:
    objective, parameters = FUNCTIONS[function]
    both = []
    for seed in range(seeds):
        ours = Ours(server, f"{objective.__name__}-{parallelism}-{seed}", parameters, seed)
        both.append([_values(s, objective, parallelism, trials) for s in (Optunas(parameters, seed), ours)])
    optunas, found = (statistics.median(min(values) for values in side) for side in zip(*both, strict=True))
    same = sum(one == other for one, other in both)
    return f"| {function} | {parallelism} | {optunas:.4f} | {found:.4f} | {same} of {seeds} |"


def _values(
    study: Ours | Optunas, objective: Callable[[Params], float], parallelism: int, trials: int
) -> list[float]:
    running: deque[tuple[int, Params]] = deque()
    values = []
    for started in range(trials + parallelism):
        if started >= parallelism:
            number, params = running.popleft()
            values.append(objective(params))
            study.tell(number, values[-1])
        if started < trials:
            running.append(study.ask(len(running) + 1))
    return values


def _savings(seeds: int) -> Iterator[str]:
    """Yield what a study of 20 trials costs with a pruner and without one, in epochs."""
    sys.path.insert(0, str(DIGITS))
    from train import objective

    pruners: dict[str, Callable[[], Any]] = {
        "no pruner": optuna.pruners.NopPruner,
        "MedianPruner": lambda: optuna.pruners.MedianPruner(n_startup_trials=5),
        "HyperbandPruner": lambda: optuna.pruners.HyperbandPruner(max_resource=EPOCHS),
    }
    without = 0
    for name, make in pruners.items():
        epochs, best = 0, []
        for seed in range(seeds):
            sampler = optuna.samplers.TPESampler(seed=seed)
            study = optuna.create_study(direction="maximize", sampler=sampler, pruner=make())
            with contextlib.redirect_stdout(io.StringIO()):
                study.optimize(objective, n_trials=20)
            epochs += sum(len(trial.intermediate_values) for trial in study.trials)
            best.append(study.best_value)
        without = without or epochs
        saved = f", {1 - epochs / without:.0%} saved" if epochs < without else ""
        yield f"| {name} | {epochs // seeds}{saved} | {statistics.median(best):.4f} |"


if __name__ == "__main__":
    typer.run(main)
