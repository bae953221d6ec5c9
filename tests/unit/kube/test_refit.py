# ruff: noqa: E501  a table reads best with few lines a row
"""The refit: its rules as a table, its status, and its Events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from tuning_operator.kube.plan.actions import Action, Begin, Start, Stop
from tuning_operator.kube.plan.observation import Observation, Run
from tuning_operator.kube.plan.refit import REMOVED, best_trial
from tuning_operator.kube.plan.waiting import START_GRACE
from tuning_operator.kube.plan.work import Refit, Work
from tuning_operator.kube.status.conditions import find
from tuning_operator.protocol import Failure, Problem, RefitRecord, StudySummary
from tuning_operator.resource.study import RefitSpec, TuningStudy, TuningStudyStatus

from tests.unit.kube.builders import (
    NOW,
    ago,
    ask,
    decision,
    diagnosis,
    running_status,
    seen,
    study,
    summary,
    tell,
    trial,
)

BEST = trial(3, "COMPLETE", values=[0.9])
REFIT = Refit.of(RefitSpec(), 3)
DIGEST = REFIT.digest
BEGIN, START = Begin(REFIT.request), Start(REFIT)
OLD = Refit(2, "old")
LATE = ago(START_GRACE.total_seconds() + 1)
BOOM = Failure(category="Exception", message="ValueError: boom", traceback="Traceback ...")


def ended(record: RefitRecord | None = None, **fields: Any) -> StudySummary:
    """All ten trials are over, and the third is the best."""
    return summary(**{"complete": 10, "best": BEST, "refit": record, **fields})


def record(state: str = "RUNNING", trial: int = 3, digest: str = DIGEST, **fields: Any) -> RefitRecord:
    return RefitRecord(trial=trial, digest=digest, state=state, **fields)  # type: ignore[arg-type]


def run(state: str, category: str | None = None, work: Refit = REFIT, **fields: Any) -> dict[Work, Run]:
    why = diagnosis(category, fields.pop("since", ago(1))) if category else None
    return {work: Run(state, why, **fields)}  # type: ignore[arg-type]


def fail(category: Failure) -> Action:
    return tell(REFIT, "FAIL", category)


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
    "the study continues": Row(spec(maxTrials=11), seen(ended()), [ask(2, 11)], None),
    "the study has completed": Row(spec(), seen(ended()), [BEGIN], "Pending"),
    "the study has failed": Row(spec(maxFailedTrials=0), seen(ended(fail=1)), [], None),
    "no trial is complete": Row(spec(), seen(summary(pruned=10)), [], "Failed", "no best parameters"),
    "suspended": Row(spec(suspend=True), seen(ended()), [], "Pending", "spec.suspend: false"),
    "refused": Row(
        spec(), seen(ended(), problems=(Problem(field="x", message="y"),)), [], "Pending", "Accepted"),
    "begun: it gets its Job": Row(spec(), seen(ended(record())), [START], "Pending"),
    "begun, and the study was resumed: it gets its Job": Row(
        spec(maxTrials=11), seen(ended(record())), [ask(2, 11), START], "Pending"),
    "its pod is on its way": Row(spec(), seen(ended(record()), run("starting")), [], "Pending"),
    "it runs": Row(spec(), seen(ended(record()), run("running")), [], "Running"),
    "it runs, and the study was resumed": Row(
        spec(maxTrials=11), seen(ended(record()), run("running")), [ask(2, 11)], "Running"),
    "it runs, and the study is suspended": Row(
        spec(suspend=True), seen(ended(record()), run("running")), [], "Running"),
    "its Job is being deleted": Row(spec(), seen(ended(record()), run("stopping")), [], "Pending"),
    "an attempt failed": Row(
        spec(), seen(ended(record(failure=BOOM)), run("starting")), [], "Pending", "Attempt failed, retrying: ValueError: boom"),
    "its attempts have failed": Row(
        spec(), seen(ended(record(failure=BOOM)), run("ended", "Exception")), [fail(BOOM)], "Pending"),
    "its attempts have failed, as the server knows and the cluster does not": Row(
        spec(), seen(ended(record(failure=BOOM)), run("ended", "ExitCode")), [fail(BOOM)], "Pending"),
    "its attempts have ended without a report": Row(
        spec(), seen(ended(record()), run("ended", "ExitCode")),
        [fail(diagnosis("ExitCode").failure)], "Pending"),
    "its last attempt was killed": Row(
        spec(), seen(ended(record(failure=BOOM)), run("ended", "OutOfMemory")),
        [fail(diagnosis("OutOfMemory").failure)], "Pending"),
    "its image cannot be pulled": Row(
        spec(), seen(ended(record()), run("starting", "ImagePull")), [], "Pending", "it is so. Fix it."),
    "its image cannot be pulled for long": Row(
        spec(), seen(ended(record()), run("starting", "ImagePull", since=LATE)),
        [fail(diagnosis("ImagePull").failure), Stop(REFIT)], "Pending"),
    "its template was corrected before it started": Row(
        spec(), seen(ended(record()), run("starting", "ImagePull", outdated=True)), [Stop(REFIT)], "Pending"),
    "its trainer is gone": Row(
        spec(), seen(ended(record()), run("starting", "TrainerMissing")), [START], "Pending", "it is so"),
    "it waits for a GPU": Row(
        spec(), seen(ended(record()), run("starting", "Capacity", since=LATE)), [], "Pending", "it is so"),
    "it has completed": Row(spec(), seen(ended(record("COMPLETE"))), [], "Completed"),
    "it has failed": Row(
        spec(), seen(ended(record("FAIL", failure=BOOM))), [], "Failed",
        "ValueError: boom. To retry, change spec.refit"),
    "it has completed, its pod may take a while to exit": Row(
        spec(), seen(ended(record("COMPLETE")), run("running", lingering_since=ago(5))), [], "Completed"),
    "it has completed, its pod does not exit": Row(
        spec(), seen(ended(record("COMPLETE")), run("running", lingering_since=ago(31))), [Stop(REFIT)],
        "Completed"),
    "another trial is the best now": Row(
        spec(), seen(ended(record("COMPLETE", trial=2, digest="old"))), [BEGIN], "Pending"),
    "another trial, and the pod of the one before runs": Row(
        spec(), seen(ended(record(trial=2, digest="old")), run("running", work=OLD)), [Stop(OLD)],
        "Pending", "the previous refit"),
    "another trial, and the pod of the one before is being stopped": Row(
        spec(), seen(ended(record(trial=2, digest="old")), run("stopping", work=OLD)), [], "Pending",
        "the previous refit"),
    "the Job of the one before was found too late": Row(
        spec(), seen(ended(record()), run("ended", work=OLD)), [Stop(OLD)], "Pending"),
    "its spec changed while the study continues: it keeps running": Row(
        spec(maxTrials=11, refit={"retries": 5}), seen(ended(record()), run("running")), [ask(2, 11)],
        "Running"),
    "its spec changed while the study continues, and its Job is gone": Row(
        spec(maxTrials=11, refit={"retries": 5}), seen(ended(record())), [ask(2, 11)], "Pending"),
    "it is no longer asked for": Row(
        study(), seen(ended(record()), run("running")), [fail(REMOVED), Stop(REFIT)], "Running"),
    "of two objectives": Row(
        spec(objectives=TWO, refit={"metric": "latency"}), seen(ended(best=None, pareto_front=FRONT)),
        [Begin(Refit.of(RefitSpec(metric="latency"), 2).request)], "Pending"),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_table(name: str) -> None:
    row = TABLE[name]
    plan = decision(row.study, row.seen, NOW)
    assert list(plan.actions) == row.actions
    refit = plan.status.refit
    assert (refit.phase if refit else None) == row.phase
    assert row.says in ((refit.message or "") if refit else "")


def test_no_refit_while_trials_are_being_stopped() -> None:
    plan = decision(spec(maxTrials=10), seen(summary(11, complete=10, best=BEST), {11: Run("running")}), NOW)
    assert plan.status.phase == "Completed"
    assert not [action for action in plan.actions if isinstance(action, Begin)]
    assert plan.status.refit is None


@pytest.mark.parametrize(("metric", "best"), [("accuracy", 1), ("latency", 2)])
def test_the_best_of_a_front_is_that_of_the_metric_and_the_first_of_equals(metric: str, best: int) -> None:
    given = study(objectives=TWO, refit={"metric": metric})
    chosen = best_trial(given, summary(pareto_front=FRONT))
    assert chosen is not None
    assert chosen.number == best
    assert best_trial(given, summary()) is None


@pytest.mark.parametrize(
    ("runs", "reason"),
    [
        (run("starting", "ImagePull"), "ImagePull"),
        (run("starting", "Capacity", since=ago(60)), "Capacity"),
        (run("starting", "Capacity", since=ago(5)), "Progressing"),
        (run("running"), "Progressing"),
        (run("ended", "OutOfMemory"), "Progressing"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_refit_that_cannot_start_stalls_the_study(runs: dict[Work, Run], reason: str) -> None:
    stalled = find(decision(spec(), seen(ended(record()), runs), NOW).status.conditions, "Stalled")
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
        "trainer_warning": "Lost with the pod: m.pt.",
        **{f"a{n:02}": n for n in range(30)},
    }
    refit = decision(
        spec(), seen(ended(record("COMPLETE", values=[0.95], user_attrs=attrs))), NOW
    ).status.refit
    assert refit is not None
    assert (refit.job, refit.trial, refit.values) == ("mnist-refit", 3, [0.95])
    assert (refit.model, refit.message) == ("/models/mnist.pt", "Lost with the pod: m.pt.")
    assert refit.attributes is not None
    assert "trainer_warning" not in refit.attributes
    assert len(refit.attributes) == 20
    assert refit.attributes["accuracy"] == 0.97
    assert refit.attributes["loss"] == "nan"
    assert refit.attributes["nothing"] == "null"
    assert refit.attributes["sizes"] == [64, 32]
    assert len(refit.attributes["history"]) <= 500


def test_values_that_are_no_json_are_left_out() -> None:
    infinite = record("COMPLETE", values=[float("inf")])
    refit = decision(spec(), seen(ended(infinite)), NOW).status.refit
    assert refit is not None
    assert (refit.phase, refit.values) == ("Completed", None)


def test_the_server_away_leaves_the_refit_as_it_was() -> None:
    before = decision(spec(), seen(ended(record("COMPLETE"))), NOW).status
    after = decision(spec(status=before), Observation(None), NOW).status
    assert after.refit == before.refit


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (
            {"pruned": 10},
            "No trial completed, so there are no best parameters to train with. For more trials, raise maxTrials.",
        ),
        (
            {"pruned": 9, "fail": 1},
            "No trial completed, so there are no best parameters to train with. For more trials, raise maxTrials.",
        ),
        (
            {"complete": 10},
            "No trial satisfies its constraints, so there are no best parameters to train with. For more trials, "
            "raise maxTrials.",
        ),
        (
            {"pruned": 4, "exhausted": True},
            "No trial completed, so there are no best parameters to train with. To try again, delete the "
            "TuningStudy and apply it again with existingRecord: Replace, because the sampler has tried the whole "
            "search space.",
        ),
    ],
)
def test_without_a_best_trial_the_refit_says_how_to_get_one(end: dict[str, Any], message: str) -> None:
    refit = decision(spec(), seen(summary(**end)), NOW).status.refit
    assert refit is not None
    assert (refit.phase, refit.message) == ("Failed", message)


def test_after_a_timeout_more_trials_need_a_longer_one() -> None:
    refit = decision(spec(timeout="30s"), seen(summary(pruned=4)), NOW).status.refit
    assert refit is not None
    assert (refit.message or "").endswith("For more trials, raise the study's timeout.")


def test_copied_trials_are_counted_where_there_can_be_any() -> None:
    given_summary = summary(complete=2)
    given_summary = given_summary.model_copy(
        update={"counts": given_summary.counts.model_copy(update={"copied": 7})}
    )
    warm = decision(study(warmStart={"study": "earlier"}), seen(given_summary), NOW).status.trials
    cold = decision(study(), seen(given_summary), NOW).status.trials
    assert warm is not None
    assert cold is not None
    assert (warm.copied, warm.total, cold.copied) == (7, 2, None)


def test_the_events() -> None:
    recorded: list[tuple[str, bool, str]] = []
    status: TuningStudyStatus = running_status()

    def turn(given_summary: Observation, **fields: Any) -> None:
        nonlocal status
        plan = decision(spec(status=status, **fields), given_summary, NOW)
        recorded.extend((e.reason, e.warning, e.message) for e in plan.events if e.reason.startswith("Refit"))
        status = plan.status

    first, again = record(), record(digest=Refit.of(RefitSpec(retries=3), 3).digest)
    turn(seen(ended()))
    turn(seen(ended(first), run("starting")))
    turn(seen(ended(first), run("running")))
    turn(seen(ended(first), run("running")))
    turn(seen(ended(record("FAIL", failure=BOOM)), run("ended", "Exception")))
    turn(seen(ended(record("FAIL", failure=BOOM))), refit={"retries": 3})
    turn(seen(ended(again), run("running", work=Refit(3, again.digest))), refit={"retries": 3})
    done = again.model_copy(
        update={
            "state": "COMPLETE",
            "values": [0.95],
            "user_attrs": {"model": "mnist.pt", "trainer_warning": "Lost with the pod: mnist.pt."},
        }
    )
    turn(seen(ended(done)), refit={"retries": 3})
    turn(seen(ended(done)), refit={"retries": 3})
    assert [(reason, warning) for reason, warning, _ in recorded] == [
        ("RefitStarted", False),
        ("RefitFailed", True),
        ("RefitStarted", False),
        ("RefitCompleted", False),
    ]
    assert "with the parameters of trial 3 started." in recorded[0][2]
    assert "ValueError: boom" in recorded[1][2]
    assert recorded[3][2].endswith("completed: 0.95. The model is in mnist.pt. Lost with the pod: mnist.pt.")
