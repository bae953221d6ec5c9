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
answer = folder / "-".join([arguments[0], *(argument.split(".")[0] for argument in arguments[1:2])])
if arguments[0] == "port-forward":
    answer = folder / "port-forward"
for asked_for in (answer.name, "-".join(arguments[:3])):
    refusal = folder / f"{asked_for}.refused"
    if refusal.exists():
        sys.exit(refusal.read_text())
sys.stdout.write(answer.read_text())
sys.stdout.flush()
if arguments[0] == "port-forward":
    signal.pause()
