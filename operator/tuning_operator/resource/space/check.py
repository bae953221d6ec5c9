"""All that can be wrong with a search space and initial trials."""

from collections.abc import Iterator, Mapping, Sequence

from tuning_operator.resource.space.conditions import condition_flaws
from tuning_operator.resource.space.initial import initial_flaws
from tuning_operator.resource.space.parameters import parameter_flaws
from tuning_operator.resource.space.values import Flaw
from tuning_operator.resource.study import Parameter, Scalar


def problems(
    search_space: Sequence[Parameter] | None, initial_trials: Sequence[Mapping[str, Scalar]] = ()
) -> tuple[Flaw, ...]:
    """Return what is wrong with a search space and the initial trials.

    Conditions are looked at once all parameters are good, and initial trials once the conditions are: what
    else could be said of them might change with the mend. Without a search space (the objective suggests its
    own), any initial trial may be good.
    """
    if search_space is None:
        return ()
    return (
        tuple(_each_flaw(search_space))
        or tuple(condition_flaws(search_space))
        or tuple(initial_flaws(search_space, initial_trials))
    )


def _each_flaw(search_space: Sequence[Parameter]) -> Iterator[Flaw]:
    seen: dict[str, int] = {}
    for index, parameter in enumerate(search_space):
        first = seen.setdefault(parameter.name, index)
        if first != index:
            message = f"{parameter.name} is declared already as searchSpace[{first}]: rename or remove one"
            yield Flaw(f"searchSpace[{index}].name", message)
        for flaw in parameter_flaws(parameter):
            yield Flaw(f"searchSpace[{index}].{flaw.field}", flaw.message)
