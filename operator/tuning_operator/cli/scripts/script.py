"""An Optuna script: the study that it creates, and the modules beside it that it imports."""

import ast
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tuning_operator.cli import PluginError
from tuning_operator.cli.scripts.manifest import ScriptStudy
from tuning_operator.protocol import Failure
from tuning_operator.resource.study import Model
from tuning_operator.trainer_archive import trainer_archive

STDERR = 2
"""The file descriptor; standard output is reserved for the output of the command."""


class Probed(Model):
    """The output of the trainer runtime's mode `init`: either study or failure is set."""

    script: str
    python: str
    optuna: str | None = None
    failure: Failure | None = None
    study: ScriptStudy | None = None


def probe(
    script: Path, python: str | None, study: str | None = None, arguments: Sequence[str] = ()
) -> ScriptStudy:
    """Run a script up to its `optimize`; its output goes to standard error. Raises PluginError."""
    program = _python(python)
    with tempfile.TemporaryDirectory(prefix="kubectl-tuning-") as folder:
        trainer, output = Path(folder, "trainer.zip"), Path(folder, "study.json")
        trainer.write_bytes(trainer_archive().content)
        choice = ["--study", study] if study else []
        command = [program, str(trainer), "init", "--output", str(output), *choice, str(script), *arguments]
        done = subprocess.run(command, stdout=STDERR, check=False)  # noqa: S603
        if not output.exists():
            raise PluginError(f"{program} could not run {script}: it exited with code {done.returncode}")
        probed = Probed.model_validate_json(output.read_bytes())
    if probed.study is None:
        raise PluginError(_failure_message(script, program, probed.failure))
    return probed.study


def _python(wanted: str | None) -> str:
    names = [wanted] if wanted else ["python", "python3"]
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        raise PluginError(f"{names[0]} not found: use --python to choose the Python that runs the script")
    return found


def _failure_message(script: Path, python: str, failure: Failure | None) -> str:
    if failure is None:
        return f"{python} ran {script}, but the script reported no study"
    remedy = failure.remedy
    if failure.category == "ModuleNotFound":  # its remedy is for a trial
        remedy = "Use --python to choose the Python that has the script's dependencies"
    lines = [f"{script} failed with {python}: {failure.message}", remedy, failure.traceback]
    return "\n".join(line.rstrip() for line in lines if line)


def local_modules(script: Path) -> tuple[list[str], list[str]]:
    """Return (files, folders) beside the script that it imports, directly or indirectly.

    Folders are packages, which a ConfigMap can't hold.

    Raises:
        SyntaxError: a file is not valid Python.
    """
    folder = script.parent
    files: list[str] = []
    packages: list[str] = []
    pending = [script]
    while pending:
        for module in _imported(pending.pop()):
            file = folder / f"{module}.py"
            if file.is_file() and file != script and file.name not in files:
                files.append(file.name)
                pending.append(file)
            elif (folder / module).is_dir() and any((folder / module).glob("*.py")):
                packages.append(module)
    return sorted(files), sorted(set(packages))


def _imported(file: Path) -> list[str]:
    """Return the top-level names of all imports in a file."""
    found: list[str] = []
    for node in ast.walk(ast.parse(file.read_bytes(), str(file))):
        if isinstance(node, ast.Import):
            found += [alias.name.split(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.append(node.module.split(".")[0])
    return found
