"""What the fork server imports before it forks, and what a forked trial must not share with the others.

Modules of other packages come first, then the user's own: so it is known whether the user's code has seeded
the global random number generators when it was imported. If it has not, each trial gets a new seed.
A package may read variables when it is imported: those that the user's code sets before are set first.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import os
import random
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from tuning_trainer.failure import TrialFailure
from tuning_trainer.modes.objective import fewer_collections, import_objective, prepare_path
from tuning_trainer.modes.script import find_script

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CUDA_ERROR_NOT_INITIALIZED = 3
"""What CUDA answers in a process that was forked from one that had used it."""
USED_LATER = {"torch": "torch._dynamo"}
"""What a package imports at its first use: for PyTorch's first optimizer, this takes more than a second."""

OPENMP_SECONDS = 5
"""How long a forked process may take to start the threads of OpenMP."""
WITH_GENERATORS = ("numpy", "torch")
"""Packages whose state must be known before the user's code runs."""
CHANGES = ("__setitem__", "setdefault", "update")
"""Methods of os.environ that can be called ahead, with the arguments that the code has literally."""
CHANGED_THROUGH = {"environ", "environb", "putenv", "unsetenv"}
READS = {"get", "copy", "items", "keys", "values"}
"""Methods of os.environ that change nothing."""


class Preloaded:
    """The user's code, imported."""

    def __init__(self, mode: str, arguments: list[str], source: str | None) -> None:
        """Import what a trial imports. Errors are left to the trials."""
        os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # torch.cuda.is_available without CUDA
        folders = [Path(folder) for folder in (source, os.getcwd()) if folder]  # noqa: PTH109
        if mode == "objective":
            prepare_path(source)
            module = arguments[0].partition(":")[0]
            _import_all(_foreign_modules(_find(module, folders), folders))
            before = _states()
            import_objective(arguments[0])
        else:
            with contextlib.suppress(TrialFailure):
                script = find_script(arguments[0], source)
                _import_all(_foreign_modules(script, [script.parent, *folders]))
            before = _states()
        after = _states()
        self._seeded = {
            name: state
            for name, state in after.items()
            if name in before and _plain(state) != _plain(before[name])
        }
        self.obstacle = _obstacle()
        """Why no trial can be forked from this process; None: it can."""

    def reseed(self) -> None:
        """Give a forked process random numbers of its own, or the user's seeds."""
        for name, (_, set_state, seed) in _generators().items():
            if name in self._seeded:
                set_state(self._seeded[name])
            else:
                seed()


def _obstacle() -> str | None:
    if threading.active_count() > 1:
        return "starts threads"
    if _uses_cuda():
        return "uses CUDA"
    if _uses_openmp():
        return "uses OpenMP"
    return None


def _uses_openmp() -> bool:
    """Return whether forked processes would wait for threads that they do not have, by having one try.

    GNU's OpenMP keeps its threads once the code has used them, and a fork does not copy them: a trial's first
    parallel loop would never end. Other runtimes (LLVM's, Intel's) and pools (Arrow's) start theirs again.
    """
    libraries = _loaded_libraries("libgomp")
    if not libraries:
        return False
    answer, answers = os.pipe()
    pid = os.fork()
    if pid == 0:
        _try_openmp(libraries, answers)
    os.close(answers)
    with open(answer, "rb") as pipe:  # noqa: PTH123
        works = bool(pipe.read())
    with contextlib.suppress(ChildProcessError):  # the user's code ignores SIGCHLD, or awaits all processes
        os.waitpid(pid, 0)
    return not works


def _loaded_libraries(name: str) -> set[str]:
    """Return the files of the loaded libraries whose names start like this; none where there is no /proc."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return set()
    mapped = {line.split(maxsplit=5)[-1] for line in lines}
    return {file for file in mapped if Path(file).name.startswith(name)}


def _try_openmp(libraries: set[str], answers: int) -> NoReturn:
    """Run a parallel loop that does nothing with each library; then answer."""
    try:
        import ctypes
        import signal

        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(OPENMP_SECONDS)
        nothing = ctypes.cast(ctypes.CDLL(None).free, ctypes.c_void_p)
        for library in libraries:
            ctypes.CDLL(library).GOMP_parallel(nothing, None, 2, 0)
        os.write(answers, b".")
    finally:
        os._exit(0)


def _uses_cuda() -> bool:
    """Return whether a forked process could not use CUDA, by having one try.

    Open files don't show it: NVML, which only looks for GPUs, opens the same ones.
    """
    if not _loaded_libraries("libcuda.so"):
        return False
    pid = os.fork()
    if pid == 0:
        _try_cuda()
    _, status = os.waitpid(pid, 0)
    return status != 0


def _try_cuda() -> NoReturn:
    code = 0
    try:
        import ctypes

        code = ctypes.CDLL("libcuda.so.1").cuInit(0)
    finally:
        os._exit(code == CUDA_ERROR_NOT_INITIALIZED)


def _generators() -> dict[str, tuple[Callable[[], Any], Callable[[Any], Any], Callable[[], Any]]]:
    """Return how to get and set the state of each global generator that is loaded, and how to seed it."""
    found: dict[str, Any] = {"random": (random.getstate, random.setstate, random.seed)}
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    with contextlib.suppress(AttributeError):
        if numpy is not None:
            numbers = numpy.random  # loaded by its first use
            found["numpy"] = numbers.get_state, numbers.set_state, numbers.seed
    with contextlib.suppress(AttributeError):
        if torch is not None:
            generator = torch.default_generator
            found["torch"] = generator.get_state, generator.set_state, generator.seed
    return found


def _states() -> dict[str, Any]:
    return {name: get_state() for name, (get_state, _, _) in _generators().items()}


def _plain(state: Any) -> Any:
    """Return a state, which may have arrays or be a tensor, in a form that can be compared."""
    if isinstance(state, tuple):
        return tuple(map(_plain, state))
    return state.tolist() if hasattr(state, "tolist") else state


def _import_all(names: Iterator[str]) -> None:
    for name in names:
        with contextlib.suppress(BaseException), fewer_collections():  # a trial that needs it will say so
            importlib.import_module(name)
    for package, later in USED_LATER.items():
        if package in sys.modules:
            with contextlib.suppress(BaseException), fewer_collections():
                importlib.import_module(later)


def _foreign_modules(file: Path | None, folders: list[Path]) -> Iterator[str]:
    """Yield the modules that a file imports at its top level, directly or through others of these folders.

    They come in order, each once the variables are set that the code sets before it; at the end, these are
    what they were. After a statement that may set variables of unknown values, only packages with generators
    come.
    """
    files, seen, foreseen = [_steps(file)] if file else [], {file}, True
    given: dict[str, str | None] = {}
    while files:
        step = next(files[-1], None)
        if step is None:
            files.pop()
        elif isinstance(step, ast.stmt):
            foreseen = foreseen and _foresee(step, given)
        elif (own := _find(step, folders)) is None:
            if foreseen or step.partition(".")[0] in WITH_GENERATORS:
                yield step
        elif own not in seen:
            seen.add(own)
            files.append(_steps(own))
    for name, value in given.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


def _steps(file: Path) -> Iterator[str | ast.stmt]:
    """Yield the modules that a file imports at its top level, and its other statements."""
    with contextlib.suppress(OSError, SyntaxError, ValueError):
        for node in ast.parse(file.read_bytes()).body:
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif not isinstance(node, ast.ImportFrom):
                yield node
            elif node.module and not node.level:
                yield node.module


def _foresee(statement: ast.stmt, given: dict[str, str | None]) -> bool:
    """Set the variables that a statement sets; return False if it may set others, of unknown values.

    Adds to `given` what they were before, None if they were not set.
    """
    if not _may_set(statement):
        return True
    try:
        owner, method, arguments, named = _call(statement)
        if ast.unparse(owner) not in ("os.environ", "environ") or method not in CHANGES:
            return False
        values = {name: ast.literal_eval(value) for name, value in named.items()}
        changed = dict(os.environ)
        getattr(changed, method)(*map(ast.literal_eval, arguments), **values)
        for name in [name for name in changed if changed[name] != os.environ.get(name)]:
            given.setdefault(name, os.environ.get(name))
            os.environ[name] = changed[name]
    except (AttributeError, TypeError, ValueError):
        return False
    return True


def _may_set(statement: ast.stmt) -> bool:
    """Return whether a statement uses the environment other than to read it."""
    nodes = list(ast.walk(statement))
    read = {part for node in nodes for part in _parts_read(node)}
    return any(_name(node) in CHANGED_THROUGH and node not in read for node in nodes)


def _parts_read(node: ast.AST) -> list[ast.expr]:
    """Return the parts of an expression which it reads, and neither changes nor passes on."""
    if isinstance(node, ast.Compare):
        return node.comparators
    if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
        return [node.value]
    if isinstance(node, ast.Attribute) and node.attr in READS:
        return [node.value]
    return []


def _name(node: ast.AST) -> str | None:
    return getattr(node, "attr", getattr(node, "id", None))


def _call(statement: Any) -> tuple[ast.expr, str, list[ast.expr], dict[str, ast.expr]]:
    """Return a statement as the call of a method. Raises AttributeError, TypeError or ValueError."""
    if isinstance(statement, ast.Assign):
        target: Any
        (target,) = statement.targets
        return target.value, "__setitem__", [target.slice, statement.value], {}
    if not isinstance(statement, ast.Expr):
        raise TypeError
    call: Any = statement.value
    return (
        call.func.value,
        call.func.attr,
        call.args,
        {keyword.arg: keyword.value for keyword in call.keywords},
    )


def _find(name: str, folders: list[Path]) -> Path | None:
    """Return the file of a module in one of these folders."""
    for folder in folders:
        path = folder.joinpath(*name.split("."))
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                return file
    return None
