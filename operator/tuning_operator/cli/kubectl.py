"""kubectl as a subprocess: the cluster is reached as the user's own kubectl reaches it."""

import contextlib
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from tuning_operator.cli.errors import PluginError

ROLES = "The Roles for users of the plugin are in docs/guide/kubectl-plugin.md"


class KubectlError(PluginError):
    """kubectl said no; `said` is what it said."""

    def __init__(self, what: str, said: str) -> None:
        self.said = said.strip()
        hint = f"\n{ROLES}" if self.forbidden else ""
        super().__init__(f"kubectl {what}: {self.said}{hint}")

    @property
    def forbidden(self) -> bool:
        """Whether the user lacks the right."""
        return "forbidden" in self.said.lower()

    @property
    def not_found(self) -> bool:
        """Whether there is no such object."""
        return "(NotFound)" in self.said


@dataclass(frozen=True)
class Kubectl:
    """kubectl with the connection that the user asked for; what is not given is kubectl's own choice."""

    namespace: str | None = None
    context: str | None = None
    kubeconfig: str | None = None

    def run(self, *arguments: str) -> str:
        """Return what kubectl prints. Raises KubectlError, and PluginError where there is no kubectl."""
        command = self._command(*arguments)
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode:
            raise KubectlError(" ".join(arguments[:3]), done.stderr)
        return done.stdout

    def json(self, *arguments: str) -> Any:
        """Return the object or list that kubectl prints. Raises as `run`."""
        return json.loads(self.run(*arguments, "--output=json"))

    def within(self, namespace: str) -> "Kubectl":
        """Return kubectl in another namespace."""
        return replace(self, namespace=namespace)

    @contextlib.contextmanager
    def port_forward(self, target: str, port: int) -> Iterator[int]:
        """Reach a port of a Service or pod through the API server; yields the local port. Raises as `run`.

        Args:
            target: `service/NAME` or `pod/NAME`.
            port: the target's.
        """
        arguments = ["port-forward", target, f":{port}", "--address=127.0.0.1"]
        command, pipe = self._command(*arguments), subprocess.PIPE
        with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:  # noqa: S603
            try:
                yield _local_port(process, " ".join(arguments[:2]))
            finally:
                process.kill()

    def _command(self, *arguments: str) -> list[str]:
        program = shutil.which("kubectl")
        if program is None:
            raise PluginError("there is no kubectl on the PATH: install it, or mend the PATH")
        chosen = {"namespace": self.namespace, "context": self.context, "kubeconfig": self.kubeconfig}
        return [program, *arguments, *(f"--{flag}={value}" for flag, value in chosen.items() if value)]


def _local_port(process: subprocess.Popen[str], what: str) -> int:
    """Wait for kubectl's word that it listens; it waits for the pod itself, for a minute at most."""
    said = process.stdout.readline() if process.stdout else ""
    listening = re.search(r"127\.0\.0\.1:(\d+)", said)
    if listening is None:
        process.kill()
        raise KubectlError(what, said + (process.stderr.read() if process.stderr else ""))
    return int(listening[1])
