"""Why a trial ended without a value: a machine-readable category, a message, and how to fix it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

MESSAGE_LIMIT = 1000  # characters
TRACEBACK_LIMIT = 32_000  # characters; the last ones are kept
LOCAL = "TUNING_LOCAL_RUN"
"""The environment variable that `tuning run` marks its processes with."""
CAUGHT = "Caught"
"""The category of a failure that the script expects: an exception in the argument `catch` of optimize."""
BAD_VALUE = "BadValue"
"""The category of a failure without an exception: the objective returned something that isn't its value."""
WIDEST = 6  # bytes that one character takes in JSON, at most
TERMINATION_LIMIT = 4096  # bytes of a termination message that the kubelet keeps


class Advice(NamedTuple):
    """How to fix what depends on where the trial runs."""

    memory: str
    program: str
    package: str


IN_POD = Advice(
    memory="raise the container's memory limit",
    program="use a program that the image contains",
    package="Use an image that has '{package}', or add its code to trial.source.",
)
ON_THIS_MACHINE = Advice(
    memory="run fewer trials at a time (spec.parallelism)",
    program="use a program on this machine",
    package="Install '{package}' for {python}, or choose an interpreter that has it: tuning run --python.",
)


class Failure(NamedTuple):
    """A failure as the protocol defines it."""

    category: str
    message: str
    remedy: str | None = None
    traceback: str | None = None

    def to_wire(self) -> dict[str, Any]:
        """Return the protocol's JSON, with long texts shortened."""
        return {
            "category": self.category,
            "message": self.message[:MESSAGE_LIMIT],
            "remedy": self.remedy,
            "traceback": self.traceback and self.traceback[-TRACEBACK_LIMIT:],
        }


class TrialFailure(Exception):  # noqa: N818
    """Ends the trial as FAIL for a reason found by the runtime itself."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def remedy_of_bad_value(metrics: Sequence[str]) -> str:
    """Return how to fix a BAD_VALUE."""
    many = f"{', '.join(metrics)} as numbers in this order"
    wanted = f"{metrics[0]} as a number" if len(metrics) == 1 else many
    return f"Return {wanted} (spec.objectives), or prune the trial. NaN is not a valid value."


def termination_message(failure: Failure) -> bytes:
    """Return the failure as JSON within the kubelet's limit; of the traceback, the end is kept."""
    wire = failure.to_wire()
    text = wire["traceback"] or ""
    while True:
        encoded = _encoded({**wire, "traceback": text or None})
        excess = len(encoded) - TERMINATION_LIMIT
        if excess <= 0:
            return encoded
        if text:
            text = text[max(excess // WIDEST, 1) :]
        else:
            wire["message"] = wire["message"][: -max(excess // WIDEST, 1)]


def result_message(result: dict[str, Any], attributes: dict[str, Any], reported: list[Any]) -> bytes | None:
    """Return a result as JSON within the kubelet's limit, with what else could not be sent.

    If that is too much, the oldest reports are left out first, then user attributes, the largest ones first.
    Constraints stay, since without them an infeasible trial could become the best.

    Returns:
        None if it does not fit.
    """
    attributes = {kind: dict(values) for kind, values in attributes.items()}
    dispensable = [attributes[kind] for kind in ("userAttrs", "studyAttrs") if kind in attributes]
    while True:
        encoded = _encoded({**result, "attributes": attributes, "reported": reported})
        if len(encoded) <= TERMINATION_LIMIT:
            return encoded
        left = next((values for values in dispensable if values), None)
        if reported:
            reported = reported[len(reported) // 2 + 1 :]
        elif left:
            del left[max(left, key=lambda key: len(_encoded(left[key])))]
        else:
            return None


def _encoded(content: object) -> bytes:
    return json.dumps(content, ensure_ascii=False).encode(errors="replace")
