"""Faults, and what each of their tests does."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.e2e.kit import Kubectl, UnexpectedError
from tests.faults.audit import audit, left_behind
from tests.faults.report import RESULTS, Result
from tests.faults.running import RunningStudy, over

MINUTES = 60


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong while a study runs."""

    what: str
    promise: str
    inject: Callable[[RunningStudy], None]
    trials: int = 24
    quick: bool = False
    """Whether `make test` includes it."""
    disruptive: bool = True
    """Whether it may affect other studies."""
    stops_trials: bool = False
    """Whether it ends the trials that run, which are PRUNED then."""
    trial: Mapping[str, Any] = field(default_factory=dict)
    """More of `spec.trial`."""

    @property
    def test(self) -> str:
        """The name of its test."""
        module = self.inject.__module__.rpartition(".")[2]
        return f"test_{module}[{self.inject.__name__}]"

    def check(self, kubectl: Kubectl, image: str) -> None:
        """Inject it into a study, which must end as if nothing had happened."""
        study = RunningStudy.start(kubectl, image, self.trials, self.trial)
        recovery, violations = None, ["interrupted"]
        try:
            study.wait_finished(3)
            self.inject(study)
            lifted, finished = time.monotonic(), study.finished()
            if finished < self.trials:
                study.wait_finished(finished + 1, timeout=10 * MINUTES)
                recovery = time.monotonic() - lifted
            study.wait(over, timeout=10 * MINUTES)
            violations = audit(study, self.trials, stops_trials=self.stops_trials) or left_behind(study)
        except UnexpectedError as error:
            violations = [str(error).splitlines()[0]]
            raise
        finally:
            study.jobs.stop()
            RESULTS.append(Result(self.what, self.promise, self.test, tuple(violations), recovery))
        assert not violations, "\n".join([*violations, kubectl.diagnostics(study.name)])


class Faults(list[Fault]):
    """The faults of a kind of cluster."""

    def add(
        self, what: str, promise: str, **more: Any
    ) -> Callable[[Callable[[RunningStudy], None]], Callable[[RunningStudy], None]]:
        """Add the decorated function to the faults. `promise` is what users can rely on."""

        def add(inject: Callable[[RunningStudy], None]) -> Callable[[RunningStudy], None]:
            self.append(Fault(what, promise, inject, **more))
            return inject

        return add

    def parameters(self) -> list[Any]:
        """Return the parameters of their test."""
        return [pytest.param(fault, marks=_marks(fault), id=fault.inject.__name__) for fault in self]


def _marks(fault: Fault) -> list[pytest.MarkDecorator]:
    marks = [pytest.mark.disruptive] if fault.disruptive else []
    return marks if fault.quick else [*marks, pytest.mark.matrix]
