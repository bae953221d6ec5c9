"""What can be wrong with initial trials."""

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches

from tuning_operator.resource.space.values import Flaw, is_number, shown, value_flaw
from tuning_operator.resource.space.walk import holds
from tuning_operator.resource.study import Parameter, Scalar

Point = Mapping[str, Scalar]


def initial_flaws(search_space: Sequence[Parameter], initial_trials: Sequence[Point]) -> Iterator[Flaw]:
    """Yield what is wrong with initial trials in a good search space.

    Parameters left out are sampled, so one whose condition hangs on those is good.
    """
    by_name = {parameter.name: parameter for parameter in search_space}
    seen: dict[frozenset[tuple[str, str, Scalar]], int] = {}
    for index, point in enumerate(initial_trials):
        for name, value in point.items():
            if message := _flaw(by_name, point, name, value):
                yield Flaw(f"initialTrials[{index}].{name}", message)
        first = seen.setdefault(_identity(point), index)
        if first != index:
            message = f"this is initialTrials[{first}] again, and would not be tried twice: remove one"
            yield Flaw(f"initialTrials[{index}]", message)


def _flaw(by_name: Mapping[str, Parameter], point: Point, name: str, value: Scalar) -> str | None:
    if name not in by_name:
        return unknown(name, list(by_name))
    if message := value_flaw(by_name[name], value):
        return message
    return _condition_flaw(by_name, point, by_name[name])


def unknown(name: str, known: list[str]) -> str:
    """Return the message that the search space has no such parameter."""
    close = get_close_matches(name, known, n=1)
    mend = f"did you mean {close[0]}?" if close else "correct the name, or remove it."
    return f"the search space has no parameter {name}: {mend} It has: {', '.join(known)}"


def _condition_flaw(by_name: Mapping[str, Parameter], point: Point, parameter: Parameter) -> str | None:
    """Return why the parameter cannot exist in a trial of these values, itself or one that it depends on."""
    at: Parameter = parameter
    while at.when is not None:
        parent = at.when.parameter
        if parent in point:
            if holds(at.when, point[parent]):
                return None
            return (
                f"there is no {parameter.name} in this trial, since {parent} is {shown(point[parent])} "
                f"(see the when of {at.name}): remove it, or change {parent}"
            )
        at = by_name[parent]
    return None


def _identity(point: Point) -> frozenset[tuple[str, str, Scalar]]:
    """Return what two points have in common that are one and the same: 1 is 1.0, but not true."""
    return frozenset(
        (name, "number" if is_number(value) else type(value).__name__, value) for name, value in point.items()
    )
