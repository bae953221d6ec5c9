"""All studies of the server: declared, loaded when first needed, forgotten, and dropped from memory."""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any
from weakref import WeakValueDictionary

from optuna.exceptions import DuplicatedStudyError
from optuna.study._frozen import FrozenStudy

from tuning_operator.protocol import (
    Failure,
    Records,
    RecordSummary,
    StudyDefinition,
    StudyKey,
    StudySummary,
)
from tuning_operator.resource import names
from tuning_operator.studies.definition.compatibility import (
    brute_force_problems,
    direction_problems,
    directions_of,
    space_problems,
    ways_out,
)
from tuning_operator.studies.definition.samplers import build_pruner, build_sampler, problems_of
from tuning_operator.studies.errors import Conflict, Elsewhere, NotFound, Refused, unknown_study
from tuning_operator.studies.storage.base import shard_in
from tuning_operator.studies.study.context import Context, freeze_heap, in_thread
from tuning_operator.studies.study.earlier import CONTINUED, WAYS_OUT, EarlierRecord, earlier_record
from tuning_operator.studies.study.engine import StudyEngine
from tuning_operator.studies.study.optuna_study import METRIC_NAMES, ServedStudy
from tuning_operator.studies.study.records import DEFINITION, definition_in, proposed, utc
from tuning_operator.studies.study.refit import REFIT, STUDY_DELETED, record_in
from tuning_operator.studies.study.warm_start import Source, copy_trials, find_source, is_done

log = logging.getLogger(__name__)

FIXED = "fixed_params"
"""The system attribute in which `study.enqueue_trial` keeps a trial's parameters."""

DELETED_AT = "tuning:deleted_at"
"""A study's system attribute: when its TuningStudy was deleted, unless another one continues the record."""

IDLE_SECONDS = 600.0
"""A study in which nothing runs is dropped from memory when it has not been used for this long ..."""
IDLE_TRIALS = 100_000
"""... or when it and the studies like it that were used later have more trials than this ..."""
RECENT_SECONDS = 60.0
"""... unless it was used this recently. Trials take 2 to 5 kB each, and a second to read 30,000 again."""

DELETED = Failure(category=STUDY_DELETED, message="The TuningStudy was deleted while this was running.")


class Registry:
    """The studies by namespace and name. Work on one of them does not wait for others.

    In memory are the studies in which something runs, and others within the limits above, which are applied
    whenever one more is loaded.
    """

    def __init__(self, context: Context, clock: Callable[[], float] = time.monotonic) -> None:
        self._context = context
        self._store = context.store
        self._records = context.threads.records
        self._clock = clock
        self._engines: dict[StudyKey, StudyEngine] = {}
        self._locks: WeakValueDictionary[StudyKey, asyncio.Lock] = WeakValueDictionary()

    def __iter__(self) -> Iterator[StudyEngine]:
        return iter(list(self._engines.values()))

    def loaded(self, key: StudyKey) -> StudyEngine | None:
        """Return a study that is in memory."""
        engine = self._engines.get(key)
        if engine is None or engine.gone:
            return None
        engine.used_at = self._clock()
        return engine

    async def find(self, key: StudyKey) -> StudyEngine:
        """Return a study. Raises Elsewhere, NotFound."""
        if engine := self.loaded(key):
            return engine
        async with self._lock(key):
            return await self._find(key)

    async def declare(self, key: StudyKey, definition: StudyDefinition) -> StudySummary:
        """Create a study, or update it. Raises StudyError."""
        if problems := await in_thread(self._records, problems_of, definition):
            raise Refused(*problems)
        async with self._lock(key):
            await self._context.settle()  # what an earlier request wrote, also if it stopped waiting
            await self._read_again(key)
            earlier = await in_thread(self._records, self._earlier, key, definition)
            if earlier and earlier.is_of_former_namespace(definition):
                await self._end_with_namespace(await self._find(key))
            elif earlier and (earlier.in_progress or earlier.is_deleted_for(definition)):
                await self._end(await self._find(key), delete=earlier.is_deleted_for(definition))
            source = await in_thread(self._records, self._record, key, definition, earlier)
            engine = await self._find(key)
            if engine.definition != definition:
                await engine.redefine(definition)
            await in_thread(self._records, _enqueue, engine.study, definition)
            await engine.pick_up()
        if source:
            await self._release_source(StudyKey.parse(source.name), source)
        return await engine.summary()

    async def forget(self, key: StudyKey, *, namespace_deleted: bool = False) -> None:
        """Stop a study whose resource is gone; its record goes too if its definition says so.

        Args:
            key: the study.
            namespace_deleted: whether the namespace is gone too; a later one of this name is not to see the
                record.
        """
        async with self._lock(key):
            await self._context.settle()  # an earlier request, which stopped waiting, may have deleted it
            await self._read_again(key)
            try:
                engine = await self._find(key)
            except NotFound:  # it was forgotten before, or others deleted its record
                return
            if namespace_deleted:
                await self._end_with_namespace(engine)
            else:
                await self._end(engine, delete=engine.definition.deletion_policy == "Delete")

    async def namespaces(self) -> list[tuple[str, str]]:
        """Return name and uid of the namespaces with records whose TuningStudy was deleted."""
        found = await in_thread(self._records, self._of_deleted_studies)
        return sorted({(key.namespace, uid) for key, uid in found})

    async def forget_namespace(self, namespace: str, uid: str) -> None:
        """Keep the records that deleted studies left in a namespace out of reach of a later one."""
        for key, recorded in await in_thread(self._records, self._of_deleted_studies):
            if (key.namespace, recorded) == (namespace, uid):
                await self.forget(key, namespace_deleted=True)

    def _of_deleted_studies(self) -> list[tuple[StudyKey, str]]:
        """Return the records whose TuningStudy was deleted, each with the uid of its namespace."""
        found = []
        for study in self._own():
            definition = definition_in(study.system_attrs)
            deleted = study.system_attrs.get(DELETED_AT) and not _is_of_former_namespace(study)
            if definition and definition.namespace_uid and deleted:
                found.append((StudyKey.parse(study.study_name), definition.namespace_uid))
        return found

    async def expire(self, before: datetime) -> None:
        """Delete the records whose TuningStudy was deleted before this time."""
        for key in await in_thread(self._records, self._deleted_before, before):
            async with self._lock(key):
                await self._context.settle()
                if key in await in_thread(self._records, self._deleted_before, before):
                    log.info("Deleting the record of %s: its retention period has ended", key)
                    await self._end(await self._find(key), delete=True)

    def _deleted_before(self, time: datetime) -> list[StudyKey]:
        return [
            StudyKey.parse(study.study_name)
            for study in self._own()
            if (moment := study.system_attrs.get(DELETED_AT)) and datetime.fromisoformat(moment) < time
        ]

    async def _end_with_namespace(self, engine: StudyEngine) -> None:
        """End a study whose namespace is gone, and keep its record under another name. Its lock is held."""
        delete = engine.definition.deletion_policy == "Delete"
        await self._end(engine, delete=delete)
        if not delete:
            namespace = engine.definition.namespace_uid or datetime.now(UTC).strftime("%Y%m%d%H%M%S")
            name = names.optuna_study_name(f"{engine.key.namespace}@{namespace}", engine.key.name)
            await in_thread(self._records, self._store.rename, engine.study.study_id, name)

    async def _end(self, engine: StudyEngine, *, delete: bool) -> None:
        """End what runs in a study whose resource is gone, and drop it from memory. Its lock is held."""
        await engine.stop(DELETED)
        await self._context.settle()
        if delete:
            await in_thread(self._records, self._store.storage.delete_study, engine.study.study_id)
        else:
            engine.study.set_system_attr(DELETED_AT, datetime.now(UTC).isoformat())
            await self._context.settle()
        await self._drop(engine)

    async def records(self, namespace: str) -> Records:
        """Return the records of a namespace by name, also those whose TuningStudy was deleted."""
        await self._context.settle()
        prefix = names.optuna_study_name(namespace, "")
        found = await in_thread(self._records, self._store.extents, prefix)
        return Records(
            records=[
                RecordSummary(name=name.removeprefix(prefix), trials=trials, finished=utc(finished))
                for name, (trials, finished) in sorted(found.items())
            ]
        )

    async def unsettled(self) -> list[StudyKey]:
        """Return the studies that need the attention of an operator that has just started.

        First those with a running trial or refit, then those whose TuningStudy may have been deleted while no
        operator was running.
        """
        found = await in_thread(self._records, self._unsettled)
        return [StudyKey.parse(name) for name in found if "/" in name]

    def _unsettled(self) -> list[str]:
        running, in_progress, others = set(self._store.running()), list[str](), list[str]()
        for study in self._own():
            refit = record_in(study.system_attrs.get(REFIT))
            definition = definition_in(study.system_attrs)
            if study.study_name in running or (refit and refit.state == "RUNNING"):
                in_progress.append(study.study_name)
            elif definition and (definition.deletion_policy == "Delete" or definition.uid):
                deleted = study.system_attrs.get(DELETED_AT) or _is_of_former_namespace(study)
                if not deleted:
                    others.append(study.study_name)
        return [*sorted(in_progress), *sorted(others)]

    def _own(self) -> list[FrozenStudy]:
        """Return the studies on record that this server serves."""
        shard = self._store.shard
        return [s for s in self._store.storage.get_all_studies() if shard_in(s.system_attrs) == shard]

    def _check_place(self, key: StudyKey, study_id: int) -> None:
        """Raise Elsewhere if another server serves this study."""
        shard = shard_in(self._store.storage.get_study_system_attrs(study_id))
        if shard != self._store.shard:
            raise Elsewhere(*key, shard)

    def _earlier(self, key: StudyKey, definition: StudyDefinition) -> EarlierRecord | None:
        """Return the record that another TuningStudy of this name left. Raises Elsewhere."""
        name = names.optuna_study_name(*key)
        with contextlib.suppress(KeyError):  # the study is new
            self._check_place(key, self._store.storage.get_study_id_from_name(name))
        return earlier_record(self._store, name, definition)

    def _lock(self, key: StudyKey) -> asyncio.Lock:
        """Return the lock of a study, which exists as long as someone holds it or waits for it."""
        return self._locks.setdefault(key, asyncio.Lock())

    def _record(
        self, key: StudyKey, definition: StudyDefinition, earlier: EarlierRecord | None
    ) -> Source | None:
        """Put a study, the trials that it starts with, and its definition on record; from then on it exists.

        `earlier` is the record that another resource left; it may have been deleted.

        Returns the study that it continues from, if that was read. Raises Conflict, Elsewhere, Refused.
        """
        storage, name = self._store.storage, names.optuna_study_name(*key)
        source = self._source(key, definition)  # before the study is created: it may not be there yet
        try:
            study_id = storage.create_new_study(directions_of(definition), name)
        except DuplicatedStudyError:
            study_id = storage.get_study_id_from_name(name)
            self._check_place(key, study_id)
        attributes = storage.get_study_system_attrs(study_id)
        if attributes.get(DELETED_AT):
            storage.set_study_system_attr(study_id, DELETED_AT, None)
        stored = definition.model_dump_json()
        if attributes.get(DEFINITION) == stored:
            return source
        recorded = storage.get_study_directions(study_id)
        trials = storage.get_all_trials(study_id, deepcopy=False)
        continued = earlier if trials else None
        fix = WAYS_OUT if continued else ways_out(key, definition_in(attributes))
        if problems := (
            (continued.problems(definition) if continued else [])
            or direction_problems(name, recorded, definition, fix)
            + space_problems(name, trials, definition, fix)
            + brute_force_problems(name, trials, definition, fix)
        ):
            raise Conflict(*problems)
        if continued:
            storage.set_study_system_attr(study_id, CONTINUED, continued.started)
        if source:
            copy_trials(self._store, source, study_id, definition)
        storage.set_study_system_attr(study_id, DEFINITION, stored)
        metrics = [objective.metric for objective in definition.objectives]
        storage.set_study_system_attr(study_id, METRIC_NAMES, metrics)
        return source

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

    async def _read_again(self, key: StudyKey) -> None:
        """Read a record as others have left it; forget the study if they deleted it. Its lock is held."""
        try:
            await in_thread(self._records, self._refresh, key)
        except KeyError:
            if engine := self._engines.pop(key, None):
                engine.gone = True
                engine.workers.wake()

    def _refresh(self, key: StudyKey) -> None:
        """Read what others wrote to a record. Raises KeyError if there is none."""
        self._store.refresh(self._store.storage.get_study_id_from_name(names.optuna_study_name(*key)))

    async def _find(self, key: StudyKey) -> StudyEngine:
        """Return a study, loaded if it is not. Its lock is held. Raises Elsewhere, NotFound."""
        engine = self.loaded(key)
        if engine is None:
            self._engines.pop(key, None)  # others deleted it
            study = await in_thread(self._records, self._read, key)
            engine = StudyEngine(key, study, self._context)
            await engine.load()
            self._engines[key] = engine
            engine.used_at = self._clock()
            await self._drop_idle()
            freeze_heap()
        return engine

    def _read(self, key: StudyKey) -> ServedStudy:
        storage, name = self._store.storage, names.optuna_study_name(*key)
        try:
            study_id = storage.get_study_id_from_name(name)
        except KeyError:
            raise unknown_study(*key) from None
        self._check_place(key, study_id)
        definition = definition_in(storage.get_study_system_attrs(study_id))
        if definition is None:
            raise unknown_study(*key)
        sampler = build_sampler(definition, proposed(storage.get_all_trials(study_id, deepcopy=False)))
        return ServedStudy(name, storage, sampler, build_pruner(definition), definition)

    async def _drop_idle(self) -> None:
        """Drop studies in which nothing runs, by the limits above; the least recently used go first."""
        room = IDLE_TRIALS
        for engine in sorted(self, key=lambda engine: engine.used_at, reverse=True):
            if engine.gone or engine.key in self._locks or not engine.idle:
                continue  # gone: dropped by another load while this one waited
            unused = self._clock() - engine.used_at
            room -= engine.trials
            if unused > IDLE_SECONDS or (room < 0 and unused > RECENT_SECONDS):
                async with self._lock(engine.key):  # it is free, so this does not wait
                    await self._drop(engine)

    async def _drop(self, engine: StudyEngine) -> None:
        """Drop a study from memory. Its lock is held."""
        engine.gone = True
        self._engines.pop(engine.key, None)
        await in_thread(self._records, self._store.release, engine.study.study_id)

    async def _release_source(self, key: StudyKey, source: Source) -> None:
        """Drop a study that was read only to be copied."""
        async with self._lock(key):
            if key not in self._engines:
                await in_thread(self._records, self._store.release, source.study_id)


def _enqueue(study: ServedStudy, definition: StudyDefinition) -> None:
    """Enqueue the initial trials that are not in the study yet, which also completes an interrupted attempt.

    An initial trial is tried here even if a trial copied from another study has the same parameters.
    """
    enqueued = (trial.system_attrs.get(FIXED) for trial in study.get_trials(deepcopy=False))
    present = {_as_text(parameters) for parameters in enqueued if parameters is not None}
    for parameters in definition.initial_trials:
        if _as_text(parameters) not in present:
            study.enqueue_trial(parameters)


def _is_of_former_namespace(study: FrozenStudy) -> bool:
    """Return whether the record was renamed as its namespace was deleted."""
    return "@" in study.study_name.partition("/")[0]


def _as_text(parameters: Mapping[str, Any]) -> str:
    """Return parameters as a text in which 1 and true differ."""
    return json.dumps(parameters, sort_keys=True)
