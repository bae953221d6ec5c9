"""Each rule of the resource on a real API server: valid manifests pass, others are refused with a fix."""

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
"""The changes that give a valid manifest two objectives."""

COMMAND = {"spec.trial.command": ["./train"], "spec.trial.objective": REMOVED}
"""The changes that make a valid manifest run a command."""

TRAINER = {"containers": [{"name": "trainer", "image": "torch"}]}


@dataclass(frozen=True)
class Refusal:
    """A change that is refused for one reason, and the nearest change that is not (if it is not no change).

    The user must read `field` and `message`: where it is, what is wrong, how to fix it.
    """

    name: str
    bad: dict[str, Any]
    field: str
    message: str
    good: dict[str, Any] = field(default_factory=dict)


SPACE = "spec.searchSpace"
LR, DROPOUT, LAYERS, UNITS, OPTIMIZER = (f"spec.searchSpace.{place}" for place in range(5))
CONTAINERS = "spec.trial.template.spec.containers"

REFUSALS = [
    Refusal(
        "min-parallelism-above-parallelism",
        {"spec.minParallelism": 9, "spec.parallelism": 8},
        "spec.minParallelism",
        "9 is more than parallelism, which is 8: lower minParallelism, or raise parallelism",
        {"spec.minParallelism": 8, "spec.parallelism": 8},
    ),
    # The name
    Refusal(
        "name-with-dot",
        {"metadata.name": "mnist.v2"},
        "metadata.name",
        "mnist.v2 contains a dot, but the names of its Jobs and pods start with it: "
        "use letters, digits and dashes",
        {"metadata.name": "mnist-v2"},
    ),
    Refusal(
        "name-too-long",
        {"metadata.name": "m" * 46},
        "metadata.name",
        "has 46 characters, but at most 45 are allowed, "
        "since the names of its Jobs and pods start with it: shorten it",
        {"metadata.name": "m" * 45},
    ),
    # Objectives
    Refusal("no-objectives", {"spec.objectives": []}, "spec.objectives", "should have at least 1 items"),
    Refusal(
        "too-many-objectives",
        {"spec.objectives": [{"metric": f"m{i}", "direction": "maximize"} for i in range(9)]},
        "spec.objectives",
        "must have at most 8 items",
    ),
    Refusal(
        "duplicate-metric",
        PARETO | {"spec.objectives.1": {"metric": "accuracy", "direction": "minimize"}},
        "spec.objectives",
        "accuracy is declared more than once: rename or remove one",
        PARETO,
    ),
    Refusal(
        "unknown-direction",
        {"spec.objectives.0.direction": "max"},
        "spec.objectives[0].direction",
        'Unsupported value: "max": supported values: "maximize", "minimize"',
        {"spec.objectives.0.direction": "minimize"},
    ),
    Refusal(
        "metric-name",
        {"spec.objectives.0.metric": "accuracy=x"},
        "spec.objectives[0].metric",
        "accuracy=x must start with a letter or underscore, followed by letters, digits, spaces or any of "
        "`_.-/()[]@:%+'`, and must not end with a space or a separator",
        {"spec.objectives.0.metric": "val accuracy"},
    ),
    Refusal(
        "metric-name-with-a-separator-at-its-end",
        {"spec.objectives.0.metric": "val/"},
        "spec.objectives[0].metric",
        "val/ must start with a letter or underscore",
        {"spec.objectives.0.metric": "metrics/mAP50-95(B)"},
    ),
    Refusal(
        "metric-name-of-a-refit",
        PARETO | {"spec.refit": {"metric": "1 {accuracy}"}},
        "spec.refit.metric",
        "1 {accuracy} must start with a letter or underscore",
        PARETO | {"spec.objectives.0.metric": "valid_0's auc", "spec.refit": {"metric": "valid_0's auc"}},
    ),
    Refusal(
        "target-is-no-number",
        {"spec.objectives.0.target": "best"},
        "spec.objectives[0].target",
        "must be of type number",
        {"spec.objectives.0.target": 1},
    ),
    # Parameters
    Refusal(
        "duplicate-parameter",
        {f"{DROPOUT}.name": "lr"},
        SPACE,
        "lr is declared more than once: rename or remove one",
        {f"{DROPOUT}.name": "lr2"},
    ),
    Refusal(
        "parameter-name",
        {f"{LR}.name": "1r"},
        "spec.searchSpace[0].name",
        "1r must start with a letter or underscore",
        {f"{LR}.name": "_lr.initial-value"},
    ),
    Refusal(
        "unknown-type",
        {f"{LR}.type": "double"},
        "spec.searchSpace[0].type",
        'Unsupported value: "double": supported values: "float", "int", "categorical"',
    ),
    Refusal("no-parameters", {SPACE: []}, SPACE, "should have at least 1 items", {SPACE: REMOVED}),
    Refusal(
        "low-missing",
        {f"{LR}.low": REMOVED},
        "spec.searchSpace[0].low",
        "lr is of type float and needs low: set the smallest value",
    ),
    Refusal(
        "high-missing",
        {f"{LAYERS}.high": REMOVED},
        "spec.searchSpace[2].high",
        "n_layers is of type int and needs high: set the largest value",
    ),
    Refusal(
        "low-above-high",
        {f"{LAYERS}.low": 4},
        "spec.searchSpace[2].low",
        "n_layers has low 4 above high 3: swap them",
        {f"{LAYERS}.low": 3},
    ),
    Refusal(
        "log-from-zero",
        {f"{LR}.low": 0},
        "spec.searchSpace[0].low",
        "lr has a logarithmic scale (log: true), so low must be above 0, not 0: raise low or remove log",
        {f"{LR}.low": 0, f"{LR}.log": False},
    ),
    Refusal(
        "log-from-below-zero",
        {f"{LR}.low": -1},
        "spec.searchSpace[0].low",
        "so low must be above 0, not -1: raise low or remove log",
        {f"{LR}.low": 1e-300},
    ),
    Refusal(
        "step-with-log",
        {f"{LR}.step": 0.01},
        "spec.searchSpace[0].step",
        "lr has both step and log, but Optuna allows only one of them: remove one",
        {f"{LR}.step": 0.01, f"{LR}.log": False},
    ),
    Refusal(
        "step-of-zero",
        {f"{DROPOUT}.step": 0},
        "spec.searchSpace[1].step",
        "dropout has step 0, but a step must be above 0: correct or remove it",
        {f"{DROPOUT}.step": REMOVED},
    ),
    Refusal(
        "step-below-zero",
        {f"{UNITS}.step": -64},
        "spec.searchSpace[3].step",
        "units has step -64, but a step must be above 0",
    ),
    Refusal(
        "step-beyond-the-range",
        {f"{UNITS}.step": 193},
        "spec.searchSpace[3].step",
        "units has step 193, which is larger than its range, so only 64 would be tried: lower step or raise",
        {f"{UNITS}.step": 192},
    ),
    Refusal(
        "step-too-small",
        {f"{DROPOUT}.step": 1e-30},
        "spec.searchSpace[1].step",
        "dropout has step 1e-30, which is too small for the range 0 to 0.5: raise or remove it",
        {f"{DROPOUT}.low": 0.1, f"{DROPOUT}.high": 0.3, f"{DROPOUT}.step": 0.2},
    ),
    Refusal(
        "fractional-low-of-int",
        {f"{LAYERS}.low": 0.5},
        "spec.searchSpace[2].low",
        "n_layers is an int, so low must be a whole number (at most 2^53), not 0.5: "
        "round it, or change type to float",
        {f"{LAYERS}.low": 0.5, f"{LAYERS}.type": "float"},
    ),
    Refusal(
        "fractional-high-of-int",
        {f"{LAYERS}.high": 3.5},
        "spec.searchSpace[2].high",
        "n_layers is an int, so high must be a whole number (at most 2^53), not 3.5",
        {f"{LAYERS}.high": 3.0},
    ),
    Refusal(
        "fractional-step-of-int",
        {f"{UNITS}.step": 0.5},
        "spec.searchSpace[3].step",
        "units is an int, so step must be a whole number (at most 2^53), not 0.5",
    ),
    Refusal(
        "int-too-large",
        {f"{LAYERS}.high": 1e300},
        "spec.searchSpace[2].high",
        "n_layers is an int, so high must be a whole number (at most 2^53), not 1e+300",
        {f"{LAYERS}.high": 2**53},
    ),
    *(
        Refusal(
            f"{bound}-in-quotes",
            {f"{parameter}.{bound}": "0.01"},
            f"spec.searchSpace[{parameter[-1]}].{bound}",
            "should match 'a number without quotes, for example 0.01'",
            {f"{parameter}.{bound}": 0.01},
        )
        for parameter, bound in ((LR, "low"), (LR, "high"), (DROPOUT, "step"))
    ),
    Refusal(
        "choices-missing",
        {f"{OPTIMIZER}.choices": REMOVED},
        "spec.searchSpace[4].choices",
        "optimizer is categorical and needs choices: list the values to choose from",
        {f"{OPTIMIZER}.choices": ["Adam", 1, 0.5, True]},
    ),
    Refusal(
        "choices-empty",
        {f"{OPTIMIZER}.choices": []},
        "spec.searchSpace[4].choices",
        "should have at least 1 items",
        {f"{OPTIMIZER}.choices": ["Adam"]},
    ),
    Refusal(
        "choices-twice",
        {f"{OPTIMIZER}.choices": ["Adam", "SGD", "Adam"]},
        "spec.searchSpace[4].choices[2]",
        'Duplicate value: "Adam"',
        {f"{OPTIMIZER}.choices": ["1", 1]},
    ),
    Refusal(
        "when-any-of-twice",
        {f"{UNITS}.when": {"parameter": "n_layers", "anyOf": [2, 2]}},
        "spec.searchSpace[3].when.anyOf[1]",
        "Duplicate value: 2",
    ),
    Refusal(
        "choices-of-objects",
        {f"{OPTIMIZER}.choices": [{"name": "Adam"}]},
        "spec.searchSpace[4].choices[0]",
        "must have at most 0 items",
    ),
    Refusal(
        "choices-of-lists",
        {f"{OPTIMIZER}.choices": ["Adam", [64]]},
        "spec.searchSpace[4].choices[1]",
        "Unsupported value: 64: supported values: \"the list in quotes, for example '[64, 64]'\"",
        {f"{OPTIMIZER}.choices": ["Adam", "[64]"]},
    ),
    Refusal(
        "choices-of-float",
        {f"{LR}.choices": [0.1, 0.01]},
        "spec.searchSpace[0].choices",
        "lr is of type float, so it can't have choices: remove them, or change type to categorical",
    ),
    *(
        Refusal(
            f"{bound}-of-categorical",
            {f"{OPTIMIZER}.{bound}": value},
            f"spec.searchSpace[4].{bound}",
            f"optimizer is categorical, so it can't have {bound}: remove it, or change type to float or int",
        )
        for bound, value in {"low": 1, "high": 3, "step": 1, "log": True}.items()
    ),
    # Conditions
    Refusal(
        "when-unknown",
        {f"{UNITS}.when.parameter": "n_layer"},
        SPACE,
        "units depends on n_layer (when.parameter), which is not in searchSpace: "
        "declare it earlier, or correct the name",
    ),
    Refusal(
        "when-later",
        {f"{LR}.when": {"parameter": "optimizer", "equals": "Adam"}},
        SPACE,
        "a parameter can only depend on one that is declared before it: "
        "move each when.parameter above the parameters that depend on it",
        {f"{OPTIMIZER}.when": {"parameter": "lr", "atMost": 0.01}},
    ),
    Refusal(
        "when-itself",
        {f"{UNITS}.when.parameter": "units"},
        SPACE,
        "a parameter can only depend on one that is declared before it",
    ),
    Refusal(
        "when-without-comparison",
        {f"{UNITS}.when": {"parameter": "n_layers"}},
        "spec.searchSpace[3].when",
        "set exactly one of equals, anyOf, atLeast and atMost (for null, use anyOf: [null], since kubectl "
        "apply "
        "drops `equals: null`)",
        {f"{UNITS}.when": {"parameter": "n_layers", "equals": 2}},
    ),
    Refusal(
        "when-with-two-comparisons",
        {f"{UNITS}.when": {"parameter": "n_layers", "anyOf": [2, 3], "atLeast": 2}},
        "spec.searchSpace[3].when",
        "set exactly one of equals, anyOf, atLeast and atMost",
        {f"{UNITS}.when": {"parameter": "n_layers", "anyOf": [2, 3]}},
    ),
    Refusal(
        "when-any-of-nothing",
        {f"{UNITS}.when": {"parameter": "n_layers", "anyOf": []}},
        "spec.searchSpace[3].when.anyOf",
        "should have at least 1 items",
    ),
    Refusal(
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
        "atLeast and atMost need a numeric parameter: use equals or anyOf for a categorical one",
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
    Refusal(
        "unknown-sampler",
        {"spec.sampler": {"name": "tpe"}},
        "spec.sampler.name",
        'Unsupported value: "tpe": supported values: "BruteForceSampler", "CmaEsSampler", "GPSampler", ',
        {"spec.sampler": {"name": "RandomSampler"}},
    ),
    *(
        Refusal(
            f"{kind}-without-an-object",
            {f"spec.{kind}": name},
            f"spec.{kind}",
            f"should match 'an object with a name, for example {{name: {name}}}'",
            {f"spec.{kind}": {"name": name}},
        )
        for kind, name in (("sampler", "TPESampler"), ("pruner", "MedianPruner"))
    ),
    Refusal(
        "unknown-pruner",
        {"spec.pruner": {"name": "median"}},
        "spec.pruner.name",
        'Unsupported value: "median": supported values: "HyperbandPruner", "MedianPruner", "NopPruner", ',
        {"spec.pruner": {"name": "HyperbandPruner", "args": {"min_resource": 1, "max_resource": "auto"}}},
    ),
    Refusal(
        "pruner-with-several-objectives",
        PARETO | {"spec.pruner": {"name": "MedianPruner"}},
        "spec.pruner",
        "MedianPruner can't be used with several objectives (Optuna prunes with one objective only): "
        "remove pruner, or keep one objective",
        PARETO | {"spec.pruner": {"name": "NopPruner"}},
    ),
    Refusal(
        "cma-es-with-several-objectives",
        PARETO | {"spec.sampler.name": "CmaEsSampler"},
        "spec.sampler.name",
        "CmaEsSampler supports one objective only: use TPESampler or NSGAIISampler",
        {"spec.sampler.name": "CmaEsSampler"},
    ),
    Refusal(
        "improvement-of-several-objectives",
        PARETO | {"spec.maxTrialsWithoutImprovement": 5},
        "spec.maxTrialsWithoutImprovement",
        "several objectives have no single best value to improve: use maxTrials or timeout instead",
        PARETO,
    ),
    *(
        Refusal(
            f"{sampler}-over-an-endless-range",
            {"spec.sampler": {"name": sampler}},
            SPACE,
            f"{sampler} tries every value, but lr has infinitely many: give it a step, or use another",
            {
                "spec.sampler": {"name": sampler},
                LR: {"name": "lr", "type": "float", "low": 0, "high": 1, "step": 0.1},
            },
        )
        for sampler in ("GridSampler", "BruteForceSampler")
    ),
    Refusal(
        "grid-without-a-search-space",
        {"spec.sampler": {"name": "GridSampler", "args": {"seed": 1}}, SPACE: REMOVED},
        SPACE,
        "GridSampler needs searchSpace: declare it, or use another sampler",
        {"spec.sampler": {"name": "BruteForceSampler"}, SPACE: REMOVED},
    ),
    Refusal(
        "grid-without-any-values",
        {"spec.sampler": {"name": "GridSampler"}, SPACE: REMOVED},
        SPACE,
        "GridSampler needs searchSpace: declare it, or use another sampler",
        {"spec.sampler": {"name": "GridSampler", "args": {"search_space": {"x": [1, 2]}}}, SPACE: REMOVED},
    ),
    # Limits
    Refusal("no-trials", {"spec.maxTrials": 0}, "spec.maxTrials", "should be greater than or equal to 1"),
    Refusal("max-trials-missing", {"spec.maxTrials": REMOVED}, "spec.maxTrials", "Required value"),
    Refusal("max-trials-of-a-fraction", {"spec.maxTrials": 1.5}, "spec.maxTrials", "must be of type integer"),
    Refusal(
        "no-parallelism", {"spec.parallelism": 0}, "spec.parallelism", "should be greater than or equal to 1"
    ),
    Refusal(
        "too-parallel",
        {"spec.parallelism": 10_001},
        "spec.parallelism",
        "should be less than or equal to 10000",
        {"spec.parallelism": 10_000},
    ),
    Refusal(
        "negative-failures",
        {"spec.maxFailedTrials": -1},
        "spec.maxFailedTrials",
        "should be greater than or equal to 0",
        {"spec.maxFailedTrials": 0},
    ),
    *(
        Refusal(
            f"no-duration-{path}-{value}",
            {path: value},
            path,
            f"{value} is not a duration: use a number and a unit, for example 90s, 20m, 1h30m or 2d",
            {path: "1d1h1m1s"},
        )
        for value in ("1 hour", "3600", 3600)
        for path in (
            "spec.timeout",
            "spec.trial.timeout",
            "spec.trial.pruneGrace",
            "spec.trial.ttlAfterFinished",
        )
    ),
    *(
        Refusal(
            f"no-time-{path}",
            {path: "0h0m"},
            path,
            "0h0m must be longer than 0 seconds: raise or remove it",
            {path: "1s"},
        )
        for path in ("spec.timeout", "spec.trial.timeout")
    ),
    Refusal(
        "unknown-deletion-policy",
        {"spec.deletionPolicy": "Keep"},
        "spec.deletionPolicy",
        'Unsupported value: "Keep": supported values: "Retain", "Delete"',
        {"spec.deletionPolicy": "Delete"},
    ),
    Refusal(
        "initial-trial-of-objects",
        {"spec.initialTrials": [{"lr": {"low": 1}}]},
        "spec.initialTrials[0].lr",
        "must have at most 0 items",
        {"spec.initialTrials": [{"lr": 0.1, "optimizer": "Adam", "flag": True, "n_layers": 1}, {}]},
    ),
    # What a trial runs
    Refusal(
        "objective-and-command",
        {"spec.trial.command": ["python", "train.py"]},
        "spec.trial.command",
        "set exactly one of objective, script and command",
        {"spec.trial.command": ["python", "train.py"], "spec.trial.objective": REMOVED},
    ),
    Refusal(
        "script-and-objective",
        {"spec.trial.script": "train.py"},
        "spec.trial.script",
        "set exactly one of objective, script and command",
        {"spec.trial.script": "train.py", "spec.trial.objective": REMOVED},
    ),
    Refusal(
        "script-that-is-no-file",
        {"spec.trial.script": "train", "spec.trial.objective": REMOVED},
        "spec.trial.script",
        "train must be a Python file, which arguments may follow, for example train.py --epochs 3",
        {"spec.trial.script": "examples/train.py --epochs 3", "spec.trial.objective": REMOVED},
    ),
    Refusal(
        "study-without-script",
        {"spec.trial.study": "high"},
        "spec.trial.study",
        "study only applies to script: remove study",
        {"spec.trial.study": "high", "spec.trial.script": "train.py", "spec.trial.objective": REMOVED},
    ),
    Refusal(
        "several-trials-without-reuse",
        {"spec.trial.trialsPerPod": 4},
        "spec.trial.trialsPerPod",
        "several trials in a pod require reusePods: set reusePods: true, or remove trialsPerPod",
        {"spec.trial.trialsPerPod": 4, "spec.trial.reusePods": True},
    ),
    Refusal(
        "nothing-to-run",
        {"spec.trial.objective": REMOVED},
        "spec.trial",
        "set exactly one of objective, script and command",
    ),
    Refusal(
        "objective-without-function",
        {"spec.trial.objective": "train"},
        "spec.trial.objective",
        "train must have the form module:function, for example train:objective",
        {"spec.trial.objective": "package.train:Objective.run"},
    ),
    Refusal(
        "objective-in-a-file",
        {"spec.trial.objective": "train.py:objective"},
        "spec.trial.objective",
        "train.py:objective is a file: use the module name without .py, for example train:objective",
        {"spec.trial.objective": "train.pytorch:objective"},
    ),
    Refusal(
        "command-in-one-text",
        {"spec.trial.command": ["python train.py"], "spec.trial.objective": REMOVED},
        "spec.trial.command",
        "python train.py would be run as one executable; "
        "put each argument in its own item: [python, train.py]",
        {"spec.trial.command": ["sh", "-c", "python train.py"], "spec.trial.objective": REMOVED},
    ),
    Refusal(
        "command-without-search-space",
        {"spec.trial.command": ["train"], "spec.trial.objective": REMOVED, SPACE: REMOVED},
        SPACE,
        "a command can't suggest parameters: declare them in searchSpace",
        {"spec.trial.command": ["train"], "spec.trial.objective": REMOVED},
    ),
    Refusal(
        "empty-command",
        {"spec.trial.command": [], "spec.trial.objective": REMOVED},
        "spec.trial.command",
        "least 1",
    ),
    Refusal(
        "source-without-config-map",
        {"spec.trial.source": {}},
        "spec.trial.source.configMap",
        "Required value",
        {"spec.trial.source": REMOVED},
    ),
    Refusal(
        "installation-without-namespace",
        {"spec.installation": "tuning-operator"},
        "spec.installation",
        "tuning-operator must have the form NAMESPACE/NAME, for example tuning-system/tuning-operator",
        {"spec.installation": "tuning-system/tuning-operator"},
    ),
    Refusal(
        "python-with-arguments",
        {"spec.trial.python": "python3 -u"},
        "spec.trial.python",
        "python3 -u must be an executable without arguments, for example python3",
        {"spec.trial.python": "/opt/conda/bin/python"},
    ),
    Refusal(
        "no-container-trainer",
        {f"{CONTAINERS}.0.name": "main"},
        "spec.trial.template.spec.containers",
        "exactly one container must be named `trainer`",
        {f"{CONTAINERS}.1": {"name": "main", "image": "x"}},
    ),
    Refusal(
        "two-containers-trainer",
        {f"{CONTAINERS}.1": {"name": "trainer", "image": "x"}},
        "spec.trial.template.spec.containers",
        "exactly one container must be named `trainer`",
    ),
    Refusal(
        "container-without-image",
        {f"{CONTAINERS}.1": {"name": "sidecar"}},
        "spec.trial.template.spec.containers",
        "only the container `trainer` has a default image: set image",
        {f"{CONTAINERS}.0.image": REMOVED},
    ),
    Refusal(
        "negative-gpus",
        {"spec.trial.gpus": -1},
        "spec.trial.gpus",
        "should be greater than or equal to 0",
        {"spec.trial.gpus": 0, "spec.trial.template": REMOVED},
    ),
    *(
        Refusal(
            f"{key}-of-the-trainer",
            {f"{CONTAINERS}.0.{key}": ["python", "train.py"]},
            "spec.trial.template.spec.containers",
            "command and args of the container `trainer` are set by the operator: "
            "use objective, script or command beside the template instead",
            {f"{CONTAINERS}.1": {"name": "sidecar", "image": "x", key: ["serve"]}},
        )
        for key in ("command", "args")
    ),
    Refusal(
        "restart-policy",
        {"spec.trial.template.spec.restartPolicy": "OnFailure"},
        "spec.trial.template.spec.restartPolicy",
        "must be Never or omitted: failed pods are not restarted; they count as failed trials",
        {"spec.trial.template.spec.restartPolicy": REMOVED},
    ),
    # A command's metrics
    Refusal(
        "metrics-of-an-objective",
        {"spec.trial.metrics": {"pattern": "accuracy=(.*)"}},
        "spec.trial.metrics",
        "metrics only apply to command; an objective or script reports its own values: remove metrics",
        COMMAND | {"spec.trial.metrics": {"pattern": "accuracy=(.*)"}},
    ),
    Refusal(
        "metrics-of-a-script",
        {"spec.trial.metrics": {"file": "/m"}, "spec.trial.script": "a.py", "spec.trial.objective": REMOVED},
        "spec.trial.metrics",
        "metrics only apply to command; an objective or script reports its own values: remove metrics",
        COMMAND | {"spec.trial.metrics": {"file": "/tmp/metrics.jsonl"}},
    ),
    Refusal(
        "metrics-of-nothing",
        COMMAND | {"spec.trial.metrics": {}},
        "spec.trial.metrics",
        "set pattern, file or both, or remove metrics",
        COMMAND | {"spec.trial.metrics": {"pattern": "accuracy=(.*)", "file": "/tmp/metrics.jsonl"}},
    ),
    # The refit
    Refusal(
        "refit-of-two-ways",
        {"spec.refit": {"objective": "train:final", "command": ["./final"]}},
        "spec.refit",
        "set at most one of objective, script and command; with none, the refit runs what a trial runs",
        {"spec.refit": {"command": ["./final"]}},
    ),
    Refusal(
        "refit-of-all-ways",
        {"spec.refit": {"objective": "train:final", "command": ["./final"], "script": "final.py"}},
        "spec.refit",
        "set at most one of objective, script and command; with none, the refit runs what a trial runs",
        {"spec.refit": {}},
    ),
    Refusal(
        "refit-of-several-objectives",
        PARETO | {"spec.refit": {}},
        "spec.refit.metric",
        "several objectives have no single best trial: set metric to use the trial of the Pareto front with "
        "the best value of that metric",
        PARETO | {"spec.refit": {"metric": "latency"}},
    ),
    Refusal(
        "refit-for-an-unknown-metric",
        PARETO | {"spec.refit": {"metric": "latncy"}},
        "spec.refit.metric",
        "latncy is not one of the objectives: use the metric of one of them",
        {"spec.refit": {"metric": "accuracy"}},
    ),
    Refusal(
        "refit-objective-in-a-file",
        {"spec.refit": {"objective": "train.py:final"}},
        "spec.refit.objective",
        "train.py:final is a file: use the module name without .py, for example train:final",
        {"spec.refit": {"objective": "train:final", "source": {"configMap": "final-code"}}},
    ),
    Refusal(
        "refit-script-that-is-no-file",
        {"spec.refit": {"script": "final"}},
        "spec.refit.script",
        "final must be a Python file, which arguments may follow, for example train.py --epochs 3",
        {"spec.refit": {"script": "final.py"}},
    ),
    Refusal(
        "refit-command-in-one-text",
        {"spec.refit": {"command": ["python final.py"]}},
        "spec.refit.command",
        "python final.py would be run as one executable; put each argument in its own item",
        {"spec.refit": {"command": ["python", "final.py"]}, SPACE: REMOVED},
    ),
    Refusal(
        "refit-with-negative-retries",
        {"spec.refit": {"retries": -1}},
        "spec.refit.retries",
        "should be greater than or equal to 0",
        {"spec.refit": {"retries": 0}},
    ),
    Refusal(
        "refit-in-no-time",
        {"spec.refit": {"timeout": "0s"}},
        "spec.refit.timeout",
        "0s must be longer than 0 seconds: raise or remove it",
        {"spec.refit": {"timeout": "6h"}},
    ),
    *(
        Refusal(
            f"refit-template-{name}",
            {"spec.refit": {"template": {"spec": {**TRAINER, **fault}}}},
            f"spec.refit.template.spec.{field}",
            message,
            {"spec.refit": {"template": {"spec": TRAINER}}},
        )
        for name, fault, field, message in (
            (
                "without-trainer",
                {"containers": [{"name": "main", "image": "x"}]},
                "containers",
                "exactly one container must be named `trainer`",
            ),
            (
                "with-command",
                {"containers": [{"name": "trainer", "image": "x", "command": ["python"]}]},
                "containers",
                "use objective, script or command beside the template instead",
            ),
            (
                "restarted",
                {"restartPolicy": "OnFailure"},
                "restartPolicy",
                "must be Never or omitted: failed pods are not restarted; they count as failed trials",
            ),
        )
    ),
    # What a study continues from
    Refusal(
        "warm-start-in-another-namespace",
        {"spec.warmStart.study": "vision/mnist"},
        "spec.warmStart.study",
        "vision/mnist contains a slash: use the name of a study in this namespace, without the namespace",
        {"spec.warmStart": REMOVED},
    ),
    Refusal("warm-start-from-nothing", {"spec.warmStart": {}}, "spec.warmStart.study", "Required value"),
]

NEW_STUDY = "create a new study; it can reuse results through warmStart or initialTrials"

FROZEN = [
    Refusal(
        "direction",
        {"spec.objectives.0.direction": "minimize"},
        "spec.objectives",
        f"metrics and directions can't be changed, only targets can: {NEW_STUDY}",
        {"spec.objectives.0.target": 0.9},
    ),
    Refusal(
        "metric",
        {"spec.objectives.0.metric": "loss"},
        "spec.objectives",
        "metrics and directions can't be changed",
        {"spec.objectives.0.target": REMOVED},
    ),
    Refusal(
        "another-objective",
        PARETO,
        "spec.objectives",
        "metrics and directions can't be changed",
        {"spec.maxTrials": 1000, "spec.parallelism": 1, "spec.timeout": "2h", "spec.suspend": True},
    ),
    Refusal(
        "reuse",
        {"spec.trial.reusePods": True},
        "spec.trial.reusePods",
        "reusePods can't be changed: create a new study",
        {"spec.trial.reusePods": False},
    ),
    Refusal(
        "range",
        {f"{LR}.high": 1},
        SPACE,
        f"searchSpace can't be changed: {NEW_STUDY}",
        {f"{LR}.log": True},
    ),
    Refusal(
        "choices",
        {f"{OPTIMIZER}.choices.3": "Lion"},
        SPACE,
        "searchSpace can't be changed",
        {"spec.initialTrials": [], "spec.deletionPolicy": "Delete"},
    ),
    Refusal(
        "condition",
        {f"{UNITS}.when": {"parameter": "n_layers", "equals": 2}},
        SPACE,
        "searchSpace can't be changed",
        {"spec.trial.timeout": "1h", f"{CONTAINERS}.0.image": "torch:2"},
    ),
    Refusal(
        "order",
        {LR: GOOD["spec"]["searchSpace"][1], DROPOUT: GOOD["spec"]["searchSpace"][0]},
        SPACE,
        "searchSpace can't be changed",
        {"spec.sampler": {"name": "RandomSampler"}, "spec.pruner": REMOVED},
    ),
    Refusal(
        "no-more-search-space",
        {SPACE: REMOVED},
        SPACE,
        f"searchSpace can't be added or removed: {NEW_STUDY}",
        {"metadata.labels": {"a": "b"}},
    ),
    Refusal(
        "warm-start",
        {"spec.warmStart.study": "another"},
        "spec.warmStart",
        "warmStart can't be changed: create a new study",
        {"spec.refit": {"objective": "train:final"}},
    ),
    Refusal(
        "no-more-warm-start",
        {"spec.warmStart": REMOVED},
        "spec.warmStart",
        "warmStart can't be added or removed: create a new study",
        {"spec.trial.ttlAfterFinished": "2d"},
    ),
]


@pytest.fixture(scope="module")
def refusals(api: Api) -> dict[str, list[Cause]]:
    """The server's answer to each invalid manifest."""
    return {refusal.name: api.causes(changed(refusal.bad)) for refusal in REFUSALS}


@pytest.fixture(scope="module")
def frozen(api: Api) -> Iterator[dict[str, list[Cause]]]:
    """The server's answer to each forbidden change of an existing study."""
    with api.created(changed({"metadata.name": "frozen"})) as study:
        yield {refusal.name: api.causes_of_change(changed(refusal.bad, study)) for refusal in FROZEN}


def check(causes: list[Cause], refusal: Refusal) -> None:
    """The server names this field and no other (apart from its items), with the message."""
    named = (cause for cause in causes if cause.field != "<nil>")  # Kubernetes 1.37 adds such a cause
    fields = {cause.field for cause in named if not cause.field.startswith(f"{refusal.field}[")}
    assert fields == {refusal.field}, causes
    assert any(refusal.message in cause.message for cause in causes), causes


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.name)
def test_invalid_is_refused_with_field_and_fix(refusal: Refusal, refusals: dict[str, list[Cause]]) -> None:
    check(refusals[refusal.name], refusal)


@pytest.mark.parametrize("manifest", [GOOD, MINIMAL], ids=["one-of-everything", "minimal"])
def test_a_valid_manifest_passes(manifest: dict[str, Any], api: Api) -> None:
    assert api.causes(manifest) == []


@pytest.mark.parametrize(
    "refusal", [refusal for refusal in REFUSALS if refusal.good], ids=lambda refusal: refusal.name
)
def test_valid_passes(refusal: Refusal, api: Api) -> None:
    assert api.causes(changed(refusal.good)) == []


@pytest.mark.parametrize("refusal", FROZEN, ids=lambda refusal: refusal.name)
def test_what_trials_were_sampled_from_cannot_change(
    refusal: Refusal, frozen: dict[str, list[Cause]]
) -> None:
    check(frozen[refusal.name], refusal)


@pytest.mark.parametrize("refusal", FROZEN, ids=lambda refusal: refusal.name)
def test_other_fields_can_be_changed(refusal: Refusal, api: Api) -> None:
    with api.created(changed({"metadata.name": "live"})) as study:
        assert api.causes_of_change(changed(refusal.good, study)) == []


def test_a_search_space_cannot_be_added(api: Api) -> None:
    with api.created(MINIMAL) as study:
        causes = api.causes_of_change(changed({SPACE: GOOD["spec"]["searchSpace"]}, study))
    assert [cause.field for cause in causes] == [SPACE]
    assert "can't be added or removed" in causes[0].message


def test_a_warm_start_cannot_be_added(api: Api) -> None:
    with api.created(MINIMAL) as study:
        causes = api.causes_of_change(changed({"spec.warmStart": {"study": "earlier"}}, study))
    assert [cause.field for cause in causes] == ["spec.warmStart"]
    assert "can't be added or removed" in causes[0].message


def test_every_rule_has_refused(refusals: dict[str, list[Cause]], frozen: dict[str, list[Cause]]) -> None:
    messages = [cause.message for causes in (*refusals.values(), *frozen.values()) for cause in causes]
    for path, text in texts(crdgen.crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]):
        assert any(re.search(text, message) for message in messages), (
            f"{path}: nothing is refused by {text!r}"
        )


def texts(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Yield each rule's message as a regular expression."""
    for rule in schema.get(rules.KEY, []):
        text = rule.get("message") or rule["messageExpression"].split("'.format")[0].removeprefix("'")
        yield (
            path,
            ".*".join(re.escape(part.replace("\\'", "'").replace("%%", "%")) for part in text.split("%s")),
        )
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
