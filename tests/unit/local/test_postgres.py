"""The embedded Postgres and its files."""

from __future__ import annotations

from pathlib import Path

import pytest
from tuning_operator.local.postgres import running_url, stop


def test_a_postgres_that_died_before_it_opened_its_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file names no folder of the socket, so that none is removed: not the current one, either."""
    data, here = tmp_path / "data", tmp_path / "here"
    data.mkdir()
    (here / "code").mkdir(parents=True)
    (data / "postmaster.pid").write_text(f"999999999\n{data}\n1790000000\n5432\n\n\n")
    monkeypatch.chdir(here)
    assert running_url(data) is None
    stop(data)
    assert (here / "code").exists()
