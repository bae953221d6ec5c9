"""The working directory: the files of trial.source are in it, and the trial's code can write to it."""

from __future__ import annotations

import filecmp
import os
import shutil
import tempfile
from pathlib import Path

from tuning_trainer.log import log


def prepare(source: str | None) -> str | None:
    """Make the working directory writable and add the files of trial.source; return the folder of the code.

    The files are copied, so that the code is in the working directory and can write files beside itself. On a
    volume, which other pods may use, they are linked instead. Existing files stay.
    """
    here = Path.cwd()
    if not os.access(here, os.W_OK):
        here = _writable(here)
    if source is None or not os.access(here, os.W_OK):
        return source
    own = {Path(folder).stat().st_dev for folder in ("/", tempfile.gettempdir())}
    on_volume = here.stat().st_dev not in own
    missing = [file.name for file in sorted(Path(source).iterdir()) if not _add(file, here, link=on_volume)]
    if missing:
        log(f"the working directory {here} has its own {', '.join(missing)}; trial.source's are in {source}")
    return source if missing or on_volume else str(here)


def _writable(folder: Path) -> Path:
    """Change to a folder that has links to the files of one that is read-only; return it, if there is one."""
    try:
        replacement = Path(tempfile.mkdtemp(prefix="tuning-work-"))
        entries = list(folder.iterdir())
    except OSError:
        return folder
    for entry in entries:
        (replacement / entry.name).symlink_to(entry)
    log(
        f"this user can't write to {folder}: the working directory is {replacement}, which links to its files"
    )
    os.chdir(replacement)
    os.environ["PWD"] = str(replacement)
    return replacement


def _add(file: Path, folder: Path, *, link: bool) -> bool:
    """Return whether a folder has the file afterwards, rather than another one of the same name."""
    target = folder / file.name
    if file.name.startswith(".."):  # how the kubelet keeps versions of a ConfigMap
        return True
    if not os.path.lexists(target):
        if link:
            target.symlink_to(file)
        elif file.is_dir():
            shutil.copytree(file, target)
        else:
            shutil.copy(file, target)
        return True
    return target.is_file() and file.is_file() and filecmp.cmp(file, target, shallow=False)
