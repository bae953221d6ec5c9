"""Where studies are kept: an Optuna storage that answers from memory and keeps everything in Postgres."""

from tuning_operator.studies.storage.base import Fenced, StorageUnavailable
from tuning_operator.studies.storage.storage import PostgresStorage
from tuning_operator.studies.storage.store import PostgresStore
from tuning_operator.studies.storage.writes import Writes

__all__ = ["Fenced", "PostgresStorage", "PostgresStore", "StorageUnavailable", "Writes"]
