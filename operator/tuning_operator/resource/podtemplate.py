"""As much of a PodTemplateSpec's schema as the rules look at; the rest passes through to the Job."""

from typing import Any

from tuning_operator.resource import rules

_ANY = {"x-kubernetes-preserve-unknown-fields": True}
_NOT_THE_TRAINERS = (
    "Not for the container `trainer`: objective, script or command beside the template say what it runs."
)


def _texts(description: str) -> dict[str, Any]:
    return {"type": "array", "description": description, "items": {"type": "string"}}


CONTAINER: dict[str, Any] = {
    "type": "object",
    "description": "A container, as in any pod.",
    **_ANY,
    "required": ["name", "image"],
    "properties": {
        "name": {
            "type": "string",
            "maxLength": 63,
            "description": "The container's name; `trainer` is the one that trains.",
        },
        "image": {"type": "string", "minLength": 1, "description": "The image to run."},
        "command": _texts(_NOT_THE_TRAINERS),
        "args": _texts(_NOT_THE_TRAINERS),
    },
}

POD: dict[str, Any] = {
    "type": "object",
    "description": "The pod's specification, as in any Job.",
    **_ANY,
    "required": ["containers"],
    "properties": {
        "restartPolicy": {"type": "string", "description": "Never, or left out."},
        "containers": {
            "type": "array",
            "description": "The pod's containers; the one named `trainer` is the one that trains.",
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
        "metadata": {"type": "object", "description": "Labels and annotations of the pods.", **_ANY},
        "spec": POD,
    },
}
