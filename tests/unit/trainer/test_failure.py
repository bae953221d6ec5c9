"""How failures are described and shortened."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

import pytest
from tuning_trainer.exceptions import failure_of
from tuning_trainer.failure import (
    LOCAL,
    TERMINATION_LIMIT,
    Failure,
    result_message,
    termination_message,
)
from tuning_trainer.log import write_termination_message

if TYPE_CHECKING:
    from pathlib import Path


def raised(error: BaseException) -> BaseException:
    def run() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        run()
    return caught.value


@pytest.mark.parametrize("sign", ["x", "é", "\U0001f600", '"\\', "\x00"])
def test_a_termination_message_fits_and_keeps_the_end_of_the_traceback(sign: str) -> None:
    failure = Failure("Exception", "what happened", "how to fix it", sign * 20_000 + "the last line")
    encoded = termination_message(failure)
    assert len(encoded) <= 4096
    assert len(encoded) > 3000, "as much as fits is kept"
    termination = json.loads(encoded)
    assert termination["message"] == "what happened"
    assert termination["remedy"] == "how to fix it"
    assert termination["traceback"].endswith("the last line")


def test_a_long_message_is_cut(tmp_path: Path) -> None:
    encoded = termination_message(Failure("Exception", "\U0001f600" * 10_000))
    assert len(encoded) <= 4096
    assert json.loads(encoded)["message"].startswith("\U0001f600")


def test_outside_a_pod_no_file_is_made(tmp_path: Path) -> None:
    write_termination_message(str(tmp_path / "none"), b"x")
    assert list(tmp_path.iterdir()) == []


def test_a_termination_message_that_cannot_be_written_stops_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_termination_message(str(tmp_path), b"x")  # a folder
    assert "cannot write the termination message" in capsys.readouterr().err


class OutOfMemoryError(RuntimeError):
    """As torch names it."""


@pytest.mark.parametrize(
    ("error", "category", "remedy"),
    [
        (OutOfMemoryError("CUDA"), "OutOfMemory", "Use less GPU memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate"), "OutOfMemory", "Use less GPU memory"),
        (MemoryError(), "OutOfMemory", "raise the container's memory limit"),
        (SystemExit(2), "Exception", "return a value or raise an exception instead"),
        (KeyboardInterrupt(), "Interrupted", None),
        (ValueError("bad"), "Exception", None),
    ],
)
def test_an_exception_has_its_category(error: BaseException, category: str, remedy: str | None) -> None:
    failure = failure_of(raised(error))
    assert failure.category == category
    assert (remedy is None) == (failure.remedy is None)
    assert (remedy or "") in (failure.remedy or "")
    assert failure.traceback
    assert "test_failure.py" in failure.traceback


class ApiError(Exception):
    response = None

    def __str__(self) -> str:
        return f"status {self.response.status}"  # type: ignore[attr-defined]


def test_an_exception_that_cannot_be_shown_is_reported() -> None:
    failure = failure_of(raised(ApiError()))
    assert failure.category == "Exception"
    assert "ApiError: <" in failure.message
    assert "raise error" in (failure.traceback or "")


def test_advice_fits_where_the_trial_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LOCAL, "the mark of a run")
    assert "run fewer trials at a time" in (failure_of(raised(MemoryError())).remedy or "")


def fails() -> None:
    raise KeyError("lost")


def test_a_chained_exception_keeps_its_cause() -> None:
    def run() -> None:
        try:
            fails()
        except KeyError as cause:
            raise RuntimeError("outer") from cause

    with pytest.raises(RuntimeError) as caught:
        run()
    text = failure_of(caught.value).traceback
    assert text
    assert "KeyError: 'lost'" in text
    assert text.endswith("RuntimeError: outer\n")


def test_arguments_that_argparse_misses_are_not_blamed_on_the_objective() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    with pytest.raises(SystemExit) as caught:
        parser.parse_args([])
    remedy = failure_of(caught.value).remedy or ""
    assert "script: train.py --epochs 3" in remedy
    assert "objective" not in remedy


def test_a_result_fits_into_a_termination_message() -> None:
    """Reports are left out first, then the largest attributes; constraints never."""
    result = {"state": "COMPLETE", "values": [0.5]}
    constraints = {f"c{number}": 1.0 for number in range(50)}
    attributes = {"userAttrs": {"large": "x" * 5000, "model": "s3://m"}, "constraints": constraints}
    encoded = result_message(result, attributes, [[step, 0.5] for step in range(1000)])
    assert encoded is not None
    assert len(encoded) <= TERMINATION_LIMIT
    assert json.loads(encoded) == {
        **result, "reported": [], "attributes": {"userAttrs": {"model": "s3://m"}, "constraints": constraints}
    }  # fmt: skip
    some = result_message(result, {}, [[step, 0.5] for step in range(1000)])
    assert some is not None
    reported = json.loads(some)["reported"]
    assert reported == [[step, 0.5] for step in range(1000 - len(reported), 1000)], "the newest ones"
    assert len(reported) > 100
    assert result_message(result, {"constraints": {"c" * 5000: 1.0}}, []) is None


@pytest.mark.parametrize(
    ("environ", "remedy"),
    [
        ({}, "Use an image that has 'numpy', or add its code to trial.source."),
        ({"TUNING_LOCAL_RUN": "mnist-0"}, f"Install 'numpy' for {sys.executable}, or choose an interpreter"),
    ],
    ids=["pod", "tuning run"],
)
def test_a_package_that_is_missing(
    environ: dict[str, str], remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TUNING_LOCAL_RUN", raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    failure = failure_of(ModuleNotFoundError("No module named 'numpy'", name="numpy"))
    assert failure.category == "ModuleNotFound"
    assert failure.remedy
    assert failure.remedy.startswith(remedy)
