"""All studies of the server: declared, loaded when first needed, forgotten."""

import asyncio
from collections import defaultdict
from collections.abc import Iterator

from optuna.exceptions import DuplicatedStudyError
from optuna.study import StudyDirection

from tuning_operator.protocol import Failure, Problem, StudyDefinition, StudySummary
from tuning_operator.resource import names
from tuning_operator.studies import assembly
from tuning_operator.studies.engine import StudyEngine, Surroundings
from tuning_operator.studies.errors import Conflict, NotFound, Refused, unknown_study
from tuning_operator.studies.feed import Key
from tuning_operator.studies.served_study import METRIC_NAMES, ServedStudy

DEFINITION = "tuning:definition"
"""A study's system attribute: its definition, so that a server that starts needs no operator."""
ENQUEUED = "tuning:initial_trials_enqueued"
"""A study's system attribute: whether the initial trials are in the queue."""

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
        """Return a study that is in memory already."""
        return self._engines.get(key)

    async def find(self, key: Key) -> StudyEngine:
        """Return a study. Raises NotFound."""
        if engine := self._engines.get(key):
            return engine
        async with self._locks[key]:
            return self._engines.get(key) or await self._load(key)

    async def declare(self, key: Key, definition: StudyDefinition) -> StudySummary:
        """Create or update a study. Raises StudyError."""
        if problems := assembly.problems_of(definition):
            raise Refused(*problems)
        async with self._locks[key]:
            study_id = self._create_or_check(key, definition)
            engine = await self._declared(key, study_id, definition)
            await self._enqueue(engine)
            await self._store.durable()
        return engine.summary()

    async def forget(self, key: Key) -> None:
        """Stop a study whose resource is gone; its record goes too where its definition says so."""
        async with self._locks[key]:
            try:
                engine = self._engines.get(key) or await self._load(key)
            except NotFound:  # told before
                return
            await engine.stop(DELETED)
            del self._engines[key]
            if engine.definition.deletion_policy == "Delete":
                self._store.storage.delete_study(engine.study.study_id)
            await self._store.durable()

    async def unsettled(self) -> list[Key]:
        """Return the studies at which an operator must look that knows nothing of what happened before.

        Those with a running trial, and those whose record goes when their resource does.
        """
        found = set(await self._store.running())
        for study in self._store.storage.get_all_studies():
            stored = study.system_attrs.get(DEFINITION)
            if stored and StudyDefinition.model_validate_json(stored).deletion_policy == "Delete":
                found.add(study.study_name)
        return [Key(*name.split("/", 1)) for name in sorted(found) if "/" in name]

    def _create_or_check(self, key: Key, definition: StudyDefinition) -> int:
        storage, name = self._store.storage, names.optuna_study_name(*key)
        directions = [StudyDirection[objective.direction.upper()] for objective in definition.objectives]
        try:
            return storage.create_new_study(directions, name)
        except DuplicatedStudyError:
            study_id = storage.get_study_id_from_name(name)
        recorded = storage.get_study_directions(study_id)
        if recorded != directions:
            was = ", ".join(direction.name.lower() for direction in recorded)
            message = (
                f"the record of {name} has the directions {was}, and directions cannot change: use these, "
                "give the study another name, or delete its record"
            )
            raise Conflict(Problem(field="objectives", message=message))
        return study_id

    async def _declared(self, key: Key, study_id: int, definition: StudyDefinition) -> StudyEngine:
        engine = self._engines.get(key)
        if engine is None or engine.definition != definition:
            stored = definition.model_dump_json()
            self._store.storage.set_study_system_attr(study_id, DEFINITION, stored)
            metrics = [objective.metric for objective in definition.objectives]
            self._store.storage.set_study_system_attr(study_id, METRIC_NAMES, metrics)
        if engine is None:
            return await self._load(key)
        await engine.redefine(definition)
        return engine

    async def _load(self, key: Key) -> StudyEngine:
        storage, name = self._store.storage, names.optuna_study_name(*key)
        try:
            study_id = storage.get_study_id_from_name(name)
            stored = storage.get_study_system_attrs(study_id)[DEFINITION]
        except KeyError:
            raise unknown_study(*key) from None
        definition = StudyDefinition.model_validate_json(stored)
        sampler, pruner = assembly.build_sampler(definition), assembly.build_pruner(definition)
        study = ServedStudy(name, storage, sampler, pruner)
        engine = StudyEngine(key, study, definition, self._surroundings)
        await engine.load()
        self._engines[key] = engine
        return engine

    async def _enqueue(self, engine: StudyEngine) -> None:
        if engine.study.system_attr(ENQUEUED) is None:
            for parameters in engine.definition.initial_trials:
                engine.study.enqueue_trial(parameters, skip_if_exists=True)
            engine.study.set_system_attr(ENQUEUED, True)
            await engine.pick_up()
