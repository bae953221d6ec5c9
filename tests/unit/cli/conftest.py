"""A simulated cluster: kubectl is a script that answers from files; the study server has real TLS."""

from __future__ import annotations

import os
import shutil
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tuning_operator.cli import PluginError, plugin
from typer.testing import CliRunner

from tests.unit.cli.cluster import HOST, Cluster, StudyServer, study_server
from tests.unit.cli.served import mnist, mnist_record, mnist_server  # noqa: F401  fixtures

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def server() -> Iterator[StudyServer]:
    with study_server(HOST) as serving:
        yield serving


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    programs, answers = tmp_path / "bin", tmp_path / "cluster"
    programs.mkdir()
    answers.mkdir()
    kubectl = programs / "kubectl"
    kubectl.write_text(f"#!{sys.executable} -IS\n" + Path(__file__).with_name("fake_kubectl.py").read_text())
    kubectl.chmod(kubectl.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_KUBECTL", str(answers))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")  # must not be used
    assert shutil.which("kubectl") == str(kubectl)
    return Cluster(answers)


class Ran:
    """The outcome of a command of the plugin."""

    def __init__(self, *arguments: str) -> None:
        result = CliRunner().invoke(plugin.app, arguments, obj=plugin.connect_cluster)
        self.out, self.err, self.code = result.stdout, result.stderr, result.exit_code
        self.error = None
        if isinstance(result.exception, PluginError):
            self.error, self.code = str(result.exception), result.exception.code
        elif result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
