"""How to fix what registries, container runtimes, schedulers and programs report, by their own words.

A message may match several patterns of a table: the first one counts.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

NODES = "The message comes from the node: ask the cluster's administrator if it persists."
PYTHON = (
    "The image needs Python 3.9 or later: set spec.trial.python to its path (for example, "
    "/opt/conda/bin/python), or use an image that has python3."
)
NO_PROGRAM = r"""exec: "(?P<name>[^"]+)": (?:executable file not found|stat \S+ no such file)|""" + (
    r"executable file `(?P<other>[^`]+)` not found"
)
"""What runc and crun report if the image lacks the program that the container runs."""


class Advice(NamedTuple):
    """What to do about messages with this pattern."""

    pattern: str
    remedy: str
    """It may hold {template}, the field of the manifest, and the named groups of the pattern."""
    category: str | None = None
    """The category, if it is not the one of the table's messages."""


def advise(table: Sequence[Advice], message: str, template: str) -> Advice | None:
    """Return the first advice of the table that the message matches, with its remedy complete."""
    for advice in table:
        if found := re.search(advice.pattern, message, re.IGNORECASE):
            return advice._replace(remedy=advice.remedy.format(template=template, **found.groupdict()))
    return None


ARCHITECTURE = (
    "The image is not built for the CPU of this node: build it for the node's platform, or choose nodes with "
    "a nodeSelector (kubernetes.io/arch) in {template}."
)
DRIVER = (
    "The image needs a newer NVIDIA driver than the node has: use an image with an older CUDA version in "
    "{template}, or ask the cluster's administrator to update the driver."
)
SINGLE_NODE_VOLUME = (
    "The volume can be used on one node, or by one pod, at a time: wait until the other pod has ended, set "
    "spec.parallelism to 1, or use a volume with the access mode ReadWriteMany or ReadOnlyMany in {template}."
)

IMAGES = (
    Advice(
        r"invalid reference format|parse image name",
        "Correct the image's name in {template}: it has the form REGISTRY/NAME:TAG, in lower case.",
    ),
    Advice(
        r"pull policy of Never",
        "Load the image onto the node, or change imagePullPolicy in {template} to IfNotPresent.",
    ),
    Advice(
        r"toomanyrequests|too many requests|rate limit",
        "The registry limits how many images are pulled without an account: add imagePullSecrets to "
        "{template}, or use a mirror. Otherwise, the image is pulled once the registry allows it.",
        "Registry",
    ),
    Advice(
        r"no match(?:ing manifest)? for|no image found in \S.* for architecture",
        ARCHITECTURE,
    ),
    Advice(
        r"x509|HTTP response to HTTPS client",
        "The node does not accept the registry's certificate, or its plain HTTP: ask the cluster's "
        "administrator to configure the registry in the nodes' container runtime.",
    ),
    Advice(
        r"no space left on device",
        "The node's disk is full: ask the cluster's administrator to free space, or use a smaller image.",
        "Node",
    ),
    Advice(
        r"\b50[0234]\b|service unavailable|bad gateway|internal server error|RegistryUnavailable",
        "The registry is unavailable. The image will be pulled once it is back.",
        "Registry",
    ),
    Advice(
        r"signature",
        "Use an image whose signature the cluster's policy accepts, or ask the cluster's administrator.",
    ),
    Advice(
        r"failed to inspect image",
        "The image on the node is damaged: ask the cluster's administrator to remove it there, or use "
        "another tag in {template}.",
    ),
    Advice(
        r"no such host|i/o timeout|handshake timeout|connection (?:refused|reset)|deadline exceeded",
        "The node can't reach the registry: check the registry's name in {template}. If it is right, ask the "
        "cluster's administrator to check the node's network and proxy.",
    ),
)

CONTAINERS = (
    Advice(
        r"runAsNonRoot|non-root policy",
        "Use an image whose user is a number other than 0, or set securityContext.runAsUser in {template}.",
    ),
    Advice(
        r"couldn't find key (?P<key>\S+) in (?P<kind>ConfigMap|Secret) \S*?(?P<name>[^/\s]+)$",
        '{kind} "{name}" has no key "{key}": add it, or correct the key in {template}.',
    ),
    Advice(r"timed out waiting for the condition|deadline exceeded|is reserved for", NODES, "Node"),
    Advice(r"unsatisfied condition: (?:cuda|driver|brand)", DRIVER),
    Advice(
        r"nvidia-container|nvidia-ctk|\bnvml\b|libnvidia|libcuda|CDI device",
        "The node's GPU can't be used in containers: ask the cluster's administrator to check the NVIDIA "
        "driver and the NVIDIA container toolkit of the node.",
        "Node",
    ),
    Advice(
        r'chdir to cwd \("(?P<folder>[^"]+)"\)',
        "The container can't enter its working directory {folder}: correct workingDir in {template}, or the "
        "image.",
    ),
    Advice(
        r'error mounting .* at "(?P<path>[^"]+)"',
        "Correct the volumeMount at {path} in {template}: a file can't be mounted over a folder, nor a "
        "folder over a file (subPath), nor anything below a read-only volume.",
    ),
    Advice(
        r"subPath",
        "Correct subPath of the volumeMount in {template}: it must be a relative path in the volume.",
    ),
    Advice(
        r"OOM-killed|memory limit too low",
        "Raise resources.limits.memory in {template}.",
    ),
    Advice(
        r"unable to find (?:user|group) (?P<name>[^\s:]+)",
        "The image has no user or group {name}: use a number in runAsUser or runAsGroup of {template}, or "
        "correct the image.",
    ),
    Advice(
        r'exec: "(?P<name>[^"]+)": permission denied',
        "The container's user may not execute {name}: correct runAsUser in {template}, or the file's mode in "
        "the image.",
    ),
    Advice(r"exec format error", ARCHITECTURE),
    Advice(
        r'failed to stat "(?P<path>[^"]+)"',
        "{path} doesn't exist on the node: correct the hostPath volume in {template}, or choose nodes that "
        "have it.",
    ),
)
"""About containers that cannot be created or started."""

SCHEDULING = (
    Advice(
        r"unbound immediate PersistentVolumeClaims",
        "A PersistentVolumeClaim of the pod has no volume yet; `kubectl describe pvc` shows why (for "
        "example, its storageClassName or accessModes).",
    ),
    Advice(
        r"ReadWriteOncePod",
        SINGLE_NODE_VOLUME,
        "VolumeInUse",
    ),
    Advice(
        r'persistentvolumeclaim "(?P<name>[^"]+)" is being deleted',
        'PersistentVolumeClaim "{name}" is being deleted: create it again once it is gone, or correct its '
        "name in volumes of {template}.",
    ),
    Advice(
        r"device class (?P<name>\S+) does not exist",
        'DeviceClass "{name}" doesn\'t exist in this cluster: create it, or correct its name in the '
        "ResourceClaimTemplate.",
    ),
    Advice(
        r"to create the resourceclaim|resourceclaim \S+ not found|resource claim creation",
        "The pod's ResourceClaim doesn't exist yet: check resourceClaims in {template}, and `kubectl get "
        "resourceclaims,resourceclaimtemplates`.",
    ),
    Advice(
        r"cannot allocate all claims",
        "Wait until other work has freed devices, lower spec.parallelism, or change the ResourceClaim "
        "(resourceClaims in {template}).",
        "Capacity",
    ),
    Advice(
        r"insufficient \S+|too many pods|max volume count",
        "Wait until other work has ended, lower spec.parallelism or the request in {template}, or add nodes.",
        "Capacity",
    ),
    Advice(
        r"free ports",
        "Remove hostPort or hostNetwork from {template}, or lower spec.parallelism: each such pod needs a "
        "node of its own.",
        "Capacity",
    ),
    Advice(
        r"anti-affinity rules|topology spread constraints",
        "Wait until other work has ended, lower spec.parallelism, or relax podAntiAffinity or "
        "topologySpreadConstraints in {template}.",
        "Capacity",
    ),
    Advice(
        r"volume node affinity conflict|no available volume zone|non-existent pv",
        "A volume in {template} is tied to a node or zone that does not suit the pod: choose "
        "nodes where the volume is, or use another volume.",
    ),
    Advice(
        r"were unschedulable|taint \{node\.kubernetes\.io/",
        "The nodes aren't accepting pods now (`kubectl get nodes`): ask the cluster's administrator, or "
        "choose other nodes in {template}.",
    ),
)
"""About pods without a node. What keeps the last nodes from taking a pod comes first."""

VOLUMES = (
    Advice(
        r"Multi-Attach|already (?:exclusively )?attached|VolumeInUse",
        SINGLE_NODE_VOLUME,
        "VolumeInUse",
    ),
    Advice(
        r'volume "(?P<volume>[^"]+)" : references non-existent (?:config|secret) key: (?P<key>\S+)',
        'The ConfigMap or Secret of volume "{volume}" has no key "{key}": add it, or correct items of the '
        "volume in {template}.",
    ),
    Advice(
        r"driver name (?P<name>\S+) not found",
        "The node has no driver {name} for the volume: ask the cluster's administrator, or choose other "
        "nodes in {template}.",
    ),
    Advice(
        r"hostPath type check failed: (?P<path>\S+)",
        "{path} must exist on the node: correct the hostPath volume in {template}, or choose nodes that have "
        "it.",
    ),
)

REFUSALS = (
    Advice(
        r'failed calling webhook "(?P<name>[^"]+)"',
        "The admission webhook {name} is failing: ask the cluster's administrator. The pod is created "
        "once it answers.",
    ),
    Advice(
        r"being terminated",
        "The namespace is being deleted: create the study in another one.",
    ),
    Advice(
        r"internal error|did not complete within|deadline exceeded|etcdserver",
        "Kubernetes will retry; ask the cluster's administrator if this persists.",
    ),
)
"""About Jobs and pods that are not created."""

# What programs print, wherever they run.
KILLED = r"SIGKILL|killed by signal: Killed|DataLoader worker \S.* exited unexpectedly"
NO_GPU = r"no NVIDIA driver|no CUDA GPUs are available|no CUDA-capable device|libcuda\.so\S*: cannot open"
GPU_MEMORY = Advice(
    r"CUDA out of memory|CUDA_ERROR_OUT_OF_MEMORY|CUBLAS_STATUS_ALLOC_FAILED",
    "Use less GPU memory (for example, a smaller batch size), or a GPU with more of it.",
)
DISK_FULL = r"no space left on device"

PROGRAMS = (
    # The kubelet may miss that the kernel killed a process for lack of memory.
    Advice(
        KILLED,
        "It may have run out of memory: raise resources.limits.memory in {template}.",
    ),
    Advice(
        r"SIGBUS|bus error|(?:insufficient|out of) shared memory|/dev/shm",
        "Shared memory (/dev/shm) is probably full: it has 64 MiB unless an emptyDir volume with medium: "
        "Memory is mounted at /dev/shm in {template}. PyTorch's data loaders use it if num_workers > 0.",
    ),
    Advice(
        r"read-only file system",
        "The container's root file system is read-only (readOnlyRootFilesystem): write to a volume, for "
        "example an emptyDir mounted at /tmp in {template}, or set readOnlyRootFilesystem to false.",
    ),
    Advice(r"exec format error|SIGILL|illegal instruction", ARCHITECTURE),
    Advice(r"CUDA driver version is insufficient|NVIDIA driver on your system is too old", DRIVER),
    Advice(
        NO_GPU,
        "The container sees no GPU: check that {template} requests one (resources.limits), or set "
        "spec.trial.gpus. If it has one, ask the cluster's administrator to check the node's driver.",
    ),
    Advice(
        r"no kernel image is available",
        "The image's CUDA libraries don't support this GPU: use an image that does, or choose nodes with "
        "another GPU in {template}.",
    ),
    GPU_MEMORY,
    Advice(
        DISK_FULL,
        "A disk is full: write to a larger volume, or raise the size of the volume or "
        "resources.limits.ephemeral-storage in {template}.",
    ),
    Advice(
        r"permission denied(?! \()",
        "The container's user has no access: set securityContext (fsGroup for volumes, runAsUser for the "
        "image's files) in {template}, or use another folder.",
    ),
)
"""About what programs print before they end, and the signals that end them."""
