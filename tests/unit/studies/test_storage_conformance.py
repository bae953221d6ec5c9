"""Optuna's own conformance suite for storages, on real Postgres."""

from optuna.testing.pytest_storages import StorageTestCase


class TestPostgresStorage(StorageTestCase):  # type: ignore[misc]
    """Every test of the suite; the fixture `storage` is in conftest.py."""
