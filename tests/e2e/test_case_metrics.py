"""Output as people's programs print it: the right value, or a message that quotes the line."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from tests.e2e.kit import PRUNE_GRACE, Kubectl, condition, optuna_record, phase

COLOURS = r"""
kind: ConfigMap
apiVersion: v1
metadata: {name: colours}
data:
  train.sh: |
    printf '\033[32m10:00:01\033[0m | \033[1mINFO\033[0m | \033[1maccuracy=0.%s\033[0m\n' "$1"
---
metadata: {name: colours}
spec:
  objectives: [{metric: accuracy, direction: maximize}]
  searchSpace: [{name: k, type: int, low: 1, high: 9}]
  maxTrials: 1
  trial: {command: [sh, train.sh, "{{k}}"], source: {configMap: colours}}
"""

THOUSANDS = """
metadata: {name: thousands}
spec:
  objectives: [{metric: loss, direction: minimize}]
  searchSpace: [{name: x, type: categorical, choices: [12, 500, 1500, 2500]}]
  sampler: {name: GridSampler}
  maxTrials: 4
  trial:
    command: [python3, -c, "print(f'rmse on the validation set, loss: {float({{x}}):,.2f}')"]
"""

AMBIGUOUS = """
metadata: {name: ambiguous}
spec:
  objectives: [{metric: loss, direction: minimize}]
  searchSpace: [{name: x, type: int, low: 1500, high: 1500}]
  maxTrials: 2
  maxFailedTrials: 0
  trial: {command: [python3, -c, "print(f'loss: {{{x}}:,}')"]}
"""

YOLO = r"""
metadata: {name: yolo}
spec:
  objectives: [{metric: "metrics/mAP50-95(B)", direction: maximize}]
  searchSpace:
  - {name: lr0, type: float, low: 1e-5, high: 1e-1}
  - {name: mosaic, type: float, low: 0, high: 1}
  maxTrials: 2
  trial:
    command: [python3, -c, "import json; print(json.dumps({'epoch': 1, 'metrics/mAP50-95(B)': {{lr0}}}))"]
---
metadata: {name: yolo-pattern}
spec:
  objectives: [{metric: mAP, direction: maximize}]
  searchSpace: [{name: lr0, type: float, low: 1e-5, high: 1e-1}]
  maxTrials: 2
  trial:
    command: [python3, -c, "import json; print(json.dumps({'epoch': 1, 'metrics/mAP50-95(B)': {{lr0}}}))"]
    metrics: {pattern: 'metrics/mAP50-95\(B\)": (?P<mAP>[-+.\deE]+)'}
"""

EPOCHS = """
metadata: {name: epochs}
spec:
  objectives: [{metric: loss, direction: minimize}]
  searchSpace: [{name: x, type: float, low: 1, high: 2}]
  pruner: {name: ThresholdPruner, args: {upper: 100}}
  maxTrials: 1
  trial:
    command:
    - sh
    - -c
    - |
      for epoch in 0 1 2; do
        for step in 0 100 200; do
          echo "epoch=$epoch step=$step loss=$([ $epoch = 0 ] && echo {{x}} || echo 100000)"
          if [ $epoch = 0 ]; then sleep 1; else sleep 60; fi  # until it is pruned
        done
      done
"""

ONE_RESULT = """
metadata: {name: one-result}
spec:
  objectives: [{metric: loss, direction: minimize}]
  searchSpace: [{name: x, type: float, low: 0, high: 10}]
  maxTrials: 10
  parallelism: 2
  trial: {command: [sh, -c, "echo loss={{x}}; sleep 2; echo model saved"]}
---
metadata: {name: one-result-pruner}
spec:
  objectives: [{metric: loss, direction: minimize}]
  searchSpace: [{name: x, type: float, low: 1, high: 10}]
  pruner: {name: ThresholdPruner, args: {upper: 0}}
  maxTrials: 1
  trial: {command: [sh, -c, "echo epoch=3 loss={{x}}; sleep 2; echo model saved"]}
"""

MNIST = r"""
apiVersion: v1
kind: ConfigMap
metadata: {name: mnist}
data:
  mnist.py: |
    import sys
    lr = float(sys.argv[1])
    for epoch in (1, 2):
        print(f"Train Epoch: {epoch} [0/60000 (0%)]\tLoss: {2.3 / epoch:.6f}")
        right = int(1000 * epoch + lr * 10000)
        print(f"\nTest set: Average loss: {2 / epoch:.4f}, Accuracy: {right}/10000 ({right / 100:.0f}%)\n")
---
metadata: {name: mnist}
spec:
  objectives: [{metric: accuracy, direction: maximize, target: 0.99}]
  searchSpace: [{name: lr, type: float, low: 0.01, high: 0.05}]
  maxTrials: 6
  parallelism: 2
  trial: {command: [python3, mnist.py, "{{lr}}"], source: {configMap: mnist}}
"""

LINES = r"""
apiVersion: v1
kind: ConfigMap
metadata: {name: lines}
data:
  lines.py: |
    import logging, sys
    lines = {
        "plain": "accuracy=0.75",
        "ansi": "\x1b[32maccuracy\x1b[0m=\x1b[1m0.75\x1b[0m",
        "tensor": "accuracy=tensor(0.7500)",
        "json-nested": '{"level": "info", "event": "eval", "metrics": {"accuracy": 0.75}}',
        "bar-cleared": "100%|####| 10/10 accuracy=0.75\r\x1b[K",
        "fraction": "Accuracy: 7500/10000 (75%)",
        "thousands": "accuracy: 1,234.50",
        "stderr": None,
    }
    line = lines[sys.argv[1]]
    if line is None:
        logging.basicConfig(level=logging.INFO)
        logging.info("accuracy=0.75")
    else:
        print(line)
---
metadata: {name: lines}
spec:
  objectives: [{metric: accuracy, direction: maximize}]
  searchSpace:
  - name: how
    type: categorical
    choices: [plain, ansi, tensor, json-nested, bar-cleared, fraction, thousands, stderr]
  sampler: {name: GridSampler}
  pruner: {name: NopPruner}
  maxTrials: 8
  maxFailedTrials: 8
  parallelism: 2
  trial: {command: [python3, lines.py, "{{how}}"], source: {configMap: lines}}
"""


@pytest.mark.long
def test_programs_output_is_read_as_their_users_print_it(kubectl: Kubectl, image: str) -> None:
    every = (COLOURS, THOUSANDS, AMBIGUOUS, YOLO, EPOCHS, ONE_RESULT, MNIST, LINES)
    kubectl.apply(*(manifest for text in every for manifest in manifests(text, image)))
    the_result_of_a_program_prunes_nothing(kubectl)
    colours_and_thousands(kubectl)
    an_ambiguous_number_is_quoted(kubectl)
    names_of_frameworks(kubectl)
    steps_that_begin_again_are_pruned(kubectl)
    a_fraction_is_no_count(kubectl)
    eight_ways(kubectl)


def manifests(text: str, image: str) -> list[dict[str, Any]]:
    """Return the objects of a text; studies get what all of them share."""
    found = list(yaml.safe_load_all(text))
    for study in [one for one in found if "spec" in one]:
        study |= {"apiVersion": "tuning.dev/v1alpha1", "kind": "TuningStudy"}
        study["spec"].setdefault("sampler", {"name": "RandomSampler", "args": {"seed": 1}})
        resources = {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}}
        container = {"name": "trainer", "image": image, "resources": resources}
        study["spec"]["trial"].setdefault("pruneGrace", PRUNE_GRACE)
        study["spec"]["trial"]["template"] = {"spec": {"containers": [container]}}
    return found


def completed(kubectl: Kubectl, name: str, trials: int) -> dict[str, Any]:
    """Wait for a study of which every trial completes; return its status."""
    status = kubectl.wait(name, phase("Completed", "Failed"))["status"]
    assert status["phase"] == "Completed", kubectl.diagnostics(name)
    assert status["trials"]["complete"] == trials, kubectl.diagnostics(name)
    return status


def the_result_of_a_program_prunes_nothing(kubectl: Kubectl) -> None:
    completed(kubectl, "one-result", 10)
    completed(kubectl, "one-result-pruner", 1)
    assert "model saved" in kubectl.logs_of_trial("one-result-pruner", 0)


def colours_and_thousands(kubectl: Kubectl) -> None:
    best = completed(kubectl, "colours", 1)["best"]
    assert best["values"] == [best["parameters"]["k"] / 10]
    best = completed(kubectl, "thousands", 4)["best"]
    assert (best["parameters"], best["values"]) == ({"x": 12}, [12.0])
    with optuna_record(kubectl, "thousands") as record:
        assert {trial.params["x"]: trial.value for trial in record.trials} == {
            x: float(x) for x in (12, 500, 1500, 2500)
        }


def an_ambiguous_number_is_quoted(kubectl: Kubectl) -> None:
    failed = condition(kubectl.wait("ambiguous", phase("Completed", "Failed")), "Failed")
    assert "The value of loss can't be read in the line 'loss: 1,500'" in failed["message"]
    assert "1,500 may be 1500 or 1.500" in failed["message"]


def names_of_frameworks(kubectl: Kubectl) -> None:
    for name in ("yolo", "yolo-pattern"):
        completed(kubectl, name, 2)
        with optuna_record(kubectl, name) as record:
            assert all(trial.value == trial.params["lr0"] for trial in record.trials)


def steps_that_begin_again_are_pruned(kubectl: Kubectl) -> None:
    status = kubectl.wait("epochs", phase("Completed", "Failed"))["status"]
    assert status["trials"]["pruned"] == 1, kubectl.diagnostics("epochs")
    assert "pruned at step 300 with loss=100000.0" in kubectl.logs_of_trial("epochs", 0)
    with optuna_record(kubectl, "epochs") as record:
        x = record.trials[0].params["x"]
        assert record.trials[0].intermediate_values == {0: x, 100: x, 200: x, 300: 100000.0}


def a_fraction_is_no_count(kubectl: Kubectl) -> None:
    completed(kubectl, "mnist", 6)
    with optuna_record(kubectl, "mnist") as record:
        for trial in record.trials:
            assert trial.value == int(2000 + trial.params["lr"] * 10000) / 10000


def eight_ways(kubectl: Kubectl) -> None:
    completed(kubectl, "lines", 8)
    with optuna_record(kubectl, "lines") as record:
        values = {trial.params["how"]: trial.value for trial in record.trials}
    assert values.pop("thousands") == 1234.5
    assert set(values.values()) == {0.75}
    assert len(values) == 7
