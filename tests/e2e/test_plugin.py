"""`kubectl tuning` as users run it, with the plugin on the PATH and the chart installed."""

from __future__ import annotations

import json
import re
import sys
import textwrap
from pathlib import Path

import pytest
import yaml

from tests.e2e.kit import Kubectl, Plugin, code, holds, phase, study

GUIDE = Path(__file__).parents[2] / "docs" / "guide" / "kubectl-plugin.md"
PNG = b"\x89PNG\r\n\x1a\n"

OBJECTIVE = """
    def objective(trial):
        loss = trial.params["x"] + trial.params["width"]
        for step in range(3):
            trial.report(loss + 1 / (step + 1), step)
        return loss
"""
SPACE = [
    {"name": "x", "type": "float", "low": 0, "high": 10},
    {"name": "width", "type": "int", "low": 1, "high": 4},
]

SCRIPT = """
    import optuna

    def objective(trial):
        return (trial.suggest_float("x", -10, 10) - 2) ** 2

    study = optuna.create_study(study_name="parabola", sampler=optuna.samplers.TPESampler(seed=7))
    study.enqueue_trial({"x": 2.5})
    study.optimize(objective, n_trials=2)
    print("best:", study.best_params)
"""


@pytest.mark.long
def test_best_and_plots(kubectl: Kubectl, plugin: Plugin, image: str, tmp_path: Path) -> None:
    small = {"searchSpace": SPACE, "pruner": {"name": "NopPruner"}}
    mixed = study("mixed", image, maxTrials=5, parallelism=3, suspend=True, **small)
    kubectl.apply(code("mixed-code", OBJECTIVE), mixed)
    kubectl.apply(code("single-code", OBJECTIVE), study("single", image, maxTrials=1, **small))
    early = plugin("best", "mixed")
    assert early.returncode == 1
    assert "no trial completed yet\nmixed: " in early.stderr
    kubectl.patch("mixed", suspend=False)
    status = kubectl.wait("mixed", phase("Completed", "Failed"))["status"]

    shown = json.loads(plugin("best", "mixed", "-o", "json").stdout)
    assert shown["values"] == {"loss": status["best"]["values"][0]}
    assert shown["parameters"].keys() == {"x", "width"}
    assert f"Best trial {shown['number']}: loss" in plugin("best", "mixed").stdout

    drawn = plugin("plot", "mixed", folder=tmp_path)
    assert drawn.returncode == 0, drawn.stderr
    assert drawn.stderr.splitlines() == [
        "no pareto-front: the study has a single objective",
        "no hypervolume-history: the study has a single objective",
    ]
    names = (
        "optimization-history",
        "param-importances",
        "parallel-coordinate",
        "slice",
        "intermediate-values",
        *("contour", "rank", "edf", "timeline"),
    )
    assert drawn.stdout.split() == [
        f"mixed-plots/{name}.{form}" for name in names for form in ("html", "png")
    ]
    shown = {"intermediate-values": "Trial4", "param-importances": "width", "rank": "width"}
    shown |= {"timeline": "COMPLETE"}
    for name in names:
        page = (tmp_path / "mixed-plots" / f"{name}.html").read_text()
        data = page.rpartition("Plotly.newPlot(")[2]
        assert shown.get(name, "loss") in data, name
        assert (tmp_path / "mixed-plots" / f"{name}.png").read_bytes().startswith(PNG)

    text = plugin("plot", "mixed", "--plot", "param-importances", "--format", "terminal")
    assert text.stdout.startswith("mixed: parameter importances\n")
    assert plugin("report", "mixed", folder=tmp_path).stdout == "mixed-report.html\n"
    page = (tmp_path / "mixed-report.html").read_text()
    assert page.count("Plotly.newPlot(") == len(names)
    exported = plugin("export", "mixed", "--format", "parquet", folder=tmp_path)
    assert exported.stdout == "mixed.parquet\n", exported.stderr

    kubectl.wait("single", phase("Completed"))
    alone = plugin("plot", "single", "--format", "html", folder=tmp_path)
    assert alone.returncode == 0
    assert "no param-importances: at least two complete trials are needed" in alone.stderr
    assert "single-plots/optimization-history.html" in alone.stdout


def test_records_outlive_their_studies_until_they_are_deleted(
    kubectl: Kubectl, plugin: Plugin, image: str, tmp_path: Path
) -> None:
    manifest = study("kept", image, maxTrials=2, searchSpace=SPACE)
    kubectl.apply(code("kept-code", OBJECTIVE), manifest)
    kubectl.wait("kept", phase("Completed"))
    kubectl.run("delete", "tuningstudy", "kept")
    kubectl.apply(manifest)
    kubectl.wait("kept", phase("Completed"))  # at once: the record has its trials
    drawn = plugin("plot", "kept", "--plot", "slice", "--format", "png", folder=tmp_path)
    assert drawn.stdout.split() == ["kept-plots/slice.png"], drawn.stderr

    assert plugin("records").stdout.splitlines()[1].split()[:2] == ["kept", "2"]
    assert "delete it first" in plugin("records", "--delete", "kept", "--yes").stderr
    kubectl.run("delete", "tuningstudy", "kept")
    kubectl.apply(study("other", image, suspend=True, searchSpace=SPACE))
    kubectl.wait("other", holds("Accepted"))
    deleted = plugin("records", "--delete", "kept", "--yes")
    assert deleted.stdout == "The record kept was deleted.\n", deleted.stderr
    assert [row.split()[0] for row in plugin("records").stdout.splitlines()] == ["NAME", "other"]


def test_roles_in_the_guide_are_sufficient_and_necessary(
    kubectl: Kubectl, plugin: Plugin, image: str, tmp_path: Path
) -> None:
    kubectl.apply(code("shared-code", OBJECTIVE), study("shared", image, maxTrials=1, searchSpace=SPACE))
    kubectl.wait("shared", phase("Completed"))
    config = yaml.safe_load(kubectl.run("config", "view", "--raw", "--flatten"))
    # A group for this test only, because a RoleBinding in the operator's namespace affects other tests.
    config["users"][0]["user"] |= {"as": "ada", "as-groups": [kubectl.namespace]}
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
    ada = Plugin(plugin.programs, str(tmp_path / "kubeconfig"), kubectl.namespace)
    reader, reach, author = _guides_roles(kubectl.namespace)

    assert "forbidden" in ada("best", "shared").stderr
    kubectl.apply(*reader)
    assert ada("best", "shared").returncode == 0
    assert ada("logs", "shared", "0").returncode == 0
    assert "forbidden" in ada("extend", "shared", "--failed-trials", "+1").stderr
    kubectl.apply(*author)
    assert ada("suspend", "shared").stderr.startswith("error: shared has already ended")
    assert "queue: not checked" not in ada("doctor").stdout, "as `stop` of workers does, it lists Jobs"
    assert ada("extend", "shared", "--failed-trials", "+1").returncode == 0
    barred = ada("plot", "shared", folder=tmp_path)
    assert barred.returncode == 4
    assert "create pods/portforward" in barred.stderr
    kubectl.within(reach[0]["metadata"]["namespace"]).apply(*reach)
    try:
        drawn = ada("plot", "shared", "--plot", "slice", "--format", "png", folder=tmp_path)
        assert drawn.stdout.split() == ["shared-plots/slice.png"], drawn.stderr
        assert "shared-0-" in ada("trials", "shared").stdout
    finally:
        kubectl.within(reach[0]["metadata"]["namespace"]).run("delete", "rolebinding", kubectl.namespace)


def _guides_roles(namespace: str) -> tuple[list[dict], list[dict], list[dict]]:
    """Return the guide's objects: for readers, for readers in the operator's namespace, for authors."""
    readers, authors = (
        list(yaml.safe_load_all(block.replace("tuning-reach", namespace)))
        for block in re.findall(
            r"```yaml\n(.*?)```",
            GUIDE.read_text()
            .replace("data-scientists", namespace)
            .replace("namespace: ml", f"namespace: {namespace}"),
            re.DOTALL,
        )
        if "kind: Role\n" in block
    )
    assert (len(readers), len(authors)) == (4, 2)
    return readers[:3], readers[3:], authors


def test_script_becomes_a_study(kubectl: Kubectl, plugin: Plugin, image: str, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "train.py").write_text(textwrap.dedent(SCRIPT))
    made = plugin(
        "init", "train.py", "--image", image, "--python", sys.executable, "--gpus", "1", folder=folder
    )
    assert made.returncode == 0, made.stderr
    assert made.stdout.split() == ["study.yaml", "kustomization.yaml"]
    kubectl.run("apply", "-k", str(folder))
    status = kubectl.wait("parabola", phase("Completed", "Failed"))["status"]
    assert status["trials"]["complete"] == 2, kubectl.diagnostics("parabola")
    best = json.loads(plugin("best", "parabola", "-o", "json").stdout)
    assert best["values"]["value"] <= 0.25
