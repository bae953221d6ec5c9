"""A kubectl that answers from files in a folder. Its calls are kept in `asked`, one JSON list per line."""

import json
import os
import pathlib
import signal
import sys

folder = pathlib.Path(os.environ["FAKE_KUBECTL"])
arguments = sys.argv[1:]
with (folder / "asked").open("a") as asked:
    asked.write(json.dumps(arguments) + "\n")
answer = folder / f"{arguments[0]}-{arguments[1].split('.')[0]}"
if arguments[0] == "port-forward":
    answer = folder / "port-forward"
refusal = answer.with_name(f"{answer.name}.refused")
if refusal.exists():
    sys.exit(refusal.read_text())
sys.stdout.write(answer.read_text())
sys.stdout.flush()
if arguments[0] == "port-forward":
    signal.pause()
