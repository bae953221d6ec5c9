"""What a Job is to run: one trial, or the refit. Job and trial are two things, and this joins them."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuning_operator.protocol import RefitRequest
from tuning_operator.resource import names
from tuning_operator.resource.study import RefitSpec, TrialSpec, TuningStudy


@dataclass(frozen=True)
class Assignment:
    """A Job's work, and who its pods are to the study server."""

    job: str
    """The Job's name: the study server tells from it which pod may speak for what."""
    path: str
    """Below the study's own address."""
    trial: int
    role: str
    arguments: Sequence[str]
    """Of the trainer: what to run."""
    template: Mapping[str, Any]
    """A PodTemplateSpec."""
    source: str | None = None
    """The ConfigMap with the code."""
    timeout: str | None = None
    retries: int = 0
    digest: str | None = None
    """Which refit it is, since all of a study have one name."""

    @property
    def labels(self) -> dict[str, str]:
        """The labels of the Job and its pods, but for the study's."""
        digest = {names.LABEL_DIGEST: self.digest} if self.digest else {}
        return {names.LABEL_TRIAL: str(self.trial), names.LABEL_ROLE: self.role, **digest}


def trial_assignment(study: TuningStudy, trial: int) -> Assignment:
    """Return the work of a trial's Job."""
    spec = study.spec.trial
    return Assignment(
        job=names.job_name(study.metadata["name"], trial),
        path=f"trials/{trial}",
        trial=trial,
        role=names.ROLE_TRIAL,
        arguments=_arguments(spec),
        template=spec.template,
        source=spec.source.config_map if spec.source else None,
        timeout=spec.timeout,
    )


def refit_assignment(study: TuningStudy, refit: RefitSpec, request: RefitRequest) -> Assignment:
    """Return the work of the refit's Job: what a trial runs, but for what the refit says itself."""
    spec = study.spec.trial
    own = refit.objective or refit.script or refit.command
    source = refit.source or spec.source
    return Assignment(
        job=names.job_name(study.metadata["name"], names.REFIT),
        path=names.REFIT,
        trial=request.trial,
        role=names.ROLE_FINAL,
        arguments=_arguments(refit if own else spec),
        template=refit.template or spec.template,
        source=source.config_map if source else None,
        timeout=refit.timeout,
        retries=refit.retries,
        digest=request.digest,
    )


def refit_request(refit: RefitSpec, trial: int) -> RefitRequest:
    """Return the request for the refit of a trial: the same spec and trial give the same digest.

    Fields left at their defaults do not count, so that a new field of a later version changes no digest.
    """
    said = json.dumps([trial, refit.model_dump(mode="json", exclude_defaults=True)], sort_keys=True)
    return RefitRequest(trial=trial, digest=hashlib.sha256(said.encode()).hexdigest()[:16])


def _arguments(spec: TrialSpec | RefitSpec) -> list[str]:
    if spec.objective:
        return ["objective", spec.objective]
    if spec.script:
        return ["script", spec.script]
    return ["command", "--", *(spec.command or [])]
