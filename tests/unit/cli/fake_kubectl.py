"""A kubectl that answers from files in a folder. Its calls are kept in `asked`, one on each line.

Hundreds are started, so it imports only what Python has imported already.
"""
# ruff: noqa: PTH110, PTH123, SIM115

import os
import sys

folder = os.environ["FAKE_KUBECTL"]
arguments = sys.argv[1:]
with open(f"{folder}/asked", "a") as asked:
    asked.write("\0".join(arguments) + "\n")
answer = "-".join([arguments[0], *(argument.split(".")[0] for argument in arguments[1:2])])
if arguments[0] in ("port-forward", "kustomize"):  # the next argument varies
    answer = arguments[0]
for asked_for in (answer, "-".join(arguments[:3])):
    refusal = f"{folder}/{asked_for}.refused"
    if os.path.exists(refusal):
        if os.path.exists(f"{refusal}.stdout"):
            sys.stdout.write(open(f"{refusal}.stdout").read())
        sys.exit(open(refusal).read())
sys.stdout.write(open(f"{folder}/{answer}").read())
sys.stdout.flush()
if arguments[0] == "port-forward":
    if os.path.exists(f"{folder}/port-forward.lost"):
        sys.exit(open(f"{folder}/port-forward.lost").read())
    import signal

    signal.pause()
