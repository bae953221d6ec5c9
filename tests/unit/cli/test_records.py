"""`records` on a real study server: lists what is on record, and deletes through a TuningStudy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.unit.cli.conftest import Ran

if TYPE_CHECKING:
    from tests.unit.cli.cluster import Cluster


@pytest.mark.parametrize("deleted", [True, False])
def test_the_records_of_a_namespace(mnist: Cluster, deleted: bool) -> None:
    mnist.answer("get-tuningstudies", {"items": [] if deleted else [{"metadata": {"name": "mnist"}}]})
    ran = Ran("records", "-n", "ml")
    header, row = ran.out.splitlines()
    assert header.split("  ")[0] == "NAME"
    name, trials, *_, resource = row.split()
    assert (name, trials, resource) == ("mnist", "7", "deleted" if deleted else "exists")


def test_the_records_of_all_namespaces(mnist: Cluster) -> None:
    mnist.answer("get-tuningstudies", {"items": []})
    mnist.answer("get-namespaces", {"items": [{"metadata": {"name": "ml"}}]})
    assert Ran("records", "-A", "-n", "ml").out.splitlines()[1].split()[:3] == ["ml", "mnist", "7"]


def test_a_record_is_deleted_with_a_study_that_replaces_it(mnist: Cluster) -> None:
    mnist.answer("get-tuningstudies", {"items": []})
    for question in ("create---filename", "wait-tuningstudies", "delete-tuningstudies"):
        mnist.answer(question, "")
    ran = Ran("records", "--delete", "mnist", "--yes", "-n", "ml")
    assert ran.out == "The record mnist was deleted.\n", ran.error
    verbs = [call[0] for call in mnist.calls()]
    assert verbs[-3:] == ["create", "wait", "delete"]


def test_deleting_asks_first(mnist: Cluster) -> None:
    mnist.answer("get-tuningstudies", {"items": []})
    ran = Ran("records", "--delete", "mnist", "-n", "ml")
    assert ran.code == 1
    assert "Delete the record mnist with 7 trials?" in ran.out
    assert "create" not in [call[0] for call in mnist.calls() if call[1] != "token"]


@pytest.mark.parametrize(
    ("name", "existing", "error", "code"),
    [
        ("mnist", ["mnist"], "the TuningStudy mnist exists and uses its record: delete it first", 1),
        ("mnits", [], 'record "mnits" not found in namespace ml', 3),
    ],
)
def test_only_a_record_without_a_study_is_deleted(
    mnist: Cluster, name: str, existing: list[str], error: str, code: int
) -> None:
    mnist.answer("get-tuningstudies", {"items": [{"metadata": {"name": one}} for one in existing]})
    ran = Ran("records", "--delete", name, "--yes", "-n", "ml")
    assert error in (ran.error or "")
    assert ran.code == code


def test_without_any_study_the_servers_address_is_not_known(cluster: Cluster) -> None:
    cluster.answer("get-configmaps", {"items": []})
    ran = Ran("records", "-n", "ml")
    assert ran.code == 3
    assert "the study server's address is not known" in (ran.error or "")
    asked = [call for call in cluster.calls() if call[:2] == ["get", "configmaps"]]
    assert ["--all-namespaces" in call for call in asked] == [False, True]
