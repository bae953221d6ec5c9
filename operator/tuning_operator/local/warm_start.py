"""`warmStart` between local studies, each with a database of its own: the other's record is copied there."""

import contextlib
from collections.abc import Iterator

from tuning_operator.local import LocalError
from tuning_operator.local.home import NAMESPACE, StudyFolder
from tuning_operator.local.postgres import Postgres, running_url
from tuning_operator.resource import names
from tuning_operator.resource.study import TuningStudy

COPIED = "warm-start-copied"
"""The file that says that the record was copied to its end."""


def provide_source(folder: StudyFolder, study: TuningStudy, url: str) -> None:
    """Copy the record of the study that `warmStart` names into a database, unless it is there.

    From there, the study server copies the trials that fit, as on a cluster.

    Args:
        folder: the study's.
        study: the study.
        url: the URL of its database, whose study server does not run yet.

    Raises:
        LocalError: there is no such study.
    """
    done = folder.path / COPIED
    if study.spec.warm_start is None or done.exists():
        return
    source = StudyFolder(folder.path.parent / study.spec.warm_start.study)
    if source.read() is None:
        raise LocalError(
            f"spec.warmStart.study: there is no study {source.name} on this machine: `tuning list` lists all "
            "studies. Run it first, or correct the name."
        )
    with _database(source) as theirs:
        _copy(names.optuna_study_name(NAMESPACE, source.name), theirs, url)
    done.touch()


@contextlib.contextmanager
def _database(folder: StudyFolder) -> Iterator[str]:
    """Yield the URL of a study's database, which is started if no command runs the study."""
    if folder.in_use:
        url = running_url(folder.database)
        if url is None:
            raise LocalError(f"The study {folder.name} is starting or stopping: try again in a few seconds.")
        yield url
        return
    with folder.locked():
        database = Postgres(folder.database)
        try:
            database.start()
            yield database.url
        finally:
            database.stop()


def _copy(name: str, source: str, target: str) -> None:
    import optuna
    from optuna.storages import RDBStorage

    # psycopg2, since SQLAlchemy would take its successor, which is not installed
    storages = [RDBStorage(url.replace("://", "+psycopg2://", 1)) for url in (source, target)]
    try:
        with contextlib.suppress(KeyError):  # what an interrupted copy has left
            optuna.delete_study(study_name=name, storage=storages[1])
        optuna.copy_study(from_study_name=name, from_storage=storages[0], to_storage=storages[1])
    except KeyError:
        pass  # no trial was started: the study server says so
    finally:
        for storage in storages:
            storage.remove_session()
            storage.engine.dispose()
