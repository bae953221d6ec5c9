"""The files of a trial: those of trial.source in the working directory, and those that end with its pod."""

from __future__ import annotations

import contextlib
import filecmp
import itertools
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuning_trainer.log import log

if TYPE_CHECKING:
    from collections.abc import Mapping

MOST_FILES = 1000
"""How many files of a folder are looked at."""


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
        log(f"the working directory {here} already has {', '.join(missing)}: trial.source's are in {source}")
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
        with contextlib.suppress(FileExistsError):  # another pod on the volume has just added it
            if link:
                target.symlink_to(file)
            elif file.is_dir():
                shutil.copytree(file, target)
            else:
                shutil.copy(file, target)
            return True
    return target.is_file() and file.is_file() and filecmp.cmp(file, target, shallow=False)


def lost_files(attributes: Mapping[str, Any], storage: Mapping[str, Any], since: float) -> str | None:
    """Return a warning if user attributes are paths of files that end with the pod.

    Args:
        attributes: the user attributes.
        storage: `storage` of TUNING_CONFIG.
        since: when the trial started; older files are the image's.
    """
    lost = [
        f"{value} (user attribute {name})"
        for name, value in attributes.items()
        if isinstance(value, str) and _is_new(value, since) and _is_lost(value, storage["outlastPod"])
    ]
    if not lost:
        return None
    files, them = ("file", "it") if len(lost) == 1 else ("files", "them")
    return (
        f"Lost with the pod, since no volume keeps the {files}: {', '.join(lost)}. To keep {them}, mount a "
        f"PersistentVolumeClaim (volumes and volumeMounts in {storage['field']}) and save {them} there."
    )


def _is_new(path: str, since: float) -> bool:
    """Return whether a file, or one in a folder, exists and was written after a time."""
    if Path(path) == Path():  # an empty text, which is not a path
        return False
    try:
        files = itertools.islice(Path(path).rglob("*"), MOST_FILES)
        return any(file.stat().st_ctime >= since for file in (Path(path), *files))
    except (OSError, ValueError):
        return False


def _is_lost(path: str, outlast_pod: Mapping[str, bool]) -> bool:
    """Return whether the file system of a path ends with the pod; not if it is unknown."""
    place = Path(path).resolve()
    for folder in (place, *place.parents):
        if str(folder) in outlast_pod:
            return not outlast_pod[str(folder)]
        if folder.is_mount():
            return False
    return False
