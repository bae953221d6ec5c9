"""Reads the trials with plain Optuna from the cluster's database."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import subprocess
from typing import TYPE_CHECKING

import optuna
from sqlalchemy import URL, make_url

from dev.cluster.kind import DEVELOPMENT
from dev.cluster.programs import kubectl
from dev.cluster.run import CommandError, run
from dev.demo.system import NAMESPACE, RELEASE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from optuna.trial import FrozenTrial


class Record:
    """The studies in the database. Their names are NAMESPACE/NAME."""

    def __init__(self, storage: optuna.storages.RDBStorage) -> None:
        self._storage = storage

    def has(self, study: str) -> bool:
        """Return whether the study is in the database."""
        return study in optuna.get_all_study_names(self._storage)

    def study(self, study: str) -> optuna.Study:
        """Load the study. Raises KeyError if it doesn't exist."""
        return optuna.load_study(study_name=study, storage=self._storage)

    def trials(self, study: str) -> list[FrozenTrial]:
        """Return the study's trials, or none if the operator hasn't created the study yet."""
        if not self.has(study):
            return []
        return self.study(study).get_trials(deepcopy=False)


@contextlib.contextmanager
def record(kubeconfig: str | Path = DEVELOPMENT.kubeconfig) -> Iterator[Record]:
    """Connect to the database of the study server through a port-forward."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = _database(kubeconfig)
    service = (url.host or "").partition(".")[0]
    with port_forward(NAMESPACE, f"service/{service}", 5432, kubeconfig) as port:
        local = url.set(host="127.0.0.1", port=port).render_as_string(hide_password=False)
        storage = optuna.storages.RDBStorage(local, skip_table_creation=True)
        try:
            yield Record(storage)
        finally:
            storage.remove_session()
            storage.engine.dispose()


def _database(kubeconfig: str | Path) -> URL:
    """Return the URL of the database, with its password."""
    get = (kubectl(), f"--kubeconfig={kubeconfig}", f"--namespace={NAMESPACE}", "get", "--output=json")
    server = json.loads(run(*get, "statefulset", f"{RELEASE}-study-server"))["spec"]["template"]["spec"]
    variables = {variable["name"]: variable for variable in server["containers"][0]["env"]}

    def value(name: str) -> str:
        if "value" in variables[name]:
            return str(variables[name]["value"])
        reference = variables[name]["valueFrom"]["secretKeyRef"]
        encoded = json.loads(run(*get, "secret", reference["name"]))["data"][reference["key"]]
        return base64.b64decode(encoded).decode()

    url = make_url(value("TUNING_DATABASE_URL")).set(drivername="postgresql+psycopg2")
    return url if url.password else url.set(password=value("PGPASSWORD"))


@contextlib.contextmanager
def port_forward(
    namespace: str, target: str, port: int, kubeconfig: str | Path = DEVELOPMENT.kubeconfig
) -> Iterator[int]:
    """Forward a port of a service or pod; yields the local port."""
    config, where = f"--kubeconfig={kubeconfig}", f"--namespace={namespace}"
    command = [str(kubectl()), config, where, "port-forward", target, f":{port}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout
        try:
            output = process.stdout.readline()
            local = re.search(r"127\.0\.0\.1:(\d+)", output)
            if local is None:
                raise CommandError(f"kubectl port-forward {target} failed: {output}")
            yield int(local[1])
        finally:
            process.kill()
