"""What can be told from a script's text before it runs, and from who calls `optimize`."""

from __future__ import annotations

import ast
import sys
from typing import TYPE_CHECKING

from tuning_trainer.console import PACKAGE
from tuning_trainer.failure import Failure, TrialFailure

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
INTEGRATIONS = "optuna_integration."
STEPWISE = "optuna_integration.lightgbm"
"""LightGBMTuner optimizes a few parameters at a time, each step with what the one before it has found."""


def check_source(name: str, source: bytes) -> None:
    """Refuse a script that certainly calls `optimize` twice: twice in one block, or in a loop.

    Also through a function of its own that does. What an objective does inside (a function with an argument
    `trial`) is its own affair.

    Raises:
        TrialFailure: it does; a pod would run the first call alone, and no one would notice.
    """
    try:
        tree = ast.parse(source)
    except SyntaxError:  # told when it is run
        return
    nodes = list(_outside_objectives(tree))
    studies = _studies(nodes)
    functions = _optimizing_functions(nodes, studies)
    for node in nodes:
        for block in (getattr(node, "body", None), getattr(node, "orelse", None)):
            if isinstance(block, list):
                calls = [one.lineno for one in block if _runs(one, studies, functions)]
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


def _outside_objectives(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, FUNCTIONS) and any(one.arg == "trial" for one in child.args.args)):
            yield from _outside_objectives(child)


def _studies(nodes: list[ast.AST]) -> set[str]:
    """Return the names that a script binds to what create_study or load_study returns."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Assign) and _called(node.value) in ("create_study", "load_study"):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


def _optimizing_functions(nodes: list[ast.AST], studies: set[str]) -> set[str]:
    """Return the names of the script's functions that optimize, themselves or by calling another."""
    defined = [node for node in nodes if isinstance(node, ast.FunctionDef)]
    found: set[str] = set()
    for _ in defined:  # a chain of calls is at most as long
        found |= {
            function.name
            for function in defined
            if any(_runs(node, studies, found) for node in _outside_objectives(function))
        }
    return found


def _runs(statement: ast.AST, studies: set[str], functions: set[str]) -> bool:
    """Return whether a statement calls a study's `optimize`, or a function that does."""
    call = statement.value if isinstance(statement, (ast.Expr, ast.Assign, ast.Return)) else None
    if not isinstance(call, ast.Call):
        return False
    if isinstance(call.func, ast.Name):
        return call.func.id in functions
    if not isinstance(call.func, ast.Attribute) or call.func.attr != "optimize":
        return False
    return isinstance(call.func.value, ast.Name) and call.func.value.id in studies


def _called(node: ast.expr) -> str | None:
    function = node.func if isinstance(node, ast.Call) else None
    return getattr(function, "attr", None) or getattr(function, "id", None)
