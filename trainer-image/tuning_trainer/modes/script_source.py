"""Checks a script's source before it runs, and the caller of `optimize`."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from tuning_trainer.failure import Failure, TrialFailure
from tuning_trainer.log import calling_frame

if TYPE_CHECKING:
    from collections.abc import Iterator

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
INTEGRATIONS = "optuna_integration."
STEPWISE = "optuna_integration.lightgbm"
"""LightGBMTuner optimizes a few parameters at a time, and each step uses the result of the one before."""


def check_source(name: str, source: bytes) -> None:
    """Reject a script that calls `optimize` more than once: twice in one block, or in a loop.

    Calls through the script's own functions count; calls within an objective (a function with an argument
    `trial`) do not.

    Raises:
        TrialFailure: it does; every pod would run only the first call.
    """
    try:
        tree = ast.parse(source)
    except SyntaxError:  # reported when the script runs
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
    """Reject a caller of `optimize` that needs the results of its trials in the same process.

    Raises:
        TrialFailure: every pod would only run the first of several steps.
    """
    if caller.startswith(STEPWISE):
        raise TrialFailure(
            Failure(
                "Script",
                "LightGBMTuner optimizes in several steps within one process, but a pod runs only one trial.",
                "Write an objective that suggests LightGBM's parameters, or run the tuner as a plain Job.",
            )
        )


def calling_module() -> str:
    """Return the name of the module that called the runtime: `__main__` for the script, or a library's."""
    frame = calling_frame()
    return str(frame.f_globals.get("__name__", "")) if frame is not None else ""


def _twice(name: str, lines: list[int]) -> TrialFailure:
    where = ", ".join(map(str, lines))
    return TrialFailure(
        Failure(
            "Script",
            f"{name} calls optimize more than once (line {where}), but a TuningStudy runs only one.",
            "Give each call its own script and TuningStudy, or combine them into one call.",
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
