"""A replacement for kind's node image, built from Debian packages and Go modules."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dev.cluster import engine, programs
from dev.cluster.bare.archive import image_of
from dev.cluster.bare.debian import build_context, install_packages, root_tar
from dev.cluster.cache import cached, digest
from dev.cluster.console import step
from dev.cluster.programs import KUBERNETES, go, kubernetes, kubernetes_key
from dev.cluster.run import run

RECIPE = Path(__file__).parent / "node"
NETWORK = Path(__file__).parent / "network"
PAUSE = Path(__file__).parent / "pause"
REPOSITORY = "tuning.dev/kind-node"
SUITE = "bookworm"
"""The last Debian release whose systemd also starts on cgroup v1."""

PACKAGES = [
    "bash", "ca-certificates", "conntrack", "containerd", "containernetworking-plugins", "dbus", "ebtables",
    "ethtool", "hostname", "iproute2", "iptables", "jq", "kmod", "libseccomp2", "mawk", "mount", "nftables",
    "openssl", "procps", "runc", "socat", "systemd", "systemd-sysv", "util-linux",
]  # fmt: skip
PROXY_PACKAGES = ["conntrack", "iptables", "kmod"]
"""The programs that kube-proxy calls. The other parts of the control plane need no packages."""
ROUTER_PACKAGES = [*PROXY_PACKAGES, "iproute2", "ipset"]
"""The programs that kube-router calls."""

NODE_BINARIES = ("crictl", "kubeadm", "kubelet", "kubectl")
CONTROL_PLANE = ("kube-apiserver", "kube-controller-manager", "kube-scheduler")
BUSYBOX = Path("/bin/busybox")
BUSYBOX_LINKS = tuple(f"/bin/{name}" for name in ("sh", "mkdir", "rm", "chmod", "ls", "cat"))


def node_image() -> str:
    """Build the node image unless the engine has it; return its name."""
    name = f"{REPOSITORY}:{KUBERNETES}-{key()}"
    if not engine.image_id(name):
        _make(name)
        engine.remove_others(name)
    return name


def networked_node_image() -> str:
    """Build the node image of clusters with several nodes unless the engine has it; return its name.

    Its network reaches the other nodes and enforces NetworkPolicies, unlike the bridge of a single node.
    """
    router = programs.program("kube-router")
    files = sorted(file for file in NETWORK.rglob("*") if file.is_file())
    name = f"{REPOSITORY}-networked:{KUBERNETES}-{digest(key(), router.name, *ROUTER_PACKAGES, *files)}"
    if not engine.image_id(name):
        base, tree = node_image(), root_tar("kube-router", SUITE, ROUTER_PACKAGES)
        archive = _archive("kube-router:1", router, "/usr/local/bin/kube-router", base=tree)
        with (
            step(f"make the node image {name}"),
            build_context(NETWORK, {"kube-router.tar": archive}) as context,
        ):
            engine.build("--quiet", f"--build-arg=NODE={base}", "--tag", name, context)
        engine.remove_others(name)
    return name


def key() -> str:
    """Return the hash of everything that the image is built from: programs, packages and recipe."""
    files = [file for folder in (RECIPE, PAUSE) for file in sorted(folder.rglob("*")) if file.is_file()]
    return digest(kubernetes_key(), SUITE, *PACKAGES, *PROXY_PACKAGES, *files)


def _make(name: str) -> None:
    with ThreadPoolExecutor() as pool:  # packages download while programs compile
        trees = [
            pool.submit(root_tar, "node", SUITE, PACKAGES),
            pool.submit(root_tar, "kube-proxy", SUITE, PROXY_PACKAGES),
        ]
        kubernetes(*programs.PACKAGES)
        tree, proxy_tree = (future.result() for future in trees)
    binaries = dict(zip(NODE_BINARIES, kubernetes(*NODE_BINARIES), strict=True))
    images = _images(proxy_tree)
    with step(f"make the node image {name}"), build_context(RECIPE, {"root.tar": tree}) as context:
        for folder in ("bin", "images"):
            (context / folder).mkdir()
        for binary, path in binaries.items():
            (context / "bin" / binary).hardlink_to(path)
        for image in images:
            (context / "images" / image.name).hardlink_to(image)
        (context / "files/kind/version").write_text(KUBERNETES)
        settings = context / "files/etc/containerd/config.toml"
        settings.write_text(settings.read_text().replace("@PAUSE_IMAGE@", _kubeadm_images()["pause"]))
        engine.build("--quiet", "--tag", name, context)


def _images(proxy_tree: Path) -> list[Path]:
    """Return the archives of the images that kubeadm and the node's manifests use."""
    named = _kubeadm_images()
    install_packages((str(BUSYBOX), "busybox-static"))
    etcd, coredns, storage, proxy, *control_plane = kubernetes(
        "etcd", "coredns", "local-path-provisioner", "kube-proxy", *CONTROL_PLANE
    )
    return [
        _archive(named["etcd"], etcd, "/usr/local/bin/etcd"),
        _archive(named["coredns"], coredns, "/coredns"),
        _archive(named["pause"], _pause(), "/pause"),
        _archive("local-path-provisioner:1", storage, "/usr/bin/local-path-provisioner"),
        _archive("busybox:1", BUSYBOX, "/bin/busybox", BUSYBOX_LINKS),
        _archive(named["kube-proxy"], proxy, "/usr/local/bin/kube-proxy", base=proxy_tree),
        *(
            _archive(named[part], binary, f"/usr/local/bin/{part}")
            for part, binary in zip(CONTROL_PLANE, control_plane, strict=True)
        ),
    ]


def _kubeadm_images() -> dict[str, str]:
    """Return the images that kubeadm uses, by the last part of their names."""
    (kubeadm,) = kubernetes("kubeadm")
    listed = run(kubeadm, "config", "images", "list", f"--kubernetes-version={KUBERNETES}").split()
    return {reference.rpartition(":")[0].rpartition("/")[2]: reference for reference in listed}


def _archive(
    name: str, binary: Path, place: str, links: tuple[str, ...] = (), base: Path | None = None
) -> Path:
    if "/" not in name:
        name = f"docker.io/tuning.dev/{name}"
    key = digest(name, str(binary), place, *links, str(base))
    return cached(
        f"images/{binary.name}-{key}.tar", lambda path: image_of(path, name, binary, place, links, base)
    )


def _pause() -> Path:
    def make(path: Path) -> None:
        run(go(), "build", "-ldflags=-s -w", "-o", path, ".", cwd=PAUSE, env={"CGO_ENABLED": "0"})

    return cached(f"bin/pause-{digest(*sorted(PAUSE.iterdir()))}", make)
