"""A study server for one trial, of plain Optuna and http.server: speaks the protocol, fails on demand."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import socket
import threading
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import distribution_to_json, json_to_distribution
from pydantic import ValidationError
from tuning_operator.protocol import (
    AttributesRequest,
    Failure,
    FinishedStudy,
    FinishedTrial,
    ReportReply,
    ReportRequest,
    SuggestReply,
    SuggestRequest,
    TellRequest,
    TrialRecord,
    TrialView,
)
from tuning_operator.resource.study import Model, Objective

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator

PATH = "/v1/studies/ml/mnist/trials/0"


class Twin:
    """The trial's record and what was asked of it. Requests are validated by the protocol's own models."""

    def __init__(
        self, study: optuna.Study, trial: optuna.Trial | None = None, *, fixed: bool = False
    ) -> None:
        self.study = study
        self.trial = study.ask()
        self.fixed = fixed
        self.token = "token-1"
        self.requests: list[tuple[str, str, Any]] = []
        self.faults: deque[Callable[[Handler], bool]] = deque()
        """Each is called with one request before it is served; true means that the request is dealt with."""
        self.result: TellRequest | None = None
        self.finished: list[optuna.trial.FrozenTrial] = []
        self.final = False  # whether the twin plays the server's side of a refit
        self.seen = threading.Condition()

    @property
    def failure(self) -> Failure:
        """The failure that was reported."""
        assert self.result, self.requests
        assert self.result.failure, self.result
        return self.result.failure

    def of(self, path: str) -> list[Any]:
        """Return the bodies that were sent to a path."""
        return [body for _, where, body in self.requests if where == path]

    def wait_for(self, predicate: Callable[[], bool], seconds: float = 240) -> None:
        with self.seen:
            assert self.seen.wait_for(predicate, seconds), self.requests

    def answer(self, method: str, path: str, body: Any) -> Model:
        with self.seen:
            self.requests.append((method, path, body))
            reply = self._answer(method, path, body)
            self.seen.notify_all()
            return reply

    def _answer(self, method: str, path: str, body: Any) -> Model:
        match method, path:
            case "GET", "":
                return self.view()
            case "GET", "/study":
                return self._finished_study()
            case "POST", "/suggest":
                suggest = SuggestRequest.model_validate(body, extra="forbid")
                distribution = json_to_distribution(json.dumps(suggest.distribution))
                return SuggestReply(value=self.trial._suggest(suggest.name, distribution))
            case "POST", "/report":
                return self._report(ReportRequest.model_validate(body, extra="forbid"))
            case "POST", "/attributes":
                self._attributes(AttributesRequest.model_validate(body, extra="forbid"))
                return self.view().trial
            case "POST", "/result":
                return self._tell(TellRequest.model_validate(body, extra="forbid"))
        raise LookupError(path)

    def view(self) -> TrialView:
        frozen = self.study.get_trials(deepcopy=False)[self.trial.number]
        directions = [direction.name.lower() for direction in self.study.directions]
        metrics = ["accuracy"] if len(directions) == 1 else [f"value{i}" for i in range(len(directions))]
        return TrialView(
            trial=self.record(),
            objectives=[Objective(metric=m, direction=d) for m, d in zip(metrics, directions, strict=True)],
            fixed=self.fixed,
            distributions=_forms(frozen),
            reported=frozen.intermediate_values,
            user_attrs=frozen.user_attrs,
            constraints=frozen.constraints,
        )

    def _finished_study(self) -> FinishedStudy:
        return FinishedStudy(
            directions=[direction.name.lower() for direction in self.study.directions],
            trials=[
                FinishedTrial(
                    number=trial.number,
                    state=trial.state.name,
                    values=trial.values,
                    parameters=trial.params,
                    distributions=_forms(trial),
                    reported=trial.intermediate_values,
                    user_attrs=trial.user_attrs,
                    constraints=trial.constraints,
                    started=_utc(trial.datetime_start),
                    finished=_utc(trial.datetime_complete),
                )
                for trial in self.finished
            ],
        )

    def record(self) -> TrialRecord:
        frozen = self.study.get_trials(deepcopy=False)[self.trial.number]
        return TrialRecord.model_construct(
            number=frozen.number,
            state=frozen.state.name,
            parameters=frozen.params,
            values=frozen.values,
            started=_utc(frozen.datetime_start),
        )

    def _report(self, request: ReportRequest) -> ReportReply:
        if self.result:
            return ReportReply(prune=True)
        known = self.study.get_trials(deepcopy=False)[self.trial.number].intermediate_values
        for step, value in request.values:
            if step not in known:
                self.trial.report(value, step)
        return ReportReply(prune=self.trial.should_prune())

    def _attributes(self, request: AttributesRequest) -> None:
        for key, value in request.user_attrs.items():
            self.trial.set_user_attr(key, value)
        for key, value in request.study_attrs.items():
            self.study.set_user_attr(key, value)
        for key, number in request.constraints.items():
            if key not in self.trial.constraints:
                self.trial.set_constraint(key, number)

    def _tell(self, request: TellRequest) -> TrialRecord:
        first, self.result = self.result is None, self.result or request
        values = None if request.values is None else [float(value) for value in request.values]
        if first and not self.final:
            self.study.tell(self.trial, values, state=optuna.trial.TrialState[request.state])
        return self.record()


def _forms(trial: optuna.trial.FrozenTrial) -> dict[str, Any]:
    return {name: json.loads(distribution_to_json(one)) for name, one in trial.distributions.items()}


def _utc(local: dt.datetime | None) -> dt.datetime | None:
    return local and local.astimezone(dt.UTC)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # a reply in two parts would wait 40 ms for the client's acknowledgement
    twin: Twin

    def _serve(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        if self.twin.faults and self.twin.faults.popleft()(self):
            return
        if self.headers["Authorization"] != f"Bearer {self.twin.token}":
            self.reply(401, {"detail": "the token is not valid"})
            return
        try:
            reply = self.twin.answer(self.command, self.path.removeprefix(PATH), body)
        except (ValidationError, ValueError) as error:
            self.reply(422, {"detail": {"field": "body", "message": str(error)}})
        except optuna.exceptions.UpdateFinishedTrialError as error:
            self.reply(409, {"detail": str(error)})
        except LookupError as error:
            self.reply(404, {"detail": str(error)})
        else:
            self.reply(200, json.loads(reply.model_dump_json(by_alias=True)))

    do_GET = do_POST = _serve  # noqa: N815

    def reply(self, status: int, body: Any, **headers: str) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        pass


def status(code: int, **headers: str) -> Callable[[Handler], bool]:
    """A fault: the request is answered with this status and has no effect."""

    def fault(handler: Handler) -> bool:
        handler.reply(code, {"detail": "try again"}, **headers)
        return True

    return fault


def drop(handler: Handler) -> bool:
    """A fault: the connection ends before the request has an effect."""
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)
    return True


def drop_after(handler: Handler) -> bool:
    """A fault: the request has its effect, but the reply breaks off in the middle."""

    def broken(status: int, body: Any, **headers: str) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(b'{"val')
        handler.wfile.flush()
        drop(handler)

    handler.reply = broken  # type: ignore[method-assign]
    return False


class Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Dropped connections are what the tests are about."""


@contextlib.contextmanager
def serving(twin: Twin, port: int = 0, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """Serve the twin on loopback; yield the trial's URL."""
    handler = type("BoundHandler", (Handler,), {"twin": twin})
    with Server(("127.0.0.1", port), handler) as server:
        if tls:
            server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield f"http{'s' if tls else ''}://127.0.0.1:{server.server_address[1]}{PATH}"
        finally:
            server.shutdown()
            thread.join()
