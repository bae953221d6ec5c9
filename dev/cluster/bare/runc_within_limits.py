"""An OCI runtime for a root without CAP_SYS_RESOURCE: removes it from requests, then executes runc.

With plain runc, Docker's --privileged fails there with "unable to apply caps: operation not permitted".
The file is copied and runs on its own, so it uses only the standard library.
"""

import json
import os
import resource
import shutil
import sys
from pathlib import Path
from typing import Any

MISSING = "CAP_SYS_RESOURCE"
SEARCH_PATH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"


def option(arguments: list[str], *names: str) -> str | None:
    """Return the value of an option that has several names."""
    for place, word in enumerate(arguments):
        flag, _, value = word.partition("=")
        if flag in names:
            return value or arguments[place + 1]
    return None


def within_limits(process: dict[str, Any]) -> None:
    """Reduce a process's capabilities and limits to those that root has on this machine."""
    for kind, wanted in (process.get("capabilities") or {}).items():
        process["capabilities"][kind] = [capability for capability in wanted if capability != MISSING]
    for limit in process.get("rlimits") or []:
        hard = resource.getrlimit(getattr(resource, limit["type"]))[1]
        if hard != resource.RLIM_INFINITY:
            limit["hard"], limit["soft"] = min(limit["hard"], hard), min(limit["soft"], hard)


def rewrite(path: Path, key: str | None) -> None:
    """Apply within_limits to the process in a JSON file."""
    content = json.loads(path.read_text())
    within_limits(content[key] if key else content)
    path.write_text(json.dumps(content))


def main(arguments: list[str]) -> None:
    """Rewrite the file that the command reads, then execute runc."""
    if "create" in arguments or "run" in arguments:
        rewrite(Path(option(arguments, "--bundle", "-b") or ".", "config.json"), "process")
    elif "exec" in arguments and (process_file := option(arguments, "--process", "-p")):
        rewrite(Path(process_file), None)
    runc = shutil.which("runc", path=SEARCH_PATH)
    if runc is None:
        sys.exit("runc not found on this machine")
    os.execv(runc, ["runc", *arguments])


if __name__ == "__main__":
    main(sys.argv[1:])
