"""What the Pod Security Standard `restricted` requires of a pod, as defaults that its template overrides."""

from collections.abc import Mapping
from typing import Any

ENFORCE = "pod-security.kubernetes.io/enforce"
LEVEL = "restricted"

POD = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
CAPABILITIES = {"drop": ["ALL"]}


def is_enforced(namespace: Mapping[str, Any]) -> bool:
    """Return whether a namespace rejects pods that do not meet the standard."""
    return bool(namespace["metadata"].get("labels", {}).get(ENFORCE) == LEVEL)


def with_defaults(pod: Mapping[str, Any]) -> dict[str, Any]:
    """Return a PodSpec that meets the standard, as far as it does not set these fields itself."""
    kinds = [kind for kind in ("initContainers", "containers") if pod.get(kind)]
    return {
        **pod,
        "securityContext": {**POD, **(pod.get("securityContext") or {})},
        **{kind: [_container(container) for container in pod[kind]] for kind in kinds},
    }


def _container(container: Mapping[str, Any]) -> dict[str, Any]:
    own = container.get("securityContext") or {}
    capabilities = {**CAPABILITIES, **(own.get("capabilities") or {})}
    context = {"allowPrivilegeEscalation": False, **own, "capabilities": capabilities}
    return {**container, "securityContext": context}
