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
        resources = container.get("resources") or {}
        wanted = {**(resources.get("requests") or {}), **(resources.get("limits") or {})}
        for name, amount in wanted.items():
            with contextlib.suppress(ValueError):  # Kubernetes rejects such an amount
                yield float(amount) if GPU.fullmatch(name) else 0.0
