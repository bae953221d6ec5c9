"""Texts for messages."""

from collections.abc import Iterable


def sentence(text: str) -> str:
    """Return the text with a full stop at its end, if it has none, so that another sentence can follow."""
    return text if text.endswith((".", "!", "?")) else f"{text}."


def shorten(text: str, limit: int) -> str:
    """Cut a text that is too long in the middle: its beginning says what happened, its end often why."""
    if len(text) <= limit:
        return text
    half = (limit - 5) // 2
    return f"{text[:half]} ... {text[-half:]}"


def field_path(place: Iterable[str | int]) -> str:
    """Return a place that Pydantic reports as Kubernetes writes it, for example `searchSpace[0].low`."""
    return "".join(f"[{at}]" if isinstance(at, int) else f".{at}" for at in place).removeprefix(".")


def count(number: int, noun: str) -> str:
    """Return for example `1 trial` or `3 trials`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def installation(extra: str) -> str:
    """Return how to install an extra, for the end of a sentence; most have this package from a checkout."""
    return (
        f"install kubectl-tuning with the extra {extra}, for example uv tool install "
        f"'./kubectl-tuning[{extra}]' in a checkout (see docs/guide/kubectl-plugin.md)"
    )
