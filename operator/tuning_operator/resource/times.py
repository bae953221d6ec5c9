"""Times as the Kubernetes API writes them."""

from datetime import UTC, datetime


def rfc3339(moment: datetime) -> str:
    """Return the time as Kubernetes writes it: UTC, whole seconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_time(text: str | None) -> datetime | None:
    """Return the time of an API object's field; None for an absent one."""
    return datetime.fromisoformat(text) if text else None
