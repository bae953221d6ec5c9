"""The final training of a study: one at a time, kept in Optuna's record as an attribute of the study."""

import json
from collections.abc import Sequence
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
from tuning_operator.studies.errors import NotFound, unknown_study, unknown_trial
from tuning_operator.studies.study import checks
from tuning_operator.studies.study.records import record_of, view_of
from tuning_operator.studies.study.results import read_result
from tuning_operator.studies.study.served_study import ServedStudy
from tuning_operator.studies.study.surroundings import Surroundings

REFIT = "tuning:refit"
"""A study's system attribute: the protocol's RefitRecord."""
STUDY_DELETED = "StudyDeleted"
"""The category of what ended with its study: the study, created again, begins its refit anew."""
ATTRIBUTES_BYTES = 64 * 1024
"""Room for a refit's user attributes as JSON: they are part of every summary."""
MESSAGE_CHARACTERS, TRACEBACK_CHARACTERS = 4_000, 20_000
"""What is kept of a failure, which is part of every summary too."""

PRUNED = Failure(
    category="Pruned",
    message="The final training ended itself as pruned.",
    remedy="Nothing prunes it (should_prune is always false): do not raise TrialPruned when TUNING_ROLE is "
    "final.",
)
GOES_ON: dict[str, Any] = {"state": "RUNNING", "finished": None}
UNTOLD = Failure(category="Unknown", message="The final training failed; no reason was told.")


class Refit:
    """A study's final training. Methods run on the event loop, and what they write is written at once.

    Every method may raise StudyError, and TimeoutError when the database is away.
    """

    def __init__(self, key: StudyKey, study: ServedStudy, surroundings: Surroundings) -> None:
        self._key = key
        self._study = study
        self._surroundings = surroundings

    @property
    def record(self) -> RefitRecord | None:
        """How it stands; None before the first one began, and after its study was deleted in the middle."""
        record = record_in(self._study.system_attr(REFIT))
        deleted = record and record.failure and record.failure.category == STUDY_DELETED
        return None if deleted else record

    async def begin(self, request: RefitRequest) -> None:
        """Begin with a trial's parameters; what has begun with this trial and digest stays as it is."""
        record = self.record
        if record is not None and (record.trial, record.digest) == (request.trial, request.digest):
            await self._surroundings.settle()
            return
        self._check_has_values(request.trial)
        begun = RefitRecord(
            trial=request.trial, digest=request.digest, state="RUNNING", started=datetime.now(UTC)
        )
        await self._keep(begun)

    def view(self, definition: StudyDefinition) -> TrialView:
        """Return what the refit's pod needs: the trial, as it was before it was run."""
        record = self._begun()
        trial = self._trial(record.trial)
        view = view_of(trial, definition)
        user_attrs = {**trial.user_attrs, **record.user_attrs}
        found = {
            "trial": _as_trial(record, trial),
            "user_attrs": user_attrs,
            "reported": {},
            "constraints": {},
        }
        return view.model_copy(update=found)

    def suggest(self, request: SuggestRequest) -> Any:
        """Return the trial's value of a parameter."""
        distribution = checks.distribution_of(request)
        trial = self._trial(self._begun().trial)
        if request.name not in trial.params:
            known = ", ".join(trial.params) or "none at all"
            message = (
                f"trial {trial.number}, whose parameters the refit takes, has no parameter {request.name}; "
                f"it has {known}. Suggest what the trials suggest, or give {request.name} a value in the "
                "code when TUNING_ROLE is final"
            )
            raise checks.refused(request.name, message)
        try:
            check_distribution_compatibility(trial.distributions[request.name], distribution)
        except ValueError as error:
            message = f"trial {trial.number} has it from {trial.distributions[request.name]}: {error}"
            raise checks.refused(request.name, message) from None
        return trial.params[request.name]

    def check_report(self, definition: StudyDefinition, values: Sequence[tuple[int, float]]) -> None:
        """Check a report, of which nothing is kept: there is nothing to compare with, and no pruning."""
        self._begun()
        checks.check_reportable(definition, values)

    async def set_attributes(self, request: AttributesRequest) -> TrialRecord:
        """Set user attributes; once it has ended, it stays as it is. Constraints are not kept."""
        record = self._begun()
        checks.check_constraints(request)
        user_attrs = {**record.user_attrs, **request.user_attrs}
        if record.state == "RUNNING" and user_attrs != record.user_attrs:
            _check_size(user_attrs, request.user_attrs)
            record = record.model_copy(update={"user_attrs": user_attrs})
            await self._keep(record)
        else:
            await self._surroundings.settle()
        return _as_trial(record, self._trial(record.trial))

    async def tell(self, request: TellRequest, definition: StudyDefinition, *, by_pod: bool) -> TrialRecord:
        """End it, or one try: a pod's FAIL leaves the state RUNNING. The first end holds.

        Returns:
            The refit as if it were a trial; FAIL where a try has failed.
        """
        before = self._begun()
        trial = self._trial(before.trial)
        if before.state != "RUNNING":
            await self._surroundings.settle()
            return _as_trial(before, trial)
        after = told(before, request, [objective.metric for objective in definition.objectives])
        one_try = by_pod and after.state == "FAIL"
        await self._keep(after.model_copy(update=GOES_ON) if one_try else after)
        return _as_trial(after, trial)

    async def stop(self, failure: Failure) -> None:
        """End it as FAIL, if it runs."""
        record = self.record
        if record is not None and record.state == "RUNNING":
            await self._keep(_failed(record, failure))

    async def _keep(self, record: RefitRecord) -> None:
        with self._surroundings.store.deferred() as writes:
            self._study.set_system_attr(REFIT, record.model_dump(mode="json"))
        self._surroundings.feed.mark(self._key)
        try:
            await self._surroundings.settle(writes)
        except KeyError:  # others deleted the study
            raise unknown_study(*self._key) from None

    def _begun(self) -> RefitRecord:
        record = self.record
        if record is None:
            message = (
                f"the study {self._study.study_name} has no refit: the operator begins it (PUT .../refit)"
            )
            raise NotFound(Problem(field="refit", message=message))
        return record

    def _trial(self, number: int) -> FrozenTrial:
        try:
            return self._study.frozen(number)
        except KeyError:
            raise unknown_trial(number, self._study.study_name) from None

    def _check_has_values(self, number: int) -> None:
        trial = self._trial(number)
        if trial.state != TrialState.COMPLETE:
            message = f"trial {number} is {trial.state.name} and has no value: choose a COMPLETE one"
            raise checks.refused("trial", message)


def record_in(attribute: Any) -> RefitRecord | None:
    """Return the record that an attribute holds."""
    return None if attribute is None else RefitRecord.model_validate(attribute)


def told(record: RefitRecord, request: TellRequest, metrics: list[str]) -> RefitRecord:
    """Return the record after an end was told.

    A COMPLETE counts whatever it returned: where that is no value of the objectives, the model is there all
    the same. A FAIL without a reason keeps that of the last try.

    Raises:
        Refused: the request contradicts itself.
    """
    result = read_result(request, metrics)
    if request.state == "COMPLETE":
        ended = {"state": "COMPLETE", "values": result.values, "failure": None, "finished": datetime.now(UTC)}
        return record.model_copy(update=ended)
    if request.state == "PRUNED":
        return _failed(record, PRUNED)
    return _failed(record, request.failure or record.failure or UNTOLD)


def _failed(record: RefitRecord, failure: Failure) -> RefitRecord:
    traceback = failure.traceback
    bounded = {
        "message": failure.message[:MESSAGE_CHARACTERS],
        "remedy": failure.remedy and failure.remedy[:MESSAGE_CHARACTERS],
        "traceback": traceback and traceback[-TRACEBACK_CHARACTERS:],
    }
    kept = failure.model_copy(update=bounded)
    return record.model_copy(update={"state": "FAIL", "failure": kept, "finished": datetime.now(UTC)})


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


def _check_size(user_attrs: dict[str, Any], fresh: dict[str, Any]) -> None:
    sizes = {key: len(json.dumps({key: value})) for key, value in user_attrs.items()}
    if (total := sum(sizes.values())) > ATTRIBUTES_BYTES:
        largest = max(fresh, key=lambda key: sizes[key])
        message = (
            f"takes {sizes[largest]} bytes, and all attributes of the refit {total}: they may take "
            f"{ATTRIBUTES_BYTES}. Save it to a file, and set the file's path as the attribute"
        )
        raise checks.refused(f"userAttrs.{largest}", message)
