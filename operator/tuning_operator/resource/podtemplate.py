"""The part of a PodTemplateSpec's schema that the rules need; everything else passes through to the Job."""

from typing import Any

from tuning_operator.resource import rules

_ANY = {"x-kubernetes-preserve-unknown-fields": True}
_NOT_FOR_TRAINER = "Must not be set for the container `trainer`, which runs objective, script or command."


def _strings(description: str) -> dict[str, Any]:
    return {"type": "array", "description": description, "items": {"type": "string"}}


CONTAINER: dict[str, Any] = {
    "type": "object",
    "description": "A container of the pod.",
    **_ANY,
    "required": ["name"],
    "properties": {
        "name": {
            "type": "string",
            "maxLength": 63,
            "description": "Name of the container. The one named `trainer` runs the trial.",
        },
        "image": {
            "type": "string",
            "minLength": 1,
            "description": "Container image. Defaults for `trainer` to the operator's trainer image.",
        },
        "command": _strings(_NOT_FOR_TRAINER),
        "args": _strings(_NOT_FOR_TRAINER),
    },
}

POD: dict[str, Any] = {
    "type": "object",
    "description": "Specification of the pod (a PodSpec).",
    **_ANY,
    "required": ["containers"],
    "properties": {
        "restartPolicy": {"type": "string", "description": "Must be Never or omitted."},
        "containers": {
            "type": "array",
            "description": "Containers of the pod. Exactly one must be named `trainer`; it runs the trial.",
            "minItems": 1,
            "maxItems": 50,
            "items": CONTAINER,
        },
    },
    **rules.POD,
}

TEMPLATE: dict[str, Any] = {
    "type": "object",
    **_ANY,
    "required": ["spec"],
    "properties": {
        "metadata": {"type": "object", "description": "Labels and annotations of the pod.", **_ANY},
        "spec": POD,
    },
}
