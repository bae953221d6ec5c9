"""How metrics are read from a program's output: each value whole, or not at all and quoted."""

from __future__ import annotations

import json
import math
import signal
from typing import NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tuning_trainer.failure import Failure, TrialFailure
from tuning_trainer.metrics.reader import MetricReader
from tuning_trainer.metrics.steps import NOWHERE, Position, Progress, Steps
from tuning_trainer.metrics.values import Unreadable, plain_signs, read_value, value_at

ESC = "\x1b"

NUMBERS = [
    # plain
    ("0.75", 0.75),
    ("-0.5", -0.5),
    ("+0.5", 0.5),
    (".5", 0.5),
    ("-.5", -0.5),
    ("5.", 5.0),
    ("0.75.", 0.75),
    ("1500", 1500.0),
    ("1.5e-3", 0.0015),
    ("1.5E+03", 1500.0),
    ("5.e-03", 0.005),
    ("1e5", 100000.0),
    ("inf", math.inf),
    ("-Infinity", -math.inf),
    ("\u22120.5", -0.5),
    # what may follow
    ("0.75, 0.8", 0.75),
    ("0.75,loss=1", 0.75),
    ("0.75; next", 0.75),
    ("0.75 | 3", 0.75),
    ("0.75)", 0.75),
    ("0.75]", 0.75),
    ("0.75}", 0.75),
    ("0.75</b>", 0.75),
    ("0.75*", 0.75),
    ("0.75 - loss: 1", 0.75),
    ("0.75 (best 0.8)", 0.75),
    ("0.75 [0.7, 0.8]", 0.75),
    ("0.75 -0.3", 0.75),
    ("0.75 / loss 1", 0.75),
    ("0.75 on the test set", 0.75),
    ("12.5 ms", 12.5),
    ("0.75 \u00b1 0.01", 0.75),
    ("0.75+/-0.01", 0.75),
    ("(0.75 +- 0.01)", 0.75),
    ("0.75\\n'", 0.75),
    # percent signs: the number as it is printed
    ("93%", 93.0),
    ("93.5 %", 93.5),
    ("93% of all", 93.0),
    ("'93%'", 93.0),
    # fractions of whole numbers
    ("2132/10000 (21%)", 0.2132),
    ("7500 / 10000", 0.75),
    ("3 of 4", 0.75),
    ("3 out of 4", 0.75),
    ("-1/4", -0.25),
    # thousands
    ("1,500.00", 1500.0),
    ("1,234,567", 1234567.0),
    ("1,234,567.89", 1234567.89),
    ("-1,500.5", -1500.5),
    ("1.500,25", 1500.25),
    ("1.234.567,89", 1234567.89),
    ("1_500", 1500.0),
    ("1_500.25", 1500.25),
    ("1'500.25", 1500.25),
    ("1\u2019500", 1500.0),
    ("1\u00a0500", 1500.0),
    ("1\u202f500,25", 1500.25),
    # a decimal comma, where it can be nothing else
    ("0,75", 0.75),
    ("0,750", 0.75),
    ("12,5", 12.5),
    ("12,3456", 12.3456),
    ("0,75e-3", 0.00075),
    # wrapped
    ("tensor(0.7500)", 0.75),
    ("tensor(0.7500, device='cuda:0', grad_fn=<NllLossBackward0>)", 0.75),
    ("tensor(1., dtype=torch.float64)", 1.0),
    ("tensor([0.75])", 0.75),
    ("tensor([[0.75]], device='cuda:0')", 0.75),
    ("np.float64(0.75)", 0.75),
    ("array(0.75, dtype=float32)", 0.75),
    ("Array(0.75, dtype=float32, weak_type=True)", 0.75),
    ("tf.Tensor(0.75, shape=(), dtype=float32)", 0.75),
    ("<tf.Tensor: shape=(), dtype=float32, numpy=0.75>", 0.75),
    ("Decimal('0.75')", 0.75),
    ('"0.75"', 0.75),
    ('\\"0.75\\"', 0.75),
    ("[0.75]", 0.75),
    ("(0.75,)", 0.75),
    ("**0.75**", 0.75),
    ("`0.75`", 0.75),
]

REFUSED = [
    # two numbers in one
    "1,500",
    "12,500",
    "1 500",
    "1 500.5",
    "1 500 000",
    "0.7,0.8",
    "1,2,3",
    "1,23,456",
    "0.7-0.8",
    "0.7 - 0.8",
    "0.7 to 0.8",
    "0.7 -> 0.8",
    "0.7\u21920.8",
    "0.7\u20130.8",
    "0.7/0.8",
    "7/5",
    "1/0",
    "1/2/3",
    "[0.7, 0.8]",
    "(0.7, 0.8)",
    "tensor([0.7, 0.8])",
    "[0.7 0.8]",
    # other things than numbers
    "5abc",
    "12ms",
    "1.5k",
    "1.5 M",
    "3 million",
    "0x1F",
    "1e",
    "1.5e+",
    "1.2.3",
    "10:30",
    "2024-01-31",
    "31/12/2024",
    "192.168.0.1",
    "1.5x10^3",
    "1.5 \u00d7 10^3",
    "2*3",
    "$1,500",
    "~0.75",
    ">0.75",
    "0.75/epoch",
    "0.75.pt",
    "tensor(0.75).item()",
    "{0.75}",
    "'0.75",
    "0.7\u0665",
]

NO_NUMBERS = [
    "",
    "high",
    "None",
    "n/a",
    "-",
    "info",
    "nano",
    "epoch 3",
    "MSELoss()",
    "<not 1>",
    "true",
    "see 0.5",
]


@pytest.mark.parametrize(("text", "value"), NUMBERS)
def test_a_number(text: str, value: float) -> None:
    assert read_value(text) == value
    assert value_at(plain_signs(f"x= {text}"), 2) == value


def test_nan() -> None:
    assert all(math.isnan(read_value(text)) for text in ("nan", "NaN", "-nan", "tensor(nan)", "nan%"))


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_no_single_number_is_refused(text: str) -> None:
    value = read_value(text)
    assert isinstance(value, Unreadable)
    assert text[:1] in value.reason or text[:3] in value.reason


@pytest.mark.parametrize("text", NO_NUMBERS)
def test_what_does_not_look_like_a_number(text: str) -> None:
    assert read_value(text) is None


READ = [
    # with a sign
    ["accuracy=0.75"],
    ["accuracy = 0.75"],
    ["accuracy: 0.75\n"],
    ["accuracy : 0.75"],
    ["accuracy := 0.75"],
    ["accuracy -> 0.75"],
    ["accuracy => 0.75"],
    ["accuracy\uff1a0.75"],
    ["accuracy........: 0.75"],
    ["**accuracy**: 0.75"],
    ["**accuracy:** 0.75"],
    ["`accuracy`: 0.75"],
    ['"accuracy": 0.75,'],
    ["'accuracy': '0.75'"],
    ["(accuracy=0.75)"],
    ["[accuracy: 0.75]"],
    ["b'accuracy=0.75\\n'"],
    ["INFO:root:accuracy=0.75"],
    ["2024-01-01 12:00:00,123 - train - INFO - accuracy=0.75"],
    ["epoch=3 loss=0.2 accuracy=.75"],
    ["loss: 0.3 - accuracy: 0.75 - val_accuracy: 0.8"],
    ["accuracy=0.1 accuracy=0.75"],
    ["accuracy=tensor(0.7500, device='cuda:0')"],
    ["{'loss': np.float64(0.3), 'accuracy': np.float64(0.75)}"],
    # without one
    ["accuracy 0.75"],
    ["accuracy\t0.75"],
    ["wandb:          accuracy 0.75"],
    ["accuracy tensor(0.7500)"],
    ["epoch 3 loss 0.2 accuracy 0.75"],
    ["    accuracy                           0.75       100"],
    # another case
    ["Accuracy: 0.75"],
    ["ACCURACY 0.75"],
    ["Accuracy: 7500/10000 (75%)"],
    ["\nTest set: Average loss: 0.0300, Accuracy: 7500/10000 (75%)\n"],
    # colours
    [f"{ESC}[32maccuracy{ESC}[0m={ESC}[1m0.75{ESC}[0m"],
    [f"{ESC}[32m10:00:01{ESC}[0m | {ESC}[1mINFO{ESC}[0m | {ESC}[38;5;10maccuracy=0.{ESC}[0m75{ESC}[K"],
    [f"{ESC}]8;;http://x{ESC}\\accuracy{ESC}]8;;{ESC}\\: 0.75"],
    # redrawn lines
    ["10%|#   | accuracy=0.1\r20%|##  | accuracy=0.75\n"],
    ["100%|####| 10/10 accuracy=0.75\r\x1b[K\n"],
    ["100%|####| 10/10 [00:01<00:00, 9.9it/s, loss=0.3, accuracy=0.75]\r                       \r"],
    ["\r10/10 [====] - 1s 2ms/step - accuracy: 0.75"],
    # objects
    ['{"accuracy": 0.75, "epoch": 2}'],
    ['{"accuracy": "0.75"}'],
    ['{"accuracy": [0.75]}'],
    ['{"level": "info", "event": "eval", "metrics": {"accuracy": 0.75}}'],
    ['{"accuracy": 0.75, "train": {"accuracy": 0.9}}'],
    ['{"accuracy": {"value": 0.75, "step": 3}}'],
    ["{'metrics': {'accuracy': 0.75}}"],
    ['2024-01-01 INFO {"accuracy": 0.75}'],
    ['INFO accuracy=0.75 {"epoch": 3}'],
    ['{\\"accuracy\\": 0.75}'],
    ['{"level": "info", "message": "epoch 3 accuracy=0.75"}'],
    ['{"log": "{\\"accuracy\\": 0.75}"}'],
    ['{"text": "\\u001b[32maccuracy\\u001b[0m=0.75\\n", "record": {"message": "accuracy=0.75"}}'],
    ["metric: accuracy=0.75"],
    # pairs
    ['{"name": "accuracy", "value": 0.75}'],
    ['{"metric": "accuracy", "step": 3, "value": "0.75"}'],
    ['[{"name": "loss", "value": 1}, {"name": "accuracy", "value": 0.75}]'],
    ['{"metrics": [{"name": "loss", "value": 1}, {"name": "accuracy", "value": 0.75}]}'],
    ["{metricName: accuracy, metricValue: 0.75};{metricName: loss, metricValue: 0.3}"],
    ["metric=accuracy step=3 value=0.75"],
    ["name='accuracy' value='0.75'"],
    # tables
    ["| epoch | accuracy |", "|-------|----------|", "| 3     | 0.75     |"],
    ["+-------+----------+", "| epoch | accuracy |", "+=======+==========+", "|   3   |   0.75   |"],
    [
        "\u250f\u2501\u2501\u2513",
        "\u2503 epoch \u2503 accuracy \u2503",
        "\u2521\u2501\u2501\u2529",
        "\u2502 3 \u2502 0.75 \u2502",
    ],
    ["| epoch | accuracy |", "| 2/3 | 0.5 |", "checkpoint saved", "| 3/3 | 0.75 |"],
    ["| accuracy |", "|----------|", "| 0.75 |", "0.5", "1 | 2"],
    ["epoch | accuracy", "------|---------", "3 | 0.75", "| 4 | 5 |"],
    ["  epoch    accuracy", "-------  ----------", "      3        0.75"],
    ["   epoch  accuracy  loss", "0      2      0.50   0.4", "1      3      0.75   0.3"],
    ["epoch train_loss accuracy time", "0 0.5 0.75 00:12"],
    ["epoch,accuracy,loss", "1,0.5,0.4", "2,0.75,0.3"],
    ["epoch;accuracy", "1;0,75"],
    ["epoch\taccuracy", "1\t0.75"],
    ["\u2502 accuracy \u2502 0.75 \u2502"],
    ["|    accuracy     | 0.75     |"],
    ["| accuracy | 0.75 | % |"],
    ["| accuracy | **0.75** (best) |"],
    ["| epoch | accuracy |", "| 3 | tensor(0.75) |"],
    # the stronger form counts, wherever it stands
    ["evaluating accuracy 10 times", "accuracy=0.75"],
    ["accuracy=0.75", "computing accuracy 10 of 10"],
    ["Accuracy: 0.5", "accuracy: 0.75", "Accuracy: 0.6"],
    ["accuracy=0.75", "accuracy: 100%|####| 10/10 [00:01<00:00]"],
    # a value that can be read replaces one that can't
    ["accuracy=1,500", "accuracy=0.75"],
]


@pytest.mark.parametrize("lines", READ)
def test_ways_to_print_a_metric(lines: list[str]) -> None:
    reader = MetricReader(["accuracy"])
    for line in lines:
        reader.read(line)
    assert reader.last == {"accuracy": 0.75}
    assert reader.missing() is None


VALUES = [f"0.{number}" for number in range(10, 80)]
GAP = " " * 100_000
LONG = {
    "commas": "accuracy: " + ", ".join(VALUES) + " (70 values) mean 0.90",
    "commas and nan": "accuracy: " + ", ".join(VALUES) + ", nan",
    "spaces": "accuracy: " + "    ".join(VALUES) + "    mean",
    "separate separators": "accuracy: " + "  |  ".join(VALUES) + "  |  mean",
    "arguments": "accuracy: Metric(0.5" + ", name='top'" * 70 + " and more",
    "a gap": f"accuracy: 0.5{GAP}|{GAP}0.6{GAP}mean",
    "a gap in a row": f"epoch{GAP}accuracy{GAP}loss",
    "a gap after a step": f"accuracy step{GAP}none",
    "a gap in brackets": f"accuracy: (0.5{GAP}; accuracy: [0.5{GAP}; accuracy: Metric(0.5{GAP};",
    "values": "accuracy=0.5 " * 20_000,
    "other signs": "accuracy \u2212> 0.5 " * 20_000,
    "progress bars": "accuracy: 5%|" * 20_000,
    "keys": "metric=accuracy " * 20_000,
    "digits": "accuracy: 1/" + "1" * 100_000,
}


@pytest.mark.parametrize("pattern", [None, r"accuracy\S* (\S+)"])
@pytest.mark.parametrize("line", LONG.values(), ids=LONG)
def test_a_long_line_is_read_in_proportion_to_its_length(line: str, pattern: str | None) -> None:
    def give_up(*_: object) -> NoReturn:
        raise TimeoutError

    before = signal.signal(signal.SIGVTALRM, give_up)
    signal.setitimer(signal.ITIMER_VIRTUAL, 4)  # seconds of computing, where less than a quarter is needed
    try:
        MetricReader(["accuracy"], pattern).read(line)
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


QUOTED = [
    (["accuracy: 1,500"], "'accuracy: 1,500': 1,500 may be 1500 or 1.500"),
    (["accuracy 1,500"], "1,500 may be 1500 or 1.500"),
    (["accuracy: 1 500"], "'1 500' may be one number or several"),
    (["accuracy=5abc"], "'accuracy=5abc': '5abc' is not a plain number"),
    (["accuracy=[0.7, 0.8]"], "'[0.7, 0.8]' is not a plain number"),
    ([f"{ESC}[1maccuracy=0.7-0.8{ESC}[0m"], "'accuracy=0.7-0.8': '0.7-0.8' is not a plain number"),
    (['{"accuracy": [0.7, 0.8]}'], "[0.7, 0.8] is not a plain number"),
    (['{"train": {"accuracy": 0.9}, "eval": {"accuracy": 0.8}}'], "several values for accuracy: 0.9, 0.8"),
    (["| accuracy | 0.7 | 0.8 |"], "0.7, 0.8: the row has several values"),
    (["| accuracy | accuracy |", "| 0.7 | 0.8 |"], "several values for accuracy: 0.7, 0.8"),
    (["accuracy: 0.7 | 0.8"], "'0.7 | 0.8' are several numbers"),
    (["accuracy: 0.7 0.8 0.9"], "'0.7 0.8 0.9' are several numbers"),
    (["accuracy: 0.7, 0.8"], "'0.7, 0.8' are several numbers"),
    (["accuracy=0.5", "accuracy=1,500"], "1,500 may be 1500 or 1.500"),
    (["epoch accuracy", "1 1,500"], "1,500 may be 1500 or 1.500"),
    (["accuracy=" + "9" * 300 + "x"], "..."),
]


@pytest.mark.parametrize(("lines", "reason"), QUOTED)
def test_a_last_value_that_cannot_be_read_is_quoted(lines: list[str], reason: str) -> None:
    reader = MetricReader(["accuracy"])
    readings = [reader.read(line) for line in lines]
    failure = reader.missing()
    assert reader.last == readings[-1].values == {}
    assert failure
    assert failure.category == "MetricUnreadable"
    assert failure.message.startswith("The value of accuracy can't be read in the line '")
    assert reason in failure.message
    assert "accuracy=0.93" in (failure.remedy or "")


NOT_THE_METRIC = [
    "val_accuracy=0.5",
    "val/accuracy=0.5",
    "val.accuracy=0.5",
    "test-accuracy: 0.5",
    "--accuracy=0.5",
    "accuracy_top5=0.5",
    "accuracy@5=0.5",
    "accuracy(top5)=0.5",
    "accuracy/val=0.5",
    "accuracy-top5: 0.5",
    "the accuracy is 0.5",
    "accuracy=high",
    "accuracy: None",
    "accuracy 5abc",
    "accuracy >= 0.5",
    "accuracy (5 folds)",
    "Accuracy of the network on the 10000 test images: 55 %",
    '{"accuracy": true}',
    '{"accuracy": null}',
    '{"accuracy": {"train": 0.9, "val": 0.8}}',
    "{not accuracy}",
]


@pytest.mark.parametrize("line", NOT_THE_METRIC)
def test_similar_lines_are_quoted_if_there_is_no_value(line: str) -> None:
    reader = MetricReader(["accuracy"])
    assert reader.read(line).values == {}
    assert reader.read("loss=0.1 epoch=3").values == {}
    failure = reader.missing()
    assert failure == Failure(
        "MetricMissing",
        "The program succeeded, but no line of its output has a value for accuracy. "
        f"Similar lines: {line!r}.",
        "Print a line such as accuracy=0.93, or append a JSON line to the file named by TUNING_METRICS_FILE; "
        "the name must be that of spec.objectives. For output that you can't change, set "
        "spec.trial.metrics.pattern.",
    )


def test_other_metrics_are_named_if_there_is_no_value() -> None:
    reader = MetricReader(["accuracy"])
    for line in ("epoch=3 loss=0.1 val/f1: 0.5", "{'loss': 0.2}", "[1, 2]", "timestep 9"):
        reader.read(line)
    failure = reader.missing()
    assert failure
    assert failure.message.endswith(
        "no line of its output has a value for accuracy. It has values for loss, val/f1."
    )


SENTENCES = [
    ["train loss now", "epoch 3 5"],
    ["computing loss and time", "done", "1 2 3 4"],
    ["Metrics: loss, accuracy", "3, 5"],
    ["epoch loss", "epoch 3"],
    ["| loss |", "---"],
]
REPORT = [
    "              precision    recall  f1-score   support",
    "           0       1.00      0.95      0.97        33",
    "           1       0.90      1.00      0.95        28",
    "",
    "    accuracy                           0.96        61",
    "   macro avg       0.95      0.97      0.96        61",
]


def test_a_report_by_class_has_no_value_of_a_column() -> None:
    reader = MetricReader(["f1-score", "recall", "accuracy"])
    for line in REPORT:
        reader.read(line)
    assert reader.last == {"accuracy": 0.96}


def test_rows_with_names_have_no_value_of_a_column() -> None:
    reader = MetricReader(["loss"])
    for line in ("          loss   acc", "train     0.25  0.90", "val       0.50  0.80"):
        reader.read(line)
    assert reader.last == {}


@pytest.mark.parametrize("lines", SENTENCES)
def test_sentences_are_no_tables(lines: list[str]) -> None:
    reader = MetricReader(["loss"])
    assert [reader.read(line).values for line in lines] == [{}] * len(lines)


@pytest.mark.parametrize(
    ("metric", "line"),
    [
        ("val/loss", "val/loss=0.5"),
        ("val/loss", '{"val": {"loss": 0.5}}'),
        ("val/loss", "train/loss=0.1 val/loss 0.5 xval/loss=0.2"),
        ("metrics/mAP50-95(B)", "metrics/mAP50-95(B): 0.5"),
        ("metrics/mAP50-95(B)", '{"epoch": 1, "metrics/mAP50-95(B)": 0.5}'),
        ("metrics/mAP50-95(B)", "{'metrics/mAP50-95(B)': np.float64(0.5)}"),
        ("mAP50-95", "mAP50-95(B)=0.1 mAP50-95=0.5"),
        ("eval.f1", "eval.f1: 0.5"),
        ("eval.f1", '{"log": {"eval": {"f1": 0.5}}, "f1": 0.1}'),
        ("latency.p99", "latencyxp99: 1 latency.p99: 0.5"),
        ("val accuracy", "train accuracy: 0.9, val  accuracy: 0.5"),
        ("val accuracy", "{'val accuracy': 0.5}"),
        ("recall@10", "recall@100=0.9 recall@10=0.5"),
        ("valid_0's auc", "[10]\tvalid_0's auc: 0.5"),
        ("AP@[.5:.95]", "AP@[.5:.95] = 0.5"),
        ("F1 (macro)", "F1: 0.9 F1 (macro): 0.5"),
    ],
)
def test_names_as_tools_write_them(metric: str, line: str) -> None:
    assert MetricReader([metric]).read(line).values == {metric: 0.5}


def test_a_column_whose_name_has_a_space() -> None:
    reader = MetricReader(["val accuracy"])
    for table in (["epoch | val accuracy", "1 | 0.5"], ["epoch  val accuracy", "1      0.5"]):
        assert [reader.read(line).values for line in table][1] == {"val accuracy": 0.5}


def test_several_metrics() -> None:
    reader = MetricReader(["loss", "accuracy"])
    assert reader.read("loss=0.5, accuracy: 75%").values == {"loss": 0.5, "accuracy": 75.0}
    reader.read("| loss | 0.25 |")
    assert reader.last == {"loss": 0.25, "accuracy": 75.0}
    reader.read("loss=1,500")
    assert reader.last == {"accuracy": 75.0}


def test_standard_error_counts_while_nothing_else_has_the_metric() -> None:
    reader = MetricReader(["accuracy"])
    assert reader.read("INFO:root:accuracy=0.5", on_error=True).values == {"accuracy": 0.5}
    assert reader.read("accuracy=0.75").values == {"accuracy": 0.75}
    assert reader.read("INFO:root:accuracy=0.5", on_error=True).values == {}
    assert reader.last == {"accuracy": 0.75}


def test_the_two_outputs_do_not_mix_their_tables() -> None:
    reader = MetricReader(["accuracy"])
    reader.read("epoch accuracy")
    reader.read("epoch 3 of 5 begins", on_error=True)
    reader.read("1 0.75")
    assert reader.last == {"accuracy": 0.75}


PRINTED = [
    "accuracy={0!r}",
    "accuracy: {0!r}, loss: 0.5",
    "accuracy {0!r}",
    "accuracy=tensor({0!r}, device='cuda:0')",
    "{{'accuracy': np.float64({0!r}), 'epoch': 3}}",
    '{{"metrics": {{"accuracy": {0!r}}}}}',
    '{{"name": "accuracy", "value": "{0!r}"}}',
    "metric=accuracy value={0!r};",
    "accuracy={0:.17e}.",
    "accuracy={0:.400f}%",
    "accuracy={0:,.400f}",
    "accuracy={0:_.400f}",
    "| accuracy | {0!r} |",
    ESC + "[1maccuracy" + ESC + "[0m: " + ESC + "[32m{0!r}" + ESC + "[0m",
    "9%| accuracy=1\r100%| accuracy={0!r}]\r    \r",
]


@pytest.mark.parametrize("form", PRINTED)
@settings(max_examples=50)
@given(value=st.floats(allow_nan=False, allow_infinity=False))
def test_any_float_is_read_back_equal(form: str, value: float) -> None:
    line = form.format(value)
    assert MetricReader(["accuracy"]).read(line).values == {
        "accuracy": float(f"{value:.400f}" if ".400f" in form else value)
    }


CONTINUED = [
    ",500",
    ",5",
    ".5",
    "/7.5",
    "-1",
    ":30",
    "e",
    "e-",
    "x2",
    "k",
    " k",
    "_1",
    "'1",
    " to 3",
    " - 3",
    " -> 3",
    "\u0665",
]


@pytest.mark.parametrize("follows", CONTINUED)
@settings(max_examples=50)
@given(value=st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.integers(0, 10**6)))
def test_no_beginning_of_a_number_is_ever_read(value: float, follows: str) -> None:
    assert read_value(f"{value!r}{follows}") != value


@given(st.text(st.sampled_from("0123456789.,_'-+/eE "), min_size=1, max_size=12))
def test_what_is_read_has_all_of_the_digits(text: str) -> None:
    read = read_value(text)
    first = text.strip(" '").split(" ")[0]
    if isinstance(read, float) and "/" not in text and "e" not in text.lower() and "+-" not in text:
        digits = "".join(filter(str.isdigit, first))
        assert float(digits) == pytest.approx(abs(read) * 10 ** _decimals(first)), (text, read)


def _decimals(number: str) -> int:
    """How many digits follow the decimal mark: the last point or comma, unless it groups thousands."""
    number = number.rstrip(".,'_-+")
    mark = max(number.rfind("."), number.rfind(","))
    grouping = mark >= 0 and number[mark] == "," and number.count(",") > 1
    return 0 if mark < 0 or grouping else len(number) - mark - 1


@given(st.text(), st.booleans())
def test_no_text_breaks_the_reader(text: str, pattern: bool) -> None:
    reader = MetricReader(["a", "b/c"], "(?P<name>.)(?P<value>.*)" if pattern else None)
    reader.read(text)
    reader.read(f"a {text}")
    reader.read('{"a": ' + text)
    reader.read('{"a": ' + json.dumps(text) + "}")
    reader.missing()


STEPS = [
    ("epoch=3 accuracy=1", Position(3, None)),
    ("Epoch 3/10: accuracy=1", Position(3, None)),
    ("Epoch [3/10] accuracy=1", Position(3, None)),
    ("Epoch: [3][10/5005] accuracy=1", Position(3, None)),
    ("[Epoch 4] accuracy=1e-3, lr=0.1", Position(4, None)),
    ("epoch=3 step=120 accuracy=1", Position(3, 120)),
    ("epoch 3 batch 120 accuracy=1", Position(3, 120)),
    ("step=5 global_step=120 accuracy=1", Position(None, 120)),
    ("step 1,000: accuracy=1", Position(None, 1000)),
    ("{'accuracy': 1, 'epoch': 2.5}", Position(2.5, None)),
    ("{'accuracy': array(1), 'epoch': 2.0}", Position(2, None)),
    ('{"accuracy": 1, "step": "3"}', Position(None, 3)),
    ('{"epoch": 1, "metrics": {"accuracy": 1, "epoch": 7}}', Position(1, None)),
    ('{"message": "epoch 3 accuracy=1"}', Position(3, None)),
    ('{"epoch": true, "step": -1, "accuracy": 1}', NOWHERE),
    ("Epoch 3/10", Position(3, None)),
    ("timestep=9", NOWHERE),
    ("step=9.5x", NOWHERE),
    ("", NOWHERE),
]


@pytest.mark.parametrize(("line", "position"), STEPS)
def test_a_lines_step(line: str, position: Position) -> None:
    assert MetricReader(["accuracy"]).read(line).position == position


def test_a_tables_step() -> None:
    reader = MetricReader(["accuracy"])
    lines = ["| Epoch | step | accuracy |", "| 1/10 | 100 | 0.5 |"]
    assert [reader.read(line).position for line in lines][1] == Position(1, 100)


def steps(*positions: Position) -> list[int | None]:
    one = Steps()
    return [one.next(position) for position in positions]


def test_steps_grow_where_a_program_counts_from_zero_in_each_epoch() -> None:
    positions = [Position(epoch, step) for epoch in range(3) for step in (0, 100, 200)]
    assert steps(*positions) == list(range(0, 900, 100))


@pytest.mark.parametrize(
    ("positions", "wanted"),
    [
        ([NOWHERE] * 3, [0, 1, 2]),
        ([Position(step=s) for s in (0, 10, 0, 10)], [0, 10, 20, 30]),
        ([Position(step=s) for s in (100, 200, 300, 100, 200)], [100, 200, 300, 400, 500]),
        ([Position(1, 50), Position(2, 50), Position(3, 50)], [50, 51, 52]),
        ([Position(1, 100), Position(2, 200)], [100, 200]),
        ([Position(1), Position(1), Position(2)], [1, None, 2]),
        ([Position(1), NOWHERE, Position(2), NOWHERE], [1, 2, 3, 4]),
        ([Position(step=s) for s in (0, 10, 20, 10)], [0, 10, 20, None]),
        ([Position(0.5), Position(1.0), Position(1.5), Position(2.0)], [0, 1, 2, 3]),
        ([Position(1, 100), Position(1), Position(2, 0)], [100, 101, 102]),
        ([Position(e) for e in (1, 2, 3, 1, 2, 3)], [1, 2, 3, 4, 5, 6]),
        ([Position(9), NOWHERE], [9, 10]),
    ],
)
def test_steps(positions: list[Position], wanted: list[int | None]) -> None:
    assert steps(*positions) == wanted


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5))))
def test_steps_never_go_back(pairs: list[tuple[int, int]]) -> None:
    given_steps = [step for step in steps(*(Position(*pair) for pair in pairs)) if step is not None]
    assert given_steps == sorted(set(given_steps))


def test_a_heading_gives_the_next_value_its_step() -> None:
    one = Steps()
    one.note(Position(5))
    assert one.next(NOWHERE) == 5
    assert one.next(NOWHERE) == 6
    one.note(Position(6))
    assert one.next(Position(step=0)) == 7
    assert one.next(Position(step=0)) is None


def test_a_value_is_an_intermediate_one_when_the_program_goes_on() -> None:
    progress = Progress()
    assert progress.add(Position(1), 0.1) == []
    assert progress.add(Position(2), 0.2) == [(1, 0.1)]
    assert progress.add(Position(2), 0.9) == [], "the first value of a step counts"
    assert progress.repeats == 1
    assert progress.add(NOWHERE, None) == []
    assert progress.add(Position(2), None) == [], "the same epoch: it may be saving its model"
    assert progress.add(Position(3), None) == [(2, 0.2)]
    assert progress.add(Position(3), 0.3) == []
    assert progress.rest() == [(3, 0.3)]


def test_an_only_value_is_no_intermediate_one() -> None:
    progress = Progress()
    assert progress.add(Position(10), 0.1) == []
    assert progress.add(Position(10), None) == []
    assert progress.rest() == []


@pytest.mark.parametrize(
    ("pattern", "line", "values", "position"),
    [
        (r"acc (\S+)", "acc 0.5", {"accuracy": 0.5}, NOWHERE),
        (r"acc (\S+)", "acc 1,500.5, next", {"accuracy": 1500.5}, NOWHERE),
        (r"acc (\S+)", "acc 0.1 acc 0.5", {"accuracy": 0.5}, NOWHERE),
        (r"acc ([\d.]+)", "acc 50.5%", {"accuracy": 50.5}, NOWHERE),
        (r"acc ([\d.]+)", "acc 50.", {"accuracy": 50.0}, NOWHERE),
        (r"(\d+) of 10", "5 of 10", {"accuracy": 5.0}, NOWHERE),
        (r"E(?P<step>\d+) .*top1 (?P<accuracy>\S+)", "E7 x top1 0.5", {"accuracy": 0.5}, Position(None, 7)),
        (r"(?P<epoch>\d+)\|(?P<accuracy>\S+)", "7|0.5", {"accuracy": 0.5}, Position(7)),
        (r"(?P<name>\w+)\|(?P<value>\S+)", "loss|2 accuracy|0.5", {"accuracy": 0.5}, NOWHERE),
        (r"acc (\S+)", f"acc {ESC}[1m0.5{ESC}[0m", {"accuracy": 0.5}, NOWHERE),
        (r"acc (\S+)", "acc 0.1\racc 0.5\r\n", {"accuracy": 0.5}, NOWHERE),
        (r"acc (\S+)", "accuracy=0.5", {}, NOWHERE),
        (r"acc (\S+)", "acc none", {}, NOWHERE),
        (r"acc (\S+)?", "acc ", {}, NOWHERE),
    ],
)
def test_a_pattern(pattern: str, line: str, values: dict[str, float], position: Position) -> None:
    reading = MetricReader(["accuracy"], pattern).read(line)
    assert (reading.values, reading.position) == (values, position)


@pytest.mark.parametrize(
    ("pattern", "line", "reason"),
    [
        (r"acc (\d+)", "acc 1,500", "the pattern matches only '1' of the number"),
        (r"(\d+)$", "acc 1,500", "the pattern matches only '500' of the number"),
        (r"acc=.*?([\d.]+)", "acc=-0.75", "the pattern matches only '0.75' of the number"),
        (r"acc (\d+)", "acc 0.75", "the pattern matches only '0' of the number"),
        (r"acc ([\d.]+)", "acc 1.5e-3", "the pattern matches only '1.5' of the number"),
        (r"acc (\S+)", "acc 1,500", "1,500 may be 1500 or 1.500"),
        (r"(?P<name>\w+)\|(?P<value>\d)", "accuracy|12", "the pattern matches only '1' of the number"),
    ],
)
def test_a_pattern_that_cuts_a_number_is_reported(pattern: str, line: str, reason: str) -> None:
    reader = MetricReader(["accuracy"], pattern)
    assert reader.read(line).values == {}
    failure = reader.missing()
    assert failure
    assert failure.message == f"The value of accuracy can't be read in the line {line!r}: {reason}."
    assert "spec.trial.metrics.pattern" in (failure.remedy or "")


def test_a_pattern_that_matches_nothing_is_to_be_corrected() -> None:
    reader = MetricReader(["accuracy"], r"acc: (\S+)")
    reader.read("accuracy=0.5")
    assert reader.missing() == Failure(
        "MetricMissing",
        r"The program succeeded, but no line of its output matched spec.trial.metrics.pattern (acc: (\S+)) "
        "with a value for accuracy. Similar lines: 'accuracy=0.5'.",
        "Correct the pattern: it is searched for in each line of output, after colors are removed.",
    )


@pytest.mark.parametrize("pattern", ["(", r"acc \S+", r"(?P<loss>\S+)", r"(\d)(\d)"])
def test_a_pattern_that_cannot_work_says_so(pattern: str) -> None:
    with pytest.raises(TrialFailure) as error:
        MetricReader(["accuracy"], pattern)
    assert pattern in error.value.failure.message.replace("\\\\", "\\")
    assert "(?P<accuracy>" in (error.value.failure.remedy or "")


def test_a_pattern_for_a_name_that_no_group_can_have() -> None:
    with pytest.raises(TrialFailure) as error:
        MetricReader(["val/loss"], r"loss \S+")
    assert error.value.failure.remedy == "Use two groups `name` and `value`, or a single group."
    reader = MetricReader(["val/loss"], r"(?P<name>\S+) is (?P<value>\S+)")
    assert reader.read("val/loss is 0.5").values == {"val/loss": 0.5}
