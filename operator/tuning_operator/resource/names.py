"""Names, labels and environment variables that tie a study, its trials and its Jobs together."""

import re

GROUP = "tuning.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "TuningStudy"
PLURAL = "tuningstudies"

LABEL_STUDY = f"{GROUP}/study"
LABEL_TRIAL = f"{GROUP}/trial"
LABEL_ROLE = f"{GROUP}/role"
ROLE_TRIAL = "trial"
ROLE_FINAL = "final"
"""The role of the refit's pods."""
ROLE_WORKER = "worker"
"""The role of pods that take trials one after another."""
LABEL_WORKER = f"{GROUP}/worker"
"""The slot of a worker."""
LABEL_DIGEST = f"{GROUP}/digest"
"""Distinguishes the refits of a study, since their Jobs share one name."""

ANNOTATION_PROGRAM = f"{GROUP}/program"
"""A digest of what a Job runs according to the spec. It differs once that has changed."""
ANNOTATION_SERVER = f"{GROUP}/study-server"
"""On the Job of a worker: the URL of the study server from which it takes trials."""
ANNOTATION_PARAMETERS = f"{GROUP}/parameters"
"""A trial's parameters as JSON, for people: those known when its Job was created."""
ANNOTATION_STARTED = f"{GROUP}/trial-started"
"""When a Job's trial started. The trial of this number differs once the database has lost the first one."""

ANNOTATION_STOP = f"{GROUP}/stop"
"""On a trial's Job: a user wants the trial to end now. It is recorded as PRUNED. On the Jobs of workers, the
value has the numbers of such trials, separated by commas."""

ANNOTATION_RESTARTS = f"{GROUP}/restarts"
"""On a Job, as JSON: how often its work was started again after it was lost, and which nodes it avoids."""

LOCAL_NAMESPACE = "local"
"""The namespace of all studies that run without a cluster."""

REFIT = "refit"
"""Takes the place of the trial's number in the name of the refit's Job."""

MAX_STUDY_NAME = 45
"""Pods are named `{job}-{5 characters}`, in at most 63; a trial's number needs the rest."""

TRAINER_CONTAINER = "trainer"
TRAINER_VOLUME = "tuning-trainer"
"""The volume with the trainer's ConfigMap."""
CA_VOLUME = "tuning-ca"
"""The volume with the ConfigMap of the study server's CA."""
TOKEN_AUDIENCE = "tuning-study-server"  # noqa: S105  an audience, not a secret
"""The audience of the operator's and of readers' tokens."""


def token_audience(uid: str) -> str:
    """Return the audience of the tokens of a TuningStudy's pods: they are worthless for any other one."""
    return f"{TOKEN_AUDIENCE}/{uid}"


def job_name(study: str, trial: int | str) -> str:
    """Return the name of a trial's Job.

    One-to-one: the trial (or `refit`) follows the last dash, the study precedes it.
    """
    return f"{study}-{trial}"


def worker_name(slot: int) -> str:
    """Return what takes the place of the trial's number in the name of a worker's Job."""
    return f"w{slot}"


def worker_of_pod(pod: str) -> tuple[str, int] | None:
    """Return the study and the slot of the worker whose pod this is; None for a pod of another kind."""
    study, name = parse_job_name(job_of_pod(pod))
    found = re.fullmatch("w(0|[1-9][0-9]*)", name)
    return (study, int(found[1])) if study and found else None


def parse_job_name(job: str) -> tuple[str, str]:
    """Return (study, trial) such that `job_name(study, trial) == job`."""
    study, _, trial = job.rpartition("-")
    return study, trial


def job_of_pod(pod: str) -> str:
    """Return the name of a pod's Job: everything before the last dash."""
    return pod.rpartition("-")[0]


def optuna_study_name(namespace: str, name: str) -> str:
    """Return the name under which Optuna's tools find the study."""
    return f"{namespace}/{name}"
