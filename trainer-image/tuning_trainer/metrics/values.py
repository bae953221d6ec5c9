"""One number as programs print it: read whole, or not at all."""

from __future__ import annotations

import re
from typing import NamedTuple, Union


class Unreadable(NamedTuple):
    """Something that looks like a number and cannot be read as one."""

    reason: str


Value = Union[float, Unreadable, None]
"""What was found at a position of a text; None where nothing looks like a number."""

_TYPOGRAPHY = {
    **dict.fromkeys((0x2212, 0x2013, 0x2014), "-"),  # minus sign, dashes
    **dict.fromkeys((0x2009, 0x202F), "\u00a0"),  # spaces within a number
    0x2019: "'",
    0x00D7: "x",
    0xFF1A: ":",
    0xFF1D: "=",
}

_GROUPS = r"[1-9][0-9]{0,2}"
_FORMS = [
    (re.compile(form), mark)
    for form, mark in [
        (r"[0-9]+(?:\.[0-9]*)?|\.[0-9]+", "."),  # 1500.25  5.  .5
        (rf"{_GROUPS}(?:,[0-9]{{3}})+\.[0-9]+", "."),  # 1,500.25
        (rf"{_GROUPS}(?:,[0-9]{{3}}){{2,}}", "."),  # 1,500,000
        (rf"{_GROUPS}(?:\.[0-9]{{3}})+,[0-9]+", ","),  # 1.500,25
        (rf"{_GROUPS}(?:[_'\u00a0][0-9]{{3}})+(?:\.[0-9]+)?", "."),  # 1_500.25
        (rf"{_GROUPS}(?:[_'\u00a0][0-9]{{3}})+,[0-9]+", ","),  # 1 500,25, no-break spaces
        (r"0,[0-9]+|[0-9]+,(?:[0-9]{1,2}|[0-9]{4,})", ","),  # 0,75  but not 1,500
    ]
]
"""The ways to write a number, and the decimal mark in each. Whatever is none of them has no clear meaning."""

_NUMBER = re.compile(
    r"\s*(?P<sign>[-+]?)(?:(?P<word>nan|inf(?:inity)?)(?!\w)"
    r"|(?P<digits>\.?[0-9]+(?:[.,_'\u00a0][0-9]+)*)\.?(?P<exponent>[eE][-+]?[0-9]+)?)",
    re.IGNORECASE,
)
"""The longest run of digits and the signs that join them, so that a number is never cut."""

_FRACTION = re.compile(r"\s*/\s*([0-9]+)|\s+(?:out\s+)?of\s+([0-9]+)", re.IGNORECASE)
_SPREAD = re.compile(r"\s*(?:±|\+/-|\+-)\s*[0-9.]+(?:[eE][-+]?[0-9]+)?\s?%?")
_CONTINUES = re.compile(
    r"""\w                                                         # 12ms, 1.5k, 0x1F
    | (?:[^\w\s()\[\]{}<>"`|%&#]|_)+[0-9]                               # 10:30, 0.7,0.8, 1-2
    | [./+\-^=~@]\w | \\(?![nrt\\"'])                           # 0.75.pt, 0.75/epoch
    | \s*(?:->|=>|→|…|\.\.+|[/*·^]|x)\s*[-+]?\.?[0-9]         # 0.7 -> 0.8, 1.5 x 10
    | \s+(?:to|[-+])\s+[-+]?\.?[0-9]                              # 0.7 - 0.8
    | \s?(?:[kKMGTB]|thousand|million|billion|trillion)(?!\w)""",  # 1.5 M
    re.VERBOSE,
)
_PERCENT = re.compile(r"\s?%")
_GROUPS_BY_SPACE = re.compile(r"(?: [0-9]{3})+(?![\w:])")  # 1 500: 1500, or two columns

_OPENING = re.compile(
    r"""\s*(?:(?P<call>[A-Za-z_][\w.]*\()|(?P<bracket>[\[(])|(?P<quote>\\*["'`])|(?P<bold>\*\*?)"""
    r"|(?P<angle><[^<>]*\bnumpy=))"
)
_NAMED_ARGUMENTS = r"(?:\s*,\s*\w+\s*=\s*(?:'[^']*'|\"[^\"]*\"|<[^<>]*>|\([^()]*\)|[^\s,()'\"<][^\s,()]*))*"
_CLOSING = {
    "call": re.compile(_NAMED_ARGUMENTS + r"\s*(?:,\s*)?\)"),
    "(": re.compile(r"\s*(?:,\s*)?\)"),
    "[": re.compile(r"\s*(?:,\s*)?\]"),
    "bold": re.compile(r"\*{0,2}"),
    "angle": re.compile(r"\s*>"),
}
_LIKE_A_NUMBER = re.compile(r"\s*[^\w\s]{0,3}[0-9]")  # also $5, ~5, >5


def plain_signs(text: str) -> str:
    """Return a text of the same length with keyboard signs in place of typographic ones."""
    return text.translate(_TYPOGRAPHY)


def read_value(text: str) -> Value:
    """Return the number that a text begins with, in whatever a program wraps it: quotes, brackets, tensor().

    A percent sign is not a part of the number (93% is 93); a/b is a fraction where both are whole numbers.
    """
    return value_at(plain_signs(text), 0)


def value_at(text: str, start: int) -> Value:
    """Return the number at a position of a text with plain signs."""
    at, closing = _open(text, start)
    number = _NUMBER.match(text, at)
    if number is None:
        return _unreadable(text, start) if _LIKE_A_NUMBER.match(text, at) else None
    value, at = _number(text, number)
    if not isinstance(value, float):
        return value
    spread = _SPREAD.match(text, at)
    at = spread.end() if spread else at
    for form in reversed(closing):
        closed = form.match(text, at)
        if closed is None:
            return _unreadable(text, start)
        at = closed.end()
    return _unreadable(text, start) if _CONTINUES.match(text, at) else value


def _open(text: str, at: int) -> tuple[int, list[re.Pattern[str]]]:
    """Return where the number begins, and what must follow it, the outermost first."""
    closing = []
    while opening := _OPENING.match(text, at):
        kind = str(opening.lastgroup)
        if kind == "quote":
            closing.append(re.compile(re.escape(opening[kind])))
        else:
            closing.append(_CLOSING[opening[kind] if kind == "bracket" else kind])
        at = opening.end()
    return at, closing


def _number(text: str, number: re.Match[str]) -> tuple[Value, int]:
    """Return a number with its denominator or percent sign, and where it ends."""
    sign = -1.0 if number["sign"] == "-" else 1.0
    if number["word"]:
        return sign * float(number["word"]), number.end()
    value = _plain(number["digits"], number["exponent"] or "")
    if isinstance(value, Unreadable):
        return value, number.end()
    whole = number["digits"].isdecimal() and not number["exponent"]
    fraction = _FRACTION.match(text, number.end())
    if fraction and whole:
        below = float(fraction[1] or fraction[2])
        if not 0 < below >= value:
            return _unreadable(text, number.start("sign")), fraction.end()
        return sign * value / below, fraction.end()
    groups = _GROUPS_BY_SPACE.match(text, number.end())
    if groups and whole and len(number["digits"]) <= 3:
        found = text[number.start("digits") : groups.end()]
        return Unreadable(f"{found!r} may be one number or several"), groups.end()
    percent = _PERCENT.match(text, number.end())
    return sign * value, percent.end() if percent else number.end()


def _plain(digits: str, exponent: str) -> float | Unreadable:
    for form, mark in _FORMS:
        if form.fullmatch(digits):
            whole, _, rest = digits.partition(mark) if mark in digits else (digits, "", "")
            return float(re.sub(r"[^0-9]", "", whole) + "." + rest + exponent)
    if re.fullmatch(r"[0-9]+,[0-9]{3}", digits):
        return Unreadable(f"{digits} may be {digits.replace(',', '')} or {digits.replace(',', '.')}")
    return Unreadable(f"{digits!r} is not a plain number")


def _unreadable(text: str, start: int) -> Unreadable:
    token = re.compile(r"\s*(\S{1,40}(?: \S{1,10}){0,2})").match(text, start)
    return Unreadable(f"{(token[1] if token else '').strip()!r} is not a plain number")
