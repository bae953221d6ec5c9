"""The final training of a study: one at a time, kept in Optuna's record as an attribute of the study."""

import json
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from optuna.distributions import check_distribution_compatibility
from optuna.trial import FrozenTrial, TrialState

from tuning_operator.protocol import (
    AttributesRequest,
    Failure,
    Problem,
    RefitRecord,
    RefitRequest,
    StudyDefinition,
    StudyKey,
    SuggestRequest,
    TellRequest,
    TrialRecord,
    TrialView,
)
from tuning_operator.studies.errors import NotFound, Refused, unknown_study
from tuning_operator.studies.study import checks
from tuning_operator.studies.study.context import Context
from tuning_operator.studies.study.optuna_study import ServedStudy
from tuning_operator.studies.study.records import bounded, record_of, view_of

REFIT = "tuning:refit"
"""A study's system attribute: the protocol's RefitRecord."""
STUDY_DELETED = "StudyDeleted"
"""The category of a refit that ended with its study: once created again, the study starts a new refit."""
ATTRIBUTES_BYTES = 64 * 1024
"""The largest size of a refit's user attributes as JSON: they are part of every summary."""
PRUNED = Failure(
    category="Pruned",
    message="The final training raised TrialPruned.",
    remedy="The final training is never pruned (should_prune is always false): do not raise TrialPruned when "
    "TUNING_ROLE is final.",
)
STILL_RUNNING: dict[str, Any] = {"state": "RUNNING", "finished": None}
UNKNOWN = Failure(category="Unknown", message="The final training failed; no reason was reported.")


class Refit:
    """A study's final training. Methods run on the event loop.

    Every method may raise StudyError, and TimeoutError when the database is unavailable.
    """

    def __init__(self, key: StudyKey, study: ServedStudy, context: Context) -> None:
        self._key = key
        self._study = study
        self._context = context

    @property
    def record(self) -> RefitRecord | None:
        """The refit; None before the first one started, and when its study was deleted while it ran."""
        record = record_in(self._study.system_attr(REFIT))
        deleted = record and record.failure and record.failure.category == STUDY_DELETED
        return None if deleted else record

    async def begin(self, request: RefitRequest) -> None:
        """Start with a trial's parameters; a refit with the same trial and digest stays as it is."""
        record = self.record
        if record is not None and (record.trial, record.digest) == (request.trial, request.digest):
            await self._context.settle()
            return
        trial = self._study.find_trial(request.trial)
        if trial.state != TrialState.COMPLETE:
            message = f"trial {trial.number} is {trial.state.name} and has no value: choose a COMPLETE trial"
            raise checks.refused("trial", message)
        started = RefitRecord(
            trial=request.trial, digest=request.digest, state="RUNNING", started=datetime.now(UTC)
        )
        await self._keep(started)

    async def view(self, definition: StudyDefinition) -> TrialView:
        """Return the trial as the refit's pod sees it: as it was before it ran."""
        record = self._started()
        trial = self._study.find_trial(record.trial)
        view = view_of(trial, definition)
        user_attrs = {**trial.user_attrs, **record.user_attrs}
        found = {
            "trial": _as_trial(record, trial),
            "user_attrs": user_attrs,
            "reported": {},
            "constraints": {},
        }
        await self._context.settle()
        return view.model_copy(update=found)

    def suggest(self, request: SuggestRequest) -> Any:
        """Return the trial's value of a parameter."""
        distribution = checks.distribution_of(request)
        trial = self._study.find_trial(self._started().trial)
        if request.name not in trial.params:
            known = ", ".join(trial.params) or "none"
            message = (
                f"the refit uses the parameters of trial {trial.number}, which has no parameter "
                f"{request.name} (it has: {known}). Suggest the same parameters as in the trials, or set "
                f"{request.name} in the code when TUNING_ROLE is final"
            )
            raise checks.refused(request.name, message)
        try:
            check_distribution_compatibility(trial.distributions[request.name], distribution)
        except ValueError as error:
            message = (
                f"trial {trial.number} has the distribution {trial.distributions[request.name]}: {error}"
            )
            raise checks.refused(request.name, message) from None
        return trial.params[request.name]

    def check_report(self, definition: StudyDefinition, values: Sequence[tuple[int, float]]) -> None:
        """Check a report; its values are not kept, since the refit is not pruned."""
        self._started()
        checks.check_reportable(definition, values)

    async def set_attributes(self, request: AttributesRequest) -> TrialRecord:
        """Set user attributes, until it has ended. Constraints are not kept."""
        record = self._started()
        checks.check_attributes(request, {}, {})
        new = {**request.study_attrs, **request.user_attrs}
        user_attrs = {**record.user_attrs, **new}
        if record.state == "RUNNING" and user_attrs != record.user_attrs:
            _check_size(user_attrs, new)
            record = record.model_copy(update={"user_attrs": user_attrs})
            await self._keep(record)
        else:
            await self._context.settle()
        return _as_trial(record, self._study.find_trial(record.trial))

    async def tell(self, request: TellRequest, definition: StudyDefinition, *, by_pod: bool) -> TrialRecord:
        """End it or, with a pod's FAIL, one attempt, which leaves the state RUNNING. The first result stays.

        Returns:
            The refit in the form of a trial; FAIL when an attempt has failed.
        """
        asked = self._started()
        if request.attributes and asked.state == "RUNNING":
            with suppress(Refused):
                await self.set_attributes(request.attributes)
        before = self._started()  # in the meantime, it may have ended, and another one may have started
        trial = self._study.find_trial(before.trial)
        if before.state != "RUNNING" or (before.trial, before.digest) != (asked.trial, asked.digest):
            await self._context.settle()
            return _as_trial(before, trial)
        metrics = [objective.metric for objective in definition.objectives]
        after = self._ended(before, request, metrics)
        one_attempt = by_pod and after.state == "FAIL"
        await self._keep(after.model_copy(update=STILL_RUNNING) if one_attempt else after)
        return _as_trial(after, trial)

    async def stop(self, failure: Failure) -> None:
        """End it as FAIL, if it is running."""
        record = self.record
        if record is not None and record.state == "RUNNING":
            await self._keep(_failed(record, failure))

    async def _keep(self, record: RefitRecord) -> None:
        with self._context.store.deferred() as writes:
            self._study.set_system_attr(REFIT, record.model_dump(mode="json"))
        try:
            await self._context.announce(self._key, writes)
        except KeyError:  # others deleted the study
            raise unknown_study(*self._key) from None

    def _started(self) -> RefitRecord:
        record = self.record
        if record is None:
            message = (
                f"the study {self._study.study_name} has no refit: the operator starts it (PUT .../refit)"
            )
            raise NotFound(Problem(field="refit", message=message))
        return record

    def _ended(self, record: RefitRecord, request: TellRequest, metrics: list[str]) -> RefitRecord:
        """Return the record after a result.

        A COMPLETE is a success whatever was returned: without valid values, the model is there all the same.
        A FAIL without a reason keeps that of the last attempt.

        Raises:
            Refused: the request contradicts itself.
        """
        result = checks.read_result(request, self._study, metrics)
        if request.state == "COMPLETE":
            ended = {"values": result.values, "failure": None, "finished": datetime.now(UTC)}
            return record.model_copy(update={"state": "COMPLETE", **ended})
        if request.state == "PRUNED":
            return _failed(record, PRUNED)
        return _failed(record, request.failure or record.failure or UNKNOWN)


def record_in(attribute: Any) -> RefitRecord | None:
    """Return the record in an attribute, maybe from a newer version."""
    return None if attribute is None else RefitRecord.model_validate(attribute, extra="ignore")


def _failed(record: RefitRecord, failure: Failure) -> RefitRecord:
    ended = {"state": "FAIL", "failure": bounded(failure), "finished": datetime.now(UTC)}
    return record.model_copy(update=ended)


def _as_trial(record: RefitRecord, trial: FrozenTrial) -> TrialRecord:
    ended = record.state != "RUNNING"
    of_refit = {
        "state": record.state,
        "values": record.values,
        "started": record.started,
        "finished": record.finished,
        "prune_requested": None,
        "failure": record.failure if ended else None,
    }
    return record_of(trial).model_copy(update=of_refit)


def _check_size(user_attrs: dict[str, Any], new: dict[str, Any]) -> None:
    sizes = {key: len(json.dumps({key: value})) for key, value in user_attrs.items()}
    if (total := sum(sizes.values())) > ATTRIBUTES_BYTES:
        largest = max(new, key=lambda key: sizes[key])
        message = (
            f"takes {sizes[largest]} bytes; all attributes of the refit take {total}, and the limit is "
            f"{ATTRIBUTES_BYTES}. Save it to a file, and set the file's path as the attribute"
        )
        raise checks.refused(f"userAttrs.{largest}", message)
