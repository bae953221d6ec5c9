"""The command `records`: the records of a cluster's studies, also those whose TuningStudy was deleted."""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

import typer

from tuning_operator.cli import NotFoundError, NotReachableError, PluginError
from tuning_operator.cli.cluster.kubectl import Kubectl, KubectlError
from tuning_operator.cli.cluster.studies import RESOURCE, ClusterStudies
from tuning_operator.cli.commands.options import Everywhere
from tuning_operator.cli.text.values import NOTHING, moment
from tuning_operator.resource import names
from tuning_operator.resource.text import count

ACCEPTED_SECONDS = 60
"""How long to wait until the operator has replaced a record."""


@dataclass(frozen=True)
class StudyRecord:
    """A record."""

    namespace: str
    name: str
    trials: int
    finished: datetime | None
    """When the last trial ended."""
    retained: bool
    """Whether the TuningStudy was deleted."""


def records(
    studies: ClusterStudies,
    everywhere: Everywhere = False,
    delete: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Delete this record; its TuningStudy must already be deleted."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete without asking.")] = False,
) -> None:
    """List the records of studies, including those of deleted TuningStudies, or delete one.

    Examples:

        {program} records

        {program} records --delete mnist
    """
    if delete is not None:
        found = _find_record(studies.kubectl, delete)
        if not yes:
            typer.confirm(f"Delete the record {delete} with {count(found.trials, 'trial')}?", abort=True)
        _delete_record(studies.kubectl, delete)
        typer.echo(f"The record {delete} was deleted.")
        return
    rows = [
        [
            *([one.namespace] if everywhere else []),
            one.name,
            str(one.trials),
            moment(one.finished) if one.finished else NOTHING,
            "deleted" if one.retained else "exists",
        ]
        for one in _records(studies.kubectl, everywhere=everywhere)
    ]
    if not rows:
        typer.echo("No records found.", err=True)
        return
    from tuning_operator.cli.text.grid import print_grid

    headers = ["NAME", "TRIALS", "LAST TRIAL ENDED", "TUNINGSTUDY"]
    print_grid(["NAMESPACE", *headers] if everywhere else headers, rows)


def _records(kubectl: Kubectl, *, everywhere: bool) -> Iterator[StudyRecord]:
    """Yield the records of the namespace, or of all namespaces."""
    from tuning_operator.cli.cluster.study_server import any_address, served_records  # it takes a while

    namespaces = [kubectl.current_namespace()]
    address = any_address(kubectl)
    if everywhere:
        namespaces = [item["metadata"]["name"] for item in kubectl.json("get", "namespaces")["items"]]
    with served_records(kubectl, address) as read:
        for namespace in namespaces:
            within = kubectl.within(namespace)
            existing = {item["metadata"]["name"] for item in within.json("get", RESOURCE)["items"]}
            for found in read(namespace):
                yield StudyRecord(
                    namespace, found.name, found.trials, found.finished, retained=found.name not in existing
                )


def _find_record(kubectl: Kubectl, name: str) -> StudyRecord:
    """Return a record of the namespace whose TuningStudy was deleted. Raises PluginError."""
    found = next((record for record in _records(kubectl, everywhere=False) if record.name == name), None)
    if found is None:
        where = f"in namespace {kubectl.current_namespace()}"
        raise NotFoundError(f'record "{name}" not found {where}; `kubectl tuning records` lists all')
    if not found.retained:
        raise PluginError(
            f"the TuningStudy {name} exists and uses its record: delete it first (kubectl delete tuningstudy "
            f"{name})"
        )
    return found


def _delete_record(kubectl: Kubectl, name: str) -> None:
    """Delete the record of a study whose TuningStudy was deleted, with the permissions for TuningStudies.

    A TuningStudy of this name replaces the record with an empty one, which is deleted with it.
    """
    placeholder = {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": name},
        "spec": {
            "objectives": [{"metric": "value", "direction": "minimize"}],
            "maxTrials": 1,
            "suspend": True,
            "existingRecord": "Replace",
            "deletionPolicy": "Delete",
            "trial": {
                "objective": "none:none",
                "template": {"spec": {"containers": [{"name": names.TRAINER_CONTAINER, "image": "none"}]}},
            },
        },
    }
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(placeholder, file)
        file.flush()
        kubectl.run("create", "--filename", file.name)
    try:
        kubectl.run(
            "wait", f"{RESOURCE}/{name}", "--for=condition=Accepted", f"--timeout={ACCEPTED_SECONDS}s"
        )
    except KubectlError as error:
        raise NotReachableError(
            f"the operator did not replace the record of {name} within {ACCEPTED_SECONDS} s: {error.stderr}\n"
            f"See `kubectl describe tuningstudy {name}`, and delete this TuningStudy when it is Accepted"
        ) from None
    kubectl.run("delete", RESOURCE, name)
