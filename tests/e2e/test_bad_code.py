"""Invalid code: a clear message on the trial, in its pod and on the study."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import pytest

from tests.e2e.kit import Kubectl, code, condition, optuna_record, phase, study

OBJECTIVE = {"objective": "train:objective"}
SCRIPT = {"script": "train.py"}
SEARCH_SPACE = [{"name": "x", "type": "float", "low": 0, "high": 10}]


class Bad(NamedTuple):
    """What a study runs, and what the messages must contain."""

    trial: dict[str, Any]
    code: str
    says: str
    space: list[dict[str, Any]] | None = None


CASES = {
    "no-optimize": Bad(
        SCRIPT,
        "import optuna\nstudy = optuna.create_study()\nstudy.ask\n",
        "train.py ended without calling study.optimize",
    ),
    "two-studies": Bad(
        SCRIPT,
        "import optuna\na = optuna.create_study()\nb = optuna.create_study()\n"
        "a.optimize(lambda trial: 1.0)\nb.optimize(lambda trial: 1.0)\n",
        "train.py calls optimize more than once (line 4, 5)",
    ),
    "jobs": Bad(
        SCRIPT,
        "import optuna\noptuna.create_study().optimize(lambda trial: 1.0, n_jobs=4)\n",
        "n_jobs=4, but each process runs only one trial",
    ),
    "none": Bad(OBJECTIVE, "def objective(trial): pass", "The value None could not be cast to float"),
    "text": Bad(
        OBJECTIVE, "def objective(trial): return 'good'", "The value 'good' could not be cast to float"
    ),
    "nan": Bad(OBJECTIVE, "def objective(trial): return float('nan')", "The value nan is not acceptable"),
    "too-many": Bad(
        OBJECTIVE, "def objective(trial): return 1.0, 2.0", "The number of the values 2 did not match"
    ),
    "range": Bad(
        OBJECTIVE,
        "def objective(trial): return trial.suggest_float('x', 20, 30)",
        "spec.searchSpace declares it as FloatDistribution(",
        SEARCH_SPACE,
    ),
    "undeclared": Bad(
        OBJECTIVE,
        "def objective(trial): return trial.suggest_float('y', 0, 1)",
        "trial 0 has no parameter y in spec.searchSpace",
        SEARCH_SPACE,
    ),
    "no-metric": Bad(
        {"command": ["sh", "-c", "echo accuracy=0.9"]},
        "",
        "The program succeeded, but no line of its output has a value for loss. It has values for accuracy.",
        SEARCH_SPACE,
    ),
    "import": Bad(OBJECTIVE, "import no_such_package", "No module named 'no_such_package'"),
    "module": Bad({"objective": "trian:objective"}, "def objective(trial): ...", "Module 'trian' not found"),
}


def manifest(name: str, bad: Bad, image: str) -> dict[str, Any]:
    made = study(name, image, maxTrials=3, parallelism=1, maxFailedTrials=0)
    spec = made["spec"]
    del spec["searchSpace"], spec["trial"]["objective"]
    spec["trial"] |= bad.trial
    if bad.space:
        spec["searchSpace"] = bad.space
    if not bad.code:
        del spec["trial"]["source"]
    del spec["trial"]["template"]["spec"]["containers"][0]["resources"]["limits"]  # more studies than GPUs
    return made


def messages(kubectl: Kubectl, name: str) -> dict[str, Any]:
    """Return the messages of a failed study, by where they appear."""
    ended = kubectl.wait(name, phase("Completed", "Failed"))
    with optuna_record(kubectl, name) as record:
        [trial] = record.trials
    [pod] = kubectl.ended_pods(f"{name}-{trial.number}")
    terminated = pod["status"]["containerStatuses"][0]["state"]["terminated"]
    return {
        "trial": f"{trial.state.name} {json.dumps(trial.user_attrs, ensure_ascii=False)}",
        "pod": json.loads(terminated["message"])["message"],
        "condition": condition(ended, "Failed").get("message", ""),
        "event": kubectl.run("events", "--for", f"tuningstudy/{name}"),
    }


@pytest.mark.long
def test_bad_code_is_reported_on_the_trial_in_its_pod_and_on_the_study(kubectl: Kubectl, image: str) -> None:
    """The studies run in parallel."""
    objects = [code(f"{name}-code", bad.code) for name, bad in CASES.items()]
    kubectl.apply(*objects, *(manifest(name, bad, image) for name, bad in CASES.items()))
    silent = [
        f"{name} in its {where}: {text}"
        for name, bad in CASES.items()
        for where, text in messages(kubectl, name).items()
        if bad.says not in text
    ]
    assert not silent, "\n".join(silent)
