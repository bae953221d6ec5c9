"""All studies of the server: declared, loaded when first needed, forgotten."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from typing import ParamSpec, TypeVar

from optuna.exceptions import DuplicatedStudyError
from optuna.study._frozen import FrozenStudy

from tuning_operator.protocol import Failure, StudyDefinition, StudySummary
from tuning_operator.resource import names
from tuning_operator.studies.continuity import direction_problems, directions_of, space_problems
from tuning_operator.studies.engine import StudyEngine
from tuning_operator.studies.errors import Conflict, NotFound, Refused, unknown_study
from tuning_operator.studies.feed import Key
from tuning_operator.studies.refit import REFIT, record_in
from tuning_operator.studies.samplers import build_pruner, build_sampler, problems_of
from tuning_operator.studies.served_study import METRIC_NAMES, ServedStudy
from tuning_operator.studies.surroundings import Surroundings

DEFINITION = "tuning:definition"
"""A study's system attribute: its definition, so that a server that starts needs no operator."""
ENQUEUED = "tuning:initial_trials_enqueued"
"""A study's system attribute: whether the initial trials are in the queue."""

P = ParamSpec("P")
T = TypeVar("T")

DELETED = Failure(
    category="StudyDeleted",
    message="The TuningStudy was deleted while the trial ran.",
)


class Registry:
    """The studies by namespace and name. Work on one of them does not wait for others."""

    def __init__(self, surroundings: Surroundings) -> None:
        self._surroundings = surroundings
        self._store = surroundings.store
        self._engines: dict[Key, StudyEngine] = {}
        self._locks: defaultdict[Key, asyncio.Lock] = defaultdict(asyncio.Lock)

    def __iter__(self) -> Iterator[StudyEngine]:
        return iter(list(self._engines.values()))

    def loaded(self, key: Key) -> StudyEngine | None:
        """Return a study that is in memory."""
        engine = self._engines.get(key)
        return None if engine is None or engine.gone else engine

    async def find(self, key: Key) -> StudyEngine:
        """Return a study. Raises NotFound."""
        if engine := self.loaded(key):
            return engine
        async with self._locks[key]:
            return await self._find(key)

    async def declare(self, key: Key, definition: StudyDefinition) -> StudySummary:
        """Create a study, or update it. Raises StudyError."""
        if problems := problems_of(definition):
            raise Refused(*problems)
        async with self._locks[key]:
            await self._in_thread(self._record, key, definition)
            engine = await self._find(key)
            if engine.definition != definition:
                await engine.redefine(definition)
            await self._in_thread(_enqueue, engine.study, definition)
            await engine.pick_up()
        await self._store.durable()
        return engine.summary()

    async def forget(self, key: Key) -> None:
        """Stop a study whose resource is gone; its record goes too where its definition says so."""
        async with self._locks[key]:
            try:
                engine = await self._find(key)
            except NotFound:  # told before
                return
            await engine.stop(DELETED)
            if engine.definition.deletion_policy == "Delete":
                await self._in_thread(self._store.storage.delete_study, engine.study.study_id)
            del self._engines[key]

    async def unsettled(self) -> list[Key]:
        """Return the studies at which an operator must look that knows nothing of what happened before.

        Those with a running trial or refit, and those whose record goes when their resource does.
        """
        found = await self._in_thread(self._unsettled)
        return [Key(*name.split("/", 1)) for name in sorted(found) if "/" in name]

    def _unsettled(self) -> set[str]:
        found = set(self._store.running())
        for study in self._store.storage.get_all_studies():
            if _has_running_refit(study) or _goes_with_its_resource(study):
                found.add(study.study_name)
        return found

    def _record(self, key: Key, definition: StudyDefinition) -> None:
        """Put a study and its definition on record. Raises Conflict."""
        storage, name = self._store.storage, names.optuna_study_name(*key)
        try:
            study_id = storage.create_new_study(directions_of(definition), name)
        except DuplicatedStudyError:
            study_id = storage.get_study_id_from_name(name)
        stored = definition.model_dump_json()
        if storage.get_study_system_attrs(study_id).get(DEFINITION) == stored:
            return
        recorded = storage.get_study_directions(study_id)
        trials = storage.get_all_trials(study_id, deepcopy=False)
        if problems := direction_problems(name, recorded, definition) + space_problems(
            name, trials, definition
        ):
            raise Conflict(*problems)
        storage.set_study_system_attr(study_id, DEFINITION, stored)
        metrics = [objective.metric for objective in definition.objectives]
        storage.set_study_system_attr(study_id, METRIC_NAMES, metrics)

    async def _find(self, key: Key) -> StudyEngine:
        engine = self.loaded(key)
        if engine is None:
            study, definition = await self._in_thread(self._read, key)
            engine = StudyEngine(key, study, definition, self._surroundings)
            await engine.load()
            self._engines[key] = engine
        return engine

    def _read(self, key: Key) -> tuple[ServedStudy, StudyDefinition]:
        storage, name = self._store.storage, names.optuna_study_name(*key)
        try:
            study_id = storage.get_study_id_from_name(name)
            stored = storage.get_study_system_attrs(study_id)[DEFINITION]
        except KeyError:
            raise unknown_study(*key) from None
        definition = StudyDefinition.model_validate_json(stored)
        sampler = build_sampler(definition, storage.get_all_trials(study_id, deepcopy=False))
        return ServedStudy(name, storage, sampler, build_pruner(definition)), definition

    async def _in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._surroundings.executor, partial(work, *args, **kwargs))


def _has_running_refit(study: FrozenStudy) -> bool:
    refit = record_in(study.system_attrs.get(REFIT))
    return refit is not None and refit.state == "RUNNING"


def _goes_with_its_resource(study: FrozenStudy) -> bool:
    stored = study.system_attrs.get(DEFINITION)
    return stored is not None and StudyDefinition.model_validate_json(stored).deletion_policy == "Delete"


def _enqueue(study: ServedStudy, definition: StudyDefinition) -> None:
    """Enqueue the initial trials, unless that was done; those that are there are of a try cut short."""
    if study.system_attr(ENQUEUED) is None:
        for parameters in definition.initial_trials:
            study.enqueue_trial(parameters, skip_if_exists=True)
        study.set_system_attr(ENQUEUED, True)
