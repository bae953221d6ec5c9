"""Two versions at once, as in an upgrade or after a rollback: what only the newer one knows is ignored."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tuning_operator.protocol import RefitRequest
from tuning_operator.studies.study.records import DEFINITION
from tuning_operator.studies.study.refit import REFIT

from tests.support.studies import KEY, Servers, X, ask, complete, declared, definition, servers, threads
from tests.support.study_server import RunningServer, study_server

if TYPE_CHECKING:
    from tuning_operator.studies.storage.base import Store

__all__ = ["servers", "study_server", "threads"]

STUDY = "/v1/studies/ml/mnist"
NEWER = {"colour": "red"}


async def test_the_record_of_a_newer_study_server(servers: Servers) -> None:
    engine = await declared(servers.start())
    await ask(engine, 1)
    await engine.tell(0, complete(0.5))
    await engine.refit.begin(RefitRequest(trial=0, digest="d"))
    study = engine.study.study_id
    newer = definition().model_dump(mode="json")
    newer["objectives"][0]["colour"] = newer["colour"] = "red"
    refit = {**attributes(servers.store, study)[REFIT], "colour": "red"}
    servers.store.storage.set_study_system_attr(study, DEFINITION, json.dumps(newer))
    servers.store.storage.set_study_system_attr(study, REFIT, refit)
    found = await servers.start().find(KEY)
    assert found.definition == definition()
    assert (await found.summary()).refit == (await engine.summary()).refit


def attributes(store: Store, study: int) -> dict[str, object]:
    return store.storage.get_study_system_attrs(study)


def test_the_requests_of_a_newer_trainer(study_server: RunningServer) -> None:
    """A pod keeps the trainer that it started with, also after a rollback: no value or result is lost."""
    operator = study_server.operator()
    operator.put(STUDY, json={"objectives": [{"metric": "acc", "direction": "maximize"}]})
    operator.post(f"{STUDY}/ask", json={"parallelism": 1, "maxTrials": 1})
    pod = study_server.pod("ml", "mnist", 0)
    form = {"name": "FloatDistribution", "attributes": {"low": 0, "high": 1, "log": False, "step": None}}
    failure = {"category": "Exception", "message": "ValueError", **NEWER}
    attributes = {"userAttrs": {"b": 2}, **NEWER}
    for path, body in (
        ("/suggest", {"name": "x", "distribution": form}),
        ("/report", {"values": [[0, 0.5]]}),
        ("/attributes", {"userAttrs": {"a": 1}}),
        ("/result", {"state": "FAIL", "failure": failure, "attributes": attributes}),
    ):
        reply = pod.post(path, json={**body, **NEWER})
        assert reply.status_code == 200, reply.text
    trial = operator.get(f"{STUDY}/record").json()["trials"][0]
    assert (trial["state"], trial["reported"], trial["parameters"].keys()) == ("FAIL", {"0": 0.5}, {"x"})
    assert trial["userAttrs"].items() >= {"a": 1, "b": 2, "failure_message": "ValueError"}.items()
    token = study_server.pod_token("ml", "mnist", "w0")
    work = {"running": [], "capacity": 1, "timeout": 0, **NEWER}
    headers = {"Authorization": f"Bearer {token}"}
    assert operator.post(f"{STUDY}/workers/0/trials", json=work, headers=headers).status_code == 200


def test_a_definition_is_never_understood_in_part(study_server: RunningServer) -> None:
    """Other than a trial, the study would go on without what its author asked for."""
    definition = {"objectives": [{"metric": "acc", "direction": "maximize"}], "searchSpace": [{**X, **NEWER}]}
    reply = study_server.operator().put(STUDY, json=definition)
    assert reply.status_code == 422
    assert reply.json()["problems"][0]["field"].endswith("colour")
