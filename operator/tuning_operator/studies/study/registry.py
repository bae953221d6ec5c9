"""All studies of the server: declared, loaded when first needed, forgotten."""

import asyncio
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, ParamSpec, TypeVar

from optuna.exceptions import DuplicatedStudyError
from optuna.study._frozen import FrozenStudy

from tuning_operator.protocol import Failure, StudyDefinition, StudyKey, StudySummary
from tuning_operator.resource import names
from tuning_operator.studies.definition.continuity import direction_problems, directions_of, space_problems
from tuning_operator.studies.definition.samplers import build_pruner, build_sampler, problems_of
from tuning_operator.studies.errors import Conflict, NotFound, Refused, unknown_study
from tuning_operator.studies.study import heap
from tuning_operator.studies.study.engine import StudyEngine
from tuning_operator.studies.study.records import DEFINITION, definition_in
from tuning_operator.studies.study.refit import REFIT, STUDY_DELETED, record_in
from tuning_operator.studies.study.served_study import METRIC_NAMES, ServedStudy
from tuning_operator.studies.study.surroundings import Surroundings
from tuning_operator.studies.study.warm_start import Source, copy_trials, find_source, is_done

FIXED = "fixed_params"
"""The system attribute in which `study.enqueue_trial` keeps a trial's parameters."""
ENQUEUED = "tuning:initial_trials_enqueued"
"""A study's system attribute: whether the initial trials are in the queue."""

P = ParamSpec("P")
T = TypeVar("T")

DELETED = Failure(
    category=STUDY_DELETED,
    message="The TuningStudy was deleted in the middle of it.",
)


class Registry:
    """The studies by namespace and name. Work on one of them does not wait for others."""

    def __init__(self, surroundings: Surroundings) -> None:
        self._surroundings = surroundings
        self._store = surroundings.store
        self._engines: dict[StudyKey, StudyEngine] = {}
        self._locks: defaultdict[StudyKey, asyncio.Lock] = defaultdict(asyncio.Lock)

    def __iter__(self) -> Iterator[StudyEngine]:
        return iter(list(self._engines.values()))

    def loaded(self, key: StudyKey) -> StudyEngine | None:
        """Return a study that is in memory."""
        engine = self._engines.get(key)
        return None if engine is None or engine.gone else engine

    async def find(self, key: StudyKey) -> StudyEngine:
        """Return a study. Raises NotFound."""
        if engine := self.loaded(key):
            return engine
        async with self._locks[key]:
            return await self._find(key)

    async def declare(self, key: StudyKey, definition: StudyDefinition) -> StudySummary:
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

    async def forget(self, key: StudyKey) -> None:
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

    async def unsettled(self) -> list[StudyKey]:
        """Return the studies at which an operator must look that knows nothing of what happened before.

        Those with a running trial or refit, and those whose record goes when their resource does.
        """
        found = await self._in_thread(self._unsettled)
        return [StudyKey(*name.split("/", 1)) for name in sorted(found) if "/" in name]

    def _unsettled(self) -> set[str]:
        found = set(self._store.running())
        for study in self._store.storage.get_all_studies():
            if _has_running_refit(study) or _goes_with_its_resource(study):
                found.add(study.study_name)
        return found

    def _record(self, key: StudyKey, definition: StudyDefinition) -> None:
        """Put a study, the trials that it starts with, and its definition on record: then it is known.

        Raises Conflict, Refused.
        """
        storage, name = self._store.storage, names.optuna_study_name(*key)
        source = self._source(key, definition)  # before the study is created: it may not be there yet
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
        if source:
            copy_trials(self._store, source, study_id, definition)
        storage.set_study_system_attr(study_id, DEFINITION, stored)
        metrics = [objective.metric for objective in definition.objectives]
        storage.set_study_system_attr(study_id, METRIC_NAMES, metrics)

    def _source(self, key: StudyKey, definition: StudyDefinition) -> Source | None:
        """Return the study whose trials are still to be copied. Raises Refused."""
        if definition.warm_start is None:
            return None
        name = names.optuna_study_name(*key)
        wanted = names.optuna_study_name(key.namespace, definition.warm_start)
        try:
            if is_done(self._store, self._store.storage.get_study_id_from_name(name), wanted):
                return None
        except KeyError:  # the study is new
            pass
        return find_source(self._store, name, wanted, definition)

    async def _find(self, key: StudyKey) -> StudyEngine:
        engine = self.loaded(key)
        if engine is None:
            study, definition = await self._in_thread(self._read, key)
            engine = StudyEngine(key, study, definition, self._surroundings)
            await engine.load()
            self._engines[key] = engine
            heap.spare()
        return engine

    def _read(self, key: StudyKey) -> tuple[ServedStudy, StudyDefinition]:
        storage, name = self._store.storage, names.optuna_study_name(*key)
        try:
            study_id = storage.get_study_id_from_name(name)
        except KeyError:
            raise unknown_study(*key) from None
        definition = definition_in(storage.get_study_system_attrs(study_id))
        if definition is None:
            raise unknown_study(*key)
        sampler = build_sampler(definition, storage.get_all_trials(study_id, deepcopy=False))
        return ServedStudy(name, storage, sampler, build_pruner(definition)), definition

    async def _in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._surroundings.executor, partial(work, *args, **kwargs))


def _has_running_refit(study: FrozenStudy) -> bool:
    refit = record_in(study.system_attrs.get(REFIT))
    return refit is not None and refit.state == "RUNNING"


def _goes_with_its_resource(study: FrozenStudy) -> bool:
    definition = definition_in(study.system_attrs)
    return definition is not None and definition.deletion_policy == "Delete"


def _enqueue(study: ServedStudy, definition: StudyDefinition) -> None:
    """Enqueue the initial trials, unless that was done; those enqueued already are of a try cut short.

    Another study's trial that was copied is no reason to leave one out: it is to be tried here.
    """
    if study.system_attr(ENQUEUED) is None:
        enqueued = (trial.system_attrs.get(FIXED) for trial in study.get_trials(deepcopy=False))
        there = {_as_text(parameters) for parameters in enqueued if parameters is not None}
        for parameters in definition.initial_trials:
            if _as_text(parameters) not in there:
                study.enqueue_trial(parameters)
        study.set_system_attr(ENQUEUED, True)


def _as_text(parameters: Mapping[str, Any]) -> str:
    """Return parameters so that 1 and true are two."""
    return json.dumps(parameters, sort_keys=True)
