"""The GPUs of a trial."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from tuning_operator.resource.quantity import quantity

GPU = re.compile(r".*[./-]v?gpu(\..*)?|nvidia\.com/mig-.*|gpu\.intel\.com/(i915|xe)|habana\.ai/gaudi")
"""Names of resources that are GPUs, or parts of them."""

MOST = 1e9
"""More than any node has; with it, GPU time is still an integer that the API server stores."""


def gpus_of(gpus: int | None, template: Mapping[str, Any] | None, trials_per_pod: int = 1) -> float:
    """Return the GPUs of a trial, by these fields of its spec: trials in the same pod share its GPUs."""
    if gpus is not None:
        return gpus / trials_per_pod
    return (sum(_limits(template)) if template else 1) / trials_per_pod


def _limits(template: Mapping[str, Any]) -> Iterator[float]:
    for container in template.get("spec", {}).get("containers", []):
        resources = _fields(container.get("resources"))
        wanted = {**_fields(resources.get("requests")), **_fields(resources.get("limits"))}
        for name, amount in wanted.items():
            if GPU.fullmatch(name):
                yield min(float(quantity(amount)), MOST)


def _fields(value: object) -> Mapping[str, Any]:
    """Return the fields of a part of a template; none if it has another shape, with which no trial starts."""
    return value if isinstance(value, Mapping) else {}
