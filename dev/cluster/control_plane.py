"""A control plane without nodes: etcd, API server, controller manager and scheduler as plain processes.

For tests that need a real API server but no running pods: validation rules, thousands of simulated nodes.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import shutil
import socket
import ssl
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any, Self

from dev.cluster import credentials, processes, programs
from dev.cluster.cache import ROOT, digest, lock
from dev.cluster.console import step
from dev.cluster.run import CommandError, wait

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType

    import psutil

SERVICES = "10.96.0.0/16"
FIRST_SERVICE = "10.96.0.1"
STOP_ORDER = ("kube-scheduler", "kube-controller-manager", "kube-apiserver", "etcd")


class ControlPlane:
    """A control plane with its state in a folder. As a context manager, it runs for the length of the block.

    It listens on free ports of the loopback address, so several can run at the same time.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kubeconfig = folder / "kubeconfig"
        self._certificates = folder / "certificates"
        self._ports: tuple[int, int] = 0, 0
        """Of etcd for the API server, and of the API server."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def healthy(self) -> bool:
        """Return whether all parts are running and the API server is ready."""
        alive = all(processes.running(self.folder, name) for name in STOP_ORDER)
        return (
            alive
            and self._serves("/readyz")
            and self._serves("/api/v1/namespaces/default/serviceaccounts/default")
        )

    def ensure(self) -> None:
        """Start it unless it is healthy."""
        with lock(f"control-plane-{digest(str(self.folder))}"):
            if not self.healthy():
                self.start()

    def start(self) -> None:
        """Start with empty state and wait until pods can be created.

        Raises:
            CommandError: a part does not start; the message contains the end of its log.
        """
        [etcd] = programs.kubernetes("etcd")
        api_server, manager, scheduler = programs.control_plane(
            "kube-apiserver", "kube-controller-manager", "kube-scheduler"
        )
        self.remove()
        self.folder.mkdir(parents=True)
        with step("start the control plane"):
            client, peer, port = _free_ports(3)
            self._ports = client, port
            self._write_credentials(port)
            self._start_etcd(etcd, client, peer)
            self._start_api_server(api_server)
            controllers = self._start_controllers(manager, scheduler)
            self._wait(
                "kube-controller-manager", controllers, "/api/v1/namespaces/default/serviceaccounts/default"
            )

    def restart_api_server(self) -> None:
        """Kill the API server and start it again: it has lost what it keeps in memory."""
        processes.kill(processes.running(self.folder, "kube-apiserver"))
        self._start_api_server(*programs.control_plane("kube-apiserver"))

    def compact(self) -> None:
        """Have etcd forget earlier versions of objects, as the API server asks it to every five minutes."""
        last = self._etcd("range", key=base64.b64encode(b"/").decode())["header"]["revision"]
        self._etcd("compaction", revision=last, physical=True)

    def _etcd(self, action: str, **request: object) -> Any:
        url = f"http://127.0.0.1:{self._ports[0]}/v3/kv/{action}"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, json.dumps(request).encode(), timeout=120) as reply:
            return json.load(reply)

    def remove(self) -> None:
        """Stop all parts and remove the state."""
        processes.stop(self.folder, *STOP_ORDER)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _write_credentials(self, port: int) -> None:
        authority = credentials.Authority(self._certificates)
        authority.issue("server", "kube-apiserver", addresses=("127.0.0.1", FIRST_SERVICE))
        authority.issue("admin", "tuning-dev-admin", group="system:masters")
        credentials.service_account_keys(self._certificates)
        server = f"https://127.0.0.1:{port}"
        self.kubeconfig.write_text(
            credentials.kubeconfig(server, "control-plane", self._certificates, "admin")
        )
        self.kubeconfig.chmod(0o600)

    def _start_etcd(self, executable: Path, client: int, peer: int) -> None:
        urls = f"http://127.0.0.1:{client}", f"http://127.0.0.1:{peer}"
        processes.start(
            self.folder, "etcd", executable, f"--data-dir={self.folder}/etcd", "--unsafe-no-fsync",
            f"--listen-client-urls={urls[0]}", f"--advertise-client-urls={urls[0]}",
            f"--listen-peer-urls={urls[1]}", f"--initial-advertise-peer-urls={urls[1]}",
            f"--initial-cluster=default={urls[1]}",
        )  # fmt: skip

    def _start_api_server(self, executable: Path) -> None:
        keys, (etcd, port) = self._certificates, self._ports
        server = processes.start(
            self.folder, "kube-apiserver", executable, f"--etcd-servers=http://127.0.0.1:{etcd}",
            "--bind-address=127.0.0.1", f"--secure-port={port}", "--endpoint-reconciler-type=none",
            f"--tls-cert-file={keys}/server.crt", f"--tls-private-key-file={keys}/server.key",
            f"--client-ca-file={keys}/ca.crt", "--authorization-mode=RBAC", "--allow-privileged=true",
            f"--service-account-key-file={keys}/sa.pub", f"--service-account-signing-key-file={keys}/sa.key",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-cluster-ip-range={SERVICES}",
            "--max-requests-inflight=3000", "--max-mutating-requests-inflight=1000",
        )  # fmt: skip
        self._wait("kube-apiserver", server, "/readyz")

    def _start_controllers(self, manager: Path, scheduler: Path) -> psutil.Process:
        common = (
            f"--kubeconfig={self.kubeconfig}", "--leader-elect=false", "--secure-port=0",
            "--kube-api-qps=1000", "--kube-api-burst=2000",
        )  # fmt: skip
        keys = self._certificates
        processes.start(self.folder, "kube-scheduler", scheduler, *common)
        return processes.start(
            self.folder, "kube-controller-manager", manager, *common, f"--root-ca-file={keys}/ca.crt",
            f"--service-account-private-key-file={keys}/sa.key",
        )  # fmt: skip

    def _wait(self, name: str, process: psutil.Process, path: str) -> None:
        try:
            wait(name, lambda: self._serves(path) or not processes.alive(process))
        except CommandError as error:
            raise CommandError(f"{error}\n{processes.log_tail(self.folder, name)}") from error
        if not processes.alive(process):
            raise CommandError(f"{name} exited:\n{processes.log_tail(self.folder, name)}")

    def _serves(self, path: str) -> bool:
        if not self.kubeconfig.exists():
            return False
        keys = self._certificates
        trust = ssl.create_default_context(cafile=str(keys / "ca.crt"))
        trust.load_cert_chain(keys / "admin.crt", keys / "admin.key")
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trust)
        )
        try:
            opener.open(credentials.server_of(self.kubeconfig) + path, timeout=5).close()
        except (OSError, urllib.error.URLError):
            return False
        return True


@contextlib.contextmanager
def temporary() -> Iterator[ControlPlane]:
    """Run a new control plane for the length of the block, independent of any others.

    Control planes whose owner was killed are stopped first.
    """
    folders = ROOT / "control-planes"
    folders.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as ours:
        slot = _free_slot(ours, folders)
        yield ours.enter_context(ControlPlane(slot))


def _free_slot(ours: contextlib.ExitStack, folders: Path) -> Path:
    """Lock the first folder that no process holds; remove the control planes in other abandoned folders."""
    slot = None
    for number in range(64):
        folder = folders / str(number)
        if slot and not folder.exists():
            continue
        with contextlib.suppress(BlockingIOError), contextlib.ExitStack() as stack:
            file = stack.enter_context((folders / f"{number}.lock").open("w"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if slot:
                ControlPlane(folder).remove()
            else:
                slot = folder
                ours.enter_context(stack.pop_all())
    if slot is None:
        raise CommandError("64 control planes are already running on this machine")
    return slot


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
