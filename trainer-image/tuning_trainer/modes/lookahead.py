"""Looks ahead when a script calls `optimize`: will its running functions call it again afterwards?

A pod runs one trial of one study and ends there: a later call would never be reached, unnoticed.
Only what the running functions will still execute counts, with the values that their variables have now; what
depends on an unknown condition does not.
"""

from __future__ import annotations

import ast
import builtins
import functools
import inspect
import itertools
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuning_trainer.failure import Failure, TrialFailure
from tuning_trainer.log import PACKAGE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import CodeType, FrameType

LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
LOOPS = (ast.For, ast.AsyncFor, ast.While)
SAME_SIZE = ("enumerate", "sorted", "reversed", "list", "tuple", "iter", "items", "keys", "values", "tqdm")
"""Functions and methods that return as many items as they get."""
MAPS = ("map", "starmap", "imap", "imap_unordered")
DEPTH = 5
"""How many calls deep a function is searched for `optimize`."""
UNKNOWN = object()
WAY_OUT = (
    "Set trial.study to the study_name of the study to tune (or its position, for example '1', if it has no "
    "name), so that the others are left alone, or give each study its own script and TuningStudy."
)


def check_only_call(frame: FrameType | None) -> None:
    """Reject a script that will call `optimize` again after the call that a frame is executing.

    Raises:
        TrialFailure: it will; the message names the lines.
    """
    running: set[CodeType] = set()
    while (
        frame is not None and frame.f_globals.get("__name__") != "multiprocessing.process"
    ):  # not the parent's
        code, frame_of_user = frame.f_code, _is_users(frame.f_code.co_filename)
        if frame_of_user and (not code.co_name.startswith("<") or code.co_name == "<module>"):
            lines = _repeated(frame, running)
            if lines:
                raise TrialFailure(_failure(Path(code.co_filename).name, lines))
        if frame_of_user:
            running.add(code)
        frame = frame.f_back


def _is_users(file: str) -> bool:
    return not file.startswith((PACKAGE, "<", *LIBRARIES)) and "-packages/" not in file


def _failure(name: str, lines: Sequence[int]) -> Failure:
    where = ", ".join(map(str, lines))
    return Failure(
        "Script",
        f"{name} calls optimize more than once (line {where}), but a TuningStudy runs only one.",
        f"{WAY_OUT} If this is the only call that will be executed, set trial.study as well.",
    )


def _repeated(frame: FrameType, running: set[CodeType]) -> list[int]:
    """Return the line of the current call and those of later ones; none if it is the only one."""
    scope = _scope(frame.f_code)
    path = list(_path(scope, *_position(frame))) if scope is not None else []
    if scope is None or not path:
        return []
    reader = _Reader(scope, {**frame.f_globals, **frame.f_locals}, running)
    again, leaves_loop = reader.repeats(path[-1][2]), False
    later: list[int] = []
    for parent, block, statement in reversed(path):
        if isinstance(statement, (ast.Return, ast.Raise)):
            break
        rest, leaves = _until_exit(block[block.index(statement) + 1 :])
        later += reader.lines(rest)
        if isinstance(leaves, (ast.Return, ast.Raise)):
            break
        leaves_loop = leaves_loop or isinstance(leaves, ast.Break)
        if isinstance(parent, LOOPS) and block is parent.body:
            again = again or not (leaves_loop or reader.runs_once(parent))
            leaves_loop = False
        if isinstance(parent, ast.Try):
            after = parent.orelse if block is parent.body else []
            later += reader.lines([*after, *(parent.finalbody if block is not parent.finalbody else [])])
    return [frame.f_lineno, *later] if later or again else []


def _until_exit(statements: list[ast.stmt]) -> tuple[list[ast.stmt], ast.stmt | None]:
    """Return the statements up to the first that leaves the block for certain, and that one."""
    for position, statement in enumerate(statements):
        if isinstance(statement, (ast.Return, ast.Raise, ast.Break, ast.Continue)):
            return statements[: position + 1], statement
    return statements, None


def _position(frame: FrameType) -> tuple[int, int]:
    """Return where a frame is: line and column; before Python 3.11, the end of the line."""
    positions = getattr(frame.f_code, "co_positions", None)
    line, _, column, _ = (
        next(itertools.islice(positions(), frame.f_lasti // 2, None)) if positions else [None] * 4
    )
    return (frame.f_lineno, sys.maxsize) if line is None or column is None else (line, column)


def _path(scope: ast.AST, line: int, column: int) -> Iterator[tuple[ast.AST, list[ast.stmt], ast.stmt]]:
    """Yield the statements that contain a place, from the outside, each with its block and its parent."""
    for block in _blocks(scope):
        for statement in reversed(block):  # of several in one line, the last that begins before it
            if (statement.lineno, statement.col_offset) <= (line, column) and line <= (
                statement.end_lineno or line
            ):
                yield scope, block, statement
                if not isinstance(statement, SCOPES):
                    yield from _path(statement, line, column)
                return


def _blocks(node: ast.AST) -> Iterator[list[ast.stmt]]:
    for name in ("body", "orelse", "finalbody"):
        block = getattr(node, name, None)
        if isinstance(block, list):
            yield block
    for part in [*getattr(node, "handlers", ()), *getattr(node, "cases", ())]:
        yield part.body


@functools.cache
def _parsed(file: str) -> ast.Module | None:
    try:
        return ast.parse(Path(file).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None


def _scope(code: CodeType) -> ast.AST | None:
    """Return the syntax tree of a function or module."""
    tree = _parsed(code.co_filename)
    if tree is None or code.co_name == "<module>":
        return tree
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name == code.co_name:
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            if first == code.co_firstlineno:
                return node
    return None


class _Reader:
    """Finds calls that optimize in the code of one function, given the values of its variables."""

    def __init__(
        self, scope: ast.AST, names: dict[str, Any], running: set[CodeType], depth: int = DEPTH
    ) -> None:
        self._names = names
        self._running = running
        self._depth = depth
        self._studies = {
            target.id
            for node in ast.walk(scope)
            if isinstance(node, ast.Assign) and _creates_study(node.value)
            for target in node.targets
            if isinstance(target, ast.Name)
        }

    def lines(self, nodes: Sequence[ast.AST]) -> list[int]:
        """Return the lines of the calls that optimize, where they are certain to be executed."""
        found = (call for node in nodes for call in self._calls(node))
        return list(dict.fromkeys(call.lineno for call in found if self._optimizes(call)))

    def repeats(self, statement: ast.stmt) -> bool:
        """Return whether a statement calls optimize several times, in a comprehension, by map or in turn."""
        expressions = [node for node in ast.iter_child_nodes(statement) if isinstance(node, ast.expr)]
        nodes = [node for expression in expressions for node in ast.walk(expression)]
        for node in nodes:
            if isinstance(node, COMPREHENSIONS) and self._mentions(node):
                sizes = [self._size(generator.iter) for generator in node.generators]
                if any(size != 1 for size in sizes):
                    return True
            if isinstance(node, ast.Call) and self._maps(node) and self._size(node.args[1]) != 1:
                return True
        calls = [call for expression in expressions for call in self._calls(expression)]
        return sum(self._optimizes(call) for call in calls) > 1

    def runs_once(self, loop: ast.AST) -> bool:
        """Return whether a loop is known to run its body only once."""
        return not isinstance(loop, ast.While) and self._size(loop.iter) == 1  # type: ignore[attr-defined]

    def _calls(self, node: ast.AST) -> Iterator[ast.Call]:
        """Yield the calls that are certain to be executed."""
        if isinstance(node, SCOPES):
            return
        if isinstance(node, (ast.If, ast.IfExp)):
            known = self._truth(node.test)
            chosen: Any = [] if known is None else node.body if known else node.orelse
            parts: Sequence[ast.AST] = [node.test, *(chosen if isinstance(chosen, list) else [chosen])]
        elif isinstance(node, ast.BoolOp):
            parts = node.values[:1]
        elif isinstance(node, ast.Try):
            parts = [*node.body, *node.orelse, *node.finalbody]
        elif isinstance(node, (ast.For, ast.AsyncFor)) and self._size(node.iter) == 0:
            parts = [node.iter]
        elif isinstance(node, ast.While) and self._truth(node.test) is False:
            parts = [node.test]
        elif hasattr(node, "cases"):  # match, from Python 3.10 on
            parts = []
        else:
            parts = list(ast.iter_child_nodes(node))
        if isinstance(node, ast.Call):
            yield node
        for part in parts:
            yield from self._calls(part)

    def _optimizes(self, call: ast.Call) -> bool:
        function = call.func
        if isinstance(function, ast.Attribute) and function.attr == "optimize":
            study = self._value(function.value)
            return self._may_be_study(function.value) if study is UNKNOWN else type(study).__name__ == "Study"
        if self._maps(call):
            return self._size(call.args[1]) != 0
        found = self._value(function)
        if found is UNKNOWN and isinstance(function, ast.Attribute):
            return function.attr in {code.co_name for code in self._running}
        return self._leads_to_optimize(found)

    def _maps(self, call: ast.Call) -> bool:
        """Return whether a call is map(function, items), or the like, of a function that optimizes."""
        mapped = _name(call.func) in MAPS and len(call.args) > 1
        return mapped and self._leads_to_optimize(self._value(call.args[0]))

    def _may_be_study(self, node: ast.expr) -> bool:
        if isinstance(node, ast.Name) and node.id in self._studies:
            return True
        return _creates_study(node) or (isinstance(node, ast.Attribute) and "study" in node.attr.lower())

    def _mentions(self, node: ast.AST) -> bool:
        """Return whether a comprehension leads to the current call."""
        for part in ast.walk(node):
            if isinstance(part, ast.Attribute) and part.attr == "optimize":
                return True
            if isinstance(part, (ast.Name, ast.Attribute)):
                found = self._value(part)
                if found is not UNKNOWN and self._leads_to_optimize(found):
                    return True
            if isinstance(part, ast.Call) and self._optimizes(part):
                return True
        return False

    def _leads_to_optimize(self, found: Any) -> bool:
        """Return whether calling an object optimizes: it is running now, or its code does."""
        while isinstance(found, functools.partial):
            found = found.func
        if inspect.isclass(found):
            found = found.__init__
        found = inspect.unwrap(getattr(found, "__func__", found)) if callable(found) else found
        code = getattr(found, "__code__", None)
        if code is None or not _is_users(code.co_filename):
            return False
        if code in self._running:
            return True
        scope = _scope(code) if self._depth else None
        if scope is None or not inspect.isfunction(found):
            return False
        names = {**found.__globals__, **inspect.getclosurevars(found).nonlocals}
        return bool(_Reader(scope, names, self._running, self._depth - 1).lines(scope.body))  # type: ignore[attr-defined]

    def _value(self, node: ast.expr) -> Any:
        """Return the present value of an expression, as far as reading it has no effects."""
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Name):
            return self._names.get(node.id, getattr(builtins, node.id, UNKNOWN))
        if isinstance(node, ast.Attribute):
            owner = self._value(node.value)
            if owner is UNKNOWN and isinstance(node.value, ast.Call):
                made = self._value(node.value.func)
                owner = made if inspect.isclass(made) else UNKNOWN
            return UNKNOWN if owner is UNKNOWN else inspect.getattr_static(owner, node.attr, UNKNOWN)
        return UNKNOWN

    def _truth(self, test: ast.expr) -> bool | None:
        """Return the present value of a condition; None if it is unknown."""
        if isinstance(test, ast.Compare) and len(test.ops) == 1:
            left, right = self._value(test.left), self._value(test.comparators[0])
            if not (isinstance(left, (str, int, float, bool)) and isinstance(right, (str, int, float, bool))):
                return None
            equal = {ast.Eq: left == right, ast.NotEq: left != right}
            return equal.get(type(test.ops[0]))
        found = self._value(test)
        return bool(found) if isinstance(found, (str, int, float, bool)) else None

    def _size(self, node: ast.expr) -> int | None:
        """Return how many items an iterable has; None if it is unknown."""
        if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
            return None if any(isinstance(item, ast.Starred) for item in node.elts) else len(node.elts)
        if isinstance(node, ast.Dict):
            return len(node.keys) if all(node.keys) else None
        if isinstance(node, ast.Call):
            return self._size_of_call(node)
        found = self._value(node)
        return len(found) if isinstance(found, (list, tuple, dict, set, frozenset, str, range)) else None

    def _size_of_call(self, call: ast.Call) -> int | None:
        name, arguments = _name(call.func), call.args
        if isinstance(call.func, ast.Attribute) and name in SAME_SIZE and not arguments:
            return self._size(call.func.value)
        if name in SAME_SIZE and arguments:
            return self._size(arguments[0])
        if name == "zip":
            sizes = [self._size(argument) for argument in arguments]
            return min((size for size in sizes if size is not None), default=None)
        if name == "range":
            limits = [self._value(argument) for argument in arguments]
            return len(range(*limits)) if all(isinstance(limit, int) for limit in limits) else None
        return None


def _name(function: ast.expr) -> str:
    return getattr(function, "attr", None) or getattr(function, "id", None) or ""


def _creates_study(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and _name(node.func) in ("create_study", "load_study")
