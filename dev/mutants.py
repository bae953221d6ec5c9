"""Mutation testing: plant small faults in kube/ and studies/, one at a time, and see whether unit tests fail.

Cosmic Ray makes the faults, in copies of the repository. Only those tests are started that execute the faulty
statement. The sample depends on the seed and on the faulty lines, so a change elsewhere in the code leaves it
as it is.
"""

import compileall
import difflib
import os
import py_compile
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Annotated, Any, NamedTuple

import typer
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Example, Operator
from cosmic_ray.plugins import get_operator, operator_names
from coverage import CoverageData
from parso import parse
from rich.console import Console
from rich.progress import track

ROOT = Path(__file__).parents[1]
PACKAGE, HALVES = Path("operator/tuning_operator"), ("kube", "studies")
KINDS = re.compile(
    r"core/(AddNot|NumberReplacer|ReplaceTrueWithFalse|ReplaceFalseWithTrue|ReplaceAndWithOr|ReplaceOrWithAnd"
    r"|ReplaceBreakWithContinue|ReplaceContinueWithBreak|ZeroIterationForLoop|ReplaceUnaryOperator_Delete_Not"
    r"|ReplaceBinaryOperator_(Add_Sub|Sub_Add|Mul_Div|Div_Mul)"
    r"|ReplaceComparisonOperator_(Eq_NotEq|NotEq_Eq|Is_IsNot|IsNot_Is|LtE?_GtE?|GtE?_LtE?|LtE?_LtE?|GtE?_GtE?))"
)
"""Faults that people make. Others, such as `+` for `|`, fail wherever they are executed."""
FOR_READERS = re.compile(r"f\"|log\.|logging\.|@?dataclass\(")
"""What users, operators and type checkers read: messages, logs, `frozen`."""
COPIES = 2
TEST_SECONDS, MUTANT_SECONDS = 60, 900
"""Time limits. A fault that makes a test hang is noticed."""


class DropCall(Operator):
    """Removes a statement that is only a call."""

    def mutation_positions(self, node: Any) -> Iterator[tuple[Any, Any]]:
        """Yield the place of such a statement."""
        if node.type == "atom_expr" and node.parent.type == "simple_stmt" and node.get_code().endswith(")"):
            yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> Any:  # noqa: ARG002
        """Return `pass`."""
        return parse(f"{node.get_first_leaf().prefix}pass")

    @classmethod
    def examples(cls) -> Sequence[Example]:
        """Return an example."""
        return (Example("f(1)", "pass"),)


OPERATORS = [DropCall(), *(get_operator(name)() for name in operator_names() if KINDS.fullmatch(name))]


class Fault(NamedTuple):
    """How a file can be made faulty: by an operator, at one of its places."""

    path: Path
    original: str
    lines: range  # of the statement
    operator: Operator
    occurrence: int

    def code(self) -> str:
        """Return the faulty file."""
        return str(mutate_code(self.original, self.operator, self.occurrence))

    def __str__(self) -> str:
        original, faulty = self.original.splitlines(), self.code().splitlines()
        diff = list(difflib.unified_diff(original, faulty, lineterm="", n=1))[3:]
        return "\n".join([f"{self.path}:{self.lines.start}", *diff, ""])


def places(path: Path) -> Iterator[tuple[str, list[Fault]]]:
    """Yield each place of a file that can be faulty, by its line's text, with its possible faults."""
    code = (ROOT / path).read_text()
    found: defaultdict[tuple[int, int], list[Fault]] = defaultdict(list)
    nodes = list(ast_nodes(get_ast(code)))
    for operator in OPERATORS:
        positions = ((node, start) for node in nodes for start, _ in operator.mutation_positions(node))
        for occurrence, (node, start) in enumerate(positions):
            statement = node.search_ancestor("simple_stmt") or node
            if not any(FOR_READERS.match(parent.get_code(False)) for parent in _expressions(node)):
                lines = range(statement.start_pos[0], statement.end_pos[0] + 1)
                found[start].append(Fault(path, code, lines, operator, occurrence))
    same: Counter[str] = Counter()
    for (line, _), faults in sorted(found.items()):
        text = f"{path} {code.splitlines()[line - 1].strip()}"
        same[text] += 1
        yield f"{text} {same[text]}", faults


def _expressions(node: Any) -> Iterator[Any]:
    """Yield a node and the expressions around it."""
    while node and node.type not in ("simple_stmt", "suite", "file_input"):
        yield node
        node = node.parent


def sample(size: int, seed: int) -> list[Fault]:
    """Return faults in different places. Each place has the same chance, however many faults it can have."""
    drawn = []
    for path in (path for half in HALVES for path in (ROOT / PACKAGE / half).rglob("*.py")):
        for name, faults in places(path.relative_to(ROOT)):
            draw = random.Random(f"{seed} {name}")
            drawn.append((draw.random(), name, draw.choice(faults)))
    return [fault for _, _, fault in sorted(drawn, key=lambda found: found[:2])[:size]]


class Copy:
    """A copy of the repository in which files can be changed."""

    def __init__(self, folder: Path) -> None:
        ignored = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache", ".hypothesis")
        self.root, self._temporary = shutil.copytree(ROOT, folder / "copy", ignore=ignored), folder / "tmp"
        self._temporary.mkdir()
        # Otherwise Python may use the compiled file of another version that has the same size and time.
        by_content = py_compile.PycInvalidationMode.CHECKED_HASH
        compileall.compile_dir(self.root / "operator", quiet=2, invalidation_mode=by_content)

    def pytest(self, *arguments: str, seconds: float) -> tuple[int, str]:
        """Run tests; return pytest's exit code and output."""
        paths = os.pathsep.join(str(self.root / name) for name in ("operator", "trainer-image"))
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
        environment = os.environ | {"PYTHONPATH": paths, "TMPDIR": str(self._temporary)}
        done = subprocess.run(
            command, cwd=self.root, env=environment, capture_output=True, text=True, timeout=seconds
        )
        return done.returncode, done.stdout + done.stderr

    def coverage(self) -> "Coverage":
        """Run all tests, without a fault."""
        measured = [f"--cov={PACKAGE / half}" for half in HALVES]
        options = ["-n", str(COPIES), *measured, "--cov-context=test", "--cov-report="]
        code, output = self.pytest(*(f"tests/unit/{half}" for half in HALVES), *options, seconds=3600)
        if code:
            sys.exit(f"The tests fail without a fault:\n{output}")
        data = CoverageData(str(self.root / ".coverage"))
        data.read()
        return Coverage(self.root, data)

    def notices(self, fault: Fault, tests: Sequence[str]) -> bool:
        """Return whether one of the tests fails because of a fault."""
        file, listed = self.root / fault.path, self._temporary / "tests"
        listed.write_text("\n".join(tests))
        file.write_text(fault.code())
        try:
            code, output = self.pytest(
                "-x", f"--timeout={TEST_SECONDS}", f"@{listed}", seconds=MUTANT_SECONDS
            )
        except subprocess.TimeoutExpired:
            return True
        finally:
            file.write_text(fault.original)
        if code > 1 and not re.search("ERROR collecting|while loading conftest|from pytest-timeout", output):
            sys.exit(f"pytest failed by itself:\n{output}")
        return code != 0


class Coverage:
    """Which tests run which lines."""

    def __init__(self, root: Path, data: CoverageData) -> None:
        self._lines: dict[Path, dict[int, set[str]]] = {}
        for name in data.measured_files():
            self._lines[Path(name).relative_to(root)] = {
                line: {context.rpartition("|")[0] for context in contexts if context}
                for line, contexts in data.contexts_by_lineno(name).items()
            }
        self._size = Counter(
            test for lines in self._lines.values() for found in lines.values() for test in found
        )

    def tests(self, fault: Fault) -> list[str]:
        """Return the tests that can notice a fault, the most specific first.

        Only an import runs a constant's line: then, all tests of this half of the operator can notice it.
        """
        lines = self._lines.get(fault.path, {})
        half, near = f"tests/unit/{fault.path.parts[2]}/", set().union(*lines.values())
        covering = set().union(*(lines.get(line, ()) for line in fault.lines))
        found = covering or {test for test in self._size if test.startswith(half)}
        return sorted(found, key=lambda test: (test not in near, self._size[test], test))


def main(
    size: Annotated[int, typer.Option(help="How many faults to try.")] = 100,
    seed: Annotated[int, typer.Option(help="Another seed gives another sample.")] = 8,
    least: Annotated[int, typer.Option(help="How many percent must be noticed.")] = 95,
) -> None:
    """Show which faults the unit tests don't notice."""
    console, faults = Console(soft_wrap=True, highlight=False), sample(size, seed)
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # if the user is root, Postgres runs as another one
        copies: SimpleQueue[Copy] = SimpleQueue()
        made = [Copy(folder / str(number)) for number in range(COPIES)]
        coverage = made[0].coverage()
        for copy in made:
            copies.put(copy)

        def is_noticed(fault: Fault) -> bool:
            copy = copies.get()
            noticed = copy.notices(fault, coverage.tests(fault))
            copies.put(copy)
            if not noticed:
                console.print(str(fault), markup=False)
            return noticed

        pool = ThreadPoolExecutor(COPIES)
        try:
            tried = track(pool.map(is_noticed, faults), "Faults tried", size, console=console)
            noticed = sum(tried)
        finally:
            pool.shutdown(cancel_futures=True)
    console.print(f"{noticed} of {len(faults)} faults were noticed (seed {seed}).")
    sys.exit(100 * noticed < least * len(faults))


if __name__ == "__main__":
    typer.run(main)
