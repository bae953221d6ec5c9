"""Checks of a search space and its initial trials."""

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches

from tuning_operator.resource.space.conditions import condition_flaws, is_met
from tuning_operator.resource.space.parameters import parameter_flaws
from tuning_operator.resource.space.values import Flaw, is_number, shown, value_flaw
from tuning_operator.resource.study import Parameter, Scalar

Point = Mapping[str, Scalar]


def problems(
    search_space: Sequence[Parameter] | None, initial_trials: Sequence[Point] = ()
) -> tuple[Flaw, ...]:
    """Return what is wrong with a search space and the initial trials.

    Conditions are checked once all parameters are valid, and initial trials once all conditions are.
    Without a search space (define-by-run), any initial trial may be valid.
    """
    if search_space is None:
        return ()
    return (
        tuple(_each_flaw(search_space))
        or tuple(condition_flaws(search_space))
        or tuple(_initial_flaws(search_space, initial_trials))
    )


def _each_flaw(search_space: Sequence[Parameter]) -> Iterator[Flaw]:
    seen: dict[str, int] = {}
    for index, parameter in enumerate(search_space):
        first = seen.setdefault(parameter.name, index)
        if first != index:
            message = f"{parameter.name} is already declared as searchSpace[{first}]: rename or remove one"
            yield Flaw(f"searchSpace[{index}].name", message)
        for flaw in parameter_flaws(parameter):
            yield Flaw(f"searchSpace[{index}].{flaw.field}", flaw.message)


def _initial_flaws(search_space: Sequence[Parameter], initial_trials: Sequence[Point]) -> Iterator[Flaw]:
    """Yield what is wrong with initial trials in a valid search space.

    Omitted parameters are sampled, so a parameter that depends on one of them is valid.
    """
    by_name = {parameter.name: parameter for parameter in search_space}
    seen: dict[frozenset[tuple[str, str, Scalar]], int] = {}
    for index, point in enumerate(initial_trials):
        for name, value in point.items():
            if message := _flaw(by_name, point, name, value):
                yield Flaw(f"initialTrials[{index}].{name}", message)
        first = seen.setdefault(_identity(point), index)
        if first != index:
            message = f"this is the same as initialTrials[{first}] and would not be tried twice: remove one"
            yield Flaw(f"initialTrials[{index}]", message)


def _flaw(by_name: Mapping[str, Parameter], point: Point, name: str, value: Scalar) -> str | None:
    if name not in by_name:
        return unknown(name, list(by_name))
    if message := value_flaw(by_name[name], value):
        return message
    return _condition_flaw(by_name, point, by_name[name])


def unknown(name: str, known: list[str]) -> str:
    """Return the message for a parameter that is not in the search space."""
    close = get_close_matches(name, known, n=1)
    fix = f"did you mean {close[0]}?" if close else "correct or remove it."
    return f"{name} is not in searchSpace: {fix} Its parameters are {', '.join(known)}"


def _condition_flaw(by_name: Mapping[str, Parameter], point: Point, parameter: Parameter) -> str | None:
    """Return why a trial with these values can't have the parameter, or one that it depends on."""
    at: Parameter = parameter
    while at.when is not None:
        parent = at.when.parameter
        if parent in point:
            if is_met(at.when, point[parent]):
                return None
            return (
                f"this trial has no {parameter.name}, since {parent} is {shown(point[parent])} "
                f"(see the when of {at.name}): remove {parameter.name}, or change {parent}"
            )
        at = by_name[parent]
    return None


def _identity(point: Point) -> frozenset[tuple[str, str, Scalar]]:
    """Return what identifies a point: 1 is 1.0, but not true."""
    return frozenset(
        (name, "number" if is_number(value) else type(value).__name__, value) for name, value in point.items()
    )
