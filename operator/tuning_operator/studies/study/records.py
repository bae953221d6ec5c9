"""Optuna's trials and studies as the protocol has them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, cast

import optuna
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.trial import FrozenTrial, TrialState

from tuning_operator.protocol import (
    FAILURE,
    PRUNE_REASON,
    CopiedTrial,
    Failure,
    FinishedStudy,
    FinishedTrial,
    StudyDefinition,
    TrialRecord,
    TrialView,
)
from tuning_operator.protocol import TrialState as State
from tuning_operator.resource import names

DEFINITION = "tuning:definition"
"""A study's system attribute: its definition, so that a restarted server needs no operator."""
COPIED_FROM = "tuning:copied_from"
"""A trial's system attribute: the study and the number of the trial of which it is a copy (warm start)."""
PRUNE_REQUESTED = "tuning:prune_requested"
"""A trial's system attribute: when it was first asked to stop."""
PODS = "tuning:pods"
"""A trial's system attribute: the pods of workers that have had the trial; the last one has it."""
FAIL_REASON = "fail_reason"
"""The system attribute in which earlier versions of Optuna kept it; Optuna's dashboard shows it."""
CATEGORY_CHARACTERS, MESSAGE_CHARACTERS, TRACEBACK_CHARACTERS = 100, 4_000, 32_000
"""The largest parts of a failure that are kept: the first characters, and the last ones of a traceback."""
TRIALS_IN_A_PIECE = 50
"""Other threads wait for one trial to be written; a piece is a few milliseconds of work."""


def definition_in(system_attrs: Mapping[str, Any]) -> StudyDefinition | None:
    """Return the definition that a study's system attributes hold, maybe from a newer version."""
    stored = system_attrs.get(DEFINITION)
    return None if stored is None else StudyDefinition.model_validate_json(stored, extra="ignore")


def is_copied(trial: FrozenTrial) -> bool:
    """Return whether a trial was run in another study."""
    return COPIED_FROM in trial.system_attrs


def proposed(trials: Sequence[FrozenTrial]) -> int:
    """Return how much has been proposed in a study: trials of its own and their parameters."""
    own = (trial for trial in trials if trial.state != TrialState.WAITING and not is_copied(trial))
    return sum(1 + len(trial.params) for trial in own)


def bounded(failure: Failure) -> Failure:
    """Return a failure with its texts shortened: it is part of replies that are sent often."""
    traceback = failure.traceback
    texts = {
        "category": failure.category[:CATEGORY_CHARACTERS],
        "message": failure.message[:MESSAGE_CHARACTERS],
        "remedy": failure.remedy and failure.remedy[:MESSAGE_CHARACTERS],
        "traceback": traceback and traceback[-TRACEBACK_CHARACTERS:],
    }
    return failure.model_copy(update=texts)


def failure_attrs(failure: Failure) -> dict[str, str]:
    """Return the user attributes that keep a failure."""
    fields = bounded(failure).model_dump(exclude_none=True)
    return {FAILURE + field: text for field, text in fields.items()}


def failure_of(trial: FrozenTrial) -> Failure | None:
    """Return why a trial failed or was stopped; None if no reason was given."""
    if trial.state not in (TrialState.FAIL, TrialState.PRUNED):
        return None
    attrs = trial.user_attrs
    message = attrs.get(FAILURE + "message", trial.system_attrs.get(FAIL_REASON))
    if message is None:
        return None
    return Failure(
        category=str(attrs.get(FAILURE + "category", "Unknown")),
        message=str(message),
        remedy=_text(attrs.get(FAILURE + "remedy")),
        traceback=_text(attrs.get(FAILURE + "traceback")),
    )


def record_of(trial: FrozenTrial) -> TrialRecord:
    """Return a trial as the protocol has it."""
    requested, pods = trial.system_attrs.get(PRUNE_REQUESTED), pods_of(trial)
    worker = names.worker_of_pod(pods[-1]) if pods else None
    return TrialRecord.model_construct(  # from Optuna's own types: nothing to validate
        number=trial.number,
        state=cast("State", trial.state.name),
        parameters=trial.params,
        values=trial.values,
        started=utc(trial.datetime_start),
        finished=utc(trial.datetime_complete),
        prune_requested=datetime.fromisoformat(requested) if requested else None,
        prune_reason=trial.user_attrs.get(PRUNE_REASON),
        failure=failure_of(trial),
        worker=worker[1] if worker else None,
        pods=len(pods),
    )


def pods_of(trial: FrozenTrial) -> list[str]:
    """Return the pods of workers that have had a trial; the last one has it."""
    pods: list[str] = trial.system_attrs.get(PODS, [])
    return pods


def view_of(trial: FrozenTrial, definition: StudyDefinition) -> TrialView:
    """Return a trial as its pod sees it."""
    return TrialView.model_construct(
        trial=record_of(trial),
        objectives=definition.objectives,
        fixed=definition.search_space is not None,
        distributions={
            name: json.loads(distribution_to_json(kind)) for name, kind in trial.distributions.items()
        },
        reported=trial.intermediate_values,
        user_attrs=trial.user_attrs,
        constraints=trial.constraints,
    )


def utc(moment: datetime | None) -> datetime | None:
    """Return one of Optuna's times, which are naive and local, in UTC."""
    return moment and moment.astimezone(UTC)


def json_pieces(study: optuna.Study, first: int = 0) -> Iterator[bytes]:
    """Return a study as it is now, as pieces of the JSON of a FinishedStudy.

    Args:
        study: the study.
        first: the number of the first trial to include.
    """
    trials = study.get_trials(deepcopy=False)[first:]
    directions = [direction.name.lower() for direction in study.directions]
    frame = FinishedStudy.model_construct(
        directions=cast("Any", directions), trials=[], user_attrs=study.user_attrs
    )
    head, _, tail = frame.model_dump_json(by_alias=True).partition('"trials":[]')
    return _joined(head + '"trials":[', trials, "]" + tail)


def _joined(head: str, trials: Sequence[FrozenTrial], tail: str) -> Iterator[bytes]:
    yield head.encode()
    distributions = _DistributionJson()
    for first in range(0, len(trials), TRIALS_IN_A_PIECE):
        some = [_finished(trial, distributions) for trial in trials[first : first + TRIALS_IN_A_PIECE]]
        written = ",".join(trial.model_dump_json(by_alias=True) for trial in some)
        yield (("," if first else "") + written).encode()
    yield tail.encode()


class _DistributionJson:
    """Optuna's JSON form of distributions, made once for each: the trials of a study share a few."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[BaseDistribution, dict[str, Any]]] = {}

    def of(self, distribution: BaseDistribution) -> dict[str, Any]:
        """Return a distribution in JSON form."""
        known = self._known.get(id(distribution))
        if known is None:
            found: dict[str, Any] = json.loads(distribution_to_json(distribution))
            known = self._known[id(distribution)] = (
                distribution,
                found,
            )  # kept, so that its id is not used again
        return known[1]


def _finished(trial: FrozenTrial, distributions_json: _DistributionJson) -> FinishedTrial:
    return FinishedTrial.model_construct(  # from Optuna's own types: nothing to validate
        number=trial.number,
        state=cast("State", trial.state.name),
        values=trial.values,
        parameters=trial.params,
        distributions={name: distributions_json.of(kind) for name, kind in trial.distributions.items()},
        reported=trial.intermediate_values,
        user_attrs=trial.user_attrs,
        constraints=trial.constraints,
        started=utc(trial.datetime_start),
        finished=utc(trial.datetime_complete),
        copied_from=CopiedTrial(**mark) if (mark := trial.system_attrs.get(COPIED_FROM)) else None,
        pod=pods[-1] if (pods := pods_of(trial)) else None,
    )


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
