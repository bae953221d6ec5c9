"""What a run is for: one trial of a study, its refit, or trials one after another."""

import functools
import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar

from tuning_operator.protocol import RefitRequest
from tuning_operator.resource import names
from tuning_operator.resource.duration import seconds
from tuning_operator.resource.podshape import without_nulls
from tuning_operator.resource.study import (
    JobMetadata,
    Pruner,
    RefitSpec,
    Sampler,
    TrialSpec,
    TuningStudy,
    TuningStudySpec,
)


@dataclass(frozen=True)
class Trial:
    """A trial, by its number."""

    number: int
    parameters: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """Those that it had when it was last looked at; they are shown, and do not distinguish trials."""
    started: datetime | None = field(default=None, compare=False)
    """When it started, if that is known."""

    noun: ClassVar[str] = "trial"
    role: ClassVar[str] = names.ROLE_TRIAL

    @staticmethod
    @functools.lru_cache(maxsize=10_000)
    def numbered(number: int) -> "Trial":
        """Return the trial of a number: a pass looks up each trial several times."""
        return Trial(number)

    def __hash__(self) -> int:
        """Return the number's, at a fraction of the time of what dataclasses do."""
        return self.number

    def __str__(self) -> str:
        return f"trial {self.number}"

    @property
    def path(self) -> str:
        """The URL path below the study's own."""
        return f"trials/{self.number}"

    @property
    def trial(self) -> int:
        """The trial whose parameters are used."""
        return self.number

    @property
    def labels(self) -> dict[str, str]:
        """The labels of its Job and pods, in addition to the study's."""
        return {names.LABEL_TRIAL: str(self.number), names.LABEL_ROLE: self.role}

    def job_name(self, study: str) -> str:
        """Return the name of its Job."""
        return names.job_name(study, self.number)


@dataclass(frozen=True)
class Refit:
    """The final training with a trial's parameters.

    All refits of a study share one Job name, so they are distinguished by the digest.
    """

    trial: int
    digest: str

    noun: ClassVar[str] = "refit"
    role: ClassVar[str] = names.ROLE_FINAL
    path: ClassVar[str] = names.REFIT

    def __str__(self) -> str:
        return f"refit of trial {self.trial}"

    @classmethod
    def of(cls, spec: RefitSpec, trial: int) -> "Refit":
        """Return the refit of a trial: the same spec and trial give the same digest.

        Fields left at their defaults do not count, so that a new field of a later version changes no digest.
        """
        content = json.dumps([trial, spec.model_dump(mode="json", exclude_defaults=True)], sort_keys=True)
        return cls(trial, hashlib.sha256(content.encode()).hexdigest()[:16])

    @property
    def request(self) -> RefitRequest:
        """The request that begins it in the record."""
        return RefitRequest(trial=self.trial, digest=self.digest)

    @property
    def labels(self) -> dict[str, str]:
        """The labels of its Job and pods, in addition to the study's."""
        return {
            names.LABEL_TRIAL: str(self.trial),
            names.LABEL_ROLE: self.role,
            names.LABEL_DIGEST: self.digest,
        }

    def job_name(self, study: str) -> str:
        """Return the name of its Job."""
        return names.job_name(study, names.REFIT)


@dataclass(frozen=True)
class Worker:
    """A pod that takes trials one after another; the record says which (trial.reusePods)."""

    slot: int

    noun: ClassVar[str] = "trial"
    role: ClassVar[str] = names.ROLE_WORKER

    def __str__(self) -> str:
        return f"worker {self.slot}"

    @property
    def path(self) -> str:
        """The URL path below the study's own."""
        return f"workers/{self.slot}"

    @property
    def labels(self) -> dict[str, str]:
        """The labels of its Job and pods, in addition to the study's."""
        return {names.LABEL_WORKER: str(self.slot), names.LABEL_ROLE: self.role}

    def job_name(self, study: str) -> str:
        """Return the name of its Job."""
        return names.job_name(study, names.worker_name(self.slot))


Work = Trial | Refit | Worker


def work_of(labels: Mapping[str, str]) -> Work | None:
    """Return what a Job or pod with these labels is for; None if they do not say."""
    role = labels.get(names.LABEL_ROLE)
    number = labels.get(names.LABEL_WORKER if role == names.ROLE_WORKER else names.LABEL_TRIAL, "")
    if not (number.isascii() and number.isdecimal()):
        return None
    if role == names.ROLE_FINAL:
        return Refit(int(number), labels.get(names.LABEL_DIGEST, ""))
    if role == names.ROLE_WORKER:
        return Worker(int(number))
    return Trial.numbered(int(number)) if role == names.ROLE_TRIAL else None


def work_of_job(metadata: Mapping[str, Any]) -> Work | None:
    """Return what a Job of a study is for; None for a copy of one, which someone made to debug it."""
    labels = metadata["labels"]
    work = work_of(labels)
    return work if work and metadata["name"] == work.job_name(labels[names.LABEL_STUDY]) else None


POD_RETRIES = 3
"""How often a trial's pod is replaced that was deleted, or that its node rejected or lost."""

DEFAULT_TEMPLATE: Mapping[str, Any] = {
    "spec": {
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [
            {
                "name": names.TRAINER_CONTAINER,
                "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            }
        ],
    }
}
"""What runs without a template: the trainer image, as the Pod Security Standard `restricted` requires."""

DEFAULT_SETTINGS: Mapping[str, Any] = {
    "sampler": Sampler().model_dump(),
    "pruner": Pruner().model_dump(),
    "pruneGraceSeconds": seconds(TrialSpec.model_fields["prune_grace"].default),
}
"""What a spec that says nothing about them comes to."""


@dataclass(frozen=True)
class Fields:
    """Where the manifest says what a run executes."""

    template: str = "spec.trial.template"
    source: str = "spec.trial.source"
    timeout: str = "spec.trial.timeout"


@dataclass(frozen=True)
class Program:
    """What a run executes."""

    arguments: Sequence[str]
    """Of the trainer."""
    study: str | None
    """Which of the script's studies is tuned."""
    python: str
    template: Mapping[str, Any]
    """A PodTemplateSpec, without nulls."""
    job: JobMetadata
    source: str | None
    """The ConfigMap with the code."""
    timeout: str | None
    retries: int
    """How often its pod may be replaced."""
    fields: Fields
    settings: Mapping[str, Any]
    """What else of the spec the trainer runtime reads in this run, as TUNING_CONFIG has it."""
    gpus: int | None = None
    """None: as the template says."""
    side_by_side: int = 1
    """How many trials a worker runs at a time."""

    @functools.cached_property
    def digest(self) -> str:
        """Differs when a user has changed something that a run which has not started should use.

        Settings left at their defaults do not count, so that Jobs of earlier versions keep their digest.
        """
        content: list[Any] = [
            list(self.arguments), self.python, self.template, self.job.model_dump(), self.source, self.timeout
        ]  # fmt: skip
        content += [self.study] if self.study else []
        content += [self.gpus] if self.gpus is not None else []
        content += [{"trialsPerPod": self.side_by_side}] if self.side_by_side > 1 else []
        chosen = {name: v for name, v in self.settings.items() if v != DEFAULT_SETTINGS.get(name)}
        content += [chosen] if chosen else []
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def program(study: TuningStudy, work: Work) -> Program:
    """Return what the work's run executes. A refit takes from the trial what it does not set itself.

    Raises:
        ValueError: the work is a refit, and the study has none.
    """
    trial, refit = study.spec.trial, study.spec.refit
    if isinstance(work, Refit) and refit is None:
        raise ValueError("the study has no spec.refit")
    own = refit if isinstance(work, Refit) else None
    source = (own and own.source) or trial.source
    template = (own and own.template) or trial.template
    runs_own = own and (own.objective or own.script or own.command)
    arguments = _arguments(own if own and runs_own else trial)
    gpus = 1 if trial.gpus is None and not trial.template else trial.gpus
    return Program(
        arguments=arguments,
        study=None if runs_own else trial.study,
        python=trial.python,
        template=without_nulls(template) if template else DEFAULT_TEMPLATE,
        job=trial.job or JobMetadata(),
        source=source.config_map if source else None,
        timeout=own.timeout if own else trial.timeout,
        retries=own.retries if own else POD_RETRIES,
        fields=Fields(
            template="spec.refit.template" if own and own.template else Fields.template,
            source="spec.refit.source" if own and own.source else Fields.source,
            timeout="spec.refit.timeout" if own else Fields.timeout,
        ),
        settings=_settings(study.spec, work, arguments[0]),
        gpus=None if own and own.template else gpus,
        side_by_side=trial.trials_per_pod if isinstance(work, Worker) else 1,
    )


def _settings(spec: TuningStudySpec, work: Work, mode: str) -> dict[str, Any]:
    """Return the settings that have an effect on the work; others would replace its runs for nothing."""
    settings: dict[str, Any] = {}
    if mode == "command" and spec.trial.metrics:
        settings["metrics"] = spec.trial.metrics.model_dump(exclude_none=True)
    if isinstance(work, Refit):
        return settings
    if mode == "script":  # its own sampler and pruner are compared with these
        settings["sampler"] = spec.sampler.model_dump()
        if len(spec.objectives) == 1:  # with several, there is no pruning
            settings["pruner"] = spec.pruner_in_effect.model_dump()
    if mode == "command" or isinstance(work, Worker):  # elsewhere, only the operator stops a trial
        settings["pruneGraceSeconds"] = seconds(spec.trial.prune_grace)
    return settings


def _arguments(spec: TrialSpec | RefitSpec) -> list[str]:
    if spec.objective:
        return ["objective", spec.objective]
    if spec.script:
        return ["script", *shlex.split(spec.script)]
    return ["command", "--", *(spec.command or [])]
