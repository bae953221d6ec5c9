"""The study server's HTTP protocol, as pydantic models: what the halves and the trainer say to each other.

All paths start with `/v1/studies/{namespace}/{name}`; times are RFC 3339 in UTC; values may be NaN or
infinite and travel as JSON strings then ("NaN", "Infinity", "-Infinity"), since JSON has no such numbers.
"""

import math
from datetime import datetime
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, PlainSerializer

from tuning_operator.resource.study import Model, Objective, Parameter, Pruner, Sampler, Scalar

TrialState = Literal["WAITING", "RUNNING", "COMPLETE", "PRUNED", "FAIL"]
"""Optuna's names of a trial's states."""


class StudyKey(NamedTuple):
    """A study's namespace and name."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


def _number(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value


def _attribute(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _attribute(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_attribute(inner) for inner in value]
    return _number(value)


Number = Annotated[float, PlainSerializer(_number, when_used="json")]

Value = Annotated[Any, PlainSerializer(_number, when_used="json")]
"""A parameter's value: a number, or whatever choice the objective gave (None, a list) as JSON has it."""

Attributes = Annotated[dict[str, Any], PlainSerializer(_attribute, when_used="json")]
"""User attributes: whatever JSON can hold."""


class Failure(Model):
    """Why a trial ended without a value."""

    category: str = Field(
        description="Machine-readable reason, for example Exception, OutOfMemory or ImagePull."
    )
    message: str = Field(description="Human-readable message: what happened.")
    remedy: str | None = Field(None, description="How to fix it.")
    traceback: str | None = Field(None, description="The exception's traceback, if there is one.")

    def describe(self) -> str:
        """Return what happened and how to fix it, as one text."""
        message = self.message.strip()
        if not self.remedy:
            return message
        return (
            f"{message} {self.remedy}" if message.endswith((".", "!", "?")) else f"{message}. {self.remedy}"
        )


class StudyDefinition(Model):
    """What the server needs to know of a study (PUT on the study's path; idempotent)."""

    objectives: list[Objective]
    search_space: list[Parameter] | None = None
    sampler: Sampler = Field(default_factory=Sampler)
    pruner: Pruner | None = None
    initial_trials: list[dict[str, Scalar]] = Field(default_factory=list)
    warm_start: str | None = Field(
        None, description="A study of the same namespace whose finished trials are copied at the creation."
    )
    deletion_policy: Literal["Retain", "Delete"] = "Retain"


class Problem(Model):
    """A reason to refuse a definition."""

    field: str = Field(description="The path in the manifest's spec, for example sampler.args.seed.")
    message: str = Field(description="What is wrong and how to mend it.")


class TrialRecord(Model):
    """A trial as the record has it."""

    number: int
    state: TrialState
    parameters: dict[str, Value] = Field(default_factory=dict)
    values: list[Number] | None = None
    started: datetime | None = None
    finished: datetime | None = None
    prune_requested: datetime | None = Field(None, description="When the trial was first told to stop.")
    failure: Failure | None = None


class Counts(Model):
    """Trials by state, in Optuna's words."""

    waiting: int = 0
    running: int = 0
    complete: int = 0
    pruned: int = 0
    fail: int = 0
    copied: int = Field(0, description="Trials copied from another study, in none of the other counts.")


class RefitRecord(Model):
    """The final training as the record has it."""

    trial: int = Field(description="The trial whose parameters are used.")
    digest: str = Field(description="What the operator said when it began: another digest is another refit.")
    state: Literal["RUNNING", "COMPLETE", "FAIL"]
    values: list[Number] | None = None
    user_attrs: Attributes = Field(
        default_factory=dict, description="What the final training itself set; at most 64 KiB as JSON."
    )
    started: datetime | None = None
    finished: datetime | None = None
    failure: Failure | None = Field(
        None,
        description="Why the last try failed. The state stays RUNNING then: whether there is another try is "
        "the operator's to say, by telling FAIL; without a failure of its own, this one stays.",
    )


class RefitRequest(Model):
    """PUT .../refit (operator): begin the final training with a trial's parameters; idempotent.

    The same trial and digest change nothing, others begin anew.
    """

    trial: int = Field(ge=0)
    digest: str = Field(max_length=64)


class StudySummary(Model):
    """A study's standing; its size grows with the running trials only (GET on the study's path)."""

    counts: Counts = Field(default_factory=Counts)
    running: list[TrialRecord] = Field(default_factory=list)
    best: TrialRecord | None = None
    pareto_front: list[TrialRecord] = Field(
        default_factory=list,
        description="Several objectives only; at most 50, with the best in each objective among them.",
    )
    trials_since_best: int = Field(0, description="Completed trials after the best one.")
    last_failure: TrialRecord | None = Field(None, description="The failed trial of the highest number.")
    refit: RefitRecord | None = None
    exhausted: bool = Field(
        False,
        description="The sampler has tried all there is (GridSampler, say); asking brings no more trials.",
    )


class AskRequest(Model):
    """POST .../ask: top the running trials up to `parallelism`, all trials to `max_trials`.

    Declarative, so that a request sent twice asks once. Waiting (enqueued) trials go first. At most 16
    trials are started by one request, so that no request takes long; ask again for more.
    """

    parallelism: int = Field(ge=0)
    max_trials: int = Field(ge=0)


class TellRequest(Model):
    """POST .../trials/{number}/result: the trial's end. The first telling holds; another is no error."""

    state: Literal["COMPLETE", "PRUNED", "FAIL"]
    values: list[Value] | None = Field(
        None,
        description="One number for each objective, of a COMPLETE trial only. What Optuna takes for no value "
        "(NaN, null, a text, too many or too few) makes the trial FAIL with a reason, as `study.tell` does.",
    )
    failure: Failure | None = None


class TrialView(Model):
    """What a trainer needs of its trial (GET .../trials/{number})."""

    trial: TrialRecord
    objectives: list[Objective]
    fixed: bool = Field(
        description="Whether the search space is declared: then all parameters are in the trial already."
    )
    distributions: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="By parameter, in Optuna's JSON form: {name: FloatDistribution, attributes: {}}.",
    )
    reported: dict[int, Number] = Field(default_factory=dict, description="Values reported so far, by step.")
    user_attrs: Attributes = Field(default_factory=dict)
    constraints: dict[str, Number] = Field(
        default_factory=dict,
        description="Constraint values set so far, by name (Optuna's trial.constraints).",
    )


class SuggestRequest(Model):
    """POST .../trials/{number}/suggest: a parameter's value; the same question gets the same answer."""

    name: str
    distribution: dict[str, Any] = Field(description="Optuna's JSON form of a distribution.")


class SuggestReply(Model):
    """The parameter's value (for a categorical one the choice itself)."""

    value: Value


class ReportRequest(Model):
    """POST .../trials/{number}/report: intermediate values, oldest first; the first value of a step holds."""

    values: list[tuple[int, Number]] = Field(min_length=1)


class ReportReply(Model):
    """Whether the trial should stop now."""

    prune: bool


class AttributesRequest(Model):
    """POST .../trials/{number}/attributes: user attributes, and constraint values by name (<= 0: feasible).

    As in Optuna, a user attribute set again is replaced, and the first value of a constraint holds.
    """

    user_attrs: Attributes = Field(default_factory=dict)
    constraints: dict[str, Number] = Field(default_factory=dict)


class FinishedTrial(Model):
    """A trial as a finished study shows it to a script."""

    number: int
    state: TrialState
    values: list[Number] | None = None
    parameters: dict[str, Value] = Field(default_factory=dict)
    distributions: dict[str, dict[str, Any]] = Field(default_factory=dict)
    reported: dict[int, Number] = Field(default_factory=dict)
    user_attrs: Attributes = Field(default_factory=dict)
    constraints: dict[str, Number] = Field(default_factory=dict)
    started: datetime | None = None
    finished: datetime | None = None


class FinishedStudy(Model):
    """All that a study's record holds.

    GET .../record, for the operator and for people: a token of any service account of the study's namespace
    that is bound to no pod. GET .../refit/study, for the refit's pod: the code below a script's `optimize`
    runs there with it.

    The refit's pod is a trial's as far as the protocol goes: TUNING_TRIAL_URL is .../refit, and GET,
    /suggest, /report (prune is always false), /attributes and /result work there as on a trial. Its
    TrialView is the best trial's, with state RUNNING until the refit is COMPLETE or the operator has told
    FAIL, and without what that trial reported and its constraints; reports and constraints are not kept. A
    COMPLETE without values, or with such as are none, is a success there; a FAIL by the pod is one try's,
    and so is a PRUNED. A /result is answered by a TrialRecord with the state that was told, FAIL for such a
    try, or with the earlier end that holds.
    """

    directions: list[Literal["minimize", "maximize"]]
    trials: list[FinishedTrial]
    user_attrs: Attributes = Field(default_factory=dict)


class Changes(Model):
    """GET /v1/changes?after=CURSOR&timeout=SECONDS: the studies that changed; waits until there is one.

    Without a cursor, or with one from before the server's restart: every study with a running trial.
    """

    cursor: str
    studies: list[tuple[str, str]] = Field(description="(namespace, name) of each.")
