"""The helpers of the end-to-end tests, on a kubectl that is played."""

import json

import pytest

from tests.e2e import test_case_metrics, test_cases
from tests.e2e.kit import NOT_SENT, PRUNE_GRACE, Kubectl, phase, stalled_for, study

EXPIRED = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 410}
STUDY = {"kind": "TuningStudy", "metadata": {"name": "digits"}, "status": {"phase": "Completed"}}
AGAIN = """#!/bin/sh
# Prints the first file at the first call, and the second one from then on.
cat "$0.next"
cp "$0.last" "$0.next"
"""
BUSY_ONCE = f"""#!/bin/sh
echo '#!/bin/sh\necho created' > "$0.next"
chmod +x "$0.next"
mv "$0.next" "$0"
echo "net/http: {NOT_SENT}" >&2
exit 1
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


def test_a_study_that_waits_for_another_reason_first(kubectl, tmp_path):
    def stalled(reason):
        return STUDY | {
            "status": {"conditions": [{"type": "Stalled", "status": "True", "reason": reason, "message": ""}]}
        }

    (tmp_path / "kubectl.next").write_text(json.dumps(stalled("Capacity"), indent=4) + "\n")
    (tmp_path / "kubectl.last").write_text(json.dumps(stalled("ImagePull"), indent=4) + "\n")
    assert kubectl.wait("digits", stalled_for("ImagePull"), timeout=60) == stalled("ImagePull")


def test_a_request_that_was_not_sent_is_sent_again(kubectl, tmp_path):
    (tmp_path / "kubectl").write_text(BUSY_ONCE)
    assert kubectl.run("create", "job", "again") == "created\n"


def test_pods_of_all_studies_are_kept_until_their_logs_are_read():
    studies = [study("one", "IMAGE")]
    for text in (test_case_metrics.ONE_RESULT, test_case_metrics.EPOCHS):
        studies += test_case_metrics.manifests(text, "IMAGE")
    for file in test_cases.CASES.glob("*.yaml"):
        studies += test_cases.objects(file.stem, "IMAGE")
    graces = {found["spec"]["trial"].get("pruneGrace") for found in studies if found["kind"] == "TuningStudy"}
    assert graces == {PRUNE_GRACE, "1s"}  # the cases with 1s are about containers that never end
