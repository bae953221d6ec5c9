"""The Pareto front of a study with several objectives, kept as trials complete."""

from collections.abc import Sequence

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial


class ParetoFront:
    """The trials that no other dominates; equal ones all belong, as in Optuna's `study.best_trials`."""

    def __init__(self, directions: Sequence[StudyDirection]) -> None:
        self._signs = [-1.0 if direction == StudyDirection.MAXIMIZE else 1.0 for direction in directions]
        self._members: list[tuple[list[float], FrozenTrial]] = []

    def add(self, trial: FrozenTrial) -> None:
        """Add a completed trial; cost O(front)."""
        loss = [sign * value for sign, value in zip(self._signs, trial.values, strict=True)]
        if any(_dominates(other, loss) for other, _ in self._members):
            return
        self._members = [member for member in self._members if not _dominates(loss, member[0])]
        self._members.append((loss, trial))

    def first(self, count: int) -> list[FrozenTrial]:
        """Return `count` members at most, by number: the best in each objective, then the lowest numbers.

        Of equals in an objective the lowest number is the best.
        """
        everyone = {trial.number: trial for _, trial in self._members}
        places = range(len(self._signs)) if everyone else ()
        bests = [min((loss[place], trial.number) for loss, trial in self._members)[1] for place in places]
        chosen = list(dict.fromkeys([*bests, *sorted(everyone)]))[:count]
        return [everyone[number] for number in sorted(chosen)]


def _dominates(one: list[float], other: list[float]) -> bool:
    return one != other and all(mine <= theirs for mine, theirs in zip(one, other, strict=True))
