"""Which of a program's values are intermediate ones, and at which step."""

from __future__ import annotations

from typing import NamedTuple, Optional


class Position(NamedTuple):
    """Where in its training a program says that it is, for example `epoch=1 step=200`."""

    epoch: Optional[float] = None  # noqa: UP045  Python 3.9 evaluates it
    step: Optional[float] = None  # noqa: UP045

    def is_after(self, other: Position) -> bool:
        """Return whether the program has gone on since the other position; False where nothing shows it."""
        if self.epoch is not None and other.epoch is not None and self.epoch != other.epoch:
            return self.epoch > other.epoch
        return self.step is not None and other.step is not None and self.step > other.step


NOWHERE = Position()


class Steps:
    """Gives each value a step that grows, also where a program counts from 0 again in each epoch."""

    def __init__(self) -> None:
        self.last = NOWHERE
        """The position of the last value."""
        self._heading = NOWHERE
        self._first = NOWHERE
        self._epoch: float | None = None
        self._offset, self._stride = 0, 1
        self._given = -1

    def note(self, position: Position) -> None:
        """Read a line without a value (`Epoch 3/10`): the next value without a step belongs to it."""
        if position != NOWHERE:
            self._heading = self._with_epoch(position)

    def next(self, position: Position) -> int | None:
        """Return the step of a value; None for a position that had a value, or that lies further back."""
        if position == NOWHERE:
            position, self._heading = self._heading, NOWHERE
        position = self._with_epoch(position) if position != NOWHERE else position
        if position != NOWHERE:
            if position == self.last:
                return None
            if self.last.is_after(position):
                if position.is_after(self._first):
                    return None
                self._first = position
            elif self._first == NOWHERE:
                self._first = position
            self.last = position
        self._given = self._grown(position.epoch if position.step is None else position.step)
        return self._given

    def _with_epoch(self, position: Position) -> Position:
        if position.epoch is not None:
            self._epoch = position.epoch
        return position._replace(epoch=self._epoch)

    def _grown(self, number: float | None) -> int:
        if number is None or number != int(number):
            return self._given + 1
        step = self._offset + int(number)
        if step <= self._given:  # counted from the beginning again: goes on at the distance seen so far
            step = self._given + self._stride
            self._offset = step - int(number)
        elif self._given >= 0:
            self._stride = step - self._given
        return step


class Progress:
    """Separates a program's intermediate values from its result, which must not be pruned.

    A value is an intermediate one as soon as the program shows that it goes on: by another value, or by a
    later step or epoch in its output. So a program is never stopped between its result and its end.
    """

    def __init__(self) -> None:
        self.repeats = 0
        """How many values were left out, since their step did not grow."""
        self._steps = Steps()
        self._held: tuple[int, float] | None = None
        self._goes_on = False

    def add(self, position: Position, value: float | None) -> list[tuple[int, float]]:
        """Read what a line says; return the values, with steps, that are intermediate ones now."""
        if value is None:
            self._steps.note(position)
            return self._release() if position.is_after(self._steps.last) else []
        step = self._steps.next(position)
        if step is None:
            self.repeats += 1
            return []
        released = self._release()
        self._held = (step, value)
        return released

    def rest(self) -> list[tuple[int, float]]:
        """Return the last value, for the record of a program that has ended, unless it is the only one."""
        return self._release() if self._goes_on else []

    def _release(self) -> list[tuple[int, float]]:
        held, self._held = self._held, None
        self._goes_on = self._goes_on or held is not None
        return [held] if held else []
