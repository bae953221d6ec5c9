"""What the API server refuses beyond types: the CEL rules of the TuningStudy and what they tell the user.

They end up in the CRD as `x-kubernetes-validations`. Two things to know when changing one:

- Lists that CEL walks need maxItems, and texts it reads need maxLength: the API server refuses a CRD whose
  rules might cost too much.
- Values of any type (`choices`, `equals`, `anyOf`) are hidden from CEL's types. `dyn(self)` still answers
  whether they are there; what they hold is checked by `tuning_operator.resource.space`.
"""

import json
import re
from dataclasses import dataclass
from typing import Any, Literal

from tuning_operator.resource import names

KEY = "x-kubernetes-validations"


@dataclass(frozen=True)
class Rule:
    """One CEL rule: it holds for every good manifest.

    `message` says what is wrong and how to mend it; CEL expressions in braces are filled in from the
    manifest. `field` is the field to blame, below the one that has the rule.
    """

    holds: str
    message: str
    field: str = ""
    reason: Literal["FieldValueInvalid", "FieldValueRequired", "FieldValueForbidden"] = "FieldValueInvalid"

    def schema(self) -> dict[str, str]:
        """Return the rule as an item of `x-kubernetes-validations`."""
        words = (
            {"messageExpression": _expression(self.message)}
            if "{" in self.message
            else {"message": self.message}
        )
        place = {"fieldPath": self.field} if self.field else {}
        return {"rule": self.holds, **words, **place, "reason": self.reason}


def rules(*several: Rule) -> dict[str, Any]:
    """Return what a model or a field gives as its `json_schema_extra`."""
    return {KEY: [rule.schema() for rule in several]}


def _expression(message: str) -> str:
    """Turn a text with expressions in braces into a CEL expression that makes the text.

    `format`, since the API server takes a chain of `+` for a text of any length and refuses it as too costly.
    """
    parts = re.split(r"\{([^{}]*)\}", message)
    text = "%s".join(part.replace("%", "%%").replace("'", "\\'") for part in parts[::2])
    return f"'{text}'.format([{', '.join(f'dyn({part})' for part in parts[1::2])}])"


PATTERN_MESSAGE = "x-pattern-message"


def told(mend: str) -> dict[str, Any]:
    """Return the `json_schema_extra` of a text with a pattern: `mend` is told, not the bare pattern."""
    return {PATTERN_MESSAGE: mend}


def pattern(regex: str, mend: str) -> Rule:
    """Return the rule that a text matches the regular expression."""
    return Rule(f"self.matches({json.dumps(regex)})", mend)


NUMERIC = "self.type != 'categorical'"
CATEGORICAL = "self.type == 'categorical'"
_LOG = "(has(self.log) && self.log)"
_STEPLESS = "!has(self.step) || !has(self.low) || !has(self.high) || self.low >= self.high"
_LARGEST_INT = "9007199254740992.0"
"""Up to 2**53, every whole number is a double."""
_NEW_STUDY = "create a new study; initialTrials can carry the known good points over"


def _required_bound(field: str) -> Rule:
    return Rule(
        f"{CATEGORICAL} || has(self.{field})",
        f"{{self.name}} is of type {{self.type}}, which needs {field}: say where its range "
        + ("begins" if field == "low" else "ends"),
        f".{field}",
        "FieldValueRequired",
    )


def _forbidden_for_choices(field: str, present: str) -> Rule:
    return Rule(
        f"{NUMERIC} || !{present}",
        f"{{self.name}} is categorical and takes no {field}: remove it, or make the type float or int",
        f".{field}",
        "FieldValueForbidden",
    )


def _whole(field: str) -> Rule:
    value = f"self.{field}"
    return Rule(
        f"self.type != 'int' || !has({value}) || ({value} >= -{_LARGEST_INT} && {value} <= {_LARGEST_INT}"
        f" && double(int({value})) == {value})",
        f"{{self.name}} is an int, so its {field} must be a whole number (at most 2^53), not {{{value}}}: "
        "round it, or make the type float",
        f".{field}",
    )


DISTINCT: dict[str, Any] = {"x-kubernetes-list-type": "set"}
"""The API server's own check that no value is there twice; CEL cannot see values of any type."""

PARAMETER = rules(
    _required_bound("low"),
    _required_bound("high"),
    Rule(
        f"{NUMERIC} || has(dyn(self).choices)",
        "{self.name} is categorical, which needs choices: list the values to choose from",
        ".choices",
        "FieldValueRequired",
    ),
    Rule(
        f"{CATEGORICAL} || !has(dyn(self).choices)",
        "{self.name} is of type {self.type}, which takes no choices: remove them, or make it categorical",
        ".choices",
        "FieldValueForbidden",
    ),
    _forbidden_for_choices("low", "has(self.low)"),
    _forbidden_for_choices("high", "has(self.high)"),
    _forbidden_for_choices("step", "has(self.step)"),
    _forbidden_for_choices("log", _LOG),
    Rule(
        "!has(self.low) || !has(self.high) || self.low <= self.high",
        "{self.name} has low {self.low} above high {self.high}: swap them",
        ".low",
    ),
    Rule(
        f"!{_LOG} || !has(self.low) || self.low > 0.0",
        "{self.name} is sampled on a logarithmic scale (log), so low must be above 0, not {self.low}: "
        "raise it or remove log",
        ".low",
    ),
    Rule(
        f"!{_LOG} || !has(self.step)",
        "{self.name} has both step and log, which exclude each other: remove one",
        ".step",
        "FieldValueForbidden",
    ),
    Rule(
        "!has(self.step) || self.step > 0.0",
        "{self.name} has step {self.step}: it must be above 0; remove it for a range without steps",
        ".step",
    ),
    Rule(
        f"{_STEPLESS} || self.step <= (self.high - self.low) * 1.000001",  # 0.3 - 0.1 is less than 0.2
        "{self.name} has step {self.step}, more than its whole range, so only {self.low} would be tried: "
        "lower the step, or raise high",
        ".step",
    ),
    Rule(
        f"{_STEPLESS} || self.step <= 0.0 || (self.high - self.low) / self.step <= 1e15",
        "{self.name} has step {self.step}, too small for a range from {self.low} to {self.high}: "
        "raise it, or remove it for a range without steps",
        ".step",
    ),
    _whole("low"),
    _whole("high"),
    _whole("step"),
)

WHEN = rules(
    Rule(
        "[has(dyn(self).equals), has(dyn(self).anyOf), has(self.atLeast), has(self.atMost)]"
        ".exists_one(given, given)",
        "give exactly one of equals, anyOf, atLeast and atMost",
    ),
)

_STRAY = "self.filter(p, has(p.when) && !self.exists(q, q.name == p.when.parameter))[0]"

SEARCH_SPACE = rules(
    Rule(
        "self.all(p, self.exists_one(q, q.name == p.name))",
        "{self.filter(p, !self.exists_one(q, q.name == p.name))[0].name} is declared more than once: "
        "rename or remove one",
    ),
    Rule(
        "self.all(p, !has(p.when) || self.exists(q, q.name == p.when.parameter))",
        f"{{{_STRAY}.name}} depends on {{{_STRAY}.when.parameter}} (when.parameter), which the search space "
        "does not have: declare it earlier, or correct the name",
    ),
    Rule(
        "self.all(p, !has(p.when) || !self.exists(q, q.name == p.when.parameter)"
        " || (p.when.parameter != p.name"
        " && self.filter(q, q.name in [p.name, p.when.parameter])[0].name == p.when.parameter))",
        "a parameter can depend only on one that is declared before it: move each when.parameter above the "
        "parameters that name it",
    ),
    Rule(
        "self.all(p, !has(p.when) || !(has(p.when.atLeast) || has(p.when.atMost))"
        " || self.all(q, q.name != p.when.parameter || q.type != 'categorical'))",
        "atLeast and atMost compare numbers, but a categorical parameter has none: use equals or anyOf",
    ),
    Rule("self == oldSelf", f"the search space of a study cannot change: {_NEW_STUDY}"),
)

OBJECTIVES = rules(
    Rule(
        "self.all(o, self.exists_one(p, p.metric == o.metric))",
        "{self.filter(o, !self.exists_one(p, p.metric == o.metric))[0].metric} is declared more than once: "
        "rename or remove one",
    ),
    Rule(
        "self.map(o, o.metric + ' ' + o.direction) == oldSelf.map(o, o.metric + ' ' + o.direction)",
        f"metrics and directions of a study cannot change, only targets can: {_NEW_STUDY}",
    ),
)

SPEC = rules(
    Rule(
        "has(self.searchSpace) == has(oldSelf.searchSpace)",
        f"the search space of a study can neither be added nor removed: {_NEW_STUDY}",
        ".searchSpace",
    ),
    Rule(
        "self.objectives.size() < 2 || !has(self.pruner) || self.pruner.name == 'NopPruner'",
        "{self.pruner.name} cannot prune with several objectives (Optuna prunes for one only): "
        "remove pruner, or leave one objective",
        ".pruner",
        "FieldValueForbidden",
    ),
    Rule(
        "self.objectives.size() < 2 || self.sampler.name != 'CmaEsSampler'",
        "CmaEsSampler works for one objective only: use TPESampler, NSGAIISampler or GPSampler",
        ".sampler.name",
    ),
    Rule(
        "self.objectives.size() < 2 || !has(self.maxTrialsWithoutImprovement)",
        "several objectives have no single best value to improve: remove it and use maxTrials or timeout",
        ".maxTrialsWithoutImprovement",
        "FieldValueForbidden",
    ),
    Rule(
        "!(self.sampler.name in ['GridSampler', 'BruteForceSampler']) || !has(self.searchSpace)"
        " || self.searchSpace.all(p, p.type != 'float' || has(p.step))",
        "{self.sampler.name} tries every value, but {self.searchSpace.filter(p, p.type == 'float' && "
        "!has(p.step))[0].name} has endlessly many: give it a step, or use another sampler",
        ".searchSpace",
    ),
    Rule(
        "self.sampler.name != 'GridSampler' || has(self.searchSpace)",
        "GridSampler needs the search space: declare it, or use another sampler",
        ".searchSpace",
        "FieldValueRequired",
    ),
    Rule(
        "!has(self.refit) || self.objectives.size() < 2 || has(self.refit.metric)",
        "several objectives have no single best trial: name a metric, and the trial of the Pareto front with "
        "its best value is taken",
        ".refit.metric",
        "FieldValueRequired",
    ),
    Rule(
        "!has(self.refit) || !has(self.refit.metric) || self.objectives.exists(o, o.metric == "
        "self.refit.metric)",
        "{self.refit.metric} is none of the objectives: name one of them",
        ".refit.metric",
    ),
    Rule(
        "has(self.warmStart) == has(oldSelf.warmStart)",
        f"what a study continues from can neither be added nor removed: {_NEW_STUDY}",
        ".warmStart",
    ),
    Rule(
        "!has(self.trial.command) || has(self.searchSpace)",
        "a command cannot suggest its own parameters: declare them",
        ".searchSpace",
        "FieldValueRequired",
    ),
)

OBJECTIVE_FUNCTION = rules(
    Rule(
        "!self.matches('[.]py:')",
        "{self} names a file: leave out .py, since a module has no ending",
    ),
)

COMMAND = rules(
    Rule(
        "self.size() != 1 || !self[0].contains(' ')",
        "{self[0]} would be the name of one program: write each argument as an item of its own, for example "
        "[python, train.py]",
    ),
)

DURATION = rules(Rule("self.matches('[1-9]')", "{self} is no time at all: make it longer, or remove it"))

METRICS = rules(
    Rule(
        "has(self.pattern) || has(self.file)",
        "give a pattern, a file or both, or leave metrics out",
        reason="FieldValueRequired",
    )
)

WARM_START = rules(
    Rule("self == oldSelf", f"what a study continues from cannot change: {_NEW_STUDY}"),
)

STUDY_NAME = rules(
    Rule(
        "!self.contains('/')",
        "{self} has a slash: give the bare name of a study of this namespace",
    ),
)

REFIT = rules(
    Rule(
        "[has(self.objective), has(self.script), has(self.command)].filter(given, given).size() <= 1",
        "a refit runs either objective or script or command: leave one, or none for what a trial runs",
        reason="FieldValueForbidden",
    ),
)

TRIAL = rules(
    Rule(
        "has(self.objective) || has(self.script) || has(self.command)",
        "say what a trial runs: objective (module:function), script (a whole Optuna script) or command (any "
        "program)",
        reason="FieldValueRequired",
    ),
    Rule(
        "!has(self.objective) || !has(self.command)",
        "a trial runs either objective or command: remove one",
        ".command",
        "FieldValueForbidden",
    ),
    Rule(
        "!has(self.script) || !(has(self.objective) || has(self.command))",
        "a trial runs either script or objective or command: leave one of them",
        ".script",
        "FieldValueForbidden",
    ),
    Rule(
        "!has(self.metrics) || has(self.command)",
        "metrics are read from a command's output; an objective or a script reports its own: remove it",
        ".metrics",
        "FieldValueForbidden",
    ),
)

_TRAINER = names.TRAINER_CONTAINER

POD = rules(
    Rule(
        f"self.containers.exists_one(c, c.name == '{_TRAINER}')",
        f"the container named {_TRAINER} is the one that trains: name one so, and only one",
        ".containers",
        "FieldValueRequired",
    ),
    Rule(
        f"self.containers.all(c, c.name != '{_TRAINER}' || (!has(c.command) && !has(c.args)))",
        f"command and args of the container {_TRAINER} are set by the study: say what to run in objective, "
        "script or command, beside the template",
        ".containers",
        "FieldValueForbidden",
    ),
    Rule(
        "!has(self.restartPolicy) || self.restartPolicy == 'Never'",
        "must be Never or left out: what fails is told so, not started again in place",
        ".restartPolicy",
    ),
)

NAME = rules(
    Rule(
        f"self.size() <= {names.MAX_STUDY_NAME}",
        f"{{self}} has {{self.size()}} characters, but {names.MAX_STUDY_NAME} are possible, since the names "
        "of its Jobs and pods begin with it: shorten it",
    ),
    Rule(
        "!self.contains('.')",
        "{self} has a dot, but the names of its Jobs and pods begin with it: use letters, digits and dashes",
    ),
)
