"""The TuningStudy as pydantic models: the source of the CRD (`crds/` is generated from here)."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema
from pydantic.alias_generators import to_camel

from tuning_operator.resource import podtemplate, rules
from tuning_operator.resource.duration import Duration

Scalar = bool | int | float | str | None
"""A parameter's value, as Optuna's categorical choices allow."""

Name = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z_][A-Za-z0-9_.\-]*$",
        max_length=128,
        json_schema_extra=rules.told(
            "{self} must begin with a letter or underscore and go on with letters, digits, _ . -"
        ),
    ),
]

PodTemplate = Annotated[dict[str, Any], WithJsonSchema(podtemplate.TEMPLATE)]
"""A PodTemplateSpec as plain data: what it may hold is for the API server to say, version by version."""


class Model(BaseModel):
    """camelCase outside, snake_case inside; unknown fields are errors."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)


class Objective(Model):
    """One value to optimize."""

    metric: Name = Field(description="The metric's name, as it appears in status and in plots.")
    direction: Literal["maximize", "minimize"] = Field(
        description="Whether larger or smaller values are better."
    )
    target: float | None = Field(
        None, description="The study completes as soon as a trial reaches this value. Omitted: no such goal."
    )


class When(Model, json_schema_extra=rules.WHEN):
    """The condition under which a parameter exists: exactly one of the comparisons."""

    parameter: Name = Field(description="An earlier parameter of the search space.")
    equals: Scalar = Field(None, description="The parameter has this value.")
    any_of: list[Scalar] | None = Field(
        None,
        description="The parameter has one of these values.",
        min_length=1,
        max_length=1000,
        json_schema_extra=rules.DISTINCT,
    )
    at_least: float | None = Field(None, description="The parameter's value is this or more.")
    at_most: float | None = Field(None, description="The parameter's value is this or less.")


class Parameter(Model, json_schema_extra=rules.PARAMETER):
    """One dimension of the search space: a range (float, int) or a list of choices (categorical)."""

    name: Name = Field(description="The parameter's name, as the objective asks for it.")
    type: Literal["float", "int", "categorical"] = Field(description="The kind of distribution.")
    low: float | None = Field(None, description="The smallest value, included. Required for float and int.")
    high: float | None = Field(None, description="The largest value, included. Required for float and int.")
    step: float | None = Field(
        None, description="The distance between neighbouring values. Not together with log."
    )
    log: bool = Field(
        False, description="Sample on a logarithmic scale; low must be above 0. Default: false."
    )
    choices: list[Scalar] | None = Field(
        None,
        description="The values to choose from. Required for categorical.",
        min_length=1,
        max_length=1000,
        json_schema_extra=rules.DISTINCT,
    )
    when: When | None = Field(None, description="The parameter exists only in trials for which this holds.")


SAMPLERS = (
    "BruteForceSampler",
    "CmaEsSampler",
    "GPSampler",
    "GridSampler",
    "NSGAIIISampler",
    "NSGAIISampler",
    "PartialFixedSampler",
    "QMCSampler",
    "RandomSampler",
    "TPESampler",
)
"""The classes of `optuna.samplers`."""

PRUNERS = (
    "HyperbandPruner",
    "MedianPruner",
    "NopPruner",
    "PatientPruner",
    "PercentilePruner",
    "SuccessiveHalvingPruner",
    "ThresholdPruner",
    "WilcoxonPruner",
)
"""The classes of `optuna.pruners`."""


class Sampler(Model):
    """An Optuna sampler, by its class name and arguments."""

    name: str = Field(
        "TPESampler",
        description="The class name in optuna.samplers.",
        json_schema_extra={"enum": [*SAMPLERS]},
    )
    args: dict[str, Any] = Field(
        default_factory=dict, description="The arguments of the class, by Optuna's names."
    )


class Pruner(Model):
    """An Optuna pruner, by its class name and arguments."""

    name: str = Field(
        "MedianPruner",
        description="The class name in optuna.pruners.",
        json_schema_extra={"enum": [*PRUNERS]},
    )
    args: dict[str, Any] = Field(
        default_factory=dict, description="The arguments of the class, by Optuna's names."
    )


class Source(Model):
    """Where the trial's code comes from when it is not in the image."""

    config_map: str = Field(
        description="A ConfigMap in the study's namespace; its keys are files on the trial's Python path.",
        min_length=1,
        max_length=253,
    )


Function = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_.]*$",
        max_length=500,
        json_schema_extra=rules.OBJECTIVE_FUNCTION
        | rules.told("{self} must be module:function, for example train:objective"),
    ),
]

Script = Annotated[
    str,
    Field(
        pattern=r"^\S+\.py$",
        max_length=500,
        json_schema_extra=rules.told("{self} must be a Python file, for example train.py"),
    ),
]

Command = Annotated[
    list[Annotated[str, Field(max_length=32_768)]],
    Field(min_length=1, max_length=1000, json_schema_extra=rules.COMMAND),
]


class Metrics(Model, json_schema_extra=rules.METRICS):
    """Only with command: how its metrics are read. Omitted: lines such as `accuracy=0.93`, or JSON.

    A metric's last value is the trial's; values with a step before that are reported and may prune it.
    """

    pattern: str | None = Field(
        None,
        description="A Python regular expression, searched in each line: the group (?P<accuracy>...) is the "
        "metric accuracy, (?P<step>...) the step. Or groups named `name` and `value`; or a single group, "
        "where there is one objective.",
        min_length=1,
        max_length=2000,
    )
    file: str | None = Field(
        None,
        description="A file to which the program appends lines, JSON objects or `accuracy=0.93`, read "
        "besides standard output. Omitted: the file that TUNING_METRICS_FILE names.",
        min_length=1,
        max_length=4096,
    )


class TrialSpec(Model, json_schema_extra=rules.TRIAL):
    """What one trial runs. Exactly one of objective, script and command."""

    objective: Function | None = Field(
        None,
        description="`module:function`, an Optuna objective: takes a trial, returns the value or values.",
    )
    script: Script | None = Field(
        None, description="A whole Optuna script, unmodified: its `study.optimize` runs this one trial."
    )
    command: Command | None = Field(
        None,
        description="Any program: parameters reach it as environment variables, as {{name}} in its arguments "
        "and as a JSON file.",
    )
    metrics: Metrics | None = None
    source: Source | None = Field(None, description="Code from a ConfigMap, without building an image.")
    python: str = Field(
        "python3",
        description="The Python of the image that runs the trainer runtime (3.9 or newer).",
        pattern=r"^\S+$",
        max_length=500,
        json_schema_extra=rules.told("{self} must be one program without arguments, for example python3"),
    )
    timeout: Duration | None = Field(
        None, description="How long one trial may run, for example 20m.", json_schema_extra=rules.DURATION
    )
    prune_grace: Duration = Field(
        "30s", description="How long a trial that was told to stop may go on before its pod is deleted."
    )
    ttl_after_finished: Duration = Field("1d", description="How long finished Jobs and their logs are kept.")
    template: PodTemplate = Field(
        description="A PodTemplateSpec. Its container `trainer` runs the trial; request GPUs there."
    )


class RefitSpec(Model, json_schema_extra=rules.REFIT):
    """One more Job when the study has completed, with the best trial's parameters: the final training.

    Without objective, script and command it runs what a trial runs. TUNING_ROLE is `final` there. A change of
    these fields, or another best trial, makes a new refit; that is also how a failed one is tried again.
    """

    objective: Function | None = Field(
        None,
        description="`module:function`: takes the best trial, may return its value, and says where the model "
        'is by trial.set_user_attr("model", ...).',
    )
    script: Script | None = Field(
        None,
        description="An Optuna script: `optimize` returns at once, and the code below it runs, with "
        'best_params and the like. study.set_user_attr("model", ...) says where the model is.',
    )
    command: Command | None = Field(
        None,
        description="Any program; the best parameters reach it as a trial's do. A JSON object in the file "
        'that TUNING_RESULT_FILE names is kept: {"model": ...} says where the model is.',
    )
    source: Source | None = Field(None, description="Code from a ConfigMap. Omitted: the trial's source.")
    metric: Name | None = Field(
        None,
        description="Several objectives only: of the Pareto front, the trial with the best value of this "
        "metric is taken.",
    )
    retries: int = Field(
        2,
        description="How often a refit that fails is tried again, in a new pod and after a while. A pod that "
        "was evicted or drained does not count.",
        ge=0,
        le=20,
    )
    timeout: Duration | None = Field(
        None,
        description="How long one try may run, for example 6h. Omitted: as long as it takes.",
        json_schema_extra=rules.DURATION,
    )
    template: PodTemplate | None = Field(
        None, description="A PodTemplateSpec with a container `trainer`. Omitted: the trial's template."
    )


class WarmStart(Model):
    """Continue from another study's trials.

    They are copied once, when this study is created: complete and pruned ones whose parameters its search
    space allows. The sampler and the pruner learn from them, and one of them may be the best.
    """

    study: str = Field(
        description="The name of a study in this namespace. Its record counts, so the resource may be "
        "deleted by now (deletionPolicy Retain). Its trials do not count towards maxTrials.",
        min_length=1,
        max_length=253,
        json_schema_extra=rules.STUDY_NAME,
    )


class TuningStudySpec(Model, json_schema_extra=rules.SPEC):
    """What to optimize, over which parameters, how, and what a trial runs."""

    objectives: list[Objective] = Field(
        description="What to optimize; several make the study multi-objective.",
        min_length=1,
        max_length=8,
        json_schema_extra=rules.OBJECTIVES,
    )
    search_space: list[Parameter] | None = Field(
        None,
        description="The parameters. Omitted: the objective suggests its own (define-by-run).",
        min_length=1,
        max_length=100,
        json_schema_extra=rules.SEARCH_SPACE,
    )
    sampler: Sampler = Field(Sampler(), description="How trials are proposed.")
    pruner: Pruner | None = Field(
        None,
        description="How hopeless trials are found. Omitted: MedianPruner with Optuna's defaults for one "
        "objective, none for several. NopPruner switches pruning off.",
    )
    max_trials: int = Field(
        description="The study completes after this many trials, failed and pruned ones included.",
        ge=1,
        le=1_000_000,
    )
    parallelism: int = Field(1, description="How many trials run at the same time.", ge=1, le=10_000)
    max_failed_trials: int = Field(
        10, description="The study fails once more trials than this have failed.", ge=0
    )
    max_trials_without_improvement: int | None = Field(
        None,
        description="The study completes after this many completed trials in a row without a better value.",
        ge=1,
    )
    timeout: Duration | None = Field(
        None,
        description="How long the study may run, counted from its start or last resumption, for example 12h.",
        json_schema_extra=rules.DURATION,
    )
    initial_trials: list[dict[str, Scalar]] = Field(
        default_factory=list,
        description="Known good points, tried first; parameters left out are sampled.",
        max_length=1000,
    )
    warm_start: WarmStart | None = Field(None, json_schema_extra=rules.WARM_START)
    suspend: bool = Field(False, description="While true, no trial is started; running trials finish.")
    deletion_policy: Literal["Retain", "Delete"] = Field(
        "Retain", description="What happens to the study in the database when this resource is deleted."
    )
    trial: TrialSpec = Field(description="What one trial runs.")
    refit: RefitSpec | None = None


class Condition(Model):
    """A Kubernetes condition."""

    type: str = Field(description="Accepted, Stalled, Suspended, Complete or Failed.")
    status: Literal["True", "False", "Unknown"] = Field(description="Whether the condition holds.")
    reason: str = Field(description="A word for programs.")
    message: str = Field(description="A sentence for people, with the mend where something is wrong.")
    observed_generation: int | None = Field(None, description="The generation this was judged from.")
    last_transition_time: str = Field(description="When status last changed (RFC 3339).")


class TrialCounts(Model):
    """Trials by state."""

    total: int = Field(0, description="All trials of the study.")
    running: int = Field(0, description="Trials running now.")
    complete: int = Field(0, description="Trials that returned a value.")
    pruned: int = Field(0, description="Trials stopped early.")
    failed: int = Field(0, description="Trials that ended without a value.")
    copied: int | None = Field(
        None, description="Trials taken from spec.warmStart, in none of the other counts."
    )


class BestTrial(Model):
    """A trial worth having."""

    number: int = Field(description="The trial's number.")
    values: list[float] = Field(description="Its values, in the order of the objectives.")
    parameters: dict[str, Any] = Field(description="Its parameters.")


class RefitStatus(Model):
    """How the refit stands."""

    phase: Literal["Pending", "Running", "Completed", "Failed"] = Field(
        description="Pending while no pod of it runs. Of the refit alone: the study's phase is Completed "
        "already."
    )
    job: str = Field(description="The Job's name; its log is `kubectl logs job/NAME`.")
    trial: int | None = Field(
        None, description="The number of the trial whose parameters are used; absent where there is none."
    )
    values: list[float] | None = Field(
        None, description="What the final training returned, in the order of the objectives, if it did."
    )
    model: str | None = Field(
        None, description="Where the model is: the user attribute `model` that the final training set."
    )
    attributes: dict[str, Any] | None = Field(
        None, description="The other user attributes that the final training set, the first 20."
    )
    message: str | None = Field(None, description="What stands in its way, or why it failed, with the mend.")


class TuningStudyStatus(Model):
    """How the study stands. Its size does not grow with the number of trials."""

    phase: Literal["Pending", "Running", "Suspended", "Completed", "Failed"] | None = Field(
        None, description="The whole story in a word; conditions tell the rest."
    )
    conditions: list[Condition] = Field(
        default_factory=list,
        description="Accepted, Stalled, Suspended, Complete, Failed.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    observed_generation: int | None = Field(None, description="The generation this status belongs to.")
    start_time: str | None = Field(
        None, description="When trials began, or began again after completion or suspension."
    )
    completion_time: str | None = Field(None, description="When the study ended.")
    progress: str | None = Field(None, description="Finished trials / maxTrials.")
    trials: TrialCounts | None = Field(None, description="Trials by state.")
    best: BestTrial | None = Field(None, description="The best trial so far (single objective).")
    pareto_front: list[BestTrial] | None = Field(
        None,
        description="The trials no other dominates (several objectives); at most 50, with the best in "
        "each objective among them.",
    )
    refit: RefitStatus | None = Field(None, description="The final training (spec.refit).")


class TuningStudy(BaseModel):
    """The resource as the API server gives it; metadata stays a plain mapping."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)

    metadata: dict[str, Any]
    spec: TuningStudySpec
    status: TuningStudyStatus = Field(default_factory=TuningStudyStatus)
