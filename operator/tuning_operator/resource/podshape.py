"""The shape of a PodTemplateSpec, as far as it is read here. The API server checks the rest of it.

The CRD lets most fields of a template pass as they are, since they depend on the version of the API server.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, StrictInt, ValidationError
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

from tuning_operator.resource.quantity import is_quantity
from tuning_operator.resource.text import field_path

EXPECTED = {
    "missing": "Required value: add it.",
    "list_type": "Invalid value: it must be a list.",
    "dict_type": "Invalid value: it must have fields, as in {name: value}.",
    "model_type": "Invalid value: it must have fields, as in {name: value}.",
    "string_type": "Invalid value: it must be a string.",
    "int_type": "Invalid value: it must be an integer.",
}
"""Messages by pydantic's type of the error."""

_STRINGS = frozenset({"annotations", "labels", "matchLabels", "nodeSelector", "options", "volumeAttributes"})
"""Fields that map names to strings: Kubernetes reads a null among these as an empty string."""


def _checked(amount: Any) -> Any:
    if not is_quantity(amount):
        raise PydanticCustomError(
            "quantity", "Invalid value: it must be a number or a quantity, for example 500m or 16Gi."
        )
    return amount


def _whole(number: Any) -> Any:
    return int(number) if isinstance(number, float) and number.is_integer() else number


_Integer = Annotated[StrictInt, BeforeValidator(_whole)]
"""60.0 is an integer in JSON, as kubectl sends it."""
_Quantity = Annotated[Any, AfterValidator(_checked)]


class _Shape(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel)


class _WithName(_Shape):
    name: str


class _Key(_WithName):
    key: str


class _FieldRef(_Shape):
    field_path: str


class _ResourceFieldRef(_Shape):
    resource: str
    divisor: _Quantity = 1


class _ValueFrom(_Shape):
    config_map_key_ref: _Key | None = None
    secret_key_ref: _Key | None = None
    field_ref: _FieldRef | None = None
    resource_field_ref: _ResourceFieldRef | None = None


class _Variable(_WithName):
    value_from: _ValueFrom = _ValueFrom()


class _Variables(_Shape):
    prefix: str = ""
    config_map_ref: _WithName | None = None
    secret_ref: _WithName | None = None


class _Mount(_WithName):
    mount_path: str
    sub_path: str = ""


class _Item(_Shape):
    key: str
    path: str


class _ConfigMap(_WithName):
    items: list[_Item] = []


class _Volume(_WithName):
    config_map: _ConfigMap | None = None


class _Resources(_Shape):
    limits: dict[str, _Quantity] = {}
    requests: dict[str, _Quantity] = {}


class _SecurityContext(_Shape):
    capabilities: dict[str, Any] = {}


class _Container(_WithName):
    env: list[_Variable] = []
    env_from: list[_Variables] = []
    working_dir: str = ""
    volume_mounts: list[_Mount] = []
    resources: _Resources = _Resources()
    security_context: _SecurityContext = _SecurityContext()


class _NodeSelectorTerm(_Shape):
    match_fields: list[Any] = []


class _NodeSelector(_Shape):
    node_selector_terms: list[_NodeSelectorTerm] = []


class _NodeAffinity(_Shape):
    required_during_scheduling_ignored_during_execution: _NodeSelector = _NodeSelector()


class _Affinity(_Shape):
    node_affinity: _NodeAffinity = _NodeAffinity()


class _Pod(_Shape):
    containers: list[_Container]
    init_containers: list[_Container] = []
    volumes: list[_Volume] = []
    termination_grace_period_seconds: _Integer = 0
    security_context: dict[str, Any] = {}
    affinity: _Affinity = _Affinity()


class _Metadata(_Shape):
    labels: dict[str, Any] = {}


class _Template(_Shape):
    metadata: _Metadata = _Metadata()
    spec: _Pod


def without_nulls(value: Any) -> Any:
    """Return a template without fields that are null, which Kubernetes reads as if they were absent.

    Helm and Kustomize write null for an empty value.
    """
    if isinstance(value, dict):
        return {
            name: _with_empty_strings(field)
            if name in _STRINGS and isinstance(field, dict)
            else without_nulls(field)
            for name, field in value.items()
            if field is not None
        }
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def _with_empty_strings(strings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: "" if value is None else value for name, value in strings.items()}


def shape_problems(template: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the fields of a template that can't be read, each with what is wrong."""
    try:
        _Template.model_validate(template)
    except ValidationError as error:
        for detail in error.errors():
            yield field_path(detail["loc"]), EXPECTED.get(detail["type"], detail["msg"])


def source_of(volume: Mapping[str, Any]) -> str:
    """Return the kind of a volume; without any, it is an emptyDir."""
    return next((field for field in volume if field != "name"), "emptyDir")
