"""Trials of another study, copied into a new one, each of them once."""

from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

from optuna.distributions import BaseDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from tuning_operator.protocol import Problem, StudyDefinition
from tuning_operator.resource.study import Pruner
from tuning_operator.studies.definition.continuity import directions_of
from tuning_operator.studies.errors import Refused
from tuning_operator.studies.storage.base import Store
from tuning_operator.studies.study.copies import Copier
from tuning_operator.studies.study.records import COPIED_FROM, definition_in

WARM_STARTED = "tuning:warm_started"
"""A study's system attribute: the names of the studies whose trials it has."""
BATCH = 100
"""Trials copied in one transaction: other studies' reports wait for no more."""


class Source(NamedTuple):
    """The study to continue from."""

    name: str
    study_id: int
    pruner: Pruner | None


def is_done(store: Store, study_id: int, name: str) -> bool:
    """Return whether a study has the trials of the one of this name."""
    return name in store.storage.get_study_system_attrs(study_id).get(WARM_STARTED, ())


def find_source(store: Store, study: str, name: str, definition: StudyDefinition) -> Source:
    """Return the study of this name as it is now; blocking.

    Args:
        store: where both are.
        study: the name of the study that is to continue.
        name: the name of the study to continue from.
        definition: what the study that is to continue is declared to be.

    Raises:
        Refused: there is none, or one with other directions.
    """
    if name == study:
        raise _refused(f"{study} cannot continue from itself: name another study, or remove warmStart")
    try:
        study_id = store.storage.get_study_id_from_name(name)
        store.refresh(study_id)
    except KeyError:
        message = (
            f"there is no study {name} on record: correct the name; or this study begins once it is there"
        )
        raise _refused(message) from None
    directions = store.storage.get_study_directions(study_id)
    if directions != directions_of(definition):
        theirs, ours = _listed(directions), _listed(directions_of(definition))
        raise _refused(f"{name} has the directions {theirs}, this study {ours}: they must be the same")
    defined = definition_in(store.storage.get_study_system_attrs(study_id))
    return Source(name, study_id, defined.pruner if defined else None)


def copy_trials(store: Store, source: Source, study_id: int, definition: StudyDefinition) -> None:
    """Copy the finished trials that are not there yet; blocking. Cut short, the next call goes on."""
    storage = store.storage
    there = storage.get_all_trials(study_id, deepcopy=False)
    copied = {mark["trial"] for mark in map(_mark, there) if mark and mark["study"] == source.name}
    finished = storage.get_all_trials(
        source.study_id, deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)
    )
    copier = Copier(definition, _distributions(there), source.name, source.pruner)
    copies = copier.copies(trial for trial in finished if trial.number not in copied)
    while batch := list(islice(copies, BATCH)):
        store.add_trials(study_id, batch)
    done = storage.get_study_system_attrs(study_id).get(WARM_STARTED, [])
    storage.set_study_system_attr(study_id, WARM_STARTED, [*done, source.name])


def _mark(trial: FrozenTrial) -> dict[str, object] | None:
    return trial.system_attrs.get(COPIED_FROM)


def _distributions(trials: Sequence[FrozenTrial]) -> dict[str, BaseDistribution]:
    """Return the parameters' distributions, of each that of the first trial that has it."""
    found: dict[str, BaseDistribution] = {}
    for trial in trials:
        found = {**trial.distributions, **found}
    return found


def _listed(directions: Sequence[StudyDirection]) -> str:
    return ", ".join(direction.name.lower() for direction in directions)


def _refused(message: str) -> Refused:
    return Refused(Problem(field="warmStart.study", message=message))
