"""Trials of another study, copied into a new one, each of them once."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import optuna
from optuna.distributions import BaseDistribution, check_distribution_compatibility
from optuna.samplers import BaseGASampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from tuning_operator.protocol import Problem, StudyDefinition
from tuning_operator.resource import space
from tuning_operator.resource.study import Parameter, Pruner
from tuning_operator.studies.definition.compatibility import allows, directions_of
from tuning_operator.studies.definition.samplers import to_optuna
from tuning_operator.studies.errors import Refused
from tuning_operator.studies.storage.base import Store
from tuning_operator.studies.study.records import COPIED_FROM, definition_in

WARM_STARTED = "tuning:warm_started"
"""A study's system attribute: the names of the studies whose trials it has."""
BATCH = 100
"""Trials copied in one transaction: other studies' reports wait for no more than that."""
CONSTRAINTS = "constraints"
"""The system attribute of a sampler's constraints_func; those of `trial.set_constraint` start with it."""
RUNG = "completed_rung_"
"""The system attributes in which SuccessiveHalvingPruner keeps a trial's values at its rungs."""


class Source(NamedTuple):
    """The study to continue from."""

    name: str
    study_id: int
    pruner: Pruner | None


def is_done(store: Store, study_id: int, name: str) -> bool:
    """Return whether the trials of the study of this name have been copied into a study."""
    return name in store.storage.get_study_system_attrs(study_id).get(WARM_STARTED, ())


def find_source(store: Store, study: str, name: str, definition: StudyDefinition) -> Source:
    """Return the study of this name as it is now; blocking.

    Args:
        store: where both are.
        study: the name of the new study.
        name: the name of the study to continue from.
        definition: the new study's.

    Raises:
        Refused: there is no such study, or it has other directions.
    """
    if name == study:
        raise _refused(f"{study} cannot continue from itself: name another study, or remove warmStart")
    try:
        study_id = store.storage.get_study_id_from_name(name)
        store.refresh(study_id)
    except KeyError:
        message = (
            f"there is no study {name} on record: correct the name, or create it; this study starts then"
        )
        raise _refused(message) from None
    directions = store.storage.get_study_directions(study_id)
    if directions != directions_of(definition):
        theirs, ours = _listed(directions), _listed(directions_of(definition))
        raise _refused(f"{name} has the directions {theirs}, this study {ours}: they must be the same")
    defined = definition_in(store.storage.get_study_system_attrs(study_id))
    return Source(name, study_id, defined.pruner if defined else None)


def copy_trials(store: Store, source: Source, study_id: int, definition: StudyDefinition) -> None:
    """Copy the finished trials that are missing; blocking. After an interruption, call it again."""
    storage = store.storage
    present = storage.get_all_trials(study_id, deepcopy=False)
    marks = (trial.system_attrs.get(COPIED_FROM) for trial in present)
    copied = {mark["trial"] for mark in marks if mark and mark["study"] == source.name}
    finished = storage.get_all_trials(
        source.study_id, deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)
    )
    copier = Copier(definition, _distributions(present), source.name, source.pruner)
    copies = copier.copies(trial for trial in finished if trial.number not in copied)
    while batch := list(islice(copies, BATCH)):
        store.add_trials(study_id, batch)
    done = storage.get_study_system_attrs(study_id).get(WARM_STARTED, [])
    storage.set_study_system_attr(study_id, WARM_STARTED, [*done, source.name])


class Values(NamedTuple):
    """A trial's parameters and their distributions."""

    params: dict[str, Any]
    distributions: dict[str, BaseDistribution]


class Copier:
    """Makes copies for one study.

    Args:
        definition: the study's.
        known: the distributions of the parameters that its trials already have.
        source: the name of the study whose trials are copied.
        pruner: that study's.
    """

    def __init__(
        self,
        definition: StudyDefinition,
        known: Mapping[str, BaseDistribution],
        source: str,
        pruner: Pruner | None,
    ) -> None:
        self._declared = definition.search_space
        self._own = {parameter.name: to_optuna(parameter) for parameter in self._declared or ()}
        self._known = dict(known)
        self._source = source
        self._same_rungs = pruner == definition.pruner and pruner and pruner.name == "SuccessiveHalvingPruner"
        self._generation = _first_generation(definition.sampler.name)

    def copies(self, trials: Iterable[FrozenTrial]) -> Iterator[FrozenTrial]:
        """Yield copies of the trials that the study can have, marked as such.

        With a search space: those with exactly its parameters and values in it; the copies have the study's
        own ranges and choices, like trials that it proposed. Without: those whose distributions are
        compatible with those of the trials before.
        """
        for trial in trials:
            if values := self._values(trial):
                yield self._copy(trial, values)

    def _values(self, trial: FrozenTrial) -> Values | None:
        try:
            return self._by_run(trial) if self._declared is None else self._by_space(self._declared, trial)
        except ValueError:  # a choice that the study does not have; incompatible distributions
            return None

    def _by_space(self, declared: list[Parameter], trial: FrozenTrial) -> Values | None:
        chosen: dict[str, Any] = {}
        while parameter := space.next_parameter(declared, chosen):
            name, distribution = parameter.name, self._own[parameter.name]
            if name not in trial.params or not allows(parameter, distribution, trial.params[name]):
                return None
            chosen[name] = distribution.to_external_repr(distribution.to_internal_repr(trial.params[name]))
        if chosen.keys() != trial.params.keys():
            return None
        return Values(chosen, {name: self._own[name] for name in chosen})

    def _by_run(self, trial: FrozenTrial) -> Values:
        for name, distribution in trial.distributions.items():
            check_distribution_compatibility(self._known.get(name, distribution), distribution)
        self._known = {**trial.distributions, **self._known}
        return Values(trial.params, trial.distributions)

    def _copy(self, trial: FrozenTrial, values: Values) -> FrozenTrial:
        """Return the copy, with the system attributes that mean the same in any study."""
        kept = {key: value for key, value in trial.system_attrs.items() if self._is_kept(key)}
        mark = {COPIED_FROM: {"study": self._source, "trial": trial.number}}
        return FrozenTrial(
            number=-1,  # the storage assigns it, and the id
            trial_id=-1,
            state=trial.state,
            value=None,
            values=trial.values,
            datetime_start=trial.datetime_start,
            datetime_complete=trial.datetime_complete,
            params=values.params,
            distributions=values.distributions,
            user_attrs=trial.user_attrs,
            system_attrs=kept | self._generation | mark,
            intermediate_values=trial.intermediate_values,
        )

    def _is_kept(self, key: str) -> bool:
        return (
            key == CONSTRAINTS
            or key.startswith(f"{CONSTRAINTS}:")
            or (bool(self._same_rungs) and key.startswith(RUNG))
        )


def _first_generation(sampler: str) -> dict[str, int]:
    """Return the attribute by which a genetic sampler uses copies as its first generation."""
    kind = getattr(optuna.samplers, sampler)
    return {kind._get_generation_key(): 0} if issubclass(kind, BaseGASampler) else {}  # noqa: SLF001


def _distributions(trials: Sequence[FrozenTrial]) -> dict[str, BaseDistribution]:
    """Return the distribution of each parameter in the first trial that has it."""
    found: dict[str, BaseDistribution] = {}
    for trial in trials:
        found = {**trial.distributions, **found}
    return found


def _listed(directions: Sequence[StudyDirection]) -> str:
    return ", ".join(direction.name.lower() for direction in directions)


def _refused(message: str) -> Refused:
    return Refused(Problem(field="warmStart.study", message=message))
