"""Kubernetes quantities, for example `500m` or `16Gi`."""

import re
from decimal import Decimal

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
