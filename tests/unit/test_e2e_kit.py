"""The helpers of the end-to-end tests, on a kubectl that is played."""

import json

import pytest

from tests.e2e.kit import Kubectl, phase

EXPIRED = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 410}
STUDY = {"kind": "TuningStudy", "metadata": {"name": "digits"}, "status": {"phase": "Completed"}}
AGAIN = """#!/bin/sh
# Prints the first file at the first call, and the second one from then on.
cat "$0.next"
cp "$0.last" "$0.next"
"""


@pytest.fixture
def kubectl(tmp_path):
    program = tmp_path / "kubectl"
    program.write_text(AGAIN)
    program.chmod(0o755)
    (tmp_path / "kubectl.next").write_text(json.dumps(EXPIRED, indent=4) + "\n")
    (tmp_path / "kubectl.last").write_text(json.dumps(STUDY, indent=4) + "\n")
    return Kubectl(str(program), "kubeconfig", "default")


def test_a_study_is_watched_again_when_its_watch_expires(kubectl):
    assert kubectl.wait("digits", phase("Completed"), timeout=60) == STUDY


def test_the_events_of_a_watch_end_when_it_expires(kubectl, tmp_path):
    events = [{"type": "ADDED", "object": STUDY}, {"type": "ERROR", "object": EXPIRED}]
    (tmp_path / "kubectl.next").write_text("".join(f"{json.dumps(event)}\n" for event in events))
    with kubectl.watch("jobs", None, 10, events=True) as seen:
        assert list(seen) == events[:1]
