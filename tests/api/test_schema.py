"""The resource as a user of kubectl sees it: explained fields, defaults, columns, refused typos, status."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.client.exceptions import ApiException
from tuning_operator.cli.scripts.manifest import Options, ScriptStudy, manifest
from tuning_operator.resource import space
from tuning_operator.resource.study import Sampler, TuningStudy, TuningStudyStatus

from tests.api.api import SETUP_MAY_BUILD, Api
from tests.api.manifest import GOOD, MINIMAL, REMOVED, changed

pytestmark = SETUP_MAY_BUILD

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*/study.yaml"))

STATUS: dict[str, Any] = {
    "phase": "Running",
    "progress": "12/100",
    "startTime": "2026-01-01T00:00:00Z",
    "trials": {"total": 16, "running": 4, "pending": 1, "complete": 7, "pruned": 3, "failed": 2},
    "best": {
        "number": 5,
        "values": [0.9712],
        "parameters": {"lr": 0.001, "n_layers": 2, "optimizer": "Adam", "f": True},
    },
    "bestValue": "0.9712",
    "lastTransitionTime": "2026-01-01T00:00:00Z",
    "refit": {
        "phase": "Completed",
        "job": "seen-refit",
        "trial": 5,
        "values": [0.98],
        "model": "/models/mnist.pt",
        "attributes": {"sizes": [64, 32], "epochs": 10},
    },
    "conditions": [
        {
            "type": "Accepted",
            "status": "True",
            "reason": "Valid",
            "message": "The study can be run.",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        },
        {
            "type": "Stalled",
            "status": "True",
            "reason": "Unschedulable",
            "message": "No node has a free GPU.",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        },
    ],
}


def test_defaults_are_filled_in(api: Api) -> None:
    spec = api.create(MINIMAL, dry_run="All")["spec"]
    assert spec == MINIMAL["spec"] | {
        "sampler": {"name": "TPESampler", "args": {}},
        "parallelism": 1,
        "maxFailedTrials": 10,
        "suspend": False,
        "deletionPolicy": "Retain",
        "existingRecord": "Continue",
        "trial": MINIMAL["spec"]["trial"]
        | {
            "python": "python3",
            "pruneGrace": "30s",
            "ttlAfterFinished": "1d",
            "reusePods": False,
            "trialsPerPod": 1,
        },
    }


def test_as_many_parameters_as_the_limit_allows(api: Api) -> None:
    """Each depends on the one before it; the API server also limits the cost of the rules."""
    space: list[dict[str, Any]] = [
        {
            "name": f"p{n}",
            "type": "float",
            "low": 0,
            "high": 1,
            "when": {"parameter": f"p{n - 1}", "atLeast": 0},
        }
        for n in range(201)
    ]
    del space[0]["when"]
    assert api.causes(changed({"spec.searchSpace": space[:200], "spec.initialTrials": []})) == []
    [cause] = api.causes(changed({"spec.searchSpace": space, "spec.initialTrials": []}))
    assert (cause.field, "200" in cause.message) == ("spec.searchSpace", True)


def test_a_sampler_or_pruner_without_a_name_is_the_default_one(api: Api) -> None:
    spec = api.create(changed({"spec.sampler": {"args": {"seed": 1}}, "spec.pruner": {}}), dry_run="All")[
        "spec"
    ]
    assert spec["sampler"] == {"name": "TPESampler", "args": {"seed": 1}}
    assert spec["pruner"] == {"name": "MedianPruner"}


def test_the_models_read_everything_that_the_server_keeps(api: Api) -> None:
    kept = api.create(GOOD, dry_run="All")
    spec = TuningStudy.model_validate(kept).spec.model_dump(by_alias=True, exclude_unset=True)
    assert spec == kept["spec"]


def test_the_pod_template_passes_whole(api: Api) -> None:
    pod = {
        "containers": [
            {
                "name": "trainer",
                "image": "torch",
                "env": [{"name": "HF_HOME", "value": "/cache"}],
                "resources": {"limits": {"nvidia.com/gpu": 1, "memory": "8Gi"}},
                "volumeMounts": [{"name": "cache", "mountPath": "/cache"}],
            },
            {"name": "sidecar", "image": "x", "command": ["serve"]},
        ],
        "volumes": [{"name": "cache", "persistentVolumeClaim": {"claimName": "cache"}}],
        "nodeSelector": {"gpu": "h200"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
    }
    template = {"metadata": {"labels": {"a": "b"}, "annotations": {"c": "d"}}, "spec": pod}
    kept = api.create(changed({"spec.trial.template": template}), dry_run="All")
    assert kept["spec"]["trial"]["template"] == template


NULLS = {
    "metadata.name": "nulls",
    "spec.searchSpace.4.choices": [None, "balanced", True],
    "spec.searchSpace.5": {
        "name": "strength",
        "type": "float",
        "low": 0,
        "high": 1,
        "when": {"parameter": "optimizer", "equals": None},
    },
    "spec.searchSpace.6": {
        "name": "weight",
        "type": "int",
        "low": 0,
        "high": 9,
        "when": {"parameter": "optimizer", "anyOf": [None, True]},
    },
    "spec.initialTrials": [{"optimizer": None, "lr": 0.001}],
}


def test_null_is_a_value_like_others_and_blocks_no_write(api: Api) -> None:
    manifest = changed(NULLS)
    with api.created(manifest) as study:
        for field in ("searchSpace", "initialTrials"):
            assert study["spec"][field] == manifest["spec"][field]
        study = api.patch_status("nulls", STATUS)
        assert study["status"] == STATUS
        assert api.causes_of_change(study) == []
        assert api.patch_status("nulls", {"phase": "Suspended"})["status"]["phase"] == "Suspended"
    spec = TuningStudy.model_validate(study).spec
    assert space.problems(spec.search_space, spec.initial_trials) == ()


def test_kubectl_apply_keeps_null_in_lists(api: Api) -> None:
    without = {"spec.searchSpace.5": NULLS["spec.searchSpace.6"], "spec.searchSpace.6": REMOVED}
    manifest = changed(without, changed(NULLS))
    try:
        for suspend in (False, True):
            manifest["spec"]["suspend"] = suspend
            api.expect("apply", "-f", "-", stdin=yaml.safe_dump(manifest))
        spec = json.loads(api.expect("get", "tuningstudy", "nulls", "-o", "json"))["spec"]
    finally:
        api.kubectl("delete", "tuningstudy", "nulls")
    assert spec["suspend"] is True
    assert spec["searchSpace"] == manifest["spec"]["searchSpace"]
    causes = api.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(changed(NULLS))).stderr
    assert "for null, use anyOf: [null]" in causes


@pytest.mark.parametrize(
    ("comparison", "valid"),
    [({"equals": None}, True), ({}, False), ({"equals": None, "anyOf": [True]}, False)],
)
def test_null_counts_as_a_comparison(api: Api, comparison: dict[str, Any], valid: bool) -> None:
    when = {"spec.searchSpace.5.when": {"parameter": "optimizer", **comparison}}
    causes = api.causes(changed(when, changed(NULLS)))
    assert [cause.field for cause in causes] == ([] if valid else ["spec.searchSpace[5].when"])


def test_choices_keep_their_types(api: Api) -> None:
    choices = ["Adam", 1, 0.5, True, "1", None]
    kept = api.create(changed({"spec.searchSpace.4.choices": choices}), dry_run="All")
    assert [(choice, type(choice)) for choice in kept["spec"]["searchSpace"][4]["choices"]] == [
        (choice, type(choice)) for choice in choices
    ]


@pytest.mark.parametrize(
    ("misspelled", "field"),
    [
        ({"spec.maxTrails": 3}, "spec.maxTrails"),
        ({"spec.searchSpace.0.min": 3}, "spec.searchSpace[0].min"),
        ({"spec.searchSpace.3.when.greaterThan": 3}, "spec.searchSpace[3].when.greaterThan"),
        ({"spec.trial.comand": ["x"]}, "spec.trial.comand"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_misspelled_field_is_refused_by_kubectl_apply(
    api: Api, misspelled: dict[str, Any], field: str
) -> None:
    done = api.kubectl("apply", "--dry-run=server", "-f", "-", stdin=yaml.safe_dump(changed(misspelled)))
    assert done.returncode != 0
    assert f'unknown field "{field}"' in done.stderr


def test_kubectl_apply_shows_every_fault_with_its_field(api: Api) -> None:
    faults = {"spec.searchSpace.0.low": 5, "spec.timeout": "soon", "spec.searchSpace.1.name": "n_layers"}
    done = api.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(changed(faults)))
    assert done.returncode != 0
    assert "spec.searchSpace[0].low: Invalid value" in done.stderr
    assert "lr has low 5 above high 0.1: swap them" in done.stderr
    assert "spec.timeout: Invalid value" in done.stderr
    assert "soon is not a duration" in done.stderr
    assert "n_layers is declared more than once" in done.stderr


def test_applying_twice_changes_nothing(api: Api) -> None:
    text = yaml.safe_dump(changed({"metadata.name": "twice"}))
    try:
        assert "created" in api.expect("apply", "-f", "-", stdin=text)
        assert "unchanged" in api.expect("apply", "-f", "-", stdin=text)
        again = api.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=text)
        assert "serverside-applied" in again.stdout, again.stderr
        study = json.loads(api.expect("get", "tuningstudy", "twice", "-o", "json"))
        assert study["metadata"]["generation"] == 1
    finally:
        api.kubectl("delete", "tuningstudy", "twice")


@pytest.mark.parametrize(
    ("path", "texts"),
    [
        ("tuningstudy.spec", ["objectives", "-required-", "maxTrials", "<integer>"]),
        (
            "tuningstudy.spec.searchSpace",
            ["low", "Smallest value, inclusive. Required for float and int."],
        ),
        ("tuningstudy.spec.searchSpace.when", ["anyOf", "The parameter equals one of these values."]),
        ("tuningstudy.spec.trial.template.spec.containers", ["Exactly one must be named `trainer`"]),
        ("tuningstudy.spec.trial.metrics", ["pattern", "(?P<accuracy>...)", "TUNING_METRICS_FILE"]),
        (
            "tuningstudy.spec.refit",
            ["retries", "Changing these fields, or a new best trial, starts a new refit"],
        ),
        ("tuningstudy.spec.warmStart", ["study", "are copied once"]),
        ("tuningstudy.status.refit", ["model", "the user attribute `model`", "kubectl logs job/NAME"]),
        ("tuningstudy.spec.parallelism", ["at the same time. Defaults to 1."]),
        ("tuningstudy.spec.trial.pruneGrace", ["its process is stopped. Defaults to 30s."]),
        ("tuningstudy.status.phase", ["Overall state of the study."]),
        ("tuningstudy.status.conditions.reason", ["Machine-readable reason."]),
        ("tuningstudy.status.conditions.message", ["Human-readable message, with a suggested fix."]),
        ("tuningstudy.status.best", ["values", "in the order of the objectives"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_kubectl_explains(api: Api, path: str, texts: list[str]) -> None:
    explained = " ".join(api.expect("explain", path).split())
    for text in texts:
        assert text in explained


def table(text: str) -> list[list[str]]:
    """Return the cells of kubectl's output; columns are at least two spaces apart."""
    head, *rows = text.rstrip().splitlines()
    starts = [
        0,
        *(place for place in range(2, len(head)) if head[place - 2 : place] == "  " and head[place] != " "),
    ]
    ends = [*starts[1:], None]
    return [
        [line[start:end].strip() for start, end in zip(starts, ends, strict=True)] for line in (head, *rows)
    ]


def test_columns(api: Api) -> None:
    with api.created(changed({"metadata.name": "seen"})):
        before = table(api.expect("get", "tuningstudies"))
        api.patch_status("seen", STATUS)
        after = table(api.expect("get", "tst"))
        wide = table(api.expect("get", "tuning", "-o", "wide"))
    assert before[0] == ["NAME", "PHASE", "FINISHED", "RUNNING", "PRUNED", "FAILED", "BEST", "AGE"]
    assert before[1][:7] == ["seen", "", "", "", "", "", ""]
    assert after[1][:7] == ["seen", "Running", "12/100", "4", "3", "2", "0.9712"]
    cells = dict(zip(wide[0][8:], wide[1][8:], strict=True))
    assert re.fullmatch(r"\d+[dy]\w*", cells.pop("LAST TRANSITION"))
    assert cells == {
        "BEST PARAMETERS": '{"f":true,"lr":0.001,"n_layers":2,"optimizer":"Adam"}',
        "ACCEPTED": "True",
        "REFIT": "Completed",
        "MODEL": "/models/mnist.pt",
        "STALLED": "No node has a free GPU.",
    }


def test_status_is_the_operators_and_spec_the_users(api: Api) -> None:
    with api.created(changed({"metadata.name": "halves"}) | {"status": STATUS}) as created:
        assert "status" not in created
        written = api.patch_status("halves", STATUS, spec={"maxTrials": 7})
        assert written["status"] == STATUS
        assert written["spec"]["maxTrials"] == 100
        assert written["metadata"]["generation"] == 1
        assert TuningStudyStatus.model_validate(written["status"]).best is not None


def test_conditions_are_kept_by_type(api: Api) -> None:
    with api.created(changed({"metadata.name": "conditions"})):
        twice = STATUS | {"conditions": [STATUS["conditions"][0]] * 2}
        with pytest.raises(ApiException, match="Duplicate value"):
            api.patch_status("conditions", twice)


def test_kubectl_waits_for_a_condition(api: Api) -> None:
    with api.created(changed({"metadata.name": "waited"})):
        api.patch_status("waited", STATUS)
        api.expect("wait", "--for=condition=Accepted", "--timeout=120s", "tuningstudy/waited")


def test_kubectl_applies_what_init_writes(api: Api) -> None:
    """GridSampler with its own values, and strings that YAML takes for booleans and numbers."""
    values = ["y", "N", "on", "1e3", "1_0", "0x1F", "012", True, 5]
    script = ScriptStudy(
        call="optimize",
        directions=["minimize"],
        sampler=Sampler(name="GridSampler", args={"search_space": {"y": values}}),
        initial_trials=[{"y": value, "n": 1} for value in values],
    )
    text = manifest(script, Options("train.py", [], "written", "image", 0, arguments=["--data", "a b"]))
    try:
        api.expect("apply", "-f", "-", stdin=text)
        spec = json.loads(api.expect("get", "tuningstudy", "written", "-o", "json"))["spec"]
    finally:
        api.kubectl("delete", "tuningstudy", "written")
    assert spec["trial"]["script"] == "train.py --data 'a b'"
    assert spec["sampler"]["args"] == {"search_space": {"y": values}}
    assert spec["initialTrials"] == [{"y": value, "n": 1} for value in values]


def test_the_examples_pass(api: Api) -> None:
    assert EXAMPLES, "examples/ has no study.yaml"
    for path in EXAMPLES:
        api.expect("apply", "--dry-run=server", "-f", str(path))
