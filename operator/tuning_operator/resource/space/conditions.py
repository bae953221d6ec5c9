"""What can be wrong with a parameter's `when`: above all, that it can never hold."""

from collections.abc import Iterator, Sequence

from tuning_operator.resource.space.parameters import duplicate_flaws
from tuning_operator.resource.space.values import Flaw, bounds, shown, size, value_flaw
from tuning_operator.resource.space.walk import accepted
from tuning_operator.resource.study import Parameter, When


def condition_flaws(search_space: Sequence[Parameter]) -> Iterator[Flaw]:
    """Yield what is wrong with the conditions of a search space whose parameters are good."""
    for index, parameter in enumerate(search_space):
        if parameter.when is not None:
            for flaw in _when_flaws(parameter.name, parameter.when, search_space, index):
                yield Flaw(f"searchSpace[{index}].when{flaw.field}", flaw.message)


def _when_flaws(name: str, when: When, search_space: Sequence[Parameter], index: int) -> Iterator[Flaw]:
    position = {parameter.name: place for place, parameter in enumerate(search_space)}.get(when.parameter)
    if position is None:
        message = (
            f"{name} depends on {when.parameter}, which the search space does not have: declare it earlier, "
            "or correct the name"
        )
        yield Flaw(".parameter", message)
    elif position == index:
        yield Flaw(".parameter", f"{name} depends on itself: name another parameter, or remove when")
    elif position > index:
        message = f"{name} depends on {when.parameter}, which is declared after it: move it above {name}"
        yield Flaw(".parameter", message)
    else:
        yield from _comparison_flaws(when, search_space[position])


def _comparison_flaws(when: When, parent: Parameter) -> Iterator[Flaw]:
    given = [
        field
        for field, value in {
            "equals": when.equals,
            "anyOf": when.any_of,
            "atLeast": when.at_least,
            "atMost": when.at_most,
        }.items()
        if value is not None
    ]
    equals_null = not given and None in (parent.choices or [])  # null is also how "not given" looks
    if len(given) != 1 and not equals_null:
        yield Flaw("", "give exactly one of equals, anyOf, atLeast and atMost")
    elif when.at_least is None and when.at_most is None:
        yield from _equality_flaws(when, parent)
    elif parent.type == "categorical":
        message = (
            "atLeast and atMost compare numbers, but a categorical parameter has none: use equals or anyOf"
        )
        yield Flaw(f".{given[0]}", message)
    else:
        yield from _bound_flaws(when, parent)


def _equality_flaws(when: When, parent: Parameter) -> Iterator[Flaw]:
    field = ".equals" if when.any_of is None else ".anyOf"
    if size(parent) == float("inf"):
        message = (
            f"{parent.name} has endlessly many values, so that it equals this one would never be: use "
            f"atLeast or atMost, or give {parent.name} a step"
        )
        yield Flaw(field, message)
        return
    for index, value in enumerate(accepted(when)):
        if flaw := value_flaw(parent, value):
            place = field if when.any_of is None else f"{field}[{index}]"
            yield Flaw(place, f"this can never hold, since {flaw}")
    if when.any_of is not None:
        yield from duplicate_flaws(field, when.any_of)


def _bound_flaws(when: When, parent: Parameter) -> Iterator[Flaw]:
    low, high = bounds(parent)
    if when.at_least is not None and not when.at_least <= high:
        message = f"this can never hold, since {parent.name} is at most {shown(high)}: lower atLeast"
        yield Flaw(".atLeast", message)
    if when.at_most is not None and not when.at_most >= low:
        message = f"this can never hold, since {parent.name} is at least {shown(low)}: raise atMost"
        yield Flaw(".atMost", message)
