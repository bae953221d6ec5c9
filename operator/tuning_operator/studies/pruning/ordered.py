"""Numbers in order."""

import bisect
from collections.abc import Sequence


class Ordered:
    """Numbers that are kept in order from the first look on; a study is loaded before, without sorting."""

    def __init__(self) -> None:
        self._numbers: list[float] = []
        self._in_order = False

    def add(self, number: float) -> None:
        """Take in a number, which must not be NaN."""
        if self._in_order:
            bisect.insort(self._numbers, number)
        else:
            self._numbers.append(number)

    def numbers(self) -> Sequence[float]:
        """Return all, the smallest first."""
        if not self._in_order:
            self._numbers.sort()
            self._in_order = True
        return self._numbers
