"""Trials of one study as another can take them."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import optuna
from optuna.distributions import BaseDistribution, check_distribution_compatibility
from optuna.samplers import BaseGASampler
from optuna.trial import FrozenTrial

from tuning_operator.protocol import StudyDefinition
from tuning_operator.resource import space
from tuning_operator.resource.space.values import is_number, same
from tuning_operator.resource.study import Parameter, Pruner
from tuning_operator.studies.definition.samplers import to_optuna
from tuning_operator.studies.study.records import COPIED_FROM

CONSTRAINTS = "constraints"
"""The system attribute of a sampler's constraints_func; those of `trial.set_constraint` begin with it."""
RUNG = "completed_rung_"
"""The system attributes in which SuccessiveHalvingPruner keeps what a trial had at its rungs."""


class Values(NamedTuple):
    """A trial's parameters, and where each is from."""

    params: dict[str, Any]
    distributions: dict[str, BaseDistribution]


class Copier:
    """Makes copies for one study.

    Args:
        definition: the study's.
        known: the distributions of the parameters that it has in its record.
        source: the name of the study that the trials are from.
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
        self._marks = _first_generation(definition.sampler.name)

    def copies(self, trials: Iterable[FrozenTrial]) -> Iterator[FrozenTrial]:
        """Yield those that the study can take, marked as copies.

        With a search space, that is those of exactly its parameters, with values that it has; ranges and
        choices are its own then, as for trials that it proposed. Without, it is those whose distributions
        Optuna can keep beside those of the trials before.
        """
        for trial in trials:
            if values := self._values(trial):
                yield self._copy(trial, values)

    def _values(self, trial: FrozenTrial) -> Values | None:
        try:
            return self._by_run(trial) if self._declared is None else self._by_space(self._declared, trial)
        except ValueError:  # a choice that the study does not have; distributions that do not go together
            return None

    def _by_space(self, declared: list[Parameter], trial: FrozenTrial) -> Values | None:
        chosen: dict[str, Any] = {}
        while parameter := space.next_parameter(declared, chosen):
            name, distribution = parameter.name, self._own[parameter.name]
            if name not in trial.params or not _is_alike(parameter, trial.params[name]):
                return None
            value = distribution.to_internal_repr(trial.params[name])
            if not distribution._contains(value):  # noqa: SLF001  Optuna's own rule, steps and rounding included
                return None
            chosen[name] = distribution.to_external_repr(value)
        if chosen.keys() != trial.params.keys():
            return None
        return Values(chosen, {name: self._own[name] for name in chosen})

    def _by_run(self, trial: FrozenTrial) -> Values:
        for name, distribution in trial.distributions.items():
            check_distribution_compatibility(self._known.get(name, distribution), distribution)
        self._known = {**trial.distributions, **self._known}
        return Values(trial.params, trial.distributions)

    def _copy(self, trial: FrozenTrial, values: Values) -> FrozenTrial:
        """Return the copy; of the system attributes, those that mean the same in any study."""
        kept = {key: value for key, value in trial.system_attrs.items() if self._is_kept(key)}
        mark = {COPIED_FROM: {"study": self._source, "trial": trial.number}}
        return FrozenTrial(
            number=-1,  # the storage's to give, as the id is
            trial_id=-1,
            state=trial.state,
            value=None,
            values=trial.values,
            datetime_start=trial.datetime_start,
            datetime_complete=trial.datetime_complete,
            params=values.params,
            distributions=values.distributions,
            user_attrs=trial.user_attrs,
            system_attrs=kept | self._marks | mark,
            intermediate_values=trial.intermediate_values,
        )

    def _is_kept(self, key: str) -> bool:
        return (
            key == CONSTRAINTS
            or key.startswith(f"{CONSTRAINTS}:")
            or (bool(self._same_rungs) and key.startswith(RUNG))
        )


def _is_alike(parameter: Parameter, value: Any) -> bool:
    """Whether a value is of the parameter's kind; Optuna takes true for 1, and would convert "1"."""
    if parameter.type == "categorical":
        return any(same(value, choice) for choice in parameter.choices or ())
    return is_number(value)


def _first_generation(sampler: str) -> dict[str, int]:
    """Return the mark by which a genetic sampler takes copies for its first generation, to breed from."""
    kind = getattr(optuna.samplers, sampler)
    return {kind._get_generation_key(): 0} if issubclass(kind, BaseGASampler) else {}  # noqa: SLF001
