"""Kubernetes quantities, for example `500m` or `16Gi`, and those that are GPUs."""

import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

_FACTORS = (
    {
        suffix: Decimal(1000) ** power
        for power, suffix in enumerate(("n", "u", "m", "", "k", "M", "G", "T"), -3)
    }
    | {suffix: Decimal(1024) ** power for power, suffix in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), 1)}
    | {"P": Decimal(10) ** 15, "E": Decimal(10) ** 18}
)
_LARGEST = Decimal(2**63 - 1)
"""As Kubernetes, which reads what is larger as this."""
_QUANTITY = re.compile(
    r"\+?([0-9]+\.?[0-9]*|\.[0-9]+)(?:(?P<exponent>[eE][+-]?[0-9]{1,9})|(?P<suffix>[numkMGTPE]|[KMGTPE]i))?"
)
GPU = re.compile(r".*[./-]v?gpu(\..*)?|nvidia\.com/mig-.*|gpu\.intel\.com/(i915|xe)|habana\.ai/gaudi")
"""Names of resources that are GPUs, or parts of them."""
MOST_GPUS = 1e9
"""More than any node has; with it, GPU time is still an integer that the API server stores."""


def is_quantity(value: object) -> bool:
    """Return whether Kubernetes accepts it as the amount of a resource."""
    return _QUANTITY.fullmatch(str(value).strip()) is not None


def quantity(value: object) -> Decimal:
    """Return the value of a quantity; 0 if it is invalid."""
    found = _QUANTITY.fullmatch(str(value).strip())
    if found is None:
        return Decimal()
    number = min(Decimal(found[1] + (found["exponent"] or "")), _LARGEST)
    return min(number * _FACTORS[found["suffix"] or ""], _LARGEST)


def gpus_of(gpus: int | None, template: Mapping[str, Any] | None, trials_per_pod: int = 1) -> float:
    """Return the GPUs of a trial, by these fields of its spec: trials in the same pod share its GPUs."""
    if gpus is not None:
        return gpus / trials_per_pod
    return (sum(_gpu_limits(template)) if template else 1) / trials_per_pod


def _gpu_limits(template: Mapping[str, Any]) -> Iterator[float]:
    for container in template.get("spec", {}).get("containers", []):
        resources = _fields(container.get("resources"))
        wanted = {**_fields(resources.get("requests")), **_fields(resources.get("limits"))}
        for name, amount in wanted.items():
            if GPU.fullmatch(name):
                yield min(float(quantity(amount)), MOST_GPUS)


def _fields(value: object) -> Mapping[str, Any]:
    """Return the fields of a part of a template; none if it has another shape, with which no trial starts."""
    return value if isinstance(value, Mapping) else {}
