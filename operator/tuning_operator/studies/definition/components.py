"""Samplers, pruners and their parts by class name and arguments: `{name: TPESampler, args: {seed: 1}}`."""

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
    arguments_of,
    converted,
    did_you_mean,
    problem_of,
)
from tuning_operator.studies.definition.tpe import TPESampler


class Family(NamedTuple):
    """The classes that a name can choose from."""

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
"""By the annotation of the arguments that take one."""

NEEDS = {
    "CmaEsSampler": ("cmaes",),
    "GPSampler": ("scipy", "torch"),
    "QMCSampler": ("scipy",),
    "WilcoxonPruner": ("scipy",),
}
"""Packages that Optuna itself does not depend on."""

INSTALL = {
    "torch": "install the operator with the study server's image for GPSampler (the chart's "
    "studyServer.image); for `tuning run`, install torch"
}
"""How to add a package."""

FASTER = {"TPESampler": TPESampler}
"""Classes that do what Optuna's do, at less cost."""

FILLED_IN = {"GridSampler": ("search_space",)}
"""Required arguments that are taken from the study where the manifest leaves them out."""


class Component(NamedTuple):
    """An object of a family as the manifest describes it, and the field that does; may contain others."""

    family: str
    name: str
    args: Mapping[str, Any]
    field: str

    @property
    def cls(self) -> type:
        """The class. Raises AttributeError for a name that the family does not have."""
        family = FAMILIES[self.family]
        found: type = FASTER.get(self.name) or getattr(family.module, self.name)
        return found

    def inner(self) -> Iterator["Component"]:
        """Yield the components among the arguments; malformed ones are left to `component_problems`."""
        for name, family in _object_arguments(self.cls).items():
            value = self.args.get(name)
            if value is not None and not _shape_problem(value, "", family):
                field = f"{self.field}.args.{name}"
                yield Component(family, value["name"], value.get("args") or {}, field)


class InvalidArguments(Exception):  # noqa: N818  Optuna's own errors are named so
    """Optuna rejects the arguments."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(f"{problem.field}: {problem.message}")
        self.problem = problem


def component_problems(component: Component) -> list[Problem]:
    """Return what is wrong with a name or its arguments, by the classes' signatures; nothing is built."""
    family = FAMILIES[component.family]
    if component.name not in family.names:
        return [Problem(field=f"{component.field}.name", message=_unknown(component.name, family))]
    own, filled_in = f"{component.field}.args", FILLED_IN.get(component.name, ())
    found = [*argument_problems(component.cls, component.args, own, FAMILIES, filled_in)]
    for name, wanted in _object_arguments(component.cls).items():
        if component.args.get(name) is not None:
            found += _shape_problem(component.args[name], f"{own}.{name}", wanted)
    for inner in component.inner():
        found += component_problems(inner)
    return found


def build(component: Component) -> Any:
    """Return the object of a component without problems. Raises InvalidArguments if Optuna rejects it."""
    args = converted(component.cls, component.args)
    for inner in component.inner():
        args[inner.field.rsplit(".", 1)[-1]] = build(inner)
    try:
        return component.cls(**args)
    except (TypeError, ValueError, ImportError) as error:
        raise InvalidArguments(problem_of(error, component.args, f"{component.field}.args")) from error


def _object_arguments(cls: type) -> dict[str, str]:
    """Return the arguments that are objects themselves, and the family of each."""
    return {
        name: family
        for name, parameter in arguments_of(cls).items()
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
    message = f"a {word} is written as {{name: ..., args: {{...}}}}, with its Optuna class name"
    return [Problem(field=field, message=message)]


def _unknown(name: str, family: Family) -> str:
    known = ", ".join(family.names)
    return f"Optuna has no {family.word} '{name}'{did_you_mean(name, family.names)} It is one of: {known}"


def missing_packages(component: Component) -> Iterator[Problem]:
    """Yield what a component needs and this study server does not have."""
    family = FAMILIES[component.family]
    if component.name not in family.names:
        return
    for package in NEEDS.get(component.name, ()):
        if importlib.util.find_spec(package) is None:
            remedy = INSTALL.get(package, "add it to the study server's image")
            message = (
                f"{component.name} needs the package {package}, which the study server does not have: "
                f"use another {family.word}, or {remedy}"
            )
            yield Problem(field=f"{component.field}.name", message=message)
    for inner in component.inner():
        yield from missing_packages(inner)
