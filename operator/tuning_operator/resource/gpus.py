"""The GPUs of a trial."""

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

GPU = re.compile(r".*[./-]v?gpu(\..*)?|nvidia\.com/mig-.*|gpu\.intel\.com/(i915|xe)|habana\.ai/gaudi")
"""Names of resources that are GPUs, or parts of them."""


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
            with contextlib.suppress(TypeError, ValueError):  # Kubernetes rejects such an amount
                yield float(amount) if GPU.fullmatch(name) else 0.0


def _fields(value: object) -> Mapping[str, Any]:
    """Return the fields of a part of a template; none if it has another shape, with which no trial starts."""
    return value if isinstance(value, Mapping) else {}
