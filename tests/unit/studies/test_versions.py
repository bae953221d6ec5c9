"""A record that a newer version of the study server wrote, for example before a rollback."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tuning_operator.protocol import RefitRequest
from tuning_operator.studies.study.records import DEFINITION
from tuning_operator.studies.study.refit import REFIT

from tests.support.studies import KEY, Servers, ask, complete, declared, definition, servers, threads

if TYPE_CHECKING:
    from tuning_operator.studies.storage.base import Store

__all__ = ["servers", "threads"]


async def test_its_new_fields_are_ignored(servers: Servers) -> None:
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
