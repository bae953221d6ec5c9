"""What an Optuna script asks for, as the trainer runtime's mode `init` writes it down."""

from pydantic import Field

from tuning_operator.protocol import Failure
from tuning_operator.resource.study import Model, Pruner, Sampler, Scalar


class AskedStudy(Model):
    """The study that a script makes, as the trainer runtime saw it."""

    call: str
    study_name: str | None = None
    directions: list[str] = Field(min_length=1)
    metric_names: list[str] | None = None
    sampler: Sampler | None = None
    pruner: Pruner | None = None
    n_trials: int | None = None
    timeout: float | None = None
    parallelism: int | None = None
    initial_trials: list[dict[str, Scalar]] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)


class Probed(Model):
    """What the trainer runtime's mode `init` writes; either study or failure is there."""

    script: str
    python: str
    optuna: str | None = None
    failure: Failure | None = None
    study: AskedStudy | None = None
