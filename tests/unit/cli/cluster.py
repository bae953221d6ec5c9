"""A simulated cluster: the answers of its kubectl, and the study server that they lead to."""

from __future__ import annotations

import contextlib
import json
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import trustme

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tuning_operator.protocol import FinishedStudy

HOST = "studies.tuning-system.svc"
TOKEN = "the-token-of-default"


class Cluster:
    """The answers of kubectl, in a folder that a test fills."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def answer(self, question: str, answer: Any) -> None:
        text = answer if isinstance(answer, str) else json.dumps(answer)
        (self.folder / question).write_text(text)

    def refuse(self, question: str, stderr: str, stdout: str = "") -> None:
        self.answer(f"{question}.refused", stderr)
        self.answer(f"{question}.refused.stdout", stdout)

    def asked(self, question: str) -> list[str]:
        """Return the arguments of the single call that started like this."""
        calls = [call for call in self.calls() if "-".join(call).startswith(question)]
        assert len(calls) == 1, self.calls()
        return calls[0]

    def calls(self) -> list[list[str]]:
        """Return the arguments of each call."""
        return [call.split("\0") for call in (self.folder / "asked").read_text().split("\n")[:-1]]

    def study(self, *metrics: str, **status: Any) -> None:
        objectives = [{"metric": metric, "direction": "minimize"} for metric in metrics or ("loss",)]
        metadata = {"name": "mnist", "namespace": "ml", "creationTimestamp": "2026-01-01T00:00:00Z"}
        spec = {"objectives": objectives, "maxTrials": 10}
        self.answer("get-tuningstudies", {"metadata": metadata, "spec": spec, "status": status})

    def serve(self, server: StudyServer, scheme: str = "https") -> None:
        """Have the study's ConfigMap point to a study server."""
        data = {"server-url": f"{scheme}://{HOST}:8443"}
        data |= {"ca-config-map": "study-server-ca"} if server.ca else {}
        self.answer("get-configmap", {"data": {"ca.crt": server.ca}})
        metadata = {
            "name": "mnist-trainer-0123456789",
            "namespace": "ml",
            "creationTimestamp": "2026-01-02T00:00:00Z",
        }
        older = {"name": "mnist-trainer-9876543210", "creationTimestamp": "2026-01-01T00:00:00Z"}
        wrong = {"server-url": "https://older.tuning-system.svc:8443", "ca.crt": "old"}
        found = [{"metadata": metadata, "data": data}, {"metadata": older, "data": wrong}]
        self.answer("get-configmaps", {"items": found})
        self.answer("create-token", f"{TOKEN}\n")
        self.answer("port-forward", f"Forwarding from 127.0.0.1:{server.port} -> 8443\n")


class StudyServer:
    """Serves the record of one study, and keeps the headers of the last request."""

    def __init__(self, http: ThreadingHTTPServer, ca: str | None) -> None:
        self.port, self.ca = http.server_address[1], ca
        self.replies: dict[str, tuple[int, bytes]] = {}
        self.token: str | None = None
        """The only token that is accepted; None: any."""
        self.headers: dict[str, str] = {}

    def record(self, study: FinishedStudy) -> None:
        self.reply(200, study.model_dump_json(by_alias=True))

    def reply(self, status: int, body: str) -> None:
        self.replies["/v1/studies/ml/mnist/record"] = status, body.encode()


@contextlib.contextmanager
def study_server(host: str | None) -> Iterator[StudyServer]:
    """Serve with a certificate for the host; None: plain HTTP."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            serving.headers = dict(self.headers)
            status, body = serving.replies.get(self.path, (500, self.path.encode()))
            if serving.token and self.headers["Authorization"] != f"Bearer {serving.token}":
                status, body = 401, b'{"detail": "the token has expired"}'
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    authority = None
    if host:
        authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(host).configure_cert(context)
        http.socket = context.wrap_socket(http.socket, server_side=True)
    serving = StudyServer(http, authority and authority.cert_pem.bytes().decode())
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield serving
    finally:
        http.shutdown()
        thread.join()
        http.server_close()
