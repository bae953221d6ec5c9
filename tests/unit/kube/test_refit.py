# ruff: noqa: E501  a table reads best with few lines a row
"""The refit: its rules as a table, how it stands in the status, and its part of the story."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from tuning_operator.kube.plan.actions import Action, Ask, BeginRefit, FailRefit, StartRefit, StopRefit
from tuning_operator.kube.plan.decide import decide
from tuning_operator.kube.plan.observation import Observation, Run
from tuning_operator.kube.plan.patience import START_GRACE
from tuning_operator.kube.plan.refit import REMOVED, best_trial
from tuning_operator.kube.plan.work import refit_request
from tuning_operator.kube.status.conditions import find
from tuning_operator.protocol import Failure, Problem, RefitRecord, StudySummary
from tuning_operator.resource.study import RefitSpec, TuningStudy, TuningStudyStatus

from tests.unit.kube.builders import NOW, ago, running_status, seen, study, summary, trial, trouble

BEST = trial(3, "COMPLETE", values=[0.9])
DIGEST = refit_request(RefitSpec(), 3).digest
BEGIN, START = BeginRefit(3, DIGEST), StartRefit(3, DIGEST)
LATE = ago(START_GRACE.total_seconds() + 1)
BOOM = Failure(category="Exception", message="ValueError: boom", traceback="Traceback ...")


def ended(record: RefitRecord | None = None, **fields: Any) -> StudySummary:
    """All ten trials are over, and the third is the best."""
    return summary(**{"complete": 10, "best": BEST, "refit": record, **fields})


def record(state: str = "RUNNING", trial: int = 3, digest: str = DIGEST, **fields: Any) -> RefitRecord:
    return RefitRecord(trial=trial, digest=digest, state=state, **fields)  # type: ignore[arg-type]


def job(state: str, category: str | None = None, digest: str = DIGEST, **fields: Any) -> Run:
    problem = trouble(category, fields.pop("since", ago(1))) if category else None
    return Run(3, state, problem, digest=digest, **fields)  # type: ignore[arg-type]


def spec(**fields: Any) -> TuningStudy:
    return study(**{"refit": {}, **fields})


@dataclass
class Row:
    study: TuningStudy
    seen: Observation
    actions: list[Action]
    phase: str | None
    says: str = ""


TWO = [{"metric": "accuracy", "direction": "maximize"}, {"metric": "latency", "direction": "minimize"}]
FRONT = [trial(n, "COMPLETE", values=values) for n, values in ((1, [0.9, 9]), (2, [0.8, 5]), (4, [0.7, 5]))]

TABLE: dict[str, Row] = {
    "no refit is asked for": Row(study(), seen(ended()), [], None),
    "the study goes on": Row(spec(maxTrials=11), seen(ended()), [Ask(2, 11)], None),
    "the study has completed": Row(spec(), seen(ended()), [BEGIN], "Pending"),
    "the study has failed": Row(spec(maxFailedTrials=0), seen(ended(fail=1)), [], None),
    "no trial is complete": Row(spec(), seen(summary(pruned=10)), [], "Failed", "no best parameters"),
    "suspended": Row(spec(suspend=True), seen(ended()), [], "Pending", "spec.suspend: false"),
    "refused": Row(
        spec(), seen(ended(), problems=(Problem(field="x", message="y"),)), [], "Pending", "Accepted"),
    "begun: it gets its Job": Row(spec(), seen(ended(record())), [START], "Pending"),
    "begun, and the study was resumed: it gets its Job": Row(
        spec(maxTrials=11), seen(ended(record())), [Ask(2, 11), START], "Pending"),
    "its pod is on its way": Row(spec(), seen(ended(record()), refit=job("starting")), [], "Pending"),
    "it runs": Row(spec(), seen(ended(record()), refit=job("running")), [], "Running"),
    "it runs, and the study was resumed": Row(
        spec(maxTrials=11), seen(ended(record()), refit=job("running")), [Ask(2, 11)], "Running"),
    "it runs, and the study is suspended": Row(
        spec(suspend=True), seen(ended(record()), refit=job("running")), [], "Running"),
    "its Job is being deleted": Row(spec(), seen(ended(record()), refit=job("stopping")), [], "Pending"),
    "a try failed": Row(
        spec(), seen(ended(record(failure=BOOM)), refit=job("starting")), [], "Pending", "A try failed, and there is"),
    "its tries have failed": Row(
        spec(), seen(ended(record(failure=BOOM)), refit=job("ended", "Exception")), [FailRefit(BOOM)], "Pending"),
    "its tries have failed, as the server knows and the cluster does not": Row(
        spec(), seen(ended(record(failure=BOOM)), refit=job("ended", "ExitCode")), [FailRefit(BOOM)], "Pending"),
    "its tries have ended without a word": Row(
        spec(), seen(ended(record()), refit=job("ended", "ExitCode")),
        [FailRefit(trouble("ExitCode").failure)], "Pending"),
    "its last try was killed": Row(
        spec(), seen(ended(record(failure=BOOM)), refit=job("ended", "OutOfMemory")),
        [FailRefit(trouble("OutOfMemory").failure)], "Pending"),
    "its image cannot be pulled": Row(
        spec(), seen(ended(record()), refit=job("starting", "ImagePull")), [], "Pending", "it is so. Mend it."),
    "its image cannot be pulled for long": Row(
        spec(), seen(ended(record()), refit=job("starting", "ImagePull", since=LATE)),
        [FailRefit(trouble("ImagePull").failure), StopRefit()], "Pending"),
    "it waits for a GPU": Row(
        spec(), seen(ended(record()), refit=job("starting", "Capacity", since=LATE)), [], "Pending", "it is so"),
    "its name is taken": Row(
        spec(), seen(ended(record()), refit=job("foreign", "NameTaken")), [], "Pending", "it is so"),
    "it has completed": Row(spec(), seen(ended(record("COMPLETE"))), [], "Completed"),
    "it has failed": Row(
        spec(), seen(ended(record("FAIL", failure=BOOM))), [], "Failed",
        "ValueError: boom. It is tried anew when spec.refit changes"),
    "it has completed, its pod may say goodbye": Row(
        spec(), seen(ended(record("COMPLETE")), refit=job("running", lingering_since=ago(5))), [], "Completed"),
    "it has completed, its pod goes on and on": Row(
        spec(), seen(ended(record("COMPLETE")), refit=job("running", lingering_since=ago(31))), [StopRefit()],
        "Completed"),
    "another trial is the best now": Row(
        spec(), seen(ended(record("COMPLETE", trial=2, digest="old"))), [BEGIN], "Pending"),
    "another trial, and the pod of the one before runs": Row(
        spec(), seen(ended(record(trial=2, digest="old")), refit=job("running", digest="old")), [StopRefit()],
        "Pending", "the refit before it"),
    "another trial, and the pod of the one before is being stopped": Row(
        spec(), seen(ended(record(trial=2, digest="old")), refit=job("stopping", digest="old")), [], "Pending",
        "the refit before it"),
    "the Job of the one before was found too late": Row(
        spec(), seen(ended(record()), refit=job("ended", digest="old")), [StopRefit()], "Pending"),
    "its spec changed while the study goes on: it is let run": Row(
        spec(maxTrials=11, refit={"retries": 5}), seen(ended(record()), refit=job("running")), [Ask(2, 11)],
        "Running"),
    "its spec changed while the study goes on, and its Job is gone": Row(
        spec(maxTrials=11, refit={"retries": 5}), seen(ended(record())), [Ask(2, 11)], "Pending"),
    "it is no longer asked for": Row(
        study(), seen(ended(record()), refit=job("running")), [FailRefit(REMOVED), StopRefit()], "Running"),
    "of two objectives": Row(
        spec(objectives=TWO, refit={"metric": "latency"}), seen(ended(best=None, pareto_front=FRONT)),
        [BeginRefit(2, refit_request(RefitSpec(metric="latency"), 2).digest)], "Pending"),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_table(name: str) -> None:
    row = TABLE[name]
    plan = decide(row.study, row.seen, NOW)
    assert list(plan.actions) == row.actions
    refit = plan.status.refit
    assert (refit.phase if refit else None) == row.phase
    assert row.says in ((refit.message or "") if refit else "")


def test_no_refit_while_trials_are_being_stopped() -> None:
    plan = decide(spec(maxTrials=10), seen(summary(11, complete=10, best=BEST), Run(11, "running")), NOW)
    assert plan.status.phase == "Completed"
    assert not [action for action in plan.actions if isinstance(action, BeginRefit)]
    assert plan.status.refit is None


@pytest.mark.parametrize(("metric", "best"), [("accuracy", 1), ("latency", 2)])
def test_the_best_of_a_front_is_that_of_the_metric_and_the_first_of_equals(metric: str, best: int) -> None:
    given = study(objectives=TWO, refit={"metric": metric})
    chosen = best_trial(given, summary(pareto_front=FRONT))
    assert chosen is not None
    assert chosen.number == best
    assert best_trial(given, summary()) is None


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (job("starting", "ImagePull"), "ImagePull"),
        (job("foreign", "NameTaken"), "NameTaken"),
        (job("starting", "Capacity", since=ago(60)), "Capacity"),
        (job("starting", "Capacity", since=ago(5)), "Progressing"),
        (job("running"), "Progressing"),
        (job("ended", "OutOfMemory"), "Progressing"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_refit_that_cannot_start_stalls_the_study(run: Run, reason: str) -> None:
    stalled = find(decide(spec(), seen(ended(record()), refit=run), NOW).status.conditions, "Stalled")
    assert stalled is not None
    assert stalled.reason == reason
    assert stalled.status == str(reason != "Progressing")
    assert ("The refit cannot start" in stalled.message) == (stalled.status == "True")


def test_what_the_refit_made_is_in_the_status() -> None:
    attrs = {
        "model": "/models/mnist.pt",
        "accuracy": 0.97,
        "loss": float("nan"),
        "nothing": None,
        "sizes": [64, 32],
        "history": list(range(1000)),
        **{f"a{n:02}": n for n in range(30)},
    }
    refit = decide(spec(), seen(ended(record("COMPLETE", values=[0.95], user_attrs=attrs))), NOW).status.refit
    assert refit is not None
    assert (refit.job, refit.trial, refit.values) == ("mnist-refit", 3, [0.95])
    assert (refit.model, refit.message) == ("/models/mnist.pt", None)
    assert refit.attributes is not None
    assert len(refit.attributes) == 20
    assert refit.attributes["accuracy"] == 0.97
    assert refit.attributes["loss"] == "nan"
    assert refit.attributes["nothing"] == "null"
    assert refit.attributes["sizes"] == [64, 32]
    assert len(refit.attributes["history"]) <= 500


def test_values_that_are_no_json_are_left_out() -> None:
    infinite = record("COMPLETE", values=[float("inf")])
    refit = decide(spec(), seen(ended(infinite)), NOW).status.refit
    assert refit is not None
    assert (refit.phase, refit.values) == ("Completed", None)


def test_the_server_away_leaves_the_refit_as_it_was_told() -> None:
    before = decide(spec(), seen(ended(record("COMPLETE"))), NOW).status
    after = decide(spec(status=before), Observation(None), NOW).status
    assert after.refit == before.refit


def test_copied_trials_are_told_where_there_can_be_any() -> None:
    standing = summary(complete=2)
    standing = standing.model_copy(update={"counts": standing.counts.model_copy(update={"copied": 7})})
    warm = decide(study(warmStart={"study": "earlier"}), seen(standing), NOW).status.trials
    cold = decide(study(), seen(standing), NOW).status.trials
    assert warm is not None
    assert cold is not None
    assert (warm.copied, warm.total, cold.copied) == (7, 2, None)


def test_the_story() -> None:
    told: list[tuple[str, str]] = []
    status: TuningStudyStatus = running_status()

    def turn(standing: Observation, **fields: Any) -> None:
        nonlocal status
        plan = decide(spec(status=status, **fields), standing, NOW)
        told.extend((e.reason, e.message) for e in plan.events if e.reason.startswith("Refit"))
        status = plan.status

    first, again = record(), record(digest=refit_request(RefitSpec(retries=3), 3).digest)
    turn(seen(ended()))
    turn(seen(ended(first), refit=job("starting")))
    turn(seen(ended(first), refit=job("running")))
    turn(seen(ended(first), refit=job("running")))
    turn(seen(ended(record("FAIL", failure=BOOM)), refit=job("ended", "Exception")))
    turn(seen(ended(record("FAIL", failure=BOOM))), refit={"retries": 3})
    turn(seen(ended(again), refit=job("running", digest=again.digest)), refit={"retries": 3})
    done = again.model_copy(
        update={"state": "COMPLETE", "values": [0.95], "user_attrs": {"model": "/models/mnist.pt"}}
    )
    turn(seen(ended(done)), refit={"retries": 3})
    turn(seen(ended(done)), refit={"retries": 3})
    assert [reason for reason, _ in told] == ["RefitStarted", "RefitFailed", "RefitStarted", "RefitCompleted"]
    assert "Job mnist-refit, with the parameters of trial 3" in told[0][1]
    assert "ValueError: boom" in told[1][1]
    assert told[3][1].endswith("has completed: 0.95. The model is in /models/mnist.pt.")
