"""What pods request, compared with what nodes have: cpu, memory, GPUs and other resources."""

import difflib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from tuning_operator.resource.quantity import quantity

Json = Mapping[str, Any]

_BYTES = ("memory", "ephemeral-storage")
_WELL_KNOWN = (
    "nvidia.com/gpu",
    "amd.com/gpu",
    "gpu.intel.com/i915",
    "google.com/tpu",
    "aws.amazon.com/neuron",
)


def largest_of(nodes: Iterable[Json]) -> dict[str, str]:
    """Return the most that any single node has of each resource."""
    largest: dict[str, str] = {}
    for node in nodes:
        for resource, amount in node.get("status", {}).get("allocatable", {}).items():
            if quantity(amount) > quantity(largest.get(resource, "0")):
                largest[resource] = str(amount)
    return largest


def missing_resource(pod: Json, largest: Mapping[str, str]) -> str | None:
    """Return a resource that the pod requests and that no node has."""
    return next((name for name in requests(pod) if name not in largest), None)


def similar_resource(name: str, largest: Mapping[str, str]) -> str | None:
    """Return the resource that was probably meant; None if there is none, or the name is a usual one."""
    if name in _WELL_KNOWN:
        return None
    known = [*(found for found in largest if "/" in found), *_WELL_KNOWN]
    return next(iter(difflib.get_close_matches(name, known, n=1, cutoff=0.7)), None)


def excess(pod: Json, largest: Mapping[str, str]) -> str | None:
    """Return which request of the pod is larger than any node; None if each is small enough."""
    for resource, amount in requests(pod).items():
        if amount > quantity(largest.get(resource, "0")):
            return f"its pod requests {_text(resource, amount)} {resource}, but the largest node has " + (
                _text(resource, quantity(largest.get(resource, "0")))
            )
    return None


def requests(pod: Json) -> dict[str, Decimal]:
    """Return what the pod requests: its containers together, or one init container if that needs more."""
    together: defaultdict[str, Decimal] = defaultdict(Decimal)
    for container in pod["spec"].get("containers", []):
        for resource, amount in _of_container(container).items():
            together[resource] += amount
    for container in pod["spec"].get("initContainers", []):
        for resource, amount in _of_container(container).items():
            together[resource] = max(together[resource], amount)
    return {resource: amount for resource, amount in together.items() if amount}


def _of_container(container: Json) -> dict[str, Decimal]:
    resources = container.get("resources", {})
    amounts = {**resources.get("limits", {}), **resources.get("requests", {})}
    return {resource: quantity(amount) for resource, amount in amounts.items()}


def _text(resource: str, amount: Decimal) -> str:
    if resource in _BYTES:
        return f"{float(amount / 2**30):.4g}Gi"
    return f"{amount.normalize():f}"
