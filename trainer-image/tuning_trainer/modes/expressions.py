"""The values that expressions of the user's code have now, as far as computing them has no effects."""

from __future__ import annotations

import ast
import builtins
import inspect
import itertools
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

UNKNOWN = object()
PLAIN = (str, int, float, bool, bytes, list, tuple, dict, set, frozenset, range, type(None), type(os.environ))
"""Types whose operators run no code of the user's. Classes derived from them may."""
ITERABLE: tuple[Any, ...] = (
    *(list, tuple, dict, set, frozenset, range, str, enumerate, zip, reversed, itertools.product),
    itertools.islice,
    *(type({}.items()), type({}.keys()), type({}.values()), type(reversed([]))),
)
FUNCTIONS = (
    *(all, any, bool, dict, enumerate, float, frozenset, int, len, list, max, min, range, reversed, set),
    *(sorted, str, sum, tuple, zip, itertools.product, itertools.islice, os.getenv),
)
METHODS = (
    *("casefold", "copy", "count", "endswith", "get", "index", "items", "join", "keys", "lower", "replace"),
    *("rsplit", "split", "splitlines", "startswith", "strip", "upper", "values"),
)
"""Methods of plain objects that change nothing."""
MOST_ITEMS = 1000
PROGRESS = ("tqdm", "track", "progress_bar")
"""Functions that show a progress bar and yield the items that they get."""
CONTAINERS = (ast.Dict, ast.List, ast.Set, ast.Tuple)
OPERATIONS = (ast.BinOp, ast.Compare, ast.JoinedStr, ast.Subscript, ast.UnaryOp)
PARTS = (ast.FormattedValue, ast.Slice, ast.Starred)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


class Values:
    """The variables of a function, and what follows from them."""

    def __init__(self, names: dict[str, Any], call: Callable[[Any, ast.Call], Any]) -> None:
        """Take the variables; `call` returns what a function of the user's code returns, or UNKNOWN."""
        self.names = names
        self._call = call

    def of(self, node: ast.expr) -> Any:
        """Return the value of an expression, or UNKNOWN."""
        try:
            return self._of(node)
        except Exception:  # noqa: BLE001  raised again when the code itself gets there
            return UNKNOWN

    def truth(self, test: ast.expr) -> bool | None:
        """Return whether a condition holds, or None if that is unknown."""
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            inner = self.truth(test.operand)
            return None if inner is None else not inner
        if isinstance(test, ast.BoolOp):
            decisive = isinstance(test.op, ast.Or)
            parts = [self.truth(part) for part in test.values]
            return decisive if decisive in parts else None if None in parts else not decisive
        found = self.of(test)
        return bool(found) if isinstance(found, PLAIN) else None

    def items(self, node: ast.expr) -> list[Any] | None:
        """Return what an iterable yields (of very many items, the first ones), or None if that is unknown."""
        if isinstance(node, ast.Call) and name_of(node.func) in PROGRESS and node.args:
            return self.items(node.args[0])
        if isinstance(node, (ast.ListComp, ast.SetComp, ast.GeneratorExp)):
            rounds = self.rounds(node.generators)
            return None if rounds is None else [one.of(node.elt) for one in rounds]
        found = self.of(node)
        return list(itertools.islice(found, MOST_ITEMS)) if type(found) in ITERABLE else None

    def rounds(self, generators: list[ast.comprehension]) -> list[Values] | None:
        """Return the variables in each round of a comprehension, or None if they are unknown."""
        rounds = list(self._rounds(generators))
        return None if None in rounds else [one for one in rounds if one]

    def bind(self, target: ast.expr, value: Any) -> None:
        """Assign a value, which may be UNKNOWN, to a target's variables."""
        if isinstance(target, ast.Name):
            self.names[target.id] = value
        elif isinstance(target, ast.Starred):
            self.bind(target.value, UNKNOWN)
        elif isinstance(target, (ast.Tuple, ast.List)):
            fits = isinstance(value, (tuple, list)) and len(value) == len(target.elts)
            for position, part in enumerate(target.elts):
                self.bind(part, value[position] if fits else UNKNOWN)

    def _rounds(self, generators: list[ast.comprehension]) -> Iterator[Values | None]:
        if not generators:
            yield self
            return
        first, *others = generators
        items = self.items(first.iter)
        for item in [UNKNOWN] if items is None else items:
            inner = Values(dict(self.names), self._call)
            inner.bind(first.target, item)
            holds = [inner.truth(test) for test in first.ifs]
            if items is None or (None in holds and False not in holds):
                yield None
            elif all(holds):
                yield from inner._rounds(others)

    def _of(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Name):
            return self.names.get(node.id, getattr(builtins, node.id, UNKNOWN))
        if isinstance(node, ast.Attribute):
            return self._attribute(node)
        if isinstance(node, ast.IfExp):
            known = self.truth(node.test)
            return UNKNOWN if known is None else self._of(node.body if known else node.orelse)
        if isinstance(node, ast.BoolOp):
            return self._first_decisive(node)
        if isinstance(node, ast.Call):
            return self._called(node)
        if isinstance(node, (ast.ListComp, ast.SetComp)):
            items = self.items(node)
            return UNKNOWN if items is None else items
        return self._computed(node) if isinstance(node, (*CONTAINERS, *OPERATIONS)) else UNKNOWN

    def _attribute(self, node: ast.Attribute) -> Any:
        owner = self._of(node.value)
        if owner is UNKNOWN and isinstance(node.value, ast.Call):  # of an object that is created in place
            made = self._of(node.value.func)
            owner = made if inspect.isclass(made) else UNKNOWN
        return UNKNOWN if owner is UNKNOWN else inspect.getattr_static(owner, node.attr, UNKNOWN)

    def _first_decisive(self, node: ast.BoolOp) -> Any:
        found = UNKNOWN
        for part in node.values:
            found = self._of(part)
            if not isinstance(found, PLAIN):
                return UNKNOWN
            if bool(found) == isinstance(node.op, ast.Or):
                break
        return found

    def _called(self, node: ast.Call) -> Any:
        if isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
            owner = self._of(node.func.value)
            if type(owner) in PLAIN:
                return self._result(getattr(owner, node.func.attr), node)
        function = self._of(node.func)
        if any(function is known for known in FUNCTIONS):
            return self._result(function, node)
        return self._call(function, node)

    def _result(self, function: Callable[..., Any], node: ast.Call) -> Any:
        arguments = [self._of(argument) for argument in node.args]
        named = {str(keyword.arg): self._of(keyword.value) for keyword in node.keywords}
        plain = all(type(one) in (*PLAIN, *ITERABLE) for one in (*arguments, *named.values()))
        return function(*arguments, **named) if plain else UNKNOWN

    def _computed(self, node: ast.expr) -> Any:
        """Return the result of an operation on values."""
        operands: dict[str, Any] = {}
        identity = isinstance(node, ast.Compare) and all(
            isinstance(op, (ast.Is, ast.IsNot)) for op in node.ops
        )
        kinds: Any = object if identity or isinstance(node, CONTAINERS) else PLAIN

        def filled(part: Any) -> Any:
            if isinstance(part, list):
                return [filled(one) for one in part]
            if part is node or isinstance(part, PARTS):
                return type(part)(**{name: filled(field) for name, field in ast.iter_fields(part)})
            if not isinstance(part, ast.expr):
                return part
            found = self._of(part)
            if found is UNKNOWN or not isinstance(found, kinds):
                raise LookupError
            operand = f"operand{len(operands)}"
            operands[operand] = found
            return ast.Name(operand, ast.Load())

        expression = ast.fix_missing_locations(ast.Expression(filled(node)))
        return eval(compile(expression, "", "eval"), {"__builtins__": {}}, operands)  # noqa: S307


def name_of(function: ast.expr) -> str:
    """Return the name of a function or method in a call."""
    return getattr(function, "attr", None) or getattr(function, "id", None) or ""
