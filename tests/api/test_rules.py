"""Each rule of the resource on a real API server: the good passes, the bad is refused in words that help."""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from tuning_operator.resource import crdgen, rules

from tests.api.api import SETUP_MAY_BUILD, Api, Cause
from tests.api.manifest import GOOD, MINIMAL, REMOVED, changed

pytestmark = SETUP_MAY_BUILD

PARETO = {
    "spec.objectives.1": {"metric": "latency", "direction": "minimize"},
    "spec.pruner": REMOVED,
    "spec.maxTrialsWithoutImprovement": REMOVED,
}
"""The changes that make a good manifest a good one with two objectives."""

COMMAND = {"spec.trial.command": ["./train"], "spec.trial.objective": REMOVED}
"""The changes that make a good manifest a good one with a command."""

TRAINER = {"containers": [{"name": "trainer", "image": "torch"}]}


@dataclass(frozen=True)
class Case:
    """A change that is refused for one reason, and the nearest change that is not (where it is not none).

    `field` and `says` are what the user must read: where it is, what is wrong, how to mend it.
    """

    name: str
    bad: dict[str, Any]
    field: str
    says: str
    good: dict[str, Any] = field(default_factory=dict)


SPACE = "spec.searchSpace"
LR, DROPOUT, LAYERS, UNITS, OPTIMIZER = (f"spec.searchSpace.{place}" for place in range(5))
CONTAINERS = "spec.trial.template.spec.containers"

CASES = [
    # The name
    Case(
        "name-with-dot",
        {"metadata.name": "mnist.v2"},
        "metadata.name",
        "mnist.v2 has a dot,"
        " but the names of its Jobs and pods begin with it: use letters, digits and dashes",
        {"metadata.name": "mnist-v2"},
    ),
    Case(
        "name-too-long",
        {"metadata.name": "m" * 46},
        "metadata.name",
        "has 46 characters, but 45 are possible, "
        "since the names of its Jobs and pods begin with it: shorten it",
        {"metadata.name": "m" * 45},
    ),
    # Objectives
    Case("no-objectives", {"spec.objectives": []}, "spec.objectives", "should have at least 1 items"),
    Case(
        "too-many-objectives",
        {"spec.objectives": [{"metric": f"m{i}", "direction": "maximize"} for i in range(9)]},
        "spec.objectives",
        "must have at most 8 items",
    ),
    Case(
        "duplicate-metric",
        PARETO | {"spec.objectives.1": {"metric": "accuracy", "direction": "minimize"}},
        "spec.objectives",
        "accuracy is declared more than once: rename or remove one",
        PARETO,
    ),
    Case(
        "unknown-direction",
        {"spec.objectives.0.direction": "max"},
        "spec.objectives[0].direction",
        'Unsupported value: "max": supported values: "maximize", "minimize"',
        {"spec.objectives.0.direction": "minimize"},
    ),
    Case(
        "metric-name",
        {"spec.objectives.0.metric": "val accuracy"},
        "spec.objectives[0].metric",
        "val accuracy must begin with a letter or underscore and go on with letters, digits, _ . -",
        {"spec.objectives.0.metric": "val_accuracy"},
    ),
    Case(
        "target-is-no-number",
        {"spec.objectives.0.target": "best"},
        "spec.objectives[0].target",
        "must be of type number",
        {"spec.objectives.0.target": 1},
    ),
    # Parameters
    Case(
        "duplicate-parameter",
        {f"{DROPOUT}.name": "lr"},
        SPACE,
        "lr is declared more than once: rename or remove one",
        {f"{DROPOUT}.name": "lr2"},
    ),
    Case(
        "parameter-name",
        {f"{LR}.name": "1r"},
        "spec.searchSpace[0].name",
        "1r must begin with a letter or underscore",
        {f"{LR}.name": "_lr.initial-value"},
    ),
    Case(
        "unknown-type",
        {f"{LR}.type": "double"},
        "spec.searchSpace[0].type",
        'Unsupported value: "double": supported values: "float", "int", "categorical"',
    ),
    Case("no-parameters", {SPACE: []}, SPACE, "should have at least 1 items", {SPACE: REMOVED}),
    Case(
        "low-missing",
        {f"{LR}.low": REMOVED},
        "spec.searchSpace[0].low",
        "lr is of type float, which needs low: say where its range begins",
    ),
    Case(
        "high-missing",
        {f"{LAYERS}.high": REMOVED},
        "spec.searchSpace[2].high",
        "n_layers is of type int, which needs high: say where its range ends",
    ),
    Case(
        "low-above-high",
        {f"{LAYERS}.low": 4},
        "spec.searchSpace[2].low",
        "n_layers has low 4 above high 3: swap them",
        {f"{LAYERS}.low": 3},
    ),
    Case(
        "log-from-zero",
        {f"{LR}.low": 0},
        "spec.searchSpace[0].low",
        "lr is sampled on a logarithmic scale (log), so low must be above 0, not 0: raise it or remove log",
        {f"{LR}.low": 0, f"{LR}.log": False},
    ),
    Case(
        "log-from-below-zero",
        {f"{LR}.low": -1},
        "spec.searchSpace[0].low",
        "so low must be above 0, not -1: raise it or remove log",
        {f"{LR}.low": 1e-300},
    ),
    Case(
        "step-with-log",
        {f"{LR}.step": 0.01},
        "spec.searchSpace[0].step",
        "lr has both step and log, which exclude each other: remove one",
        {f"{LR}.step": 0.01, f"{LR}.log": False},
    ),
    Case(
        "step-of-zero",
        {f"{DROPOUT}.step": 0},
        "spec.searchSpace[1].step",
        "dropout has step 0: it must be above 0; remove it for a range without steps",
        {f"{DROPOUT}.step": REMOVED},
    ),
    Case(
        "step-below-zero",
        {f"{UNITS}.step": -64},
        "spec.searchSpace[3].step",
        "units has step -64: it must be above 0",
    ),
    Case(
        "step-beyond-the-range",
        {f"{UNITS}.step": 193},
        "spec.searchSpace[3].step",
        "units has step 193, more than its whole range, so only 64 would be tried: lower the step, or raise",
        {f"{UNITS}.step": 192},
    ),
    Case(
        "step-too-small",
        {f"{DROPOUT}.step": 1e-30},
        "spec.searchSpace[1].step",
        "dropout has step 1e-30, too small for a range from 0 to 0.5: raise it, or remove it",
        {f"{DROPOUT}.low": 0.1, f"{DROPOUT}.high": 0.3, f"{DROPOUT}.step": 0.2},
    ),
    Case(
        "fractional-low-of-int",
        {f"{LAYERS}.low": 0.5},
        "spec.searchSpace[2].low",
        "n_layers is an int, so its low must be a whole number (at most 2^53), not 0.5: "
        "round it, or make the type float",
        {f"{LAYERS}.low": 0.5, f"{LAYERS}.type": "float"},
    ),
    Case(
        "fractional-high-of-int",
        {f"{LAYERS}.high": 3.5},
        "spec.searchSpace[2].high",
        "n_layers is an int, so its high must be a whole number (at most 2^53), not 3.5",
        {f"{LAYERS}.high": 3.0},
    ),
    Case(
        "fractional-step-of-int",
        {f"{UNITS}.step": 0.5},
        "spec.searchSpace[3].step",
        "units is an int, so its step must be a whole number (at most 2^53), not 0.5",
    ),
    Case(
        "int-too-large",
        {f"{LAYERS}.high": 1e300},
        "spec.searchSpace[2].high",
        "n_layers is an int, so its high must be a whole number (at most 2^53), not 1e+300",
        {f"{LAYERS}.high": 2**53},
    ),
    Case(
        "low-is-a-text",
        {f"{LR}.low": "1e-5"},
        "spec.searchSpace[0].low",
        "must be of type number",
    ),
    Case(
        "choices-missing",
        {f"{OPTIMIZER}.choices": REMOVED},
        "spec.searchSpace[4].choices",
        "optimizer is categorical, which needs choices: list the values to choose from",
        {f"{OPTIMIZER}.choices": ["Adam", 1, 0.5, True]},
    ),
    Case(
        "choices-empty",
        {f"{OPTIMIZER}.choices": []},
        "spec.searchSpace[4].choices",
        "should have at least 1 items",
        {f"{OPTIMIZER}.choices": ["Adam"]},
    ),
    Case(
        "choices-twice",
        {f"{OPTIMIZER}.choices": ["Adam", "SGD", "Adam"]},
        "spec.searchSpace[4].choices[2]",
        'Duplicate value: "Adam"',
        {f"{OPTIMIZER}.choices": ["1", 1]},
    ),
    Case(
        "when-any-of-twice",
        {f"{UNITS}.when": {"parameter": "n_layers", "anyOf": [2, 2]}},
        "spec.searchSpace[3].when.anyOf[1]",
        "Duplicate value: 2",
    ),
    Case(
        "choices-of-objects",
        {f"{OPTIMIZER}.choices": [{"name": "Adam"}]},
        "spec.searchSpace[4].choices[0]",
        "must have at most 0 items",
    ),
    Case(
        "choices-of-lists",
        {f"{OPTIMIZER}.choices": ["Adam", [1, 2]]},
        "spec.searchSpace[4].choices[1]",
        "must have at most 0 items",
    ),
    Case(
        "choices-of-float",
        {f"{LR}.choices": [0.1, 0.01]},
        "spec.searchSpace[0].choices",
        "lr is of type float, which takes no choices: remove them, or make it categorical",
    ),
    *(
        Case(
            f"{bound}-of-categorical",
            {f"{OPTIMIZER}.{bound}": value},
            f"spec.searchSpace[4].{bound}",
            f"optimizer is categorical and takes no {bound}: remove it, or make the type float or int",
        )
        for bound, value in {"low": 1, "high": 3, "step": 1, "log": True}.items()
    ),
    # Conditions
    Case(
        "when-unknown",
        {f"{UNITS}.when.parameter": "n_layer"},
        SPACE,
        "units depends on n_layer (when.parameter), which the search space does not have: "
        "declare it earlier, or correct the name",
    ),
    Case(
        "when-later",
        {f"{LR}.when": {"parameter": "optimizer", "equals": "Adam"}},
        SPACE,
        "a parameter can depend only on one that is declared before it: "
        "move each when.parameter above the parameters that name it",
        {f"{OPTIMIZER}.when": {"parameter": "lr", "atMost": 0.01}},
    ),
    Case(
        "when-itself",
        {f"{UNITS}.when.parameter": "units"},
        SPACE,
        "a parameter can depend only on one that is declared before it",
    ),
    Case(
        "when-without-comparison",
        {f"{UNITS}.when": {"parameter": "n_layers"}},
        "spec.searchSpace[3].when",
        "give exactly one of equals, anyOf, atLeast and atMost",
        {f"{UNITS}.when": {"parameter": "n_layers", "equals": 2}},
    ),
    Case(
        "when-with-two-comparisons",
        {f"{UNITS}.when": {"parameter": "n_layers", "anyOf": [2, 3], "atLeast": 2}},
        "spec.searchSpace[3].when",
        "give exactly one of equals, anyOf, atLeast and atMost",
        {f"{UNITS}.when": {"parameter": "n_layers", "anyOf": [2, 3]}},
    ),
    Case(
        "when-any-of-nothing",
        {f"{UNITS}.when": {"parameter": "n_layers", "anyOf": []}},
        "spec.searchSpace[3].when.anyOf",
        "should have at least 1 items",
    ),
    Case(
        "when-compares-a-categorical",
        {
            f"{SPACE}.5": {
                "name": "momentum",
                "type": "float",
                "low": 0,
                "high": 1,
                "when": {"parameter": "optimizer", "atLeast": 2},
            }
        },
        SPACE,
        "atLeast and atMost compare numbers, but a categorical parameter has none: use equals or anyOf",
        {
            f"{SPACE}.5": {
                "name": "momentum",
                "type": "float",
                "low": 0,
                "high": 1,
                "when": {"parameter": "optimizer", "equals": "SGD"},
            }
        },
    ),
    # Sampler and pruner
    Case(
        "unknown-sampler",
        {"spec.sampler": {"name": "tpe"}},
        "spec.sampler.name",
        'Unsupported value: "tpe": supported values: "BruteForceSampler", "CmaEsSampler", "GPSampler", ',
        {"spec.sampler": {"name": "RandomSampler"}},
    ),
    Case(
        "unknown-pruner",
        {"spec.pruner": {"name": "median"}},
        "spec.pruner.name",
        'Unsupported value: "median": supported values: "HyperbandPruner", "MedianPruner", "NopPruner", ',
        {"spec.pruner": {"name": "HyperbandPruner", "args": {"min_resource": 1, "max_resource": "auto"}}},
    ),
    Case(
        "pruner-with-several-objectives",
        PARETO | {"spec.pruner": {"name": "MedianPruner"}},
        "spec.pruner",
        "MedianPruner cannot prune with several objectives (Optuna prunes for one only): "
        "remove pruner, or leave one objective",
        PARETO | {"spec.pruner": {"name": "NopPruner"}},
    ),
    Case(
        "cma-es-with-several-objectives",
        PARETO | {"spec.sampler.name": "CmaEsSampler"},
        "spec.sampler.name",
        "CmaEsSampler works for one objective only: use TPESampler, NSGAIISampler or GPSampler",
        {"spec.sampler.name": "CmaEsSampler"},
    ),
    Case(
        "improvement-of-several-objectives",
        PARETO | {"spec.maxTrialsWithoutImprovement": 5},
        "spec.maxTrialsWithoutImprovement",
        "several objectives have no single best value to improve: remove it and use maxTrials or timeout",
        PARETO,
    ),
    *(
        Case(
            f"{sampler}-over-an-endless-range",
            {"spec.sampler": {"name": sampler}},
            SPACE,
            f"{sampler} tries every value, but lr has endlessly many: give it a step, or use another sampler",
            {
                "spec.sampler": {"name": sampler},
                LR: {"name": "lr", "type": "float", "low": 0, "high": 1, "step": 0.1},
            },
        )
        for sampler in ("GridSampler", "BruteForceSampler")
    ),
    Case(
        "grid-without-a-search-space",
        {"spec.sampler": {"name": "GridSampler"}, SPACE: REMOVED},
        SPACE,
        "GridSampler needs the search space: declare it, or use another sampler",
        {"spec.sampler": {"name": "BruteForceSampler"}, SPACE: REMOVED},
    ),
    # Limits
    Case("no-trials", {"spec.maxTrials": 0}, "spec.maxTrials", "should be greater than or equal to 1"),
    Case("max-trials-missing", {"spec.maxTrials": REMOVED}, "spec.maxTrials", "Required value"),
    Case("max-trials-of-a-fraction", {"spec.maxTrials": 1.5}, "spec.maxTrials", "must be of type integer"),
    Case(
        "no-parallelism", {"spec.parallelism": 0}, "spec.parallelism", "should be greater than or equal to 1"
    ),
    Case(
        "too-parallel",
        {"spec.parallelism": 10_001},
        "spec.parallelism",
        "should be less than or equal to 10000",
        {"spec.parallelism": 10_000},
    ),
    Case(
        "negative-failures",
        {"spec.maxFailedTrials": -1},
        "spec.maxFailedTrials",
        "should be greater than or equal to 0",
        {"spec.maxFailedTrials": 0},
    ),
    *(
        Case(
            f"no-duration-{path}",
            {path: "1 hour"},
            path,
            "1 hour is not a duration: write it like 90s, 20m, 1h30m or 2d",
            {path: "1d1h1m1s"},
        )
        for path in (
            "spec.timeout",
            "spec.trial.timeout",
            "spec.trial.pruneGrace",
            "spec.trial.ttlAfterFinished",
        )
    ),
    *(
        Case(
            f"no-time-{path}",
            {path: "0h0m"},
            path,
            "0h0m is no time at all: make it longer, or remove it",
            {path: "1s"},
        )
        for path in ("spec.timeout", "spec.trial.timeout")
    ),
    Case(
        "unknown-deletion-policy",
        {"spec.deletionPolicy": "Keep"},
        "spec.deletionPolicy",
        'Unsupported value: "Keep": supported values: "Retain", "Delete"',
        {"spec.deletionPolicy": "Delete"},
    ),
    Case(
        "initial-trial-of-objects",
        {"spec.initialTrials": [{"lr": {"low": 1}}]},
        "spec.initialTrials[0].lr",
        "must have at most 0 items",
        {"spec.initialTrials": [{"lr": 0.1, "optimizer": "Adam", "flag": True, "n_layers": 1}, {}]},
    ),
    # What a trial runs
    Case(
        "objective-and-command",
        {"spec.trial.command": ["python", "train.py"]},
        "spec.trial.command",
        "a trial runs either objective or command: remove one",
        {"spec.trial.command": ["python", "train.py"], "spec.trial.objective": REMOVED},
    ),
    Case(
        "script-and-objective",
        {"spec.trial.script": "train.py"},
        "spec.trial.script",
        "a trial runs either script or objective or command: leave one of them",
        {"spec.trial.script": "train.py", "spec.trial.objective": REMOVED},
    ),
    Case(
        "script-that-is-no-file",
        {"spec.trial.script": "train", "spec.trial.objective": REMOVED},
        "spec.trial.script",
        "train must be a Python file, for example train.py",
        {"spec.trial.script": "examples/train.py", "spec.trial.objective": REMOVED},
    ),
    Case(
        "nothing-to-run",
        {"spec.trial.objective": REMOVED},
        "spec.trial",
        "say what a trial runs: objective (module:function), script (a whole Optuna script) or command",
    ),
    Case(
        "objective-without-function",
        {"spec.trial.objective": "train"},
        "spec.trial.objective",
        "train must be module:function, for example train:objective",
        {"spec.trial.objective": "package.train:Objective.run"},
    ),
    Case(
        "objective-in-a-file",
        {"spec.trial.objective": "train.py:objective"},
        "spec.trial.objective",
        "train.py:objective names a file: leave out .py, since a module has no ending",
        {"spec.trial.objective": "train.pytorch:objective"},
    ),
    Case(
        "command-in-one-text",
        {"spec.trial.command": ["python train.py"], "spec.trial.objective": REMOVED},
        "spec.trial.command",
        "python train.py would be the name of one program: write each argument as an item of its own",
        {"spec.trial.command": ["sh", "-c", "python train.py"], "spec.trial.objective": REMOVED},
    ),
    Case(
        "command-without-search-space",
        {"spec.trial.command": ["train"], "spec.trial.objective": REMOVED, SPACE: REMOVED},
        SPACE,
        "a command cannot suggest its own parameters: declare them",
        {"spec.trial.command": ["train"], "spec.trial.objective": REMOVED},
    ),
    Case(
        "empty-command",
        {"spec.trial.command": [], "spec.trial.objective": REMOVED},
        "spec.trial.command",
        "least 1",
    ),
    Case(
        "source-without-config-map",
        {"spec.trial.source": {}},
        "spec.trial.source.configMap",
        "Required value",
        {"spec.trial.source": REMOVED},
    ),
    Case(
        "python-with-arguments",
        {"spec.trial.python": "python3 -u"},
        "spec.trial.python",
        "python3 -u must be one program without arguments, for example python3",
        {"spec.trial.python": "/opt/conda/bin/python"},
    ),
    Case("template-missing", {"spec.trial.template": REMOVED}, "spec.trial.template", "Required value"),
    Case(
        "no-container-trainer",
        {f"{CONTAINERS}.0.name": "main"},
        "spec.trial.template.spec.containers",
        "the container named trainer is the one that trains: name one so, and only one",
        {f"{CONTAINERS}.1": {"name": "main", "image": "x"}},
    ),
    Case(
        "two-containers-trainer",
        {f"{CONTAINERS}.1": {"name": "trainer", "image": "x"}},
        "spec.trial.template.spec.containers",
        "the container named trainer is the one that trains: name one so, and only one",
    ),
    Case(
        "container-without-image",
        {f"{CONTAINERS}.0.image": REMOVED},
        "spec.trial.template.spec.containers[0].image",
        "Required value",
    ),
    *(
        Case(
            f"{key}-of-the-trainer",
            {f"{CONTAINERS}.0.{key}": ["python", "train.py"]},
            "spec.trial.template.spec.containers",
            "command and args of the container trainer are set by the study: "
            "say what to run in objective, script or command, beside the template",
            {f"{CONTAINERS}.1": {"name": "sidecar", "image": "x", key: ["serve"]}},
        )
        for key in ("command", "args")
    ),
    Case(
        "restart-policy",
        {"spec.trial.template.spec.restartPolicy": "OnFailure"},
        "spec.trial.template.spec.restartPolicy",
        "must be Never or left out: what fails is told so, not started again in place",
        {"spec.trial.template.spec.restartPolicy": REMOVED},
    ),
    # A command's metrics
    Case(
        "metrics-of-an-objective",
        {"spec.trial.metrics": {"pattern": "accuracy=(.*)"}},
        "spec.trial.metrics",
        "metrics are read from a command's output; an objective or a script reports its own: remove it",
        COMMAND | {"spec.trial.metrics": {"pattern": "accuracy=(.*)"}},
    ),
    Case(
        "metrics-of-a-script",
        {"spec.trial.metrics": {"file": "/m"}, "spec.trial.script": "a.py", "spec.trial.objective": REMOVED},
        "spec.trial.metrics",
        "metrics are read from a command's output; an objective or a script reports its own: remove it",
        COMMAND | {"spec.trial.metrics": {"file": "/tmp/metrics.jsonl"}},
    ),
    Case(
        "metrics-of-nothing",
        COMMAND | {"spec.trial.metrics": {}},
        "spec.trial.metrics",
        "give a pattern, a file or both, or leave metrics out",
        COMMAND | {"spec.trial.metrics": {"pattern": "accuracy=(.*)", "file": "/tmp/metrics.jsonl"}},
    ),
    # The refit
    Case(
        "refit-of-two-ways",
        {"spec.refit": {"objective": "train:final", "command": ["./final"]}},
        "spec.refit",
        "a refit runs either objective or script or command: leave one, or none for what a trial runs",
        {"spec.refit": {"command": ["./final"]}},
    ),
    Case(
        "refit-of-all-ways",
        {"spec.refit": {"objective": "train:final", "command": ["./final"], "script": "final.py"}},
        "spec.refit",
        "a refit runs either objective or script or command: leave one, or none for what a trial runs",
        {"spec.refit": {}},
    ),
    Case(
        "refit-of-several-objectives",
        PARETO | {"spec.refit": {}},
        "spec.refit.metric",
        "several objectives have no single best trial: name a metric, and the trial of the Pareto front with "
        "its best value is taken",
        PARETO | {"spec.refit": {"metric": "latency"}},
    ),
    Case(
        "refit-for-an-unknown-metric",
        PARETO | {"spec.refit": {"metric": "latncy"}},
        "spec.refit.metric",
        "latncy is none of the objectives: name one of them",
        {"spec.refit": {"metric": "accuracy"}},
    ),
    Case(
        "refit-objective-in-a-file",
        {"spec.refit": {"objective": "train.py:final"}},
        "spec.refit.objective",
        "train.py:final names a file: leave out .py, since a module has no ending",
        {"spec.refit": {"objective": "train:final", "source": {"configMap": "final-code"}}},
    ),
    Case(
        "refit-script-that-is-no-file",
        {"spec.refit": {"script": "final"}},
        "spec.refit.script",
        "final must be a Python file, for example train.py",
        {"spec.refit": {"script": "final.py"}},
    ),
    Case(
        "refit-command-in-one-text",
        {"spec.refit": {"command": ["python final.py"]}},
        "spec.refit.command",
        "python final.py would be the name of one program: write each argument as an item of its own",
        {"spec.refit": {"command": ["python", "final.py"]}, SPACE: REMOVED},
    ),
    Case(
        "refit-with-negative-retries",
        {"spec.refit": {"retries": -1}},
        "spec.refit.retries",
        "should be greater than or equal to 0",
        {"spec.refit": {"retries": 0}},
    ),
    Case(
        "refit-in-no-time",
        {"spec.refit": {"timeout": "0s"}},
        "spec.refit.timeout",
        "0s is no time at all: make it longer, or remove it",
        {"spec.refit": {"timeout": "6h"}},
    ),
    *(
        Case(
            f"refit-template-{name}",
            {"spec.refit": {"template": {"spec": {**TRAINER, **fault}}}},
            f"spec.refit.template.spec.{field}",
            says,
            {"spec.refit": {"template": {"spec": TRAINER}}},
        )
        for name, fault, field, says in (
            (
                "without-trainer",
                {"containers": [{"name": "main", "image": "x"}]},
                "containers",
                "the container named trainer is the one that trains: name one so, and only one",
            ),
            (
                "with-command",
                {"containers": [{"name": "trainer", "image": "x", "command": ["python"]}]},
                "containers",
                "say what to run in objective, script or command, beside the template",
            ),
            (
                "restarted",
                {"restartPolicy": "OnFailure"},
                "restartPolicy",
                "must be Never or left out: what fails is told so, not started again in place",
            ),
        )
    ),
    # What a study continues from
    Case(
        "warm-start-in-another-namespace",
        {"spec.warmStart.study": "vision/mnist"},
        "spec.warmStart.study",
        "vision/mnist has a slash: give the bare name of a study of this namespace",
        {"spec.warmStart": REMOVED},
    ),
    Case("warm-start-from-nothing", {"spec.warmStart": {}}, "spec.warmStart.study", "Required value"),
]

NEW_STUDY = "create a new study; initialTrials can carry the known good points over"

FROZEN = [
    Case(
        "direction",
        {"spec.objectives.0.direction": "minimize"},
        "spec.objectives",
        f"metrics and directions of a study cannot change, only targets can: {NEW_STUDY}",
        {"spec.objectives.0.target": 0.9},
    ),
    Case(
        "metric",
        {"spec.objectives.0.metric": "loss"},
        "spec.objectives",
        "metrics and directions of a study cannot change",
        {"spec.objectives.0.target": REMOVED},
    ),
    Case(
        "another-objective",
        PARETO,
        "spec.objectives",
        "metrics and directions of a study cannot change",
        {"spec.maxTrials": 1000, "spec.parallelism": 1, "spec.timeout": "2h", "spec.suspend": True},
    ),
    Case(
        "range",
        {f"{LR}.high": 1},
        SPACE,
        f"the search space of a study cannot change: {NEW_STUDY}",
        {f"{LR}.log": True},
    ),
    Case(
        "choices",
        {f"{OPTIMIZER}.choices.3": "Lion"},
        SPACE,
        "the search space of a study cannot change",
        {"spec.initialTrials": [], "spec.deletionPolicy": "Delete"},
    ),
    Case(
        "condition",
        {f"{UNITS}.when": {"parameter": "n_layers", "equals": 2}},
        SPACE,
        "the search space of a study cannot change",
        {"spec.trial.timeout": "1h", f"{CONTAINERS}.0.image": "torch:2"},
    ),
    Case(
        "order",
        {LR: GOOD["spec"]["searchSpace"][1], DROPOUT: GOOD["spec"]["searchSpace"][0]},
        SPACE,
        "the search space of a study cannot change",
        {"spec.sampler": {"name": "RandomSampler"}, "spec.pruner": REMOVED},
    ),
    Case(
        "no-more-search-space",
        {SPACE: REMOVED},
        SPACE,
        f"the search space of a study can neither be added nor removed: {NEW_STUDY}",
        {"metadata.labels": {"a": "b"}},
    ),
    Case(
        "warm-start",
        {"spec.warmStart.study": "another"},
        "spec.warmStart",
        f"what a study continues from cannot change: {NEW_STUDY}",
        {"spec.refit": {"objective": "train:final"}},
    ),
    Case(
        "no-more-warm-start",
        {"spec.warmStart": REMOVED},
        "spec.warmStart",
        f"what a study continues from can neither be added nor removed: {NEW_STUDY}",
        {"spec.trial.ttlAfterFinished": "2d"},
    ),
]


@pytest.fixture(scope="module")
def refusals(api: Api) -> dict[str, list[Cause]]:
    """What the server answers to each bad manifest, by case."""
    return {case.name: api.causes(changed(case.bad)) for case in CASES}


@pytest.fixture(scope="module")
def frozen(api: Api) -> Iterator[dict[str, list[Cause]]]:
    """What the server answers to each forbidden change of a study that is there."""
    with api.created(changed({"metadata.name": "frozen"})) as study:
        yield {case.name: api.causes_of_change(changed(case.bad, study)) for case in FROZEN}


def told(causes: list[Cause], case: Case) -> None:
    """The server blames the field and nothing else, in the words of the case."""
    assert {cause.field for cause in causes} == {case.field}, causes
    assert any(case.says in cause.message for cause in causes), causes


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_is_refused_with_its_field_and_the_mend(case: Case, refusals: dict[str, list[Cause]]) -> None:
    told(refusals[case.name], case)


@pytest.mark.parametrize("manifest", [GOOD, MINIMAL], ids=["one-of-everything", "minimal"])
def test_a_good_manifest_passes(manifest: dict[str, Any], api: Api) -> None:
    assert api.causes(manifest) == []


@pytest.mark.parametrize("case", [case for case in CASES if case.good], ids=lambda case: case.name)
def test_good_passes(case: Case, api: Api) -> None:
    assert api.causes(changed(case.good)) == []


@pytest.mark.parametrize("case", FROZEN, ids=lambda case: case.name)
def test_what_the_trials_were_drawn_from_cannot_change(case: Case, frozen: dict[str, list[Cause]]) -> None:
    told(frozen[case.name], case)


@pytest.mark.parametrize("case", FROZEN, ids=lambda case: case.name)
def test_what_may_change_changes(case: Case, api: Api) -> None:
    with api.created(changed({"metadata.name": "live"})) as study:
        assert api.causes_of_change(changed(case.good, study)) == []


def test_a_search_space_cannot_be_added(api: Api) -> None:
    with api.created(MINIMAL) as study:
        causes = api.causes_of_change(changed({SPACE: GOOD["spec"]["searchSpace"]}, study))
    assert [cause.field for cause in causes] == [SPACE]
    assert "can neither be added nor removed" in causes[0].message


def test_a_warm_start_cannot_be_added(api: Api) -> None:
    with api.created(MINIMAL) as study:
        causes = api.causes_of_change(changed({"spec.warmStart": {"study": "earlier"}}, study))
    assert [cause.field for cause in causes] == ["spec.warmStart"]
    assert "can neither be added nor removed" in causes[0].message


def test_every_rule_has_refused(refusals: dict[str, list[Cause]], frozen: dict[str, list[Cause]]) -> None:
    messages = [cause.message for causes in (*refusals.values(), *frozen.values()) for cause in causes]
    for path, text in texts(crdgen.crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]):
        assert any(re.search(text, message) for message in messages), (
            f"{path}: no case is refused by {text!r}"
        )


def texts(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Yield each rule's message as a regular expression."""
    for rule in schema.get(rules.KEY, []):
        text = rule.get("message") or rule["messageExpression"].split("'.format")[0].removeprefix("'")
        yield path, ".*".join(re.escape(part.replace("\\'", "'")) for part in text.split("%s"))
    for name, inner in schema.get("properties", {}).items():
        yield from texts(inner, f"{path}.{name}")
    if "items" in schema:
        yield from texts(schema["items"], f"{path}[]")


@pytest.mark.parametrize("fault", [False, True], ids=["good", "bad"])
def test_the_largest_search_space_is_within_the_servers_limits(api: Api, fault: bool) -> None:
    names = [f"{'x' * 124}_{place:03}" for place in range(100)]
    space = [{"name": name, "type": "int", "low": 1, "high": 3} for name in names]
    for parent, parameter in itertools.pairwise(space):
        parameter["when"] = {"parameter": parent["name"], "atLeast": 2}
    if fault:
        space[-1] = space[0]
    causes = api.causes(changed({SPACE: space, "spec.sampler": {"name": "GridSampler"}}))
    assert [cause.field for cause in causes] == ([SPACE] if fault else [])
    assert all("is declared more than once" in cause.message for cause in causes)
