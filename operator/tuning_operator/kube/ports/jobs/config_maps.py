"""The ConfigMaps that pods mount: for each study the trainer, and for each namespace the CA."""

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from tuning_operator.kube.jobs.manifests import ca_config_map, trainer_config_map
from tuning_operator.kube.jobs.runtime import Runtime, trainer_name
from tuning_operator.kube.ports.kube_api import KubeApi, KubeError
from tuning_operator.kube.ports.runs import key_of
from tuning_operator.protocol import StudyKey
from tuning_operator.resource.study import TuningStudy


class ConfigMaps:
    """Creates ConfigMaps once, and again when they are missing."""

    def __init__(self, kube: KubeApi) -> None:
        self._kube = kube
        self._trainers: dict[StudyKey, set[tuple[str, str]]] = {}
        """Those that were created: the study's uid and the ConfigMap's name."""
        self._ca: dict[str, str] = {}
        """The CA that each namespace has."""
        self._providing: defaultdict[StudyKey | str, asyncio.Lock] = defaultdict(asyncio.Lock)
        """Runs start side by side, and one request is enough for each study, and for each namespace.

        Others do not wait for it: an admission webhook may take half a minute to fail.
        """

    async def provide_trainer(self, study: TuningStudy, runtime: Runtime) -> None:
        """Create the ConfigMap with the trainer, unless that was done before."""
        key = key_of(study)
        mark = study.metadata["uid"], trainer_name(key.name, runtime)
        async with self._providing[key]:
            created = self._trainers.setdefault(key, set())
            if mark not in created:
                await self._kube.create(trainer_config_map(study, runtime))
                created.add(mark)

    async def provide_or_assume_trainer(self, study: TuningStudy, runtime: Runtime) -> KubeError | None:
        """Create the trainer's ConfigMap; return the refusal if it most likely exists.

        A quota or a policy refuses to create one that exists, too, and the operator may not read ConfigMaps.
        """
        try:
            await self.provide_trainer(study, runtime)
        except KubeError as error:
            if error.is_refusal and _has_run_trials(study):
                return error
            raise
        return None

    async def provide_ca(self, namespace: str, runtime: Runtime) -> None:
        """Bring the current CA to a namespace's pods, those that run included.

        One that exists is only updated: a quota, for example, refuses to create it before the API server
        finds that it exists.
        """
        async with self._providing[namespace]:
            if runtime.ca and self._ca.get(namespace) != runtime.ca:
                config = ca_config_map(namespace, runtime)
                name, data = runtime.ca_config_map, config["data"]
                updated = await self._kube.patch("ConfigMap", namespace, name, "data", **data)
                if updated or await self._kube.create(config):
                    self._ca[namespace] = runtime.ca

    def are_missing(self, key: StudyKey) -> None:
        """Have the ConfigMaps of a study created again at its next start."""
        self._trainers.pop(key, None)
        self._ca.pop(key.namespace, None)

    def forget(self, key: StudyKey) -> None:
        """Drop what is remembered of a study that is gone."""
        self._trainers.pop(key, None)
        self._providing.pop(key, None)

    def forget_namespace(self, namespace: str) -> None:
        """Drop what is remembered of a namespace without studies."""
        self._ca.pop(namespace, None)
        self._providing.pop(namespace, None)


@contextmanager
def starts_report_refusals() -> Iterator[None]:
    """Pass over a refusal: it delays starts, and the next one reports it."""
    try:
        yield
    except KubeError as error:
        if not error.is_refusal:
            raise


def _has_run_trials(study: TuningStudy) -> bool:
    trials = study.status.trials
    return trials is not None and trials.total > trials.pending
