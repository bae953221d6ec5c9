"""The TuningStudy as pydantic models: the source of the CRD (`crds/` is generated from here)."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema
from pydantic.alias_generators import to_camel

from tuning_operator.resource import podtemplate, rules
from tuning_operator.resource.duration import Duration

Scalar = bool | int | float | str | None
"""A parameter's value: what Optuna allows as a categorical choice."""

Number = Annotated[float, Field(json_schema_extra=rules.hint("a number without quotes, for example 0.01"))]

Name = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z_][A-Za-z0-9_.\-]*$",
        max_length=128,
        json_schema_extra=rules.pattern_message(
            "{self} must start with a letter or underscore, followed by letters, digits, `_`, `.` or `-`"
        ),
    ),
]

MetricName = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z_]([A-Za-z0-9_.\-/()\[\]@:%+' ]*[A-Za-z0-9_)\]%])?$",
        max_length=128,
        json_schema_extra=rules.pattern_message(
            "{self} must start with a letter or underscore, followed by letters, digits, spaces or any of "
            "`_.-/()[]@:%+'`, and must not end with a space or a separator"
        ),
    ),
]
"""The names that frameworks give to metrics: val/loss, eval.f1, metrics/mAP50-95(B), recall@10."""

PodTemplate = Annotated[dict[str, Any], WithJsonSchema(podtemplate.TEMPLATE)]
"""A PodTemplateSpec as plain data and as written: its fields depend on the version of the API server."""


class Model(BaseModel):
    """Base of the models: camelCase in JSON, snake_case in Python; unknown fields are errors."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        ser_json_inf_nan="constants",  # of choices in distributions; null would be another choice
    )


class Objective(Model):
    """A metric to optimize."""

    metric: MetricName = Field(
        description="Name of the metric, as shown in status and plots. With command, the name that the "
        "program prints, for example val/loss."
    )
    direction: Literal["maximize", "minimize"] = Field(
        description="Whether to maximize or minimize the metric."
    )
    target: Number | None = Field(
        None, description="Complete the study as soon as a trial reaches this value."
    )


class When(Model, json_schema_extra=rules.WHEN):
    """Condition under which a parameter exists. Exactly one comparison must be set."""

    parameter: Name = Field(description="Name of a parameter declared earlier in the search space.")
    equals: Scalar = Field(None, description="The parameter equals this value. For null, use anyOf: [null].")
    any_of: list[Scalar] | None = Field(
        None,
        description="The parameter equals one of these values.",
        min_length=1,
        max_length=1000,
        json_schema_extra=rules.DISTINCT,
    )
    at_least: Number | None = Field(None, description="The parameter is at least this value.")
    at_most: Number | None = Field(None, description="The parameter is at most this value.")


class Parameter(Model, json_schema_extra=rules.PARAMETER):
    """A parameter of the search space: a range (float, int) or a list of choices (categorical)."""

    name: Name = Field(description="Name of the parameter, as in the objective's suggest calls.")
    type: Literal["float", "int", "categorical"] = Field(description="Type of the parameter.")
    low: Number | None = Field(None, description="Smallest value, inclusive. Required for float and int.")
    high: Number | None = Field(None, description="Largest value, inclusive. Required for float and int.")
    step: Number | None = Field(
        None, description="Distance between adjacent values. Must not be combined with log."
    )
    log: bool = Field(
        False, description="Sample on a logarithmic scale. Requires low to be above 0. Defaults to false."
    )
    choices: list[Scalar] | None = Field(
        None,
        description="Values to choose from: strings, numbers, true, false or null. Required for categorical.",
        min_length=1,
        max_length=1000,
        json_schema_extra=rules.DISTINCT,
    )
    when: When | None = Field(
        None, description="Condition under which the parameter exists. If omitted, it exists in every trial."
    )


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


GRID: dict[str, Any] = {
    "search_space": {
        "type": "object",
        "additionalProperties": True,
        "description": "GridSampler only: values of each parameter. Not needed if searchSpace is declared.",
    }
}
"""The only argument that a rule reads; the study server checks the others."""


class Sampler(Model, json_schema_extra=rules.hint("an object with a name, for example {name: TPESampler}")):
    """Optuna sampler, which proposes the parameters of trials."""

    name: str = Field(
        "TPESampler",
        description="Class name in optuna.samplers.",
        json_schema_extra={"enum": [*SAMPLERS]},
    )
    args: dict[str, Any] = Field(
        default_factory=dict,
        description="Arguments of the class, as named by Optuna.",
        json_schema_extra={"properties": GRID},
    )


class Pruner(Model, json_schema_extra=rules.hint("an object with a name, for example {name: MedianPruner}")):
    """Optuna pruner, which stops unpromising trials early."""

    name: str = Field(
        "MedianPruner",
        description="Class name in optuna.pruners.",
        json_schema_extra={"enum": [*PRUNERS]},
    )
    args: dict[str, Any] = Field(
        default_factory=dict, description="Arguments of the class, as named by Optuna."
    )


class Source(Model):
    """Source of code that is not in the image."""

    config_map: str = Field(
        description="Name of a ConfigMap in the study's namespace. Its keys become files on the Python path.",
        min_length=1,
        max_length=253,
    )


Function = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_.]*$",
        max_length=500,
        json_schema_extra=rules.OBJECTIVE_FUNCTION
        | rules.pattern_message("{self} must have the form module:function, for example train:objective"),
    ),
]

_WORD = r"[^\t\n\v\f\r ]+"
"""Not `\\S`, which means different characters to pydantic and to the API server."""

Script = Annotated[
    str,
    Field(
        pattern=rf"^{_WORD}\.py( .*)?$",
        max_length=500,
        json_schema_extra=rules.pattern_message(
            "{self} must be a Python file, which arguments may follow, for example train.py --epochs 3"
        ),
    ),
]

Command = Annotated[
    list[Annotated[str, Field(max_length=32_768)]],
    Field(min_length=1, max_length=1000, json_schema_extra=rules.COMMAND),
]


class Metrics(Model, json_schema_extra=rules.METRICS):
    """How to read a command's metrics. If omitted, lines such as `accuracy=0.93`, JSON and tables are read.

    The last value of a metric is the trial's value. The values before it are intermediate values, which the
    pruner uses.
    """

    pattern: str | None = Field(
        None,
        description="Python regular expression to search for in each line. The group (?P<accuracy>...) "
        "captures the metric accuracy, and (?P<step>...) the step. Alternatively, use groups named `name` "
        "and `value`, or a single group if there is one objective.",
        min_length=1,
        max_length=2000,
    )
    file: str | None = Field(
        None,
        description="File to which the program appends lines (JSON objects or `accuracy=0.93`), read besides "
        "standard output and standard error. If omitted, the file named by TUNING_METRICS_FILE is read.",
        min_length=1,
        max_length=4096,
    )


class JobMetadata(Model):
    """Metadata of the study's Jobs; pods get theirs from the template."""

    labels: dict[str, str] = Field(
        default_factory=dict, description="Labels, for example kueue.x-k8s.io/queue-name of a Kueue queue."
    )
    annotations: dict[str, str] = Field(default_factory=dict, description="Annotations.")


class TrialSpec(Model, json_schema_extra=rules.TRIAL):
    """What a trial runs. Exactly one of objective, script and command must be set."""

    objective: Function | None = Field(
        None,
        description="Optuna objective, as `module:function`. Takes a trial and returns its value or values.",
    )
    script: Script | None = Field(
        None,
        description="Unmodified Optuna script, with arguments if it takes any, for example "
        "`train.py --epochs 3`. Its `study.optimize` runs a single trial in each pod.",
    )
    study: str | None = Field(
        None,
        description="Which study to tune, if the script optimizes several: its study_name or, if it has "
        "none, its position among the studies that the script creates, for example '2'. The others are "
        "skipped: their `optimize` returns immediately, and their results are unknown.",
        min_length=1,
        max_length=250,
    )
    command: Command | None = Field(
        None,
        description="Program to run, in any language. Parameters are passed as environment variables, as "
        "{{name}} in its arguments, and as a JSON file.",
    )
    metrics: Metrics | None = None
    source: Source | None = Field(
        None, description="ConfigMap with the trial's code, if the image does not contain it."
    )
    python: str = Field(
        "python3",
        description="Python interpreter in the image (3.9 or later) that runs the trainer runtime.",
        pattern=rf"^{_WORD}$",
        max_length=500,
        json_schema_extra=rules.pattern_message(
            "{self} must be an executable without arguments, for example python3"
        ),
    )
    timeout: Duration | None = Field(
        None,
        description="Maximum run time of a trial, for example 20m. It counts from the start of the container "
        "`trainer`: pulling images and running init containers are not included.",
        json_schema_extra=rules.DURATION,
    )
    reuse_pods: bool = Field(
        False,
        description="Run trials one after another in the same pods, each in a process of its own, instead of "
        "in a pod for each trial. This saves the start of a pod and, for an objective or script, its "
        "imports. Module-level code of an objective runs once for each pod.",
    )
    trials_per_pod: int = Field(
        1,
        description="Number of trials that a pod runs at the same time, for example to share a GPU. Each of "
        "them may use an equal share of the memory limit of the container `trainer`. Requires reusePods.",
        ge=1,
        le=64,
    )
    prune_grace: Duration = Field(
        "30s",
        description="How long a pruned trial may continue to run before its pod is deleted or, with "
        "reusePods, its process is stopped.",
    )
    ttl_after_finished: Duration = Field(
        "1d",
        description="How long to keep finished Jobs and their logs; at least a minute, so that the end of a "
        "trial is always seen. They are deleted earlier if a quota on the number of Jobs requires it.",
    )
    job: JobMetadata | None = Field(
        None, description="Labels and annotations of the Jobs, including the refit's."
    )
    gpus: int | None = Field(
        None,
        description="Number of GPUs per trial: the container `trainer`'s limit of the operator's GPU "
        "resource (nvidia.com/gpu by default). Defaults to the limits in the template, or to 1 without a "
        "template.",
        ge=0,
        le=1000,
    )
    template: PodTemplate | None = Field(
        None,
        description="Pod template (a PodTemplateSpec). Its container `trainer` runs the trial, in the "
        "trainer image that the operator is installed with unless it names another. Defaults to this "
        "container alone.",
    )


class RefitSpec(Model, json_schema_extra=rules.REFIT):
    """Final training: one more Job, with the best trial's parameters, after the study has completed.

    If none of objective, script and command is set, it runs what a trial runs. TUNING_ROLE is set to `final`.
    Changing these fields, or a new best trial, starts a new refit; to retry a failed one, change a field.
    """

    objective: Function | None = Field(
        None,
        description="Function to run, as `module:function`. Takes the best trial and may return its value. "
        'Call trial.set_user_attr("model", ...) to record where the model is.',
    )
    script: Script | None = Field(
        None,
        description="Optuna script to run. `optimize` returns immediately, and the code below it runs with "
        'study.best_params. Call study.set_user_attr("model", ...) to record where the model is.',
    )
    command: Command | None = Field(
        None,
        description="Program to run, in any language. The best parameters are passed as in a trial. The JSON "
        'object in the file named by TUNING_RESULT_FILE is recorded: {"model": ...} is where the model is.',
    )
    source: Source | None = Field(
        None, description="ConfigMap with the code. Defaults to the trial's source."
    )
    metric: MetricName | None = Field(
        None,
        description="Metric whose best trial in the Pareto front is used. Required with several objectives.",
    )
    retries: int = Field(
        2,
        description="Number of times to retry a failed refit, in a new pod and with back-off. Evicted or "
        "drained pods do not count.",
        ge=0,
        le=20,
    )
    timeout: Duration | None = Field(
        None,
        description="Maximum run time of one attempt, for example 6h, counted from the start of the "
        "container `trainer`. If omitted, there is no limit.",
        json_schema_extra=rules.DURATION,
    )
    template: PodTemplate | None = Field(
        None, description="Pod template with a container `trainer`. Defaults to the trial's template."
    )


class WarmStart(Model):
    """Another study to continue from.

    Its complete and pruned trials are copied once, when this study is created, if their parameters are in
    this search space. The sampler and the pruner learn from them, and one of them may be the best trial.
    """

    study: str = Field(
        description="Name of a study in this namespace. Its TuningStudy may have been deleted, as long as "
        "its record was kept (deletionPolicy: Retain). Copied trials do not count towards maxTrials.",
        min_length=1,
        max_length=253,
        json_schema_extra=rules.STUDY_NAME,
    )


ExistingRecord = Literal["Continue", "Refuse", "Replace"]


class TuningStudySpec(Model, json_schema_extra=rules.SPEC):
    """Specification of the study: what to optimize, how, and what a trial runs."""

    objectives: list[Objective] = Field(
        description="Metrics to optimize. With more than one, the study is multi-objective.",
        min_length=1,
        max_length=8,
        json_schema_extra=rules.OBJECTIVES,
    )
    search_space: list[Parameter] | None = Field(
        None,
        description="Parameters to optimize. If omitted, the objective suggests them (define-by-run).",
        min_length=1,
        max_length=200,
        json_schema_extra=rules.SEARCH_SPACE,
    )
    sampler: Sampler = Field(
        Sampler(),
        description="Optuna sampler, which proposes the parameters of trials. Defaults to TPESampler.",
    )
    pruner: Pruner | None = Field(
        None,
        description="Optuna pruner, which stops unpromising trials early. If omitted, an objective or script "
        "has Optuna's default, MedianPruner, and a command is not pruned. With several objectives, there is "
        "no pruning. Use NopPruner to disable pruning.",
    )
    max_trials: int = Field(
        description="Complete the study after this many trials, including failed and pruned ones.",
        ge=1,
        le=1_000_000,
    )
    parallelism: int = Field(
        1, description="Maximum number of trials that run at the same time.", ge=1, le=10_000
    )
    min_parallelism: int | None = Field(
        None,
        description="Share GPUs with other workloads: above this number of running trials, a new trial "
        "starts only if a GPU is idle and no other workload's pod is waiting for one. Running trials finish. "
        "If omitted, up to `parallelism` trials run regardless of other workloads.",
        ge=0,
        le=10_000,
    )
    max_failed_trials: int = Field(
        10,
        description="Fail the study once more than this many trials have failed. Exceptions that a script "
        "passes to optimize as `catch` do not count.",
        ge=0,
    )
    max_trials_without_improvement: int | None = Field(
        None,
        description="Complete the study after this many complete trials in a row without a better value.",
        ge=1,
    )
    timeout: Duration | None = Field(
        None,
        description="Maximum run time of the study since it was started or last resumed, for example 12h.",
        json_schema_extra=rules.DURATION,
    )
    max_gpu_hours: float | None = Field(
        None,
        description="Complete the study when its trials have used their GPUs for this many hours in total, "
        "for example 12.5. Trials that are still running are stopped.",
        gt=0,
        le=1e9,
    )
    initial_trials: list[dict[str, Scalar]] = Field(
        default_factory=list,
        description="Parameters to try first, for example known good ones. Omitted parameters are sampled. "
        "Those that are added later are tried next; those that are removed remain queued. "
        "kubectl apply omits null values; kubectl create keeps them.",
        max_length=1000,
    )
    warm_start: WarmStart | None = Field(None, json_schema_extra=rules.WARM_START)
    suspend: bool = Field(
        False, description="Suspend the study: no new trials are started, and running trials finish."
    )
    deletion_policy: Literal["Retain", "Delete"] = Field(
        "Retain",
        description="Whether to keep or delete the study's record in the database when this resource is "
        "deleted.",
    )
    existing_record: ExistingRecord = Field(
        "Continue",
        description="What happens when this resource is created and the database still has the record of "
        "an earlier TuningStudy of the same name. Continue: its trials become the first trials of this "
        "study; if they don't fit objectives and searchSpace, the study is not accepted. Refuse: the study "
        "is not accepted. Replace: the record is deleted, and the study starts from scratch. This field has "
        "no effect once the study has been accepted.",
    )
    installation: str | None = Field(
        None,
        description="The installation of the operator that serves this study, as NAMESPACE/NAME. Needed only "
        "if several watch this namespace, or to hand the study over. Defaults to the first one to see it.",
        max_length=317,
        pattern=r"^[a-z0-9][a-z0-9.\-]*/[a-z0-9][a-z0-9.\-]*$",
        json_schema_extra=rules.pattern_message(
            "{self} must have the form NAMESPACE/NAME, for example tuning-system/tuning-operator"
        ),
    )
    trial: TrialSpec = Field(description="What a trial runs.")
    refit: RefitSpec | None = None

    @property
    def pruner_in_effect(self) -> Pruner:
        """The pruner or its default: Optuna's own for code written for Optuna, none for a command."""
        prunable = len(self.objectives) == 1 and not self.trial.command
        return self.pruner or Pruner(name="MedianPruner" if prunable else "NopPruner")


class Condition(Model):
    """A condition of the study."""

    type: str = Field(
        description="Type of the condition: Accepted, Stalled, Suspended, Complete, Failed or Contested."
    )
    status: Literal["True", "False", "Unknown"] = Field(
        description="Status of the condition: True, False or Unknown."
    )
    reason: str = Field(description="Machine-readable reason.")
    message: str = Field(description="Human-readable message, with a suggested fix.")
    observed_generation: int | None = Field(
        None, description="Generation of the spec that the condition is based on."
    )
    last_transition_time: str = Field(description="Time of the last change of status (RFC 3339).")


class TrialCounts(Model):
    """Number of trials by state."""

    total: int = Field(0, description="Number of all trials.")
    pending: int = Field(0, description="Number of trials whose pod has not started yet.")
    running: int = Field(0, description="Number of trials that are running.")
    complete: int = Field(0, description="Number of trials that returned a value.")
    pruned: int = Field(0, description="Number of trials that were stopped early.")
    failed: int = Field(0, description="Number of trials that ended without a value.")
    copied: int | None = Field(
        None, description="Number of trials copied from spec.warmStart; not included in the other counts."
    )


class Usage(Model):
    """Resources used by the trials that have ended."""

    trial_seconds: int = Field(description="Total run time of the trials, in seconds.")
    gpu_seconds: int = Field(description="Total GPU time of the trials, in seconds.")
    saved_gpu_seconds: int = Field(
        description="GPU time that pruning has saved, in seconds, compared with running the pruned "
        "trials for as long as complete ones take on average."
    )


class BestTrial(Model):
    """A Pareto-optimal trial."""

    number: int = Field(description="Number of the trial.")
    values: list[float] = Field(description="Values of the trial, in the order of the objectives.")
    parameters: dict[str, Any] = Field(description="Parameters of the trial.")


class RefitStatus(Model):
    """Observed state of the refit."""

    phase: Literal["Pending", "Running", "Completed", "Failed"] = Field(
        description="Phase of the refit, independent of the study's phase. Pending while no pod is running."
    )
    job: str = Field(description="Name of the Job. To read its log, run `kubectl logs job/NAME`.")
    trial: int | None = Field(None, description="Number of the trial whose parameters are used.")
    values: list[float] | None = Field(
        None, description="Values that the refit returned, in the order of the objectives."
    )
    model: str | None = Field(
        None, description="Where the model is: the user attribute `model` set by the refit."
    )
    attributes: dict[str, Any] | None = Field(
        None, description="Other user attributes set by the refit (the first 20)."
    )
    message: str | None = Field(
        None,
        description="Why the refit is pending or failed, or a warning about its files, with a suggested fix.",
    )


class TuningStudyStatus(Model):
    """Observed state of the study. Its size does not grow with the number of trials."""

    phase: Literal["Pending", "Running", "Suspended", "Completed", "Failed"] | None = Field(
        None, description="Overall state of the study. See conditions for details."
    )
    conditions: list[Condition] = Field(
        default_factory=list,
        description="Conditions of the study: Accepted, Stalled, Suspended, Complete, Failed and Contested.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    last_transition_time: str | None = Field(
        None, description="Time at which a condition last changed its status (RFC 3339)."
    )
    observed_generation: int | None = Field(
        None, description="Generation of the spec that this status is based on."
    )
    start_time: str | None = Field(
        None, description="Time at which the study started, or resumed after completion or suspension."
    )
    completion_time: str | None = Field(None, description="Time at which the study completed or failed.")
    progress: str | None = Field(
        None, description="Number of finished trials and maxTrials, for example 6/10."
    )
    trials: TrialCounts | None = Field(None, description="Number of trials by state.")
    best: BestTrial | None = Field(None, description="Best trial so far (single objective).")
    best_value: str | None = Field(
        None,
        description="What kubectl get shows: the best value, rounded, or with several objectives the size of "
        "the Pareto front.",
    )
    pareto_front: list[BestTrial] | None = Field(
        None,
        description="Pareto-optimal trials (several objectives): at most 50, including the best in each "
        "objective, and one that reaches all targets, if there is one.",
    )
    parallelism: int | None = Field(
        None,
        description="Number of trials that may run at the same time at present. Only with minParallelism.",
    )
    usage: Usage | None = Field(None, description="Resources used by the trials that have ended.")
    refit: RefitStatus | None = Field(None, description="State of the refit (spec.refit).")
    installation: str | None = Field(
        None, description="The installation of the operator that serves this study, as NAMESPACE/NAME."
    )


class TuningStudy(BaseModel):
    """The resource as returned by the API server; metadata is left as a plain mapping."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)

    metadata: dict[str, Any]
    spec: TuningStudySpec
    status: TuningStudyStatus = Field(default_factory=TuningStudyStatus)
