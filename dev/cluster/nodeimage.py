"""kind's node image, made from Debian packages and Go modules where it can't be pulled."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dev.cluster import engine
from dev.cluster.archive import image_of
from dev.cluster.cache import cached, digest
from dev.cluster.console import step
from dev.cluster.debian import build_context, root_tar
from dev.cluster.programs import KUBERNETES, MODULES, go, kubernetes, program
from dev.cluster.run import packages, run

RECIPE = Path(__file__).parent / "node"
PAUSE = Path(__file__).parent / "pause"
REPOSITORY = "tuning.dev/kind-node"
SUITE = "bookworm"
"""The last Debian whose systemd starts on cgroup v1, too."""

PACKAGES = [
    "bash", "ca-certificates", "conntrack", "containerd", "containernetworking-plugins", "dbus", "ebtables",
    "ethtool", "hostname", "iproute2", "iptables", "jq", "kmod", "libseccomp2", "mawk", "mount", "nftables",
    "openssl", "procps", "runc", "socat", "systemd", "systemd-sysv", "util-linux",
]  # fmt: skip
PROXY_PACKAGES = ["conntrack", "iptables", "kmod"]
"""kube-proxy calls these; the other programs of the control plane need nothing around them."""

NODE_BINARIES = ("kubeadm", "kubelet", "kubectl")
CONTROL_PLANE = ("kube-apiserver", "kube-controller-manager", "kube-scheduler")
TOOLS = ("etcd", "coredns", "local-path-provisioner", "crictl")
BUSYBOX = Path("/bin/busybox")
BUSYBOX_LINKS = tuple(f"/bin/{name}" for name in ("sh", "mkdir", "rm", "chmod", "ls", "cat"))


def node_image() -> str:
    """Return the name of the node image in the engine, made if need be."""
    name = f"{REPOSITORY}:{KUBERNETES}-{key()}"
    if not engine.image_id(name):
        _make(name)
        engine.remove_others(name)
    return name


def key() -> str:
    """Return what identifies the image: versions, packages and recipe."""
    files = [file for folder in (RECIPE, PAUSE) for file in sorted(folder.rglob("*")) if file.is_file()]
    versions = [f"{module}@{version}" for module, version in (MODULES[tool] for tool in TOOLS)]
    return digest(KUBERNETES, SUITE, *PACKAGES, *PROXY_PACKAGES, *versions, *files)


def _make(name: str) -> None:
    with ThreadPoolExecutor() as pool:  # Debian's packages take the network's time, programs the processors'
        trees = [
            pool.submit(root_tar, "node", SUITE, PACKAGES),
            pool.submit(root_tar, "kube-proxy", SUITE, PROXY_PACKAGES),
        ]
        _build_programs()
        tree, proxy_tree = (future.result() for future in trees)
    binaries = dict(zip(NODE_BINARIES, kubernetes(*NODE_BINARIES), strict=True)) | {
        "crictl": program("crictl")
    }
    images = _images(proxy_tree)
    with step(f"make the node image {name}"), build_context(tree, RECIPE) as context:
        for folder in ("bin", "images"):
            (context / folder).mkdir()
        for binary, path in binaries.items():
            (context / "bin" / binary).hardlink_to(path)
        for image in images:
            (context / "images" / image.name).hardlink_to(image)
        (context / "files/kind/version").write_text(KUBERNETES)
        settings = context / "files/etc/containerd/config.toml"
        settings.write_text(settings.read_text().replace("@PAUSE_IMAGE@", _names_by_part()["pause"]))
        engine.build("--quiet", "--tag", name, context)


def _build_programs() -> None:
    kubernetes(*NODE_BINARIES, *CONTROL_PLANE, "kube-proxy")
    for tool in TOOLS:
        program(tool)


def _images(proxy_tree: Path) -> list[Path]:
    """Return the archives of the images that kubeadm and the manifests ask for."""
    named = _names_by_part()
    packages((str(BUSYBOX), "busybox-static"))
    proxy, *control_plane = kubernetes("kube-proxy", *CONTROL_PLANE)
    return [
        _archive(named["etcd"], program("etcd"), "/usr/local/bin/etcd"),
        _archive(named["coredns"], program("coredns"), "/coredns"),
        _archive(named["pause"], _pause(), "/pause"),
        _archive(
            "local-path-provisioner:1", program("local-path-provisioner"), "/usr/bin/local-path-provisioner"
        ),
        _archive("busybox:1", BUSYBOX, "/bin/busybox", BUSYBOX_LINKS),
        _archive(named["kube-proxy"], proxy, "/usr/local/bin/kube-proxy", base=proxy_tree),
        *(
            _archive(named[part], binary, f"/usr/local/bin/{part}")
            for part, binary in zip(CONTROL_PLANE, control_plane, strict=True)
        ),
    ]


def _names_by_part() -> dict[str, str]:
    """Return, by the last part of its name, each image that kubeadm asks for."""
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
