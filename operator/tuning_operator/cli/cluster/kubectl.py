"""kubectl as a subprocess, so that the cluster is reached as with the user's own kubectl."""

import atexit
import collections
import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from tuning_operator.cli import NotFoundError, NotPermittedError, NotReachableError, PluginError

ROLES = "See docs/guide/kubectl-plugin.md for the Roles that users of the plugin need"

CHECK_CONTEXT = (
    "Check that it is the right cluster (kubectl config current-context), or use another --context"
)
KLOG = re.compile(r"^[IWEF]\d{4} .*\n?", re.MULTILINE)
"""Lines that kubectl logs besides its error, once for each attempt."""
NOT_FOUND = re.compile(r'\(NotFound\)|failed to create token: serviceaccounts ".*" not found')
"""What kubectl prints if an object does not exist; `create token` has a message of its own."""
UNREACHABLE = re.compile(
    r"connection to the server|unable to connect|no such host|timed? ?out|connection refused", re.IGNORECASE
)
"""What kubectl prints if it can't reach the API server."""
POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


class KubectlError(PluginError):
    """kubectl failed; `stderr` and `stdout` are what it printed."""

    def __init__(self, command: str, stderr: str, stdout: str = "") -> None:
        self.stdout = stdout
        self.stderr = KLOG.sub("", stderr).strip() or stderr.strip()
        away = UNREACHABLE.search(self.stderr) is not None
        hint = f"\n{ROLES}" if self.forbidden else f"\n{CHECK_CONTEXT}" if away else ""
        super().__init__(f"kubectl {command}: {self.stderr}{hint}")
        if self.forbidden:
            self.code = NotPermittedError.code
        elif self.not_found:
            self.code = NotFoundError.code
        elif away:
            self.code = NotReachableError.code

    @property
    def forbidden(self) -> bool:
        """Whether the user lacks the permission."""
        return "forbidden" in self.stderr.lower()

    @property
    def not_found(self) -> bool:
        """Whether the object does not exist."""
        return NOT_FOUND.search(self.stderr) is not None


@dataclass(frozen=True)
class Kubectl:
    """kubectl with the user's connection options; kubectl's own defaults apply to the others."""

    namespace: str | None = None
    context: str | None = None
    kubeconfig: str | None = None

    def run(self, *arguments: str) -> str:
        """Return what kubectl prints. Raises KubectlError, or PluginError if kubectl is missing."""
        command = self._command(*arguments)
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode:
            raise KubectlError(" ".join(arguments[:3]), done.stderr, done.stdout)
        return done.stdout

    def json(self, *arguments: str) -> Any:
        """Return the object or list that kubectl prints. Raises as `run`."""
        return json.loads(self.run(*arguments, "--output=json"))

    def lines(self, *arguments: str) -> Iterator[str]:
        """Yield the lines that kubectl prints while it runs. Raises as `run`."""
        with (
            tempfile.TemporaryFile("w+") as errors,
            _running(self._command(*arguments), errors) as process,
        ):
            yield from process.stdout or ()
            if process.wait():
                errors.seek(0)
                raise KubectlError(" ".join(arguments[:2]), errors.read())

    def current_namespace(self) -> str:
        """Return the namespace that commands use. Raises as `run`."""
        if self.namespace:
            return self.namespace
        try:
            found = self.run("config", "view", "--minify", "--output=jsonpath={..namespace}").strip()
        except KubectlError as error:
            if "current-context must exist" not in error.stderr:
                raise
            # Without a kubeconfig, as in a pod with a service account, kubectl uses this.
            found = os.environ.get("POD_NAMESPACE", "")
            if not found and POD_NAMESPACE.exists():
                found = POD_NAMESPACE.read_text().strip()
        return found or "default"

    def within(self, namespace: str) -> "Kubectl":
        """Return kubectl in another namespace."""
        return replace(self, namespace=namespace)

    @contextlib.contextmanager
    def port_forward(
        self, target: str, port: int, local: int = 0
    ) -> Iterator[tuple[int, subprocess.Popen[str]]]:
        """Forward a port of a Service or pod. Raises as `run`.

        Yields the local port and kubectl, which exits if it loses the connection to the pod.

        Args:
            target: `service/NAME` or `pod/NAME`.
            port: port of the target.
            local: the local port; 0 for any that is free.
        """
        arguments = ["port-forward", target, f"{local or ''}:{port}", "--address=127.0.0.1"]
        with (
            tempfile.TemporaryFile("w+") as errors,
            _running(self._command(*arguments), errors) as process,
        ):
            output = process.stdout or io.StringIO()
            first = output.readline()  # when it listens; it waits for the pod for a minute at most
            listening = re.search(r"127\.0\.0\.1:(\d+)", first)
            if listening is None:
                errors.seek(0)
                raise KubectlError(" ".join(arguments[:2]), first + errors.read())
            # It prints a line for each connection, and forwards no more once the pipe is full.
            reader = threading.Thread(target=collections.deque, args=[output, 0], daemon=True)
            reader.start()
            try:
                yield int(listening[1]), process
            finally:
                process.kill()
                reader.join()

    def _command(self, *arguments: str) -> list[str]:
        program = shutil.which("kubectl")
        if program is None:
            raise PluginError("kubectl not found: install it, or add its folder to the PATH")
        chosen = {"namespace": self.namespace, "context": self.context, "kubeconfig": self.kubeconfig}
        return [program, *arguments, *(f"--{flag}={value}" for flag, value in chosen.items() if value)]


@contextlib.contextmanager
def _running(command: Sequence[str], errors: IO[str]) -> Iterator[subprocess.Popen[str]]:
    """Run kubectl until the end of the block, or of the program: the blocks of daemon threads do not end."""
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=errors, text=True, errors="replace") as process:  # noqa: S603
        atexit.register(process.kill)
        try:
            yield process
        finally:
            process.kill()
            atexit.unregister(process.kill)
