"""What can be told from a script's text before it runs, and from who calls `optimize`."""

from __future__ import annotations

import ast
import sys
from typing import TYPE_CHECKING

from tuning_trainer.console import PACKAGE
from tuning_trainer.failure import Failure, TrialFailure

if TYPE_CHECKING:
    from types import FrameType

INTEGRATIONS = "optuna_integration."
STEPWISE = "optuna_integration.lightgbm"
"""LightGBMTuner optimizes a few parameters at a time, each step with what the one before it has found."""


def check_source(name: str, source: bytes) -> None:
    """Refuse a script that certainly calls `optimize` twice: twice in one block, or in a loop.

    Raises:
        TrialFailure: it does; a pod would run the first call alone, and no one would notice.
    """
    try:
        tree = ast.parse(source)
    except SyntaxError:  # told when it is run
        return
    studies = _studies(tree)
    for node in ast.walk(tree):
        for block in (getattr(node, "body", None), getattr(node, "orelse", None)):
            if isinstance(block, list):
                calls = [one.lineno for one in block if _optimizes(one, studies)]
                if len(calls) > 1 or (calls and isinstance(node, (ast.For, ast.While))):
                    raise _twice(name, calls)


def check_caller(caller: str) -> None:
    """Refuse a caller of `optimize` that goes on with what its trials have found in this very process.

    Raises:
        TrialFailure: every pod would run the first of many steps.
    """
    if caller.startswith(STEPWISE):
        raise TrialFailure(
            Failure(
                "Script",
                "LightGBMTuner optimizes step by step in one process, but a pod runs one trial.",
                "Write an objective that suggests LightGBM's parameters, or run the tuner as a plain Job.",
            )
        )


def caller_outside() -> str:
    """Return the name of the module that called the runtime: the script's, `__main__`, or a library's."""
    frame: FrameType | None = sys._getframe()  # noqa: SLF001  as the warnings module does
    while frame is not None and frame.f_code.co_filename.startswith(PACKAGE):
        frame = frame.f_back
    return str(frame.f_globals.get("__name__", "")) if frame is not None else ""


def _twice(name: str, lines: list[int]) -> TrialFailure:
    where = ", ".join(map(str, lines))
    return TrialFailure(
        Failure(
            "Script",
            f"{name} calls optimize more than once (line {where}), but a study runs one optimization.",
            "Make each a study of its own, with its manifest and its script, or all of them one call.",
        )
    )


def _studies(tree: ast.AST) -> set[str]:
    """Return the names that a script binds to what create_study or load_study returns."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and _called(node.value) in ("create_study", "load_study"):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


def _optimizes(statement: ast.stmt, studies: set[str]) -> bool:
    call = statement.value if isinstance(statement, ast.Expr) else None
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
        return False
    owner = call.func.value
    return call.func.attr == "optimize" and isinstance(owner, ast.Name) and owner.id in studies


def _called(node: ast.expr) -> str | None:
    function = node.func if isinstance(node, ast.Call) else None
    return getattr(function, "attr", None) or getattr(function, "id", None)
