"""A whole study as the protocol's FinishedStudy, in pieces of JSON."""

import json
from collections.abc import Iterator, Sequence
from typing import Any, cast

from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.trial import FrozenTrial

from tuning_operator.protocol import FinishedStudy, FinishedTrial
from tuning_operator.protocol import TrialState as State
from tuning_operator.studies.study.records import utc
from tuning_operator.studies.study.served_study import ServedStudy

TRIALS_IN_A_PIECE = 50
"""What is written before other threads may go on is one trial; a piece is a few milliseconds of work."""


def pieces(study: ServedStudy) -> Iterator[bytes]:
    """Yield the JSON of a study as it is now."""
    trials = study.get_trials(deepcopy=False)
    directions = [direction.name.lower() for direction in study.directions]
    frame = FinishedStudy.model_construct(
        directions=cast("Any", directions), trials=[], user_attrs=study.user_attrs
    )
    head, _, tail = frame.model_dump_json(by_alias=True).partition('"trials":[]')
    return _joined(head + '"trials":[', trials, "]" + tail)


def _joined(head: str, trials: Sequence[FrozenTrial], tail: str) -> Iterator[bytes]:
    yield head.encode()
    forms = Forms()
    for first in range(0, len(trials), TRIALS_IN_A_PIECE):
        some = [_finished(trial, forms) for trial in trials[first : first + TRIALS_IN_A_PIECE]]
        written = ",".join(trial.model_dump_json(by_alias=True) for trial in some)
        yield (("," if first else "") + written).encode()
    yield tail.encode()


class Forms:
    """Optuna's JSON form of distributions: the trials of a study share a few of them."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[BaseDistribution, dict[str, Any]]] = {}

    def of(self, distribution: BaseDistribution) -> dict[str, Any]:
        """Return the form of a distribution."""
        known = self._known.get(id(distribution))
        if known is None:
            form: dict[str, Any] = json.loads(distribution_to_json(distribution))
            known = self._known[id(distribution)] = distribution, form  # kept, so that the id stays its own
        return known[1]


def _finished(trial: FrozenTrial, forms: Forms) -> FinishedTrial:
    return FinishedTrial.model_construct(  # from Optuna's own types: nothing to validate
        number=trial.number,
        state=cast("State", trial.state.name),
        values=trial.values,
        parameters=trial.params,
        distributions={name: forms.of(kind) for name, kind in trial.distributions.items()},
        reported=trial.intermediate_values,
        user_attrs=trial.user_attrs,
        constraints=trial.constraints,
        started=utc(trial.datetime_start),
        finished=utc(trial.datetime_complete),
    )
