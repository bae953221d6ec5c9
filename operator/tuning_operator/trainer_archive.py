"""The trainer runtime as a zip file that Python can run; it is mounted from a ConfigMap."""

import ast
import hashlib
import io
import re
import zipfile
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from typing import NamedTuple

PACKAGE = "tuning_trainer"
START = b"from tuning_trainer.__main__ import start\n\nstart()\n"
STRING_OR_COMMENT = re.compile(r"""("{3}|'{3}|"|')(?:\\.|(?!\1).)*\1|[ \t]*#[^\n]*""", re.DOTALL)
"""Python's own tokenizer takes many times as long, at each start of the operator and of `tuning run`."""
EPOCH = (1980, 1, 1, 0, 0, 0)  # fixed (the oldest time in a zip), so that the same files give the same bytes


class TrainerArchive(NamedTuple):
    """The runtime's zip file."""

    content: bytes
    digest: str
    """SHA-256 of the content, in hexadecimal."""


@cache
def trainer_archive() -> TrainerArchive:
    """Return the archive of the installed runtime, which is always the same bytes."""
    files = {f"{PACKAGE}/{name}": content for name, content in _sources(resources.files(PACKAGE)).items()}
    content = _zip({"__main__.py": START, **files})
    return TrainerArchive(content, hashlib.sha256(content).hexdigest())


def _sources(folder: Traversable) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for entry in folder.iterdir():
        if entry.is_dir():
            found |= {f"{entry.name}/{name}": content for name, content in _sources(entry).items()}
        elif entry.name.endswith(".py"):
            found[entry.name] = _without_comments(entry.read_text()).encode()
    return found


def _without_comments(source: str) -> str:
    """Return the code without comments and docstrings; each line keeps its number, for tracebacks."""
    lines = STRING_OR_COMMENT.sub(lambda found: found[0] if found[1] else "", source).split("\n")
    for node in _statements(ast.parse(source).body):
        match node:
            case ast.Expr(
                value=ast.Constant(value=str()), lineno=first, end_lineno=int(last), col_offset=column
            ):
                lines[first - 1 : last] = [f'{" " * column}""', *[""] * (last - first)]
    return "\n".join(lines)


def _statements(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """Yield all statements, also nested ones, but no expressions: `ast.walk` takes ten times as long."""
    for node in nodes:
        yield node
        for field in ("body", "orelse", "finalbody", "handlers", "cases"):
            nested = getattr(node, field, None)
            if isinstance(nested, list):
                yield from _statements(nested)


def _zip(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, files[name], zipfile.ZIP_DEFLATED, compresslevel=9)
    return buffer.getvalue()
