"""What the API server rejects beyond types: the CEL rules of the TuningStudy, with their messages.

They become `x-kubernetes-validations` in the CRD. Two things to know when changing one:

- Lists that CEL iterates over need maxItems, and strings it reads need maxLength: the API server rejects a
  CRD whose rules might cost too much.
- CEL cannot read values of any type (`choices`, `equals`, `anyOf`). `dyn(self)` shows whether they are
  set; their content is checked by `tuning_operator.resource.space`.
"""

import json
import re
from dataclasses import dataclass
from typing import Any, Literal

from tuning_operator.resource import names

KEY = "x-kubernetes-validations"


@dataclass(frozen=True)
class Rule:
    """One CEL rule, true for every valid manifest.

    `message` says what is wrong and how to fix it; CEL expressions in braces are filled in from the
    manifest. `field` is the path of the invalid field, below the field with the rule.
    """

    holds: str
    message: str
    field: str = ""
    reason: Literal["FieldValueInvalid", "FieldValueRequired", "FieldValueForbidden"] = "FieldValueInvalid"

    def schema(self) -> dict[str, str]:
        """Return the rule as an item of `x-kubernetes-validations`."""
        message = (
            {"messageExpression": _expression(self.message)}
            if "{" in self.message
            else {"message": self.message}
        )
        path = {"fieldPath": self.field} if self.field else {}
        return {"rule": self.holds, **message, **path, "reason": self.reason}


def rules(*several: Rule) -> dict[str, Any]:
    """Return the `json_schema_extra` of a model or field with these rules."""
    return {KEY: [rule.schema() for rule in several]}


def _expression(message: str) -> str:
    """Turn a text with expressions in braces into a CEL expression that yields the text.

    With `format`, since the API server rejects a chain of `+` as too costly (its length has no bound).
    """
    parts = re.split(r"\{([^{}]*)\}", message)
    text = "%s".join(part.replace("%", "%%").replace("'", "\\'") for part in parts[::2])
    return f"'{text}'.format([{', '.join(f'dyn({part})' for part in parts[1::2])}])"


PATTERN_MESSAGE = "x-pattern-message"


def pattern_message(message: str) -> dict[str, Any]:
    """Return the `json_schema_extra` of a string field whose error is this message, not the bare pattern."""
    return {PATTERN_MESSAGE: message}


def hint(form: str) -> dict[str, Any]:
    """Return the `json_schema_extra` of a number or object that people write as a string.

    The API server then answers that it "should match" this form, besides naming the type. A pattern does not
    apply to values that are not strings.
    """
    return {"pattern": form}


INT_OR_STRING = "x-kubernetes-int-or-string"
"""For strings that people write as numbers: both are refused with the message of the pattern."""


def pattern(regex: str, message: str) -> Rule:
    """Return the rule that a string matches the regular expression."""
    return Rule(f"type(self) == string && self.matches({json.dumps(regex)})", message)


NUMERIC = "self.type != 'categorical'"
CATEGORICAL = "self.type == 'categorical'"
_LOG = "(has(self.log) && self.log)"
_STEPLESS = "!has(self.step) || !has(self.low) || !has(self.high) || self.low >= self.high"
_LARGEST_INT = "9007199254740992.0"
"""Up to 2**53, a double holds every whole number."""
_NEW_STUDY = "create a new study; it can reuse results through warmStart or initialTrials"


def _required_bound(field: str) -> Rule:
    return Rule(
        f"{CATEGORICAL} || has(self.{field})",
        f"{{self.name}} is of type {{self.type}} and needs {field}: set the "
        + ("smallest value" if field == "low" else "largest value"),
        f".{field}",
        "FieldValueRequired",
    )


def _forbidden_for_choices(field: str, present: str) -> Rule:
    return Rule(
        f"{NUMERIC} || !{present}",
        f"{{self.name}} is categorical, so it can't have {field}: remove it, or change type to float or int",
        f".{field}",
        "FieldValueForbidden",
    )


def _whole(field: str) -> Rule:
    value = f"self.{field}"
    return Rule(
        f"self.type != 'int' || !has({value}) || ({value} >= -{_LARGEST_INT} && {value} <= {_LARGEST_INT}"
        f" && double(int({value})) == {value})",
        f"{{self.name}} is an int, so {field} must be a whole number (at most 2^53), not {{{value}}}: "
        "round it, or change type to float",
        f".{field}",
    )


DISTINCT: dict[str, Any] = {"x-kubernetes-list-type": "set"}
"""The API server's own check for duplicates; CEL cannot read values of any type."""

PARAMETER = rules(
    _required_bound("low"),
    _required_bound("high"),
    Rule(
        f"{NUMERIC} || has(dyn(self).choices)",
        "{self.name} is categorical and needs choices: list the values to choose from",
        ".choices",
        "FieldValueRequired",
    ),
    Rule(
        f"{CATEGORICAL} || !has(dyn(self).choices)",
        "{self.name} is of type {self.type}, so it can't have choices: remove them, or change type to "
        "categorical",
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
        "{self.name} has a logarithmic scale (log: true), so low must be above 0, not {self.low}: "
        "raise low or remove log",
        ".low",
    ),
    Rule(
        f"!{_LOG} || !has(self.step)",
        "{self.name} has both step and log, but Optuna allows only one of them: remove one",
        ".step",
        "FieldValueForbidden",
    ),
    Rule(
        "!has(self.step) || self.step > 0.0",
        "{self.name} has step {self.step}, but a step must be above 0: correct or remove it",
        ".step",
    ),
    Rule(
        f"{_STEPLESS} || self.step <= (self.high - self.low) * 1.000001",  # 0.3 - 0.1 is less than 0.2
        "{self.name} has step {self.step}, which is larger than its range, so only {self.low} would be "
        "tried: "
        "lower step or raise high",
        ".step",
    ),
    Rule(
        f"{_STEPLESS} || self.step <= 0.0 || (self.high - self.low) / self.step <= 1e15",
        "{self.name} has step {self.step}, which is too small for the range {self.low} to {self.high}: "
        "raise or remove it",
        ".step",
    ),
    _whole("low"),
    _whole("high"),
    _whole("step"),
)

WHEN = rules(
    Rule(
        "dyn(self).size() == 2",  # with `parameter`; `has` would not see `equals: null`
        "set exactly one of equals, anyOf, atLeast and atMost (for null, use anyOf: [null], since kubectl "
        "apply "
        "drops `equals: null`)",
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
        f"{{{_STRAY}.name}} depends on {{{_STRAY}.when.parameter}} (when.parameter), which is not in "
        "searchSpace: declare it earlier, or correct the name",
    ),
    Rule(
        "self.all(p, !has(p.when) || !self.exists(q, q.name == p.when.parameter)"
        " || (p.when.parameter != p.name"
        " && self.filter(q, q.name in [p.name, p.when.parameter])[0].name == p.when.parameter))",
        "a parameter can only depend on one that is declared before it: move each when.parameter above the "
        "parameters that depend on it",
    ),
    Rule(
        "self.all(p, !has(p.when) || !(has(p.when.atLeast) || has(p.when.atMost))"
        " || self.all(q, q.name != p.when.parameter || q.type != 'categorical'))",
        "atLeast and atMost need a numeric parameter: use equals or anyOf for a categorical one",
    ),
    # In CEL, a list of choices with null does not equal itself, and a rule that is false for an unchanged
    # search space would block every write of status. Such a change is refused by the study server.
    Rule("oldSelf != oldSelf || self == oldSelf", f"searchSpace can't be changed: {_NEW_STUDY}"),
)

OBJECTIVES = rules(
    Rule(
        "self.all(o, self.exists_one(p, p.metric == o.metric))",
        "{self.filter(o, !self.exists_one(p, p.metric == o.metric))[0].metric} is declared more than once: "
        "rename or remove one",
    ),
    Rule(
        "self.map(o, o.metric + ' ' + o.direction) == oldSelf.map(o, o.metric + ' ' + o.direction)",
        f"metrics and directions can't be changed, only targets can: {_NEW_STUDY}",
    ),
)

SPEC = rules(
    Rule(
        "!has(self.minParallelism) || self.minParallelism <= self.parallelism",
        "{self.minParallelism} is more than parallelism, which is {self.parallelism}: lower minParallelism, "
        "or raise parallelism",
        ".minParallelism",
    ),
    Rule(
        "has(self.searchSpace) == has(oldSelf.searchSpace)",
        f"searchSpace can't be added or removed: {_NEW_STUDY}",
        ".searchSpace",
    ),
    Rule(
        "self.objectives.size() < 2 || !has(self.pruner) || self.pruner.name == 'NopPruner'",
        "{self.pruner.name} can't be used with several objectives (Optuna prunes with one objective only): "
        "remove pruner, or keep one objective",
        ".pruner",
        "FieldValueForbidden",
    ),
    Rule(
        "self.objectives.size() < 2 || self.sampler.name != 'CmaEsSampler'",
        "CmaEsSampler supports one objective only: use TPESampler or NSGAIISampler",
        ".sampler.name",
    ),
    Rule(
        "self.objectives.size() < 2 || !has(self.maxTrialsWithoutImprovement)",
        "several objectives have no single best value to improve: use maxTrials or timeout instead",
        ".maxTrialsWithoutImprovement",
        "FieldValueForbidden",
    ),
    Rule(
        "!(self.sampler.name in ['GridSampler', 'BruteForceSampler']) || !has(self.searchSpace)"
        " || self.searchSpace.all(p, p.type != 'float' || has(p.step))",
        "{self.sampler.name} tries every value, but {self.searchSpace.filter(p, p.type == 'float' && "
        "!has(p.step))[0].name} has infinitely many: give it a step, or use another sampler",
        ".searchSpace",
    ),
    Rule(
        "self.sampler.name != 'GridSampler' || has(self.searchSpace)"
        " || (has(self.sampler.args) && has(self.sampler.args.search_space))",
        "GridSampler needs searchSpace: declare it, or use another sampler",
        ".searchSpace",
        "FieldValueRequired",
    ),
    Rule(
        "!has(self.refit) || self.objectives.size() < 2 || has(self.refit.metric)",
        "several objectives have no single best trial: set metric to use the trial of the Pareto front with "
        "the best value of that metric",
        ".refit.metric",
        "FieldValueRequired",
    ),
    Rule(
        "!has(self.refit) || !has(self.refit.metric) || self.objectives.exists(o, o.metric == "
        "self.refit.metric)",
        "{self.refit.metric} is not one of the objectives: use the metric of one of them",
        ".refit.metric",
    ),
    Rule(
        "has(self.warmStart) == has(oldSelf.warmStart)",
        "warmStart can't be added or removed: create a new study",
        ".warmStart",
    ),
    Rule(
        "!has(self.trial.command) || has(self.searchSpace)",
        "a command can't suggest parameters: declare them in searchSpace",
        ".searchSpace",
        "FieldValueRequired",
    ),
)

OBJECTIVE_FUNCTION = rules(
    Rule(
        "!self.matches('[.]py:')",
        "{self} is a file: use the module name without .py, for example {self.replace('.py:', ':')}",
    ),
)

COMMAND = rules(
    Rule(
        "self.size() != 1 || !self[0].contains(' ')",
        "{self[0]} would be run as one executable; put each argument in its own item: [python, train.py]",
    ),
)

DURATION = rules(
    Rule(
        "type(self) != string || self.matches('[1-9]')",
        "{self} must be longer than 0 seconds: raise or remove it",
    )
)

METRICS = rules(
    Rule(
        "has(self.pattern) || has(self.file)",
        "set pattern, file or both, or remove metrics",
        reason="FieldValueRequired",
    )
)

WARM_START = rules(
    Rule("self == oldSelf", "warmStart can't be changed: create a new study"),
)

STUDY_NAME = rules(
    Rule(
        "!self.contains('/')",
        "{self} contains a slash: use the name of a study in this namespace, without the namespace",
    ),
)

REFIT = rules(
    Rule(
        "[has(self.objective), has(self.script), has(self.command)].filter(given, given).size() <= 1",
        "set at most one of objective, script and command; with none, the refit runs what a trial runs",
        reason="FieldValueForbidden",
    ),
)

TRIAL = rules(
    Rule(
        "has(self.objective) || has(self.script) || has(self.command)",
        "set exactly one of objective, script and command",
        reason="FieldValueRequired",
    ),
    Rule(
        "!has(self.objective) || !has(self.command)",
        "set exactly one of objective, script and command",
        ".command",
        "FieldValueForbidden",
    ),
    Rule(
        "!has(self.script) || !(has(self.objective) || has(self.command))",
        "set exactly one of objective, script and command",
        ".script",
        "FieldValueForbidden",
    ),
    Rule(
        "!has(self.metrics) || has(self.command)",
        "metrics only apply to command; an objective or script reports its own values: remove metrics",
        ".metrics",
        "FieldValueForbidden",
    ),
    Rule(
        "!has(self.study) || has(self.script)",
        "study only applies to script: remove study",
        ".study",
        "FieldValueForbidden",
    ),
    Rule(
        "!has(self.trialsPerPod) || self.trialsPerPod == 1 || (has(self.reusePods) && self.reusePods)",
        "several trials in a pod require reusePods: set reusePods: true, or remove trialsPerPod",
        ".trialsPerPod",
    ),
    Rule(
        "(has(self.reusePods) && self.reusePods) == (has(oldSelf.reusePods) && oldSelf.reusePods)",
        "reusePods can't be changed: create a new study",
        ".reusePods",
    ),
)

_TRAINER = names.TRAINER_CONTAINER

POD = rules(
    Rule(
        f"self.containers.exists_one(c, c.name == '{_TRAINER}')",
        f"exactly one container must be named `{_TRAINER}`",
        ".containers",
        "FieldValueRequired",
    ),
    Rule(
        f"self.containers.all(c, c.name != '{_TRAINER}' || (!has(c.command) && !has(c.args)))",
        f"command and args of the container `{_TRAINER}` are set by the operator: use objective, script or "
        "command beside the template instead",
        ".containers",
        "FieldValueForbidden",
    ),
    Rule(
        f"self.containers.all(c, c.name == '{_TRAINER}' || has(c.image))",
        f"only the container `{_TRAINER}` has a default image: set image",
        ".containers",
        "FieldValueRequired",
    ),
    Rule(
        "!has(self.restartPolicy) || self.restartPolicy == 'Never'",
        "must be Never or omitted: failed pods are not restarted; they count as failed trials",
        ".restartPolicy",
    ),
)

NAME = rules(
    Rule(
        f"self.size() <= {names.MAX_STUDY_NAME}",
        f"{{self}} has {{self.size()}} characters, but at most {names.MAX_STUDY_NAME} are allowed, since the "
        "names of its Jobs and pods start with it: shorten it",
    ),
    Rule(
        "!self.contains('.')",
        "{self} contains a dot, but the names of its Jobs and pods start with it: use letters, digits and "
        "dashes",
    ),
)
