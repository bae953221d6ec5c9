"""Faults at the edge: a client that fails at its n-th call, before or after the call has had its effect."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tuning_operator.kube.ports.kube_api import KubeError
from tuning_operator.kube.ports.study_server import StudyServerUnavailable

from tests.unit.kube.model_server import ModelServer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class Killed(BaseException):
    """The operator's process ends here, as with kill -9."""


KUBE_ERRORS: dict[str, Callable[[], BaseException]] = {
    "conflict": lambda: KubeError(409, "Conflict", "the object has been modified"),
    "invalid": lambda: KubeError(422, "Invalid", "is invalid"),
    "too many": lambda: KubeError(429, "TooManyRequests", "slow down"),
    "server error": lambda: KubeError(500, "InternalError", "etcd is away"),
    "timeout": lambda: KubeError(0, "Unreachable", "TimeoutError()"),
    "killed": Killed,
}
SERVER_ERRORS: dict[str, Callable[[], BaseException]] = {
    "unavailable": lambda: StudyServerUnavailable("ConnectError"),
    "killed": Killed,
}
READS = {"get", "select", "largest_nodes", "summary", "namespaces", "changes"}
OF_WRITES = {"conflict", "invalid", "killed"}
"""Errors that no read adds to: none is refused like this, and a kill before a read is one after a write."""


def can_fail(call: str, error: str, *, late: bool) -> bool:
    """Return whether a call can fail like this: with an error of its port, late only if it has an effect."""
    errors = SERVER_ERRORS if hasattr(ModelServer, call) else KUBE_ERRORS
    if error not in errors or (late and call == "dry_run"):
        return False
    return call not in READS or not (late or error in OF_WRITES)


@dataclass
class Faults:
    """Which calls fail: by number, (error, whether it comes after the effect)."""

    planned: Mapping[int, tuple[BaseException, bool]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)

    def around(self, target: Any) -> Any:
        """Return the client with the faults."""
        return _Faulty(target, self)


class _Faulty:
    def __init__(self, target: Any, faults: Faults) -> None:
        self._target, self._faults = target, faults

    def __getattr__(self, name: str) -> Any:
        method, faults = getattr(self._target, name), self._faults

        async def call(*args: Any, **kwargs: Any) -> Any:
            error, late = faults.planned.get(len(faults.calls), (None, False))
            faults.calls.append(name)
            if error and not late:
                raise error
            answer = await method(*args, **kwargs)
            if error:
                raise error
            return answer

        return call
