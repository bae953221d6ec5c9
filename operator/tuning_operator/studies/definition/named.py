"""Optuna's objects by class name and arguments: `{name: TPESampler, args: {seed: 1}}`, also nested."""

import importlib.util
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import optuna

from tuning_operator.protocol import Problem
from tuning_operator.resource.study import PRUNERS, SAMPLERS
from tuning_operator.studies.definition.arguments import (
    alternatives,
    argument_problems,
    blamed,
    converted,
    meant,
    takes,
)


class Family(NamedTuple):
    """Classes of which one is meant by its name."""

    word: str
    module: ModuleType
    names: tuple[str, ...]


def _classes(ending: str) -> tuple[str, ...]:
    names = optuna.samplers.nsgaii.__all__
    return tuple(name for name in names if name.endswith(ending) and not name.startswith("Base"))


FAMILIES = {
    "BaseSampler": Family("sampler", optuna.samplers, SAMPLERS),
    "BasePruner": Family("pruner", optuna.pruners, PRUNERS),
    "BaseCrossover": Family("crossover", optuna.samplers.nsgaii, _classes("Crossover")),
    "BaseMutation": Family("mutation", optuna.samplers.nsgaii, _classes("Mutation")),
}
"""By the annotation of the arguments that want one."""

NEEDS = {
    "CmaEsSampler": ("cmaes",),
    "GPSampler": ("scipy", "torch"),
    "QMCSampler": ("scipy",),
    "WilcoxonPruner": ("scipy",),
}
"""Packages that Optuna itself does not bring."""

FILLED_IN = {"GridSampler": ("search_space",)}
"""Required arguments that the study gives where they are left out."""


class Named(NamedTuple):
    """One of a family, as the manifest has it, and where."""

    family: str
    name: str
    args: Mapping[str, Any]
    field: str

    @property
    def made(self) -> type:
        """The class. Raises AttributeError for a name that is none of the family's."""
        family = FAMILIES[self.family]
        found: type = getattr(family.module, self.name)
        return found

    def inner(self) -> Iterator["Named"]:
        """Yield the objects among the arguments; those that are none at all have problems instead."""
        for name, family in _object_arguments(self.made).items():
            value = self.args.get(name)
            if value is not None and not _shape_problem(value, "", family):
                field = f"{self.field}.args.{name}"
                yield Named(family, value["name"], value.get("args") or {}, field)


class Misfit(Exception):  # noqa: N818
    """Optuna itself refuses arguments; carries the problem."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(f"{problem.field}: {problem.message}")
        self.problem = problem


def named_problems(named: Named) -> list[Problem]:
    """Return what is wrong with a name or its arguments, by the classes' signatures; nothing is built."""
    family = FAMILIES[named.family]
    if named.name not in family.names:
        return [Problem(field=f"{named.field}.name", message=_unknown(named.name, family))]
    found = [*_missing_packages(named)]
    found += argument_problems(
        named.made, named.args, f"{named.field}.args", FAMILIES, FILLED_IN.get(named.name, ())
    )
    for name, wanted in _object_arguments(named.made).items():
        if named.args.get(name) is not None:
            found += _shape_problem(named.args[name], f"{named.field}.args.{name}", wanted)
    for inner in named.inner():
        found += named_problems(inner)
    return found


def build(named: Named) -> Any:
    """Return the object; `named_problems` has found nothing. Raises Misfit for what Optuna refuses."""
    args = converted(named.made, named.args)
    for inner in named.inner():
        args[inner.field.rsplit(".", 1)[-1]] = build(inner)
    try:
        return named.made(**args)
    except (TypeError, ValueError, ImportError) as error:
        raise Misfit(blamed(error, named.args, f"{named.field}.args")) from error


def _object_arguments(made: type) -> dict[str, str]:
    """Return the arguments that are objects themselves, and the family of each."""
    return {
        name: family
        for name, parameter in takes(made).items()
        for family in alternatives(parameter)
        if family in FAMILIES
    }


def _shape_problem(value: Any, field: str, family: str) -> list[Problem]:
    word = FAMILIES[family].word
    good = (
        isinstance(value, Mapping)
        and isinstance(value.get("name"), str)
        and isinstance(value.get("args") or {}, Mapping)
        and not value.keys() - {"name", "args"}
    )
    if good:
        return []
    message = f"a {word} is written as {{name: ..., args: {{...}}}}, by the name of its class in Optuna"
    return [Problem(field=field, message=message)]


def _unknown(name: str, family: Family) -> str:
    known = ", ".join(family.names)
    return f"Optuna has no {family.word} '{name}'{meant(name, family.names)} It is one of: {known}"


def _missing_packages(named: Named) -> Iterator[Problem]:
    for package in NEEDS.get(named.name, ()):
        if importlib.util.find_spec(package) is None:
            message = (
                f"{named.name} needs the package {package}, which the study server does not have: add it to "
                f"the study server's image, or use another {FAMILIES[named.family].word}"
            )
            yield Problem(field=f"{named.field}.name", message=message)
