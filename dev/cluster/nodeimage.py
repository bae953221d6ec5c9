"""kind's node image, made from Debian packages and Go modules where it can't be pulled."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from dev.cluster import engine
from dev.cluster.archive import image_of_files, image_of_tree
from dev.cluster.cache import cached, digest
from dev.cluster.console import step
from dev.cluster.debian import root_tar
from dev.cluster.programs import KUBERNETES, MODULES, go, kubernetes, program
from dev.cluster.run import packages, run

NODE = Path(__file__).parent / "node"
SUITE = "bookworm"
"""The last Debian whose systemd starts on cgroup v1, too."""

PACKAGES = (
    "bash ca-certificates conntrack containerd containernetworking-plugins dbus ebtables ethtool hostname iproute2 iptables "
    "jq kmod libseccomp2 mount nftables openssl procps runc socat systemd systemd-sysv util-linux"
).split()
BINARIES = ("kubeadm", "kubelet", "kubectl")
CONTROL_PLANE = ("kube-apiserver", "kube-controller-manager", "kube-scheduler")


def node_image() -> str:
    """Return the name of the node image, made if need be."""
    name = f"tuning.dev/kind-node:{KUBERNETES}-{_key()}"
    if not engine.image_id(name):
        _make(name)
    return name


def _key() -> str:
    files = [file for file in sorted(NODE.rglob("*")) if file.is_file()]
    versions = [f"{module}@{version}" for module, version in MODULES.values()]
    return digest(KUBERNETES, SUITE, *PACKAGES, *versions, *files)


def _make(name: str) -> None:
    tree = root_tar("node", SUITE, PACKAGES)
    binaries = {binary: kubernetes(binary) for binary in BINARIES} | {"crictl": program("crictl")}
    images = _images()
    with step(f"make the node image {name}"), tempfile.TemporaryDirectory(dir=tree.parent) as folder:
        context = Path(folder)
        (context / "root.tar").hardlink_to(tree)
        (context / "Dockerfile").write_text((NODE / "Dockerfile").read_text())
        shutil.copytree(NODE / "files", context / "files")
        for place in ("bin", "images"):
            (context / place).mkdir()
        for binary, path in binaries.items():
            (context / "bin" / binary).hardlink_to(path)
        for image in images:
            (context / "images" / image.name).hardlink_to(image)
        (context / "files/kind/version").write_text(KUBERNETES)
        run("docker", "build", "--quiet", "--tag", name, context, env={"DOCKER_BUILDKIT": "0"})


def _images() -> list[Path]:
    """Return the archives of the images that kubeadm and the manifests ask for."""
    listed = run(
        kubernetes("kubeadm"), "config", "images", "list", "--kubernetes-version", KUBERNETES
    ).split()
    named = {reference.rpartition(":")[0].rpartition("/")[2]: reference for reference in listed}
    packages(("/bin/busybox", "busybox-static"))
    busybox = Path("/bin/busybox")
    archives = [
        _of_program(named["etcd"], program("etcd"), "/usr/local/bin/etcd"),
        _of_program(named["coredns"], program("coredns"), "/coredns"),
        _of_program(named["pause"], _pause(), "/pause"),
        _of_program(
            "docker.io/local/local-path-provisioner:1",
            program("local-path-provisioner"),
            "/usr/bin/local-path-provisioner",
        ),
        _of_program(
            "docker.io/local/busybox:1", busybox, "/bin/busybox", ("sh", "mkdir", "rm", "chmod", "ls", "cat")
        ),
        _kube_proxy(named["kube-proxy"]),
    ]
    return archives + [
        _of_program(named[part], kubernetes(part), f"/usr/local/bin/{part}") for part in CONTROL_PLANE
    ]


def _of_program(name: str, binary: Path, place: str, links: tuple[str, ...] = ()) -> Path:
    def make(path: Path) -> None:
        by_path = {f"/bin/{link}": place for link in links}
        image_of_files(path, name, {place: binary}, [place], by_path)

    return cached(f"images/{binary.name}-{digest(name, str(binary), place, *links)}.tar", make)


def _kube_proxy(name: str) -> Path:
    """kube-proxy calls iptables, which needs a distribution around it."""
    binary = kubernetes("kube-proxy")
    tree = root_tar(
        "kube-proxy",
        SUITE,
        ["iptables", "conntrack", "kmod"],
        hooks=(f'cp {binary} "$1/usr/local/bin/kube-proxy"',),
    )
    return cached(
        f"images/kube-proxy-{digest(name, str(tree))}.tar",
        lambda path: image_of_tree(path, name, tree, ["/usr/local/bin/kube-proxy"]),
    )


def _pause() -> Path:
    source = NODE / "pause"

    def make(path: Path) -> None:
        run(go(), "build", "-ldflags=-s -w", "-o", path, ".", cwd=source, env={"CGO_ENABLED": "0"})

    return cached(f"bin/pause-{digest(*sorted(source.iterdir()))}", make)
