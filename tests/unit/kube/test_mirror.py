"""The copy of Jobs and pods: in the order of changes, whoever reports them."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any

import pytest
from tuning_operator.kube.ports.jobs.mirror import Mirror
from tuning_operator.kube.ports.kube_api import KubeError
from tuning_operator.protocol import StudyKey

from tests.unit.kube.runs_contract import watching

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

Json = dict[str, Any]
KEY = StudyKey("ml", "a")


def job(name: str, version: int, study: str = "a", uid: str = "", **status: int) -> Json:
    metadata = {"name": name, "namespace": "ml", "uid": uid or name, "resourceVersion": str(version)}
    return {"metadata": {**metadata, "labels": {"tuning.dev/study": study}}, "status": status}


BOOKMARK = {
    "kind": "Pod",
    "apiVersion": "v1",
    "metadata": {"resourceVersion": "9", "creationTimestamp": None},
    "spec": {"containers": None},
    "status": {},
}
"""As the API server sends it."""


class Watches:
    """A Kubernetes API whose watches of Jobs go as scripted: the changes they bring, or how they fail."""

    def __init__(self, *script: list[tuple[str, Json]] | KubeError, lists: list[list[Json]] | None = None):
        self.script, self.lists = list(script), lists or []
        self.asked: list[tuple[str, str, float]] = []

    async def snapshot(self, kind: str, namespace: str, labels: str, fields: str) -> tuple[list[Json], str]:
        assert (labels, fields == "status.successful=0") == ("tuning.dev/study", kind == "Job")
        if kind == "Job":
            self.asked.append((namespace, "list", asyncio.get_running_loop().time()))
        found = self.lists.pop(0) if self.lists and kind == "Job" else []
        return found, str(max((int(body["metadata"]["resourceVersion"]) for body in found), default=5))

    async def watch(
        self, kind: str, namespace: str, labels: str, fields: str, version: str
    ) -> AsyncIterator[tuple[str, Json]]:
        assert (labels, fields == "status.successful=0") == ("tuning.dev/study", kind == "Job")
        if kind == "Job":
            self.asked.append((namespace, version, asyncio.get_running_loop().time()))
        step = self.script.pop(0) if self.script and kind == "Job" else None
        if isinstance(step, KubeError):
            raise step
        for change in step or ():
            yield change
        if step is None:
            await asyncio.Event().wait()


class Followed:
    """What `watching` of the contract of runs needs."""

    def __init__(self, mirror: Mirror) -> None:
        self.watch: Callable[..., Any] = mirror.follow


@pytest.mark.looptime
async def test_a_watch_goes_on_after_the_last_change() -> None:
    seen: list[StudyKey] = []
    kube = Watches(
        [("ADDED", job("a-0", 7)), ("MODIFIED", job("a-0", 8)), ("BOOKMARK", BOOKMARK)],
        KubeError(500, "", "etcd is away"),
        KubeError(429, "", "too many requests", retry_after=5),
        [("DELETED", job("a-0", 12))],
        KubeError(410, "", ""),
    )
    mirror = Mirror(kube)  # type: ignore[arg-type]
    async with watching(Followed(mirror), seen.append):  # type: ignore[arg-type]
        await asyncio.sleep(60)
    assert kube.asked == [
        ("", "list", 0), ("", "5", 0), ("", "9", 2), ("", "9", 4), ("", "9", 9), ("", "12", 11),
        ("", "list", 13), ("", "5", 13),
    ]  # fmt: skip
    assert seen == [KEY] * 3, "a bookmark is no change"


@pytest.mark.looptime
async def test_what_was_deleted_while_nothing_was_watched_is_gone() -> None:
    seen: list[StudyKey] = []
    before = [job("a-0", 3), job("a-1", 4), job("b-0", 5, study="b")]
    kube = Watches(KubeError(410, "", ""), lists=[before, [job("a-1", 8)]])
    mirror = Mirror(kube)  # type: ignore[arg-type]
    assert mirror.select("Job", KEY) is None, "nothing is known yet"
    async with watching(Followed(mirror), seen.append):  # type: ignore[arg-type]
        await asyncio.sleep(1)
        assert names_in(mirror) == ["a-0", "a-1"]
        mirror.put("Job", job("a-2", 9))
        mirror.put("Job", job("a-3", 7))
        del seen[:]
        await asyncio.sleep(60)
    assert names_in(mirror) == ["a-1", "a-2"], "a-2 was created after the list, a-3 was deleted before it"
    assert set(seen) == {KEY, StudyKey("ml", "b")}
    assert mirror.select("Job", StudyKey("ml", "b")) == []


@pytest.mark.looptime
@pytest.mark.parametrize(
    ("changes", "written", "expected"),
    [
        pytest.param([], job("a-0", 6), {"a-0": {}}, id="before the watch reports it"),
        pytest.param([("ADDED", job("a-0", 6)), ("MODIFIED", job("a-0", 7, ready=1))], job("a-0", 6),
                     {"a-0": {"ready": 1}}, id="after the watch reported it"),
        pytest.param([("DELETED", job("a-0", 7))], job("a-0", 6), {}, id="after it was deleted"),
        pytest.param([], job("a-0", 6, succeeded=1), {}, id="of a Job that is not watched, as it succeeded"),
        pytest.param([("ADDED", job("a-0", 6))], job("a-0", 8, succeeded=1), {},
                     id="before the watch reports that it succeeded"),
        pytest.param([("BOOKMARK", BOOKMARK)], job("a-0", 6), {}, id="after the watch has gone past it"),
    ],
)  # fmt: skip
async def test_a_reply_counts_unless_the_watch_knows_more(
    changes: list[tuple[str, Json]], written: Json, expected: Json
) -> None:
    mirror = Mirror(Watches(changes))  # type: ignore[arg-type]
    async with watching(Followed(mirror), lambda _: None):  # type: ignore[arg-type]
        await asyncio.sleep(1)
        mirror.put("Job", written)
    found = mirror.select("Job", KEY) or []
    assert {body["metadata"]["name"]: body["status"] for body in found} == expected


@pytest.mark.looptime
async def test_an_older_change_replaces_no_reply() -> None:
    """The watch still reports how a Job was deleted when its successor of the same name was created."""
    late = [("MODIFIED", job("a-0", 6, ready=1)), ("DELETED", job("a-0", 7))]
    mirror = Mirror(Watches([], late))  # type: ignore[arg-type]
    async with watching(Followed(mirror), lambda _: None):  # type: ignore[arg-type]
        await asyncio.sleep(1)
        mirror.put("Job", job("a-0", 8))
        await asyncio.sleep(60)
    assert mirror.select("Job", KEY) == [{**job("a-0", 8), "spec": {}}]


@pytest.mark.looptime
async def test_an_older_change_brings_back_no_job_that_succeeded() -> None:
    """The watch still reports how a Job ran when the reply to its deletion shows that it has succeeded."""
    late = [("MODIFIED", job("a-0", 6, ready=1)), ("MODIFIED", job("a-1", 7))]
    last = [("DELETED", job("a-0", 8)), ("ADDED", job("a-0", 10, uid="new"))]
    mirror = Mirror(Watches([], late, last, lists=[[job("a-0", 5)]]))  # type: ignore[arg-type]
    async with watching(Followed(mirror), lambda _: None):  # type: ignore[arg-type]
        await asyncio.sleep(1)
        mirror.put("Job", job("a-0", 9, succeeded=1))
        await asyncio.sleep(2)
        assert names_in(mirror) == ["a-1"]
        await asyncio.sleep(60)
    assert sorted(names_in(mirror)) == ["a-0", "a-1"], "a new Job of this name"


@pytest.mark.looptime
async def test_an_older_change_brings_back_no_job_that_does_not_exist() -> None:
    """The watch, and a list that was made before, still report how a Job ran that is known to be gone."""
    late = [("MODIFIED", job("a-0", 6, ready=1))]
    lists = [[job("a-0", 5)], [job("a-0", 7), job("a-1", 8)]]
    last = [("DELETED", job("a-0", 9))]
    mirror = Mirror(Watches([], late, KubeError(410, "", ""), last, lists=lists))  # type: ignore[arg-type]
    async with watching(Followed(mirror), lambda _: None):  # type: ignore[arg-type]
        await asyncio.sleep(1)
        mirror.drop("Job", "ml", "a-0")
        await asyncio.sleep(2)
        assert names_in(mirror) == []
        await asyncio.sleep(60)
    assert names_in(mirror) == ["a-1"]


@pytest.mark.looptime
async def test_an_object_that_is_given_to_another_study() -> None:
    mirror = Mirror(Watches([("ADDED", job("a-0", 6)), ("MODIFIED", job("a-0", 7, study="b"))]))  # type: ignore[arg-type]
    async with watching(Followed(mirror), lambda _: None):  # type: ignore[arg-type]
        await asyncio.sleep(1)
    assert names_in(mirror) == []
    assert len(mirror.select("Job", StudyKey("ml", "b")) or []) == 1


@pytest.mark.looptime
async def test_an_operator_that_leads_again_begins_again() -> None:
    mirror = Mirror(Watches(lists=[[job("a-0", 3)], [job("a-1", 4)]]))  # type: ignore[arg-type]
    for expected in ("a-0", "a-1"):
        async with watching(Followed(mirror), lambda _: None):  # type: ignore[arg-type]
            await asyncio.sleep(0)
            assert mirror.select("Job", KEY) is None, "what is left of the last time is not used"
            await asyncio.sleep(1)
            assert names_in(mirror) == [expected]


@pytest.mark.looptime
async def test_a_list_without_a_version_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a proxy may return it: it is no list of everything that exists."""
    kube, lists = Watches(), iter([([], ""), ([job("a-0", 3)], "3"), ([], "3")])
    monkeypatch.setattr(kube, "snapshot", lambda *_: asyncio.sleep(0, next(lists, ([], "3"))))
    mirror = Mirror(kube, ["ml"])  # type: ignore[arg-type]
    async with watching(Followed(mirror), lambda _: None):  # type: ignore[arg-type]
        await asyncio.sleep(1)
        assert mirror.select("Job", KEY) is None
        await asyncio.sleep(2)
        assert mirror.select("Job", KEY) is not None


@pytest.mark.looptime
async def test_namespaces_are_watched_each() -> None:
    kube = Watches()
    mirror = Mirror(kube, ["ml", "research"])  # type: ignore[arg-type]
    async with watching(Followed(mirror), lambda _: None):  # type: ignore[arg-type]
        await asyncio.sleep(1)
    assert {namespace for namespace, _, _ in kube.asked} == {"ml", "research"}
    assert mirror.select("Job", KEY) == []
    assert mirror.select("Job", StudyKey("other", "a")) is None


@pytest.mark.looptime
async def test_a_lost_namespace_is_asked_for_less_and_less(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """There is one warning, and what was known of it is not used until it may be read again."""
    lost = [KubeError(403, "Forbidden", "no rights")] * 12
    kube = Watches(lost[0], lists=[[job("a-0", 3)], [job("a-1", 9)]])
    snapshot = kube.snapshot

    async def refused(kind: str, *where: str) -> tuple[list[Json], str]:
        if kind == "Job" and len(kube.asked) > 1 and len(lost) > 1:
            kube.asked.append(("ml", "refused", asyncio.get_running_loop().time()))
            raise lost.pop()
        return await snapshot(kind, *where)

    monkeypatch.setattr(kube, "snapshot", refused)
    mirror = Mirror(kube, ["ml"])  # type: ignore[arg-type]
    async with watching(Followed(mirror), lambda _: None):  # type: ignore[arg-type]
        await asyncio.sleep(60)
        assert mirror.select("Job", KEY) is None
        await asyncio.sleep(600)
        assert names_in(mirror) == ["a-1"]
    times = [at for _, _, at in kube.asked][1:]
    pauses = [round(later - at) for at, later in itertools.pairwise(times)]
    assert pauses == [2, 4, 8, 16, 32, 60, 60, 60, 60, 60, 60, 60, 0]
    assert caplog.text.count("can't be watched") == 1


def names_in(mirror: Mirror) -> list[str]:
    return sorted(body["metadata"]["name"] for body in mirror.select("Job", KEY) or ())
