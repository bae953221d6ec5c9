"""A curve drawn with braille characters, which have two by four dots each."""

import itertools
import math
from collections.abc import Mapping

from tuning_operator.cli.text.values import shown

DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
"""The bits of a character's dots, by column and row."""
BLANK = 0x2800


def curve(points: Mapping[int, float], width: int = 60, height: int = 8) -> list[str]:
    """Return the lines of a plot of values by step; empty if fewer than two are finite numbers."""
    finite = sorted((step, value) for step, value in points.items() if math.isfinite(value))
    if len(finite) < 2:
        return []
    steps, values = [step for step, _ in finite], [value for _, value in finite]
    low, high = min(values), max(values)
    dots = _dots(finite, low, high, width * 2, height * 4)
    cells = [[BLANK] * width for _ in range(height)]
    for x, y in dots:
        cells[y // 4][x // 2] |= DOTS[x % 2][y % 4]
    labels = {0: shown(high), height - 1: shown(low)} if low < high else {height // 2: shown(low)}
    margin = max(map(len, labels.values()))
    lines = [
        f"{labels.get(i, ''):>{margin}} ┤{''.join(map(chr, row)).rstrip(chr(BLANK))}"
        for i, row in enumerate(cells)
    ]
    first, last = f"step {steps[0]}", str(steps[-1])
    return [*lines, f"{'':>{margin}} └{'─' * width}", f"{'':>{margin}}  {first}{last:>{width - len(first)}}"]


def _dots(
    points: list[tuple[int, float]], low: float, high: float, width: int, height: int
) -> set[tuple[int, int]]:
    """Return the dots of lines between the points; (0, 0) is at the top left."""
    (first, _), (last, _) = points[0], points[-1]
    # Not their difference, which may be infinite
    places = [
        (
            (step - first) / (last - first) * (width - 1),
            (0.5 if high == low else (high / 2 - value / 2) / (high / 2 - low / 2)) * (height - 1),
        )
        for step, value in points
    ]
    dots = set()
    for (x, y), (to_x, to_y) in itertools.pairwise(places):
        pieces = math.ceil(max(to_x - x, abs(to_y - y), 1))
        dots |= {
            (round(x + (to_x - x) * i / pieces), round(y + (to_y - y) * i / pieces))
            for i in range(pieces + 1)
        }
    return dots
