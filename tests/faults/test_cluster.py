"""Whatever fails on a cluster: a study ends as if nothing had happened."""

from __future__ import annotations

import time

import pytest

from tests.e2e.kit import Kubectl, UnexpectedError
from tests.faults.audit import audit, left_behind
from tests.faults.cluster import FAULTS, Fault, name_of
from tests.faults.conftest import RESULTS
from tests.faults.report import Result
from tests.faults.running import RunningStudy, over

MINUTES = 60


def _marks(fault: Fault) -> list[pytest.MarkDecorator]:
    marks = [pytest.mark.disruptive] if fault.disruptive else []
    return marks if fault.quick else [*marks, pytest.mark.matrix]


@pytest.mark.timeout(15 * MINUTES)
@pytest.mark.parametrize(
    "fault", [pytest.param(fault, marks=_marks(fault), id=fault.inject.__name__) for fault in FAULTS]
)
def test_fault(fault: Fault, kubectl: Kubectl, image: str) -> None:
    study = RunningStudy.start(kubectl, image, fault.trials, fault.trial)
    recovery, violations = None, ["interrupted"]
    try:
        study.wait_finished(3)
        fault.inject(study)
        lifted, finished = time.monotonic(), study.finished()
        if finished < fault.trials:
            study.wait_finished(finished + 1, timeout=10 * MINUTES)
            recovery = time.monotonic() - lifted
        study.wait(over, timeout=10 * MINUTES)
        violations = audit(study, fault.trials, stops_trials=fault.stops_trials) or left_behind(study)
    except UnexpectedError as error:
        violations = [str(error).splitlines()[0]]
        raise
    finally:
        study.jobs.stop()
        RESULTS.append(Result(fault.what, fault.promise, name_of(fault), tuple(violations), recovery))
    assert not violations, "\n".join([*violations, kubectl.diagnostics(study.name)])
