"""Looks ahead when a script calls `optimize`: will its running functions call it again afterwards?

A pod runs one trial of one study and ends there: a later call would never be reached, unnoticed. What the
running functions will do next is followed with the values that their variables have now. Apart from loops
around the call, what depends on an unknown condition does not count.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib.machinery
import inspect
import itertools
import os
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuning_trainer.failure import Failure, TrialFailure
from tuning_trainer.log import PACKAGE
from tuning_trainer.modes.expressions import COMPREHENSIONS, METHODS, UNKNOWN, Values, name_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import CodeType, FrameType

    Running = dict[CodeType, bool]
    """The code that is running, and whether an object whose value is unknown may have it as an attribute."""

LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
LOOPS = (ast.For, ast.AsyncFor, ast.While)
MAPS = ("map", "starmap", "imap", "imap_unordered", "reduce")
DEPTH = 5
"""How many calls deep a function is searched for `optimize`."""
MOST_STATEMENTS = 5000
"""How many statements are followed, those of each round of a loop counted."""
STUDY = object()
"""A study that the code will create."""
WAY_OUT = (
    "Set trial.study to the study_name of the study to tune (or its position, for example '1', if it has no "
    "name), so that the others are skipped, or give each study its own script and TuningStudy."
)


def check_only_call(frame: FrameType | None) -> None:
    """Reject a script that will call `optimize` again after the call that a frame is executing.

    Raises:
        TrialFailure: it will; the message names the lines.
    """
    running: Running = {}
    while (
        frame is not None and frame.f_globals.get("__name__") != "multiprocessing.process"
    ):  # not the parent's
        code, frame_of_user = frame.f_code, _is_users(frame.f_code.co_filename)
        if frame_of_user and (not code.co_name.startswith("<") or code.co_name == "<module>"):
            lines: list[int] = []
            with contextlib.suppress(Exception):  # the user's objects, asked for a value, may raise anything
                lines = _repeated(frame, running)
            if lines:
                raise TrialFailure(_failure(Path(code.co_filename).name, lines))
        if frame_of_user:
            running[code] = not _is_function_of_script(frame)
        frame = frame.f_back


def _is_function_of_script(frame: FrameType) -> bool:
    """Return whether a frame runs a function at the script's top level, so no object's and no module's."""
    name = frame.f_code.co_name
    function = _function(frame.f_globals.get(name))
    if getattr(function, "__code__", None) is not frame.f_code:
        return False
    is_method = function.__qualname__ != name  # a variable may have the same name
    return not is_method and frame.f_globals.get("__name__") == "__main__"


def _is_users(file: str) -> bool:
    return not file.startswith((PACKAGE, "<", *LIBRARIES)) and "-packages/" not in file


def _failure(name: str, lines: Sequence[int]) -> Failure:
    where = ", ".join(map(str, lines))
    return Failure(
        "Script",
        f"{name} calls optimize more than once (line {where}), but a TuningStudy runs only one.",
        f"{WAY_OUT} If this is the only call that will be executed, set trial.study as well.",
    )


def _repeated(frame: FrameType, running: Running) -> list[int]:
    """Return the line of the current call and those of later ones; none if it is the only one."""
    scope = _scope(frame.f_code)
    path = list(_path(scope, *_position(frame))) if scope is not None else []
    if scope is None or not path:
        return []
    future = _Future({**frame.f_globals, **frame.f_locals}, running, current=[step[2] for step in path])
    again = future.repeats(path[-1][2])
    leaves: type[ast.stmt] | None = None
    for parent, block, statement in reversed(path):
        leaves = leaves or future.finish(statement) or future.follow(block[block.index(statement) + 1 :])
        if isinstance(parent, LOOPS) and block is parent.body:
            if leaves in (None, ast.Continue):
                again, leaves = future.goes_on(parent) or again, None
            elif leaves is ast.Break:
                leaves = None
        elif isinstance(parent, ast.Try):
            if block is parent.body:
                leaves = None if leaves is ast.Raise and parent.handlers else leaves
                leaves = leaves or future.follow(parent.orelse)
            if block is not parent.finalbody:
                leaves = future.follow(parent.finalbody) or leaves
    return list(dict.fromkeys([frame.f_lineno, *future.lines])) if future.lines or again else []


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
                if not isinstance(statement, (*FUNCTIONS, ast.ClassDef)):
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
    name = ast.Lambda if code.co_name == "<lambda>" else code.co_name
    for node in ast.walk(tree):
        if isinstance(node, FUNCTIONS) and name in (getattr(node, "name", None), type(node)):
            first = min([node.lineno, *(line.lineno for line in getattr(node, "decorator_list", ()))])
            if first == code.co_firstlineno:
                return node
    return None


class _Future:
    """What the code of one function will do, given the values of its variables."""

    def __init__(
        self,
        names: dict[str, Any],
        running: Running,
        depth: int = DEPTH,
        current: Sequence[ast.stmt] = (),
        steps: Iterator[int] | None = None,
    ) -> None:
        self.lines: list[int] = []
        """The lines of the calls that optimize, where they are certain to be executed."""
        self._returned: Any = None
        self._yielded: list[Any] = []
        self._is_certain = True
        """Whether all statements so far were followed that may return, or yield, a value."""
        self._now = Values(dict(names), self._call)
        self._values = Values(names, self._call)
        self._running = running
        self._depth = depth
        self._current = current
        self._steps = itertools.count() if steps is None else steps

    def follow(self, block: Sequence[ast.stmt]) -> type[ast.stmt] | None:
        """Follow a block; return the kind of statement that leaves it, if that is certain."""
        for statement in block:
            if next(self._steps) > MOST_STATEMENTS:
                break
            if statement in self._current[-1:]:
                self.lines.append(statement.lineno)
            leaves = self._follow(statement)
            if leaves:
                return leaves
        return None

    def result(self) -> Any:
        """Return what the function returns, or yields, or UNKNOWN."""
        return (self._yielded or self._returned) if self._is_certain else UNKNOWN

    def finish(self, statement: ast.stmt) -> type[ast.stmt] | None:
        """Follow what is left to do of a statement after a call in it."""
        if isinstance(statement, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
            self._assign(statement, UNKNOWN)
        return type(statement) if isinstance(statement, (ast.Return, ast.Raise)) else None

    def goes_on(self, loop: ast.AST) -> bool:
        """Return whether a loop around the current call will execute it, or another one, again."""
        if isinstance(loop, ast.While):
            return self._values.truth(loop.test) is not False
        items = self._now.items(loop.iter)  # type: ignore[attr-defined]
        if items is None:
            return True
        before = len(self.lines)
        self._loop(loop, items[self._rounds_so_far(loop.target, items) :])  # type: ignore[attr-defined]
        return len(self.lines) > before

    def repeats(self, statement: ast.stmt) -> bool:
        """Return whether a statement calls optimize several times, in a comprehension, by map or in turn."""
        expressions = [node for node in ast.iter_child_nodes(statement) if isinstance(node, ast.expr)]
        for node in (part for expression in expressions for part in ast.walk(expression)):
            if isinstance(node, COMPREHENSIONS) and self._mentions(node):
                rounds = self._now.rounds(node.generators)
                if rounds is None or len(rounds) > 1:
                    return True
            if isinstance(node, ast.Call) and self._maps(node):
                items = self._now.items(node.args[1])
                if items is None or len(items) > 1:
                    return True
        return sum(self._optimizes(part) for node in expressions for part in self._parts(node)) > 1

    def _rounds_so_far(self, target: ast.expr, items: list[Any]) -> int:
        present = self._now.of(target)
        with contextlib.suppress(Exception):  # a comparison of arrays, for example
            return next(i for i, item in enumerate(items, start=1) if item is present or item == present)
        return 1

    def _follow(self, statement: ast.stmt) -> type[ast.stmt] | None:
        """Follow a statement; return the kind of statement that leaves its block, if that is certain."""
        if isinstance(statement, (*FUNCTIONS, ast.ClassDef)):
            self._values.names[statement.name] = statement
            return None
        self._look_into(statement)
        if isinstance(statement, (ast.Return, ast.Raise, ast.Break, ast.Continue)):
            if isinstance(statement, ast.Return) and statement.value is not None:
                self._returned = self._values.of(statement.value)
            return type(statement)
        if isinstance(statement, ast.If):
            return self._branch(statement)
        if isinstance(statement, LOOPS):
            return self._follow_loop(statement)
        if isinstance(statement, ast.Try):
            leaves = self.follow(statement.body)
            leaves = None if leaves is ast.Raise and statement.handlers else leaves
            leaves = leaves or self.follow(statement.orelse)
            return self.follow(statement.finalbody) or leaves
        if isinstance(statement, (ast.With, ast.AsyncWith)):
            return self.follow(statement.body)
        return self._follow_simple(statement)

    def _follow_simple(self, statement: ast.stmt) -> type[ast.stmt] | None:
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            self._import(statement)
        elif isinstance(statement, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
            self._assign(statement, self._assigned(statement))
        elif isinstance(statement, ast.Expr) and self._exits(statement.value):
            return ast.Raise
        return None

    def _assigned(self, statement: ast.Assign | ast.AnnAssign | ast.AugAssign) -> Any:
        if statement.value is None or isinstance(statement, ast.AugAssign):
            return UNKNOWN
        return STUDY if _creates_study(statement.value) else self._values.of(statement.value)

    def _assign(self, statement: ast.Assign | ast.AnnAssign | ast.AugAssign, value: Any) -> None:
        for target in getattr(statement, "targets", None) or [statement.target]:  # type: ignore[union-attr]
            self._values.bind(target, value)

    def _branch(self, statement: ast.If) -> type[ast.stmt] | None:
        known = self._values.truth(statement.test)
        if known is None and statement in self._current:  # the current call is in one of its branches
            known = any(one in self._current for one in statement.body)
        if known is not None:
            return self.follow(statement.body if known else statement.orelse)
        self._skip(statement)
        return None

    def _follow_loop(self, loop: Any) -> type[ast.stmt] | None:
        if isinstance(loop, ast.While):
            known = self._values.truth(loop.test)
            leaves = None if known is False else self.follow(loop.body)
        else:
            items = self._values.items(loop.iter)
            known = items is not None
            leaves = self._loop(loop, [UNKNOWN] if items is None else items)
        if not known or isinstance(loop, ast.While):
            self._skip(loop)
        return leaves if known and leaves in (ast.Return, ast.Raise) else None

    def _skip(self, statement: ast.stmt) -> None:
        """Forget what a statement may change that cannot be followed."""
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                self._values.names[node.id] = UNKNOWN
            self._is_certain &= not isinstance(node, (ast.Return, ast.Yield, ast.YieldFrom))

    def _loop(self, loop: Any, items: list[Any]) -> type[ast.stmt] | None:
        for item in items:
            self._values.bind(loop.target, item)
            before = len(self.lines)
            leaves = self.follow(loop.body)
            if leaves in (ast.Return, ast.Raise):
                return leaves
            if leaves is ast.Break or len(self.lines) > before:
                return None
        return self.follow(loop.orelse)

    def _import(self, statement: ast.Import | ast.ImportFrom) -> None:
        """Look into modules of the user's that are imported for the first time."""
        named = [getattr(statement, "module", None)] if isinstance(statement, ast.ImportFrom) else []
        for name in named or [alias.name for alias in statement.names]:
            if name and name not in sys.modules and self._depth:
                spec = importlib.machinery.PathFinder.find_spec(name)
                tree = _parsed(spec.origin) if spec and spec.origin and _is_users(spec.origin) else None
                module = self._deeper({"__name__": name})
                module.follow(tree.body if tree else [])
                if module.lines:
                    self.lines.append(statement.lineno)

    def _exits(self, node: ast.expr) -> bool:
        """Return whether an expression ends the process."""
        if not isinstance(node, ast.Call):
            return False
        function = self._values.of(node.func)
        return function in (sys.exit, os._exit, os.abort) or type(function).__name__ == "Quitter"

    def _look_into(self, statement: ast.stmt) -> None:
        """Note the calls in a statement, apart from the blocks that it contains."""
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Yield):
            self._yielded.append(self._values.of(statement.value.value or ast.Constant(None)))
        for node in ast.iter_child_nodes(statement):
            for part in self._parts(node) if isinstance(node, (ast.expr, ast.withitem)) else ():
                if self._optimizes(part):
                    self.lines.append(part.lineno)
                if isinstance(part, ast.Attribute) and part.attr not in METHODS:
                    self._forget_changed(part)

    def _forget_changed(self, method: ast.Attribute) -> None:
        """Forget the items of a list, a dict or a set that a method may change."""
        name = getattr(method.value, "id", "")
        if isinstance(self._values.names.get(name), (list, dict, set)):
            self._values.names[name] = UNKNOWN

    def _parts(self, node: ast.AST) -> Iterator[Any]:
        """Yield the calls, and the attributes that may be properties, that are certain to be evaluated."""
        if isinstance(node, ast.Lambda):
            return
        parts: Sequence[ast.AST] = list(ast.iter_child_nodes(node))
        if isinstance(node, ast.IfExp):
            known = self._values.truth(node.test)
            parts = [node.test, *([] if known is None else [node.body if known else node.orelse])]
        elif isinstance(node, ast.BoolOp):
            parts = node.values[:1]
        elif isinstance(node, COMPREHENSIONS) and self._values.rounds(node.generators) == []:
            parts = [node.generators[0].iter]
        if isinstance(node, (ast.Call, ast.Attribute)):
            yield node
        for part in parts:
            yield from self._parts(part)

    def _optimizes(self, node: ast.Call | ast.Attribute) -> bool:
        if isinstance(node, ast.Attribute):
            found = self._values.of(node)
            getter = found.fget if isinstance(found, property) else getattr(found, "func", None)
            is_property = isinstance(found, (property, functools.cached_property))
            return is_property and self._leads_to_optimize(getter)
        function = node.func
        if isinstance(function, ast.Attribute) and function.attr == "optimize":
            study = self._values.of(function.value)
            if study is UNKNOWN:
                return _creates_study(function.value) or "study" in name_of(function.value).lower()
            return study is STUDY or type(study).__name__ == "Study"
        if self._maps(node):
            return self._values.items(node.args[1]) != []
        found = self._values.of(function)
        if found is UNKNOWN and isinstance(function, ast.Attribute):
            return function.attr in {code.co_name for code, maybe in self._running.items() if maybe}
        return self._leads_to_optimize(found, node)

    def _maps(self, call: ast.Call) -> bool:
        """Return whether a call is map(function, items), or the like, of a function that optimizes."""
        if name_of(call.func) not in MAPS or len(call.args) < 2:
            return False
        function = call.args[0]
        return self._leads_to_optimize(
            function if isinstance(function, ast.Lambda) else self._values.of(function)
        )

    def _mentions(self, node: ast.AST) -> bool:
        """Return whether a comprehension leads to the current call."""
        for part in ast.walk(node):
            if isinstance(part, ast.Attribute) and part.attr == "optimize":
                return True
            if isinstance(part, (ast.Name, ast.Attribute)):
                found = self._now.of(part)
                if found is not UNKNOWN and self._leads_to_optimize(found):
                    return True
            if isinstance(part, ast.Call) and self._optimizes(part):
                return True
        return False

    def _leads_to_optimize(self, found: Any, call: ast.Call | None = None) -> bool:
        """Return whether calling an object optimizes: it is running now, or its code does."""
        code = getattr(_function(found), "__code__", None)
        if code is not None and code in self._running:
            return True
        called = self._inside(found, call)
        return called is not None and bool(called.lines)

    def _call(self, found: Any, call: ast.Call) -> Any:
        """Return what a function of the user's returns, if that is easily seen."""
        code = getattr(_function(found), "__code__", None)
        called = None if inspect.isclass(found) or code in self._running else self._inside(found, call)
        return UNKNOWN if called is None else called.result()

    def _inside(self, found: Any, call: ast.Call | None) -> _Future | None:
        """Return what a function of the user's does; None for others."""
        scope: Any = found
        names = dict(self._values.names)
        if not isinstance(found, FUNCTIONS):  # those will be defined by then
            function = _function(found)
            if not inspect.isfunction(function) or not _is_users(function.__code__.co_filename):
                return None
            scope = _scope(function.__code__)
            names = {**function.__globals__, **_closure(function)}
        if scope is None or not self._depth:
            return None
        inside = self._deeper({**names, **self._parameters(found, scope, call)})
        inside.follow(scope.body if isinstance(scope.body, list) else [ast.Return(scope.body)])
        return inside

    def _deeper(self, names: dict[str, Any]) -> _Future:
        return _Future(names, self._running, self._depth - 1, steps=self._steps)

    def _parameters(self, found: Any, scope: Any, call: ast.Call | None) -> dict[str, Any]:
        """Return the parameters of a function, with their values in a call as far as these are known."""
        parts = scope.args
        all_parts = [*parts.posonlyargs, *parts.args, *parts.kwonlyargs, parts.vararg, parts.kwarg]
        parameters = {part.arg: UNKNOWN for part in all_parts if part is not None}
        if call is None or isinstance(found, ast.AST):
            return parameters
        given = [self._values.of(argument) for argument in call.args]
        named = {str(keyword.arg): self._values.of(keyword.value) for keyword in call.keywords}
        if isinstance(found, functools.partial):
            given, named = [*found.args, *given], {**found.keywords, **named}
        elif next(iter(parameters), None) in ("self", "cls"):
            owner = call.func.value if isinstance(call.func, ast.Attribute) else None
            given.insert(0, found if owner is None else self._values.of(owner))
        with contextlib.suppress(TypeError, ValueError):
            arguments = inspect.signature(_function(found)).bind_partial(*given, **named)
            arguments.apply_defaults()
            parameters.update(arguments.arguments)
        return parameters


def _function(found: Any) -> Any:
    """Return the function that runs when an object is called."""
    while isinstance(found, functools.partial):
        found = found.func
    if inspect.isclass(found):
        found = found.__init__
    elif not inspect.isroutine(found) and callable(found):
        found = type(found).__call__
    found = getattr(found, "__func__", found)
    return inspect.unwrap(found) if callable(found) else found


def _closure(function: Any) -> dict[str, Any]:
    """Return the variables of the functions around a function, as far as they have a value yet."""
    found = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or ()):
        with contextlib.suppress(ValueError):  # it is empty
            found[name] = cell.cell_contents
    return found


def _creates_study(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and name_of(node.func) in ("create_study", "load_study")
