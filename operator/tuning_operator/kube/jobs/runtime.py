"""What every run needs of this installation: the trainer, and how to reach the study server."""

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True)
class Runtime:
    """What every run needs: the trainer runtime, and how to reach the study server."""

    trainer: bytes
    server_url: str
    ca: str | None = None
    """PEM of the server's certificate authority; None for plain HTTP, or if the image trusts it already."""
    image: str | None = None
    """The image of a container `trainer` that names none."""
    gpu_resource: str = "nvidia.com/gpu"
    """What `gpus` of a trial counts."""
    ca_config_map: str = "study-server-ca"
    """The ConfigMap of each namespace that brings the CA into its pods."""


def trainer_name(study: str, runtime: Runtime) -> str:
    """Return the name of the ConfigMap that carries the trainer to the pods of a study, given its name."""
    return f"{study}-trainer-{_digest(runtime)[:10]}"


@lru_cache(maxsize=64)
def _digest(runtime: Runtime) -> str:
    """Return the digest of what the ConfigMap holds. Every Job needs it, and it rarely changes."""
    address = json.dumps(server_address(runtime), sort_keys=True)
    return hashlib.sha256(runtime.trainer + address.encode()).hexdigest()


def server_address(runtime: Runtime) -> dict[str, str]:
    """Return how to reach the study server, for `kubectl tuning`."""
    ca = {"ca-config-map": runtime.ca_config_map} if runtime.ca else {}
    return {"server-url": runtime.server_url, **ca}
