"""An OCI runtime for a root without CAP_SYS_RESOURCE: drops it from what is asked, then is runc.

Without it, Docker's --privileged fails with "unable to apply caps: operation not permitted".
"""

import json
import os
import resource
import shutil
import sys
from pathlib import Path

MISSING = "CAP_SYS_RESOURCE"


def option(arguments: list[str], *names: str) -> str | None:
    """Return the value of the first of the options that is given."""
    for place, word in enumerate(arguments):
        flag, _, value = word.partition("=")
        if flag in names:
            return value or arguments[place + 1]
    return None


def within_limits(process: dict) -> None:
    """Take from a process' wishes what this machine's root can't give."""
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


arguments = sys.argv[1:]
if "create" in arguments or "run" in arguments:
    rewrite(Path(option(arguments, "--bundle", "-b") or ".", "config.json"), "process")
elif "exec" in arguments and (process_file := option(arguments, "--process", "-p")):
    rewrite(Path(process_file), None)
os.execv(
    shutil.which("runc", path="/usr/sbin:/usr/bin:/sbin:/usr/local/sbin") or "runc", ["runc", *arguments]
)
