"""The zip file: the same bytes each time, small, and fit for any image with a Python."""

from __future__ import annotations

import ast
import io
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import tuning_trainer
from tuning_operator import trainer_archive as module
from tuning_operator.trainer_archive import trainer_archive

from tests.unit.trainer.pod import BARE, Pod

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.unit.trainer.twin import Twin

ROOT = Path(tuning_trainer.__file__).parent
SOURCES = sorted(ROOT.rglob("*.py"))


def oldest_pythons() -> Iterator[str]:
    """Yield the Python 3.9 interpreters that work."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    for candidate in [shutil.which("python3.9"), *pyenv.glob("versions/3.9.*/bin/python3.9")]:
        if candidate and subprocess.run([candidate, "-c", ""], capture_output=True).returncode == 0:
            yield str(candidate)


def test_the_same_bytes_each_time() -> None:
    first = trainer_archive()
    trainer_archive.cache_clear()
    assert trainer_archive() == first
    assert len(first.digest) == 64


def test_the_digest_follows_the_content(monkeypatch: pytest.MonkeyPatch) -> None:
    before = trainer_archive()
    monkeypatch.setattr(module, "START", b"raise SystemExit\n")
    trainer_archive.cache_clear()
    try:
        assert trainer_archive().digest != before.digest
    finally:
        trainer_archive.cache_clear()


def test_it_holds_every_module_and_nothing_else() -> None:
    with zipfile.ZipFile(io.BytesIO(trainer_archive().content)) as archive:
        names = set(archive.namelist())
    assert names == {"__main__.py"} | {str(source.relative_to(ROOT.parent)) for source in SOURCES}


def test_docstrings_stay_at_home_and_lines_keep_their_numbers() -> None:
    with zipfile.ZipFile(io.BytesIO(trainer_archive().content)) as archive:
        for source in SOURCES:
            packed = archive.read(str(source.relative_to(ROOT.parent))).decode()
            plain, small = ast.parse(source.read_text()), ast.parse(packed)
            functions = (ast.FunctionDef, ast.ClassDef)
            for one, other in zip(ast.walk(plain), ast.walk(small), strict=True):
                if isinstance(one, functions):
                    assert isinstance(other, functions)
                    assert (other.name, other.lineno, ast.get_docstring(other)) == (
                        one.name,
                        one.lineno,
                        None if ast.get_docstring(one) is None else "",
                    )


def test_only_comments_are_left_out_of_a_line() -> None:
    source = r'''
a = "#1" + '#2' + 'it\'s #3'  # a comment, with "quotes" and 'it
b = f"#{a}#4" r"\\" '#5' # it's another
"""a docstring
# of several lines"""
c = """#6 "
#7"""  # the last
'''
    packed = module._without_comments(source)
    names: dict[str, str] = {}
    exec(packed, names)
    assert (names["a"], names["b"], names["c"]) == ("#1#2it's #3", r"##1#2it's #3#4\\#5", '#6 "\n#7')
    assert packed.count("\n") == source.count("\n")
    for comment in ("comment", "another", "docstring", "several", "last"):
        assert comment not in packed


def test_it_is_small() -> None:
    assert len(trainer_archive().content) < 96 * 1024


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: str(source.relative_to(ROOT)))
def test_only_the_standard_library_is_imported(source: Path) -> None:
    allowed = {"transformers"} if source.name == "huggingface.py" else set()
    for node in ast.walk(ast.parse(source.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            assert name.split(".")[0] in {*sys.stdlib_module_names, "tuning_trainer", *allowed}


def test_nothing_newer_than_python_3_9_is_used() -> None:
    command = [str(Path(sys.executable).with_name("vermin")), "-q", "-t=3.9-", "--violations"]
    found = subprocess.run([*command, str(ROOT)], capture_output=True, text=True, timeout=240)
    assert found.returncode == 0, found.stdout


def test_a_real_python_3_9_runs_it(pod: Pod, twin: Twin) -> None:
    python = next(oldest_pythons(), None)
    if python is None:
        pytest.skip(
            "no Python 3.9 on this machine; what it lacks is looked for in the sources by the test above"
        )
    pod.write("""
        import optuna

        def objective(trial: optuna.Trial):
            for step in range(3):
                trial.report(step, step)
                trial.should_prune()
            trial.set_constraint("c", -1)
            trial.suggest_categorical("c", [None, True])
            assert trial.datetime_start
            return trial.suggest_float("x", 0, 1, step=0.25) + trial.suggest_int("n", 1, 3)
    """)
    ended = pod.run(python=(python, "-S", "-I"))
    assert ended.code == 0, ended
    assert twin.study.trials[0].state.name == "COMPLETE"


def test_it_starts_quickly(pod: Pod, twin: Twin) -> None:
    """Start, import, view and result: measured at 0.15 s of CPU time on a slow core."""
    pod.write("def objective(trial): return 1.0")
    times = []
    for _ in range(3):
        before = os.times()
        pod.run(python=BARE)
        after = os.times()
        times.append(sum(after[2:4]) - sum(before[2:4]))  # of child processes
    assert 0 < min(times) < 0.5
