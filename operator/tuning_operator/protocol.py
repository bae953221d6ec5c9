"""The study server's HTTP protocol, as pydantic models. Clients are the operator, the trainer and the plugin.

All paths start with `/v1/studies/{namespace}/{name}`. Times are RFC 3339 in UTC. NaN and infinite values are
sent as JSON strings ("NaN", "Infinity", "-Infinity"), since JSON has no such numbers. Distributions are in
Optuna's JSON form, in which such choices are the constants NaN, Infinity and -Infinity: a choice may be a
string of the same name.

An installation may have several study servers. One that does not have the study replies 421, and its reply
names the one that has it: `{"detail": ..., "problems": [...], "studyServer": 1}`.
"""

from datetime import datetime
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, PlainSerializer
from tuning_trainer.wire.codec import to_wire

from tuning_operator.resource.study import (
    ExistingRecord,
    Model,
    Objective,
    Parameter,
    Pruner,
    Sampler,
    Scalar,
)
from tuning_operator.resource.text import sentence

TrialState = Literal["WAITING", "RUNNING", "COMPLETE", "PRUNED", "FAIL"]
"""Optuna's names of trial states."""

PRUNE_REASON = "prune_reason"
"""The user attribute that says why a trial was first asked to stop."""
FAILURE = "failure_"
"""User attributes `failure_category`, `failure_message`, `failure_remedy` and `failure_traceback`."""


class StudyKey(NamedTuple):
    """A study's namespace and name."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"

    @classmethod
    def parse(cls, text: str) -> "StudyKey":
        """Return the key with this text."""
        return cls(*text.split("/", 1))


Number = Annotated[float, PlainSerializer(to_wire, when_used="json")]

Value = Annotated[Any, PlainSerializer(to_wire, when_used="json")]
"""A parameter's value: a number, or a choice of any JSON type (null and lists included)."""

Attributes = Annotated[dict[str, Any], PlainSerializer(to_wire, when_used="json")]
"""User attributes: any JSON."""


class FromPods(Model, extra="ignore"):
    """Base of what pods send: fields that the server does not know are ignored.

    A trial keeps the trainer that it started with, which may be newer. Its values and its result must not be
    lost.
    """


class Failure(FromPods):
    """Why a trial ended without a value. Long texts are shortened: messages to 4,000 characters."""

    category: str = Field(
        description="Machine-readable reason, for example Exception, OutOfMemory or ImagePull."
    )
    message: str = Field(description="Human-readable message: what happened.")
    remedy: str | None = Field(None, description="How to fix it.")
    traceback: str | None = Field(None, description="The exception's traceback, if there is one.")

    def describe(self) -> str:
        """Return what happened and how to fix it, as one text."""
        message = self.message.strip()
        return f"{sentence(message)} {self.remedy}" if self.remedy else message


class StudyDefinition(Model):
    """PUT on the study's path: what the server needs to know about a study. Idempotent."""

    objectives: list[Objective] = Field(min_length=1)
    search_space: list[Parameter] | None = None
    sampler: Sampler = Field(default_factory=Sampler)
    pruner: Pruner | None = None
    initial_trials: list[dict[str, Scalar]] = Field(default_factory=list)
    warm_start: str | None = Field(
        None,
        description="A study of the same namespace whose finished trials are copied at creation.",
    )
    deletion_policy: Literal["Retain", "Delete"] = "Retain"
    existing_record: ExistingRecord = "Continue"
    namespace_uid: str | None = Field(
        None,
        description="The uid of the namespace. A record with another uid is that of an earlier namespace of "
        "this name: it is kept, out of reach of this one.",
    )
    uid: str | None = Field(
        None,
        description="The uid of the TuningStudy. A record with another uid is that of an earlier TuningStudy "
        "of this name; existingRecord says what happens to it.",
    )


class Problem(Model):
    """A reason why a request is refused."""

    field: str = Field(description="The path in the manifest's spec, for example sampler.args.seed.")
    message: str = Field(description="What is wrong and how to fix it.")


class TrialRecord(Model):
    """A trial as recorded."""

    number: int
    state: TrialState
    parameters: dict[str, Value] = Field(default_factory=dict)
    values: list[Number] | None = None
    started: datetime | None = None
    finished: datetime | None = None
    prune_requested: datetime | None = Field(None, description="When the trial was first asked to stop.")
    prune_reason: str | None = Field(None, description="Why the trial was asked to stop.")
    failure: Failure | None = None
    worker: int | None = Field(None, description="The worker that has the trial (trial.reusePods).")
    pods: int = Field(0, description="How many pods of workers have had the trial.")


class Counts(Model):
    """Number of trials by state."""

    waiting: int = 0
    running: int = 0
    complete: int = 0
    pruned: int = 0
    fail: int = 0
    copied: int = Field(0, description="Trials copied from another study; not included in the other counts.")


class RefitRecord(Model):
    """The refit (final training) as recorded."""

    trial: int = Field(description="The trial whose parameters are used.")
    digest: str = Field(
        description="The digest in the RefitRequest: a different digest is a different refit."
    )
    state: Literal["RUNNING", "COMPLETE", "FAIL"]
    values: list[Number] | None = None
    user_attrs: Attributes = Field(
        default_factory=dict, description="What the refit itself set; at most 64 KiB as JSON."
    )
    started: datetime | None = None
    finished: datetime | None = None
    failure: Failure | None = Field(
        None,
        description="Why the last attempt failed. The state stays RUNNING, since the operator decides "
        "whether "
        "to retry: it ends the refit by sending FAIL. If it sends no failure, this one is kept.",
    )


class RefitRequest(Model):
    """PUT .../refit (operator): start the refit with a trial's parameters. Idempotent.

    The same trial and digest change nothing; different ones start over.
    """

    trial: int = Field(ge=0)
    digest: str = Field(max_length=64)


class Durations(Model):
    """How long trials took from their start to their end, in seconds: the sum, by how they ended."""

    complete: float = 0
    pruned: float = 0
    fail: float = 0


class StudySummary(Model):
    """GET on the study's path: a summary, whose size only depends on the number of running trials."""

    uid: str | None = Field(None, description="The uid of the TuningStudy that declared the study last.")
    continued: int | None = Field(
        None,
        description="Number of trials in the record of an earlier TuningStudy that this one continues.",
    )
    counts: Counts = Field(default_factory=Counts)
    durations: Durations = Field(default_factory=Durations)
    running: list[TrialRecord] = Field(default_factory=list)
    best: TrialRecord | None = None
    pareto_front: list[TrialRecord] = Field(
        default_factory=list,
        description="Several objectives only: at most 50 trials, including the best in each objective, and "
        "one that reaches all targets, if there is one.",
    )
    front_size: int | None = Field(
        None, description="Number of trials of the whole Pareto front. Older study servers don't send it."
    )
    trials_since_best: int = Field(0, description="Complete trials after the best one.")
    caught: int = Field(
        0,
        description="Failed trials whose exception the script's `optimize` catches (the category Caught).",
    )
    recent_failures: list[TrialRecord] = Field(
        default_factory=list,
        description="The trials that failed last, at most 10, the latest one last; without tracebacks.",
    )
    refit: RefitRecord | None = None
    exhausted: bool = Field(
        False,
        description="The sampler has tried all values (for example, GridSampler): there are no more trials "
        "to ask for.",
    )
    leaving: list[int] | None = Field(
        None,
        description="The workers that get no further trials, as of the last AskRequest. Older study servers "
        "don't send it.",
    )


class AskRequest(Model):
    """POST .../ask: start trials until `parallelism` are running, or `max_trials` exist in total.

    Declarative, so a repeated request does not start more. Waiting (enqueued) trials are started first.
    Where more than 16 are to start, a request may start some of them, which bounds its duration; ask again.
    """

    parallelism: int = Field(ge=0)
    max_trials: int = Field(ge=0)
    leaving: list[int] = Field(
        default_factory=list,
        description="The workers that get no further trials, until the next request. Not sent if it is "
        "empty, since older study servers reject it.",
        exclude_if=lambda leaving: not leaving,
    )


class AttributesRequest(FromPods):
    """POST .../trials/{number}/attributes: user attributes, and constraint values by name (<= 0: feasible).

    As in Optuna, setting a user attribute again replaces it, and the first value of a constraint is kept.
    Keys have at most 512 characters (those of constraints 500), and the attributes of a trial, or of a study,
    take at most 256 KiB as JSON.
    """

    user_attrs: Attributes = Field(default_factory=dict)
    study_attrs: Attributes = Field(
        default_factory=dict,
        description="User attributes of the study, as `study.set_user_attr` sets them. Those that the refit "
        "sets are the refit's own.",
    )
    constraints: dict[str, Number] = Field(default_factory=dict)


class TellRequest(FromPods):
    """POST .../trials/{number}/result: end a trial. The first result stays; another is not an error.

    It is also what a pod leaves as its termination message, in case the study server does not answer: the
    operator sends it later.
    """

    state: Literal["COMPLETE", "PRUNED", "FAIL"]
    values: list[Value] | None = Field(
        None,
        description="One number per objective, for a COMPLETE trial only. As in `study.tell`, invalid values "
        "(NaN, null, strings, too many or too few) make the trial FAIL, with a reason.",
    )
    failure: Failure | None = None
    attributes: AttributesRequest | None = Field(
        None,
        description="What the trial set and its pod could not send before; it is set before the trial ends. "
        "Invalid attributes do not keep the trial from ending.",
    )
    reported: list[tuple[int, Number]] = Field(
        default_factory=list, description="Intermediate values that its pod could not send before."
    )


class TrialView(Model):
    """GET .../trials/{number}: a trial as its trainer needs it."""

    trial: TrialRecord
    objectives: list[Objective]
    fixed: bool = Field(
        description="Whether the search space is declared; if so, the trial already has all its parameters."
    )
    distributions: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="Distribution of each parameter, in Optuna's JSON form: "
        "{name: FloatDistribution, attributes: {}}.",
    )
    reported: dict[int, Number] = Field(default_factory=dict, description="Values reported so far, by step.")
    user_attrs: Attributes = Field(default_factory=dict)
    constraints: dict[str, Number] = Field(
        default_factory=dict,
        description="Constraint values set so far, by name (Optuna's trial.constraints).",
    )


class WorkRequest(FromPods):
    """POST .../workers/{worker}/trials: the trials of a worker, a pod that takes one trial after another.

    Waits until there is a trial to start, or until one that the pod runs has ended.
    """

    running: list[int] = Field(
        default_factory=list,
        description="The trials that the pod runs and does not know to have ended.",
        max_length=1000,
    )
    capacity: int = Field(1, description="How many trials the pod may have at a time.", ge=1, le=1000)
    timeout: float = Field(25.0, description="How many seconds to wait.", ge=0, le=300)


class WorkReply(Model):
    """What a worker should do. The trials to start are the pod's from now on, until another one has them."""

    start: list[TrialView] = Field(
        default_factory=list,
        description="Trials to start. After a lost reply, or if the worker's pod was replaced, they may have "
        "run before.",
    )
    ended: list[int] = Field(
        default_factory=list,
        description="Trials of the request that have ended, or that another pod has: the pod ends their "
        "processes within spec.trial.pruneGrace.",
    )
    stopped: list[int] = Field(
        default_factory=list,
        description="Those of `ended` that the operator has ended: the pod ends their processes now.",
    )


class SuggestRequest(FromPods):
    """POST .../trials/{number}/suggest: a parameter's value. The same request gets the same value.

    Names have at most 512 characters, and categorical parameters at most 1,000 choices.
    """

    name: str
    distribution: dict[str, Any] = Field(description="Optuna's JSON form of a distribution.")


class SuggestReply(Model):
    """The parameter's value; for a categorical parameter, the choice itself."""

    value: Value


class ReportRequest(FromPods):
    """POST .../trials/{number}/report: intermediate values, oldest first. The first per step is kept.

    A trial reports at most 100,000 steps, from 0 to 2147483647.
    """

    values: list[tuple[int, Number]] = Field(min_length=1, max_length=1000)


class ReportReply(Model):
    """Whether the trial should stop now."""

    prune: bool
    reason: str | None = Field(None, description="Why the trial should stop, if it should.")


class CopiedTrial(Model):
    """A trial of which another one is a copy (spec.warmStart)."""

    study: str = Field(description="NAMESPACE/NAME.")
    trial: int


class FinishedTrial(Model):
    """A trial in a study's record."""

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
    copied_from: CopiedTrial | None = None
    pod: str | None = Field(None, description="The pod of a worker that has or had it (trial.reusePods).")


class FinishedStudy(Model):
    """The whole record of a study.

    GET .../record, for the operator and for users: with a token of any service account in the study's
    namespace, not bound to a pod. With ?first=NUMBER, only the trials from this number on, to follow a study.
    GET .../refit/study, for the refit's pod, which uses it to run the code below a script's `optimize`.

    For the protocol, the refit's pod is like a trial's: TUNING_TRIAL_URL is .../refit, and GET, /suggest,
    /report (prune is always false), /attributes and /result work as for a trial. Its TrialView is that of the
    best trial, with state RUNNING until the refit is COMPLETE or the operator has sent FAIL, and without
    that trial's reports and constraints; reports and constraints of the refit are not kept. COMPLETE
    succeeds even without valid values; FAIL or PRUNED from the pod ends one attempt only. The reply to
    /result is a TrialRecord with the state that was sent (FAIL for a failed attempt), or with the earlier
    result if there is one.
    """

    directions: list[Literal["minimize", "maximize"]]
    trials: list[FinishedTrial]
    user_attrs: Attributes = Field(default_factory=dict)


class RecordSummary(Model):
    """A study's record, which may be that of a TuningStudy that was deleted."""

    name: str
    trials: int = Field(description="Number of trials, those that are queued included.")
    finished: datetime | None = Field(None, description="When the last trial ended.")


class Records(Model):
    """GET /v1/studies/{namespace}: the records of a namespace, for its readers and for the operator."""

    records: list[RecordSummary]


class Namespaces(Model):
    """GET /v1/namespaces, for the operator: the namespaces with records whose TuningStudy was deleted.

    DELETE /v1/namespaces/{namespace}?uid=UID keeps these records out of reach of a later namespace of the
    same name.
    """

    namespaces: list[tuple[str, str]] = Field(default_factory=list, description="(name, uid) of each.")


class Changes(Model):
    """GET /v1/changes?after=CURSOR&timeout=SECONDS: the studies that changed; waits until there is one.

    Without a cursor, or with one from before a restart of the server, every study with a running trial, and
    every one that is not known to have been deleted.
    """

    cursor: str
    studies: list[tuple[str, str]] = Field(description="(namespace, name) of each.")
    unavailable: str | None = Field(
        None, description="Why the server can't record anything at the moment; the reply then comes at once."
    )
