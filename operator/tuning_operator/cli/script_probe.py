"""What an Optuna script asks for: it runs up to its `optimize`, with the user's own Python."""

import shutil
import subprocess
import tempfile
from pathlib import Path

from tuning_operator.cli.asked_study import AskedStudy, Probed
from tuning_operator.cli.errors import PluginError
from tuning_operator.protocol import Failure
from tuning_operator.resource.trainer_archive import trainer_archive

STDERR = 2
"""The file descriptor: standard output is for what the command itself has to say."""


def probe(script: Path, python: str | None) -> AskedStudy:
    """Run a script up to its `optimize`; what it prints goes to standard error. Raises PluginError."""
    program = _python(python)
    with tempfile.TemporaryDirectory(prefix="kubectl-tuning-") as folder:
        trainer, told = Path(folder, "trainer.zip"), Path(folder, "study.json")
        trainer.write_bytes(trainer_archive().content)
        command = [program, str(trainer), "init", "--output", str(told), str(script)]
        done = subprocess.run(command, stdout=STDERR, check=False)  # noqa: S603
        if not told.exists():
            raise PluginError(f"{program} could not run {script}: it ended with exit code {done.returncode}")
        probed = Probed.model_validate_json(told.read_bytes())
    if probed.study is None:
        raise PluginError(_told(script, program, probed.failure))
    return probed.study


def _python(wanted: str | None) -> str:
    names = [wanted] if wanted else ["python", "python3"]
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        raise PluginError(f"there is no {names[0]} here: say with --python which Python runs your script")
    return found


def _told(script: Path, python: str, failure: Failure | None) -> str:
    if failure is None:
        return f"{script} was run by {python}, and nothing is known of its study"
    lines = [f"{script}, run by {python}: {failure.message}", failure.remedy, failure.traceback]
    if "ModuleNotFoundError" in failure.message:
        lines.append("Say with --python which Python has what the script imports")
    return "\n".join(line.rstrip() for line in lines if line)
