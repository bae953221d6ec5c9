"""Several study servers on one database: each study has one of them, whatever else changes."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import optuna
import pytest
from optuna.study import StudyDirection
from tuning_operator.kube.plan.work import Refit, Trial
from tuning_operator.kube.ports.study_server import HttpStudyServer, StudyServerUnavailable
from tuning_operator.kube.ports.study_servers import StudyServers
from tuning_operator.protocol import AskRequest, RefitRequest, StudyDefinition, StudyKey, TellRequest
from tuning_operator.studies.storage import PostgresStorage, PostgresStore
from tuning_operator.studies.storage.base import OtherShard

from tests.support.study_server import RunningServer, running_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    import httpx

    NewStorage = Callable[..., PostgresStorage]

X = {"name": "x", "type": "float", "low": 0, "high": 1}
DEFINITION: dict[str, Any] = {
    "objectives": [{"metric": "loss", "direction": "minimize"}],
    "searchSpace": [X],
}
ASK = {"parallelism": 1, "maxTrials": 10}


def path(study: str) -> str:
    return f"/v1/studies/ml/{study}"


def start(server: RunningServer, study: str, **definition: Any) -> None:
    """Declare a study and start its first trial."""
    server.operator().put(path(study), json=DEFINITION | definition).raise_for_status()
    server.operator().post(f"{path(study)}/ask", json=ASK).raise_for_status()


@pytest.fixture
def servers(database_url: str) -> Iterator[list[RunningServer]]:
    """Servers 0 and 1; `zero` is a study of the first one and `one` of the second, each with a trial."""
    with running_server(PostgresStore(database_url)) as first:
        start(first, "zero")
        with running_server(PostgresStore(database_url, shard=1)) as second:
            start(second, "one")
            yield [first, second]


def test_each_server_serves_its_own_studies(servers: list[RunningServer]) -> None:
    """The other one refuses every request for them, and says where to send it."""
    for server, other, study, place in ((*servers, "zero", 0), (*servers[::-1], "one", 1)):
        operator, url = other.operator(), path(study)
        refused: list[httpx.Response] = [
            operator.get(url),
            operator.put(url, json=DEFINITION | {"uid": "another", "existingRecord": "Replace"}),
            operator.post(f"{url}/ask", json=ASK),
            operator.post(f"{url}/trials/0/result", json={"state": "FAIL"}),
            operator.delete(url),
            other.reader("ml").get(f"{url}/record"),
            other.pod("ml", study, 0).post("/report", json={"values": [[0, 1.0]]}),
        ]
        for reply in refused:
            assert reply.status_code == 421, reply.text
            assert reply.json()["studyServer"] == place
            assert f"study server {place} has the record of ml/{study}" in reply.json()["detail"]
        summary = server.operator().get(url).json()
        assert summary["counts"]["running"] == 1
        changed = server.operator().get("/v1/changes").json()["studies"]
        assert changed == [["ml", study]], "the feed of a server has its own studies"


def test_studies_stay_where_they_are(servers: list[RunningServer], database_url: str) -> None:
    """Also after restarts, and when a TuningStudy is deleted and created again."""
    second = servers[1]
    pod = second.pod("ml", "one", 0)
    assert pod.post("/result", json={"state": "COMPLETE", "values": [0.5]}).status_code == 200
    second.operator().delete(path("one")).raise_for_status()
    assert servers[0].operator().get("/v1/namespaces").json() == {"namespaces": []}
    second.close()
    with running_server(PostgresStore(database_url, shard=1)) as again:
        assert servers[0].operator().put(path("one"), json=DEFINITION).status_code == 421
        start(again, "one")
        assert again.operator().get(path("one")).json()["counts"]["complete"] == 1
        with running_server(PostgresStore(database_url, shard=2)) as third:
            assert third.operator().get(path("zero")).json()["studyServer"] == 0
            assert third.operator().get(path("one")).json()["studyServer"] == 1


def test_one_of_two_servers_gets_a_new_study(servers: list[RunningServer]) -> None:
    replies: dict[int, httpx.Response] = {}
    together = threading.Barrier(2)

    def declare(place: int) -> None:
        operator = servers[place].operator()
        together.wait()
        replies[place] = operator.put(path("new"), json=DEFINITION)

    threads = [threading.Thread(target=declare, args=(place,)) for place in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [winner] = [place for place, reply in replies.items() if reply.status_code == 200]
    assert replies[1 - winner].json()["studyServer"] == winner


def test_a_deleted_record_can_begin_elsewhere(servers: list[RunningServer]) -> None:
    """What a server has seen of another one's studies does not stay in its memory."""
    start(servers[1], "brief", deletionPolicy="Delete")
    assert servers[0].operator().get(path("brief")).status_code == 421
    servers[1].operator().delete(path("brief")).raise_for_status()
    start(servers[0], "brief")
    assert servers[1].operator().get(path("brief")).json()["studyServer"] == 0


def test_every_server_lists_the_records_and_can_copy_trials(servers: list[RunningServer]) -> None:
    listed = [server.reader("ml").get("/v1/studies/ml").json()["records"] for server in servers]
    assert [record["name"] for record in listed[0]] == ["one", "zero"]
    assert listed[0] == listed[1]
    pod = servers[1].pod("ml", "one", 0)
    for number in range(3):  # the source grows, and its server is still the one that writes it
        copy = f"copy-{number}"
        start(servers[0], copy, warmStart="one")
        assert servers[0].operator().get(path(copy)).json()["counts"]["copied"] == min(number, 1)
        assert pod.post("/result", json={"state": "COMPLETE", "values": [0.5]}).status_code == 200


def test_studies_of_plain_optuna_belong_to_the_first_server(
    servers: list[RunningServer], database_url: str
) -> None:
    optuna.create_study(study_name="ml/plain", storage=database_url, direction="minimize")
    assert servers[1].operator().put(path("plain"), json=DEFINITION).json()["studyServer"] == 0
    start(servers[0], "plain")
    found = optuna.load_study(study_name="ml/one", storage=database_url)
    assert len(found.trials) == 1, "Optuna's tools open the studies of every server"


def test_a_storage_writes_only_to_its_own_studies(new_storage: NewStorage) -> None:
    first, second = new_storage(), new_storage(shard=1)
    theirs = second.create_new_study([StudyDirection.MINIMIZE], "theirs")
    trial = second.create_new_trial(theirs)
    assert [found._trial_id for found in first.get_all_trials(theirs)] == [trial]
    writes: list[Callable[[], Any]] = [
        lambda: first.create_new_trial(theirs),
        lambda: first.create_trials(theirs, [optuna.trial.create_trial(value=1)]),
        lambda: first.set_trial_intermediate_value(trial, 0, 0.5),
        lambda: first.set_trial_state_values(trial, optuna.trial.TrialState.COMPLETE, [1.0]),
        lambda: first.set_study_user_attr(theirs, "a", 1),
        lambda: first.rename_study(theirs, "mine"),
        lambda: first.delete_study(theirs),
    ]
    for write in writes:
        with pytest.raises(OtherShard, match="theirs is written by shard 1"):
            write()
    second.set_trial_intermediate_value(trial, 0, 0.25)
    assert first.get_trial(trial).intermediate_values == {0: 0.25}


class Clients:
    """What an operator's process has: the studies of all servers, and a connection to each."""

    def __init__(self, servers: list[RunningServer], token: Path) -> None:
        token.write_text(servers[0].operator_token())
        self.connections = [HttpStudyServer(server.url, token) for server in servers]
        self.studies = StudyServers(self.connections)

    async def running(self, study: str) -> int:
        summary = await self.studies.summary(StudyKey("ml", study))
        assert summary
        return summary.counts.running

    async def start(self, study: str, parallelism: int) -> str:
        """Create a study with running trials, as a pass does; return the address of its server."""
        key, definition = StudyKey("ml", study), StudyDefinition.model_validate(DEFINITION)
        assert await self.studies.summary(key) is None
        address = self.studies.url(key)  # its pods get this address before the study is declared
        await self.studies.declare(key, definition)
        await self.studies.ask(key, AskRequest(parallelism=parallelism, max_trials=9))
        assert self.studies.url(key) == address
        return address


@pytest.fixture
async def operator(servers: list[RunningServer], tmp_path: Path) -> AsyncIterator[Clients]:
    clients = Clients(servers, tmp_path / "token")
    yield clients
    for connection in clients.connections:
        await connection.close()


async def test_the_operator_finds_each_study(
    operator: Clients, servers: list[RunningServer], tmp_path: Path
) -> None:
    """New ones are created where the fewest trials run; a restarted operator finds them there again."""
    zero, one = (server.url for server in servers)
    assert [await operator.running(study) for study in ("zero", "one")] == [1, 1]
    assert await operator.start("big", 3) == zero
    assert await operator.start("small", 1) == one
    assert await operator.start("smaller", 1) == one
    await operator.studies.tell(StudyKey("ml", "small"), Trial(0), TellRequest(state="COMPLETE", values=[1]))
    await operator.studies.begin_refit(StudyKey("ml", "small"), RefitRequest(trial=0, digest="d"))
    await operator.studies.tell(StudyKey("ml", "small"), Refit(0, "d"), TellRequest(state="FAIL"))
    restarted = Clients(servers, tmp_path / "token")
    assert [await restarted.running(study) for study in ("smaller", "big")] == [1, 3]
    assert restarted.studies.url(StudyKey("ml", "smaller")) == one
    await restarted.studies.forget(StudyKey("ml", "one"))  # it knows nothing of it yet
    assert servers[1].operator().get(path("one")).json()["counts"]["running"] == 0
    for connection in restarted.connections:
        await connection.close()


async def test_an_outage_of_one_server_stalls_only_its_studies(
    operator: Clients, servers: list[RunningServer], tmp_path: Path
) -> None:
    """Also if the operator restarts in the meantime. New studies are created at the other server."""
    assert await operator.running("one") == 1
    servers[1].close()
    restarted = Clients(servers, tmp_path / "token")
    for clients in (operator, restarted):
        with pytest.raises(StudyServerUnavailable):
            await clients.connections[1].changes(None, 0)
        with pytest.raises(StudyServerUnavailable, match="Cannot connect"):
            await clients.running("one")
        assert await clients.running("zero") == 1
    for connection in restarted.connections:
        await connection.close()
    assert await operator.start("big", 3) == servers[0].url
    assert await operator.start("new", 1) == servers[0].url


async def test_a_server_that_is_away_is_not_waited_for(operator: Clients) -> None:
    """Its studies would keep the operator's workers from those of the other servers."""
    away = operator.connections[1]
    away.away = StudyServerUnavailable("GET /v1/changes failed: timed out")
    with pytest.raises(StudyServerUnavailable, match="timed out"):
        await operator.running("one")
    await away.changes(None, 0)  # always tried
    assert await operator.running("one") == 1


async def test_a_study_of_a_server_that_was_removed(servers: list[RunningServer], tmp_path: Path) -> None:
    """Nothing moves or is lost: the study waits, and the operator says what is missing."""
    operator = Clients(servers[:1], tmp_path / "token")
    for _ in range(2):
        with pytest.raises(StudyServerUnavailable, match=r"set studyServer\.replicas of the chart to 2"):
            await operator.running("one")
    assert await operator.running("zero") == 1
    await operator.connections[0].close()
