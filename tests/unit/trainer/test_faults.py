"""The server down, restarting, overloaded or unreachable: no report is lost, and no GPU waits for long."""

from __future__ import annotations

import functools
import os
import socket
import ssl
import subprocess
import threading
from typing import TYPE_CHECKING, Any

import pytest
from tuning_operator.protocol import AttributesRequest, TellRequest
from tuning_trainer import runner
from tuning_trainer.outcome import Outcome
from tuning_trainer.settings import read_settings
from tuning_trainer.stopping import Stopping
from tuning_trainer.wire.client import Client, Refused, Unreachable
from tuning_trainer.wire.outbox import PATIENCE, Outbox
from tuning_trainer.worker import supervisor

from tests.unit.trainer.pod import BARE, Pod
from tests.unit.trainer.twin import PATH, Handler, Twin, drop, drop_after, serving, status

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

STEPS = """
    def objective(trial):
        x = trial.suggest_float("x", 0, 1)
        trial.set_user_attr("a", 1)
        for step in range(3):
            trial.report(step, step)
            trial.should_prune()
        return x
"""


@pytest.mark.parametrize("fault", [status(503), status(500), status(429, Retry_After="0"), drop, drop_after])
def test_each_request_survives_a_fault(pod: Pod, twin: Twin, fault: Callable[[Handler], bool]) -> None:
    def serve(_: Handler) -> bool:
        return False

    twin.faults.extend([fault, serve] * 7)
    pod.write(STEPS)
    ended = pod.run(python=BARE)
    assert ended.code == 0, ended
    record = twin.study.trials[0]
    assert record.value == record.params["x"]
    assert record.intermediate_values == {0: 0.0, 1: 1.0, 2: 2.0}
    assert record.user_attrs == {"a": 1}


def test_a_newer_server_whose_replies_have_more_fields(pod: Pod, twin: Twin) -> None:
    def newer(handler: Handler) -> bool:
        reply = handler.reply

        def with_more(status: int, body: Any, **headers: str) -> None:
            for part in (body, body.get("trial"), *body.get("objectives", ())):
                if part is not None:
                    part["colour"] = "red"
            reply(status, body, **headers)

        handler.reply = with_more  # type: ignore[method-assign]
        return False

    twin.faults.append(newer)  # the connection, and with it the handler, serves all requests
    pod.write(STEPS)
    ended = pod.run(python=BARE)
    assert ended.code == 0, ended
    assert twin.study.trials[0].state.name == "COMPLETE"


def test_the_server_comes_up_after_the_pod(pod: Pod, twin: Twin, tmp_path: Path) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    pod.environ["TUNING_TRIAL_URL"] = f"http://127.0.0.1:{port}{PATH}"
    pod.write(STEPS)
    process = pod.start(python=BARE)
    assert process.stderr
    assert "does not answer" in process.stderr.readline()
    with serving(twin, port):
        assert process.wait(240) == 0, process.stderr.read()
    assert twin.study.trials[0].state.name == "COMPLETE"


def test_a_refusal_is_not_repeated(pod: Pod, twin: Twin) -> None:
    twin.faults.extend([lambda _: False, status(404)])
    pod.write("""
        def objective(trial):
            trial.suggest_float("x", 0, 1)
    """)
    assert pod.run(python=BARE).code == 1
    assert [path for _, path, _ in twin.requests] == ["", "/result"]
    assert twin.failure.message == "ValueError: try again"


def test_an_unwelcome_pod_says_why_in_its_termination_message(pod: Pod, twin: Twin) -> None:
    def forbid(handler: Handler) -> bool:
        handler.reply(403, {"detail": "the pod ml/other-0 does not belong to trial 0"})
        return True

    twin.faults.append(forbid)
    pod.write(STEPS)
    assert pod.run(python=BARE).code == 1
    assert pod.termination()["category"] == "StudyServerRefused"
    assert "does not belong to trial 0" in pod.termination()["message"]


def test_a_result_that_cannot_be_sent_is_left_in_the_termination_message(pod: Pod, twin: Twin) -> None:
    """With all that waits to be sent before it. The operator records it when the server is back."""
    twin.faults.extend([lambda _: False, lambda _: False, *[status(503)] * 100])
    pod.write("""
        from tuning_trainer.wire import outbox
        outbox.PATIENCE = 0

        def objective(trial):
            x = trial.suggest_float("x", 0, 1)
            trial.set_user_attr("a", 0)
            for step in range(3):
                trial.report(step, step)
            trial.set_user_attr("a", 1)
            return 0.5
    """)
    process = pod.start(python=BARE)
    try:
        assert process.stderr
        line = ""
        while "COMPLETE" not in line:
            line = process.stderr.readline()
        while "does not answer" not in line:
            line = process.stderr.readline()
    finally:
        process.kill()
        process.communicate()
    assert TellRequest.model_validate(pod.termination()) == TellRequest(
        state="COMPLETE",
        values=[0.5],
        attributes=AttributesRequest(user_attrs={"a": 1}),
        reported=[(0, 0.0), (1, 1.0), (2, 2.0)],
    )


@pytest.mark.parametrize(
    ("code", "kept"), [(403, True), (404, True), (409, True), (413, False), (422, False)]
)
def test_a_result_that_is_refused_stays_in_the_termination_message(
    pod: Pod, twin: Twin, code: int, kept: bool
) -> None:
    """Unless it is the result itself that can't be recorded: that would fail for the operator as well."""

    def refuse(handler: Handler) -> bool:
        if handler.path.endswith("/result"):
            handler.reply(code, {"detail": "not now"})
        return handler.path.endswith("/result")

    twin.faults.extend([refuse] * 100)
    pod.write("""
        def objective(trial):
            return 0.5
    """)
    ended = pod.run(python=BARE)
    assert ended.code == 1
    if kept:
        left = TellRequest.model_validate(pod.termination())
        assert (left.state, left.values) == ("COMPLETE", [0.5])
        assert "refused the result, which is in the pod's termination message: not now" in ended.err
    else:
        assert (pod.termination()["category"], pod.termination()["message"]) == (
            "StudyServerRefused",
            "not now",
        )


class Time:
    """A clock that a client's own waiting moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def away(tmp_path: Path) -> tuple[str, int]:
    """A URL and its port where no one listens."""
    (tmp_path / "token").write_text("token-1")
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    return f"http://127.0.0.1:{port}{PATH}", port


def test_an_outage_holds_training_up_once_and_loses_nothing(
    away: tuple[str, int], twin: Twin, tmp_path: Path
) -> None:
    time = Time()
    url, port = away
    outbox = Outbox(Client(url, str(tmp_path / "token"), sleep=time.sleep, clock=time), time)
    outbox.put("report", 0, 0.5)
    assert time.now <= PATIENCE
    stalled = time.now
    for step in range(1, 100):
        outbox.put("report", step, 0.5)
        assert outbox.prune() is False
    outbox.put("user_attrs", "a", 1)
    outbox.put("constraints", "c", -1.0)
    assert time.now == stalled, "the outage has cost what it may"
    with serving(twin, port):
        outbox.put("report", 100, 0.5)
        assert twin.requests == [], "it is not yet time for another attempt"
        time.now += 60
        assert outbox.prune() is False
    assert len(twin.of("/report")) == 2
    record = twin.study.trials[0]
    assert list(record.intermediate_values) == list(range(101))
    assert record.user_attrs == {"a": 1}
    assert record.constraints == {"c": -1.0}


def test_prune_is_the_reply_to_the_last_report(away: tuple[str, int], twin: Twin, tmp_path: Path) -> None:
    url, port = away
    outbox = Outbox(Client(url, str(tmp_path / "token")))
    twin.trial.should_prune = lambda: True  # type: ignore[method-assign]
    with serving(twin, port):
        outbox.put("report", 0, float("nan"))
        assert outbox.prune()
    assert twin.of("/report") == [{"values": [[0, "NaN"]]}]


def test_what_is_rejected_when_draining_is_logged_and_dropped(
    away: tuple[str, int], twin: Twin, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    time = Time()
    url, port = away
    outbox = Outbox(Client(url, str(tmp_path / "token"), sleep=time.sleep, clock=time), time)
    outbox.put("report", 0, 0.5)
    outbox.put("user_attrs", "a", 1)
    twin.faults.append(status(422))
    with serving(twin, port):
        outbox.drain(10)
    assert (
        "the study server rejected the value of step 0, which is lost: try again" in capsys.readouterr().err
    )
    assert twin.study.trials[0].user_attrs == {"a": 1}


def test_patience_ends(away: tuple[str, int], tmp_path: Path) -> None:
    time = Time()
    client = Client(away[0], str(tmp_path / "token"), sleep=time.sleep, clock=time)
    with pytest.raises(Unreachable, match="refused"):
        client.call("GET", "", patience=1800)
    assert 1700 < time.now <= 1800


class BrokenNetwork:
    """A connection whose requests fail with an error, before or after it is established."""

    def __init__(self, error: Exception, connected: bool) -> None:
        self.error, self.connected, self.timeouts = error, connected, list[float]()
        self.sock: Any = None
        self.timeout = 0.0

    def request(self, *_: object) -> None:
        self.timeouts.append(self.timeout)
        self.sock = socket.socket() if self.connected else None
        raise self.error

    def close(self) -> None:
        if self.sock:
            self.sock.close()
            self.sock = None


@pytest.mark.parametrize(
    ("error", "connected", "seconds", "remedy"),
    [
        (socket.gaierror(-3, "Temporary failure in name resolution"), False, 45, "ClusterFirstWithHostNet"),
        (TimeoutError("timed out"), False, 45, "NetworkPolicies of this namespace"),
        (ConnectionResetError(104, "Connection reset by peer"), True, 45, "service mesh in strict mode"),
        (OSError(113, "No route to host"), False, 45, ""),
        (TimeoutError("timed out"), True, 1800, "NetworkPolicies"),
        (ConnectionRefusedError(111, "refused"), False, 1800, "Check that the study server is running"),
    ],
    ids=["DNS", "blocked", "mesh", "no route", "slow", "down"],
)
def test_a_network_that_never_reaches_the_server_is_reported_soon(
    error: Exception,
    connected: bool,
    seconds: float,
    remedy: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the likely cause. An outage of the server is waited for."""
    (tmp_path / "token").write_text("token-1")
    time, network = Time(), BrokenNetwork(error, connected)
    monkeypatch.setattr(Client, "_new_connection", lambda *_: network)
    client = Client("https://studies:8443/", str(tmp_path / "token"), sleep=time.sleep, clock=time)
    with pytest.raises(Unreachable) as unreachable:
        client.call("GET", "", patience=1800)
    assert seconds - 15 < time.now <= seconds
    assert remedy in unreachable.value.remedy
    assert network.timeouts[0] == 10, "a first attempt does not use up the time"


def test_a_server_that_has_been_reached_is_waited_for(
    away: tuple[str, int], twin: Twin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    time = Time()
    url, port = away
    client = Client(url, str(tmp_path / "token"), sleep=time.sleep, clock=time)
    with serving(twin, port):
        client.call("GET", "", patience=0)
    client.close()
    monkeypatch.setattr(Client, "_new_connection", lambda *_: BrokenNetwork(TimeoutError("timed out"), False))
    with pytest.raises(Unreachable):
        client.call("GET", "", patience=1800)
    assert time.now > 1700


@pytest.fixture
def outage(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> Time:
    """The pod's environment here, and a network that stops resolving names, with the time of all clients."""
    time, error = Time(), socket.gaierror(-3, "Temporary failure in name resolution")
    monkeypatch.setattr(Client, "_new_connection", lambda *_: BrokenNetwork(error, False))
    for module in (runner, supervisor):
        monkeypatch.setattr(module, "Client", functools.partial(Client, sleep=time.sleep, clock=time))
    for name, value in pod.environ.items():
        monkeypatch.setenv(name, value)
    return time


def test_the_result_of_a_workers_trial_waits_for_the_server(
    pod: Pod, twin: Twin, outage: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its supervisor has reached the server; the trial itself may not have had to."""
    view = pod.folder / "view.json"
    view.write_text(twin.view().model_dump_json(by_alias=True))
    monkeypatch.setenv(runner.VIEW, str(view))
    run = runner.Run(read_settings(os.environ), Stopping())
    assert run.execute(lambda *_: Outcome("COMPLETE", [1.0])) == 1
    assert 1700 < outage.now <= 1800


def test_an_end_that_a_worker_reports_for_a_trial_waits_for_the_server(pod: Pod, outage: Time) -> None:
    settings = read_settings(os.environ)._replace(trial_url="https://studies/v1/studies/ml/mnist/workers/0")
    trial = supervisor._Trial(0, None, pod.folder)
    supervisor.Supervisor(settings, [], "")._report(trial, {"state": "COMPLETE", "values": [1.0]})
    assert 1700 < outage.now <= 1800


def test_retry_after_is_heeded(away: tuple[str, int], twin: Twin, tmp_path: Path) -> None:
    time = Time()
    url, port = away
    twin.faults.append(status(429, Retry_After="7"))
    with serving(twin, port):
        Client(url, str(tmp_path / "token"), sleep=time.sleep, clock=time).call("GET", "", patience=30)
    assert time.now == 7


def test_a_rotated_token_is_read_again(away: tuple[str, int], twin: Twin, tmp_path: Path) -> None:
    url, port = away
    with serving(twin, port):
        client = Client(url, str(tmp_path / "token"))
        client.call("GET", "", patience=0)
        twin.token = "token-2"
        (tmp_path / "token").write_text("token-2")
        client.call("GET", "", patience=0)

        def rotate(handler: Handler) -> bool:
            (tmp_path / "token").write_text("token-3")
            twin.token = "token-3"
            handler.reply(401, {"detail": "expired"})
            return True

        twin.faults.append(rotate)  # between reading the token and the server's check
        client.call("GET", "", patience=0)


def test_a_token_that_is_not_accepted_is_sent_again(
    away: tuple[str, int], twin: Twin, tmp_path: Path
) -> None:
    """The kubelet may be late in renewing it, and the server in fetching the keys of the cluster."""
    time = Time()
    url, port = away
    with serving(twin, port):
        twin.token = "not yet"
        rejected = Client(url, str(tmp_path / "token"), sleep=time.sleep, clock=time)
        with pytest.raises(Refused, match="the token is not valid") as refused:
            rejected.call("GET", "", patience=1800)
        assert refused.value.status == 401
        assert 120 <= time.now < 140, "none of the pod's tokens was ever accepted"

        twin.token = (tmp_path / "token").read_text()
        client = Client(url, str(tmp_path / "token"), sleep=time.sleep, clock=time)
        client.call("GET", "", patience=0)
        twin.faults.extend([status(401)] * 40)  # two for each attempt
        start = time.now
        client.call("GET", "", patience=1800)
        assert time.now - start > 120


def test_one_connection_serves_a_trial(away: tuple[str, int], twin: Twin, tmp_path: Path) -> None:
    ports = set()

    def note(handler: Handler) -> bool:
        ports.add(handler.client_address)
        return False

    url, port = away
    twin.faults.extend([note] * 5)
    with serving(twin, port):
        client = Client(url, str(tmp_path / "token"))
        for _ in range(5):
            client.call("GET", "", patience=0)
    assert len(ports) == 1


def test_a_connection_made_ahead_serves_the_first_call(
    away: tuple[str, int], twin: Twin, tmp_path: Path
) -> None:
    callers = []

    def note(handler: Handler) -> bool:
        callers.append(handler.client_address)
        return False

    url, port = away
    client = Client(url, str(tmp_path / "token"))
    client.connect()
    twin.faults.append(note)
    with serving(twin, port):
        client.connect()
        assert client._connection
        connected = client._connection.sock.getsockname()
        client.connect()
        client.call("GET", "", patience=0)
    assert callers == [connected]


def test_threads_share_an_outbox(away: tuple[str, int], twin: Twin, tmp_path: Path) -> None:
    url, port = away
    with serving(twin, port):
        outbox = Outbox(Client(url, str(tmp_path / "token")))
        threads = [threading.Thread(target=outbox.put, args=("report", step, 0.5)) for step in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(240)
    assert sorted(twin.study.trials[0].intermediate_values) == list(range(20))


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for 127.0.0.1 that is its own authority."""
    return self_signed(tmp_path)


@pytest.fixture
def other_certificate(tmp_path: Path) -> Path:
    """Another server's certificate."""
    folder = tmp_path / "other"
    folder.mkdir()
    return self_signed(folder)


def self_signed(tmp_path: Path) -> Path:
    pem = tmp_path / "server.pem"
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    files = ["-keyout", str(pem), "-out", str(tmp_path / "ca.crt")]
    subprocess.run(["openssl", "req", *kind, *names, *files], check=True, capture_output=True)
    pem.write_text(pem.read_text() + (tmp_path / "ca.crt").read_text())
    return pem


def test_tls_with_the_clusters_own_authority(pod: Pod, twin: Twin, certificate: Path) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    pod.write(STEPS)
    with serving(twin, tls=tls) as url:
        pod.environ["TUNING_TRIAL_URL"] = url
        assert pod.run(python=BARE).code == 1
        assert "not trusted" in pod.termination()["message"]
        pod.environ["TUNING_CA_FILE"] = str(certificate.with_name("ca.crt"))
        ended = pod.run(python=BARE)
    assert ended.code == 0, ended
    assert twin.study.trials[0].state.name == "COMPLETE"


@pytest.mark.parametrize("renewable", [False, True])
def test_little_patience_with_a_certificate_that_was_never_trusted(
    twin: Twin, certificate: Path, other_certificate: Path, tmp_path: Path, renewable: bool
) -> None:
    """A file with the CA is updated when the CA changes; the system's CAs are not."""
    (tmp_path / "token").write_text("token-1")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    time = Time()
    with serving(twin, tls=tls) as url:
        ca = str(other_certificate.with_name("ca.crt")) if renewable else None
        client = Client(url, str(tmp_path / "token"), ca, sleep=time.sleep, clock=time)
        with pytest.raises(Refused, match="not trusted"):
            client.call("GET", "", patience=1800)
    assert time() == pytest.approx(300 if renewable else 10, abs=20)


def test_a_server_once_trusted_is_waited_for_while_another_answers(
    twin: Twin, certificate: Path, other_certificate: Path, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("token-1")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    time = Time()
    with serving(twin, tls=tls) as url:
        client = Client(
            url, str(tmp_path / "token"), str(certificate.with_name("ca.crt")), sleep=time.sleep, clock=time
        )
        client.call("GET", "", patience=0)
        client.close()
        tls.load_cert_chain(other_certificate)
        with pytest.raises(Unreachable, match="not trusted"):
            client.call("GET", "", patience=600)
        assert time() > 500
        tls.load_cert_chain(certificate)
        client.call("GET", "", patience=0)


def test_the_ca_is_read_again_when_it_changes(
    twin: Twin, certificate: Path, other_certificate: Path, tmp_path: Path
) -> None:
    """The server's certificate is renewed, by another CA; a while later, the pod has that CA."""
    (tmp_path / "token").write_text("token-1")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    mounted = tmp_path / "mounted.crt"
    mounted.write_bytes(certificate.with_name("ca.crt").read_bytes())
    time = Time()
    with serving(twin, tls=tls) as url:
        client = Client(url, str(tmp_path / "token"), str(mounted), sleep=time.sleep, clock=time)
        client.call("GET", "", patience=0)
        client.close()
        tls.load_cert_chain(other_certificate)
        with pytest.raises(Unreachable, match="not trusted"):
            client.call("GET", "", patience=60)
        mounted.write_bytes(other_certificate.with_name("ca.crt").read_bytes())
        client.call("GET", "", patience=0)


def test_a_request_that_times_out_is_not_sent_again_within_the_attempt(twin: Twin, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("token-1")
    over = threading.Event()

    def hang(_: Handler) -> bool:
        twin.requests.append(("GET", "hangs", None))
        return over.wait(240)

    twin.faults.extend([lambda _: False, hang, hang])
    with serving(twin) as url:
        client = Client(url, str(tmp_path / "token"))
        client.call("GET", "", patience=0)
        try:
            with pytest.raises(Unreachable, match="timed out"):
                client.call("GET", "", patience=0, timeout=0.2)
        finally:
            over.set()
            client.close()
    assert [path for _, path, _ in twin.requests].count("hangs") == 1
