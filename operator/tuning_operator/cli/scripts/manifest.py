"""The manifest of a study that an Optuna script creates. Pure."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field, ValidationError

from tuning_operator.cli import PluginError
from tuning_operator.cli.text.yaml_text import yaml_of
from tuning_operator.cli.validation.study import study_server_problems
from tuning_operator.protocol import StudyDefinition
from tuning_operator.resource import names
from tuning_operator.resource.study import Model, Pruner, Sampler, Scalar, TuningStudySpec
from tuning_operator.resource.text import field_path

DEFAULT_TRIALS = 100
"""Used if the script sets no limit, since maxTrials is required."""

REFIT = """\
  # One more Job after the study has completed: runs the code below `optimize` with the best parameters.
  # refit: {}
"""

_METRIC = re.compile(r"^(?=[0-9])|^[^A-Za-z0-9_]|[^A-Za-z0-9_.\-/()\[\]@:%+' ]|[^A-Za-z0-9_)\]%]+$")
"""What a MetricName can't have."""


class ScriptStudy(Model):
    """The study that a script creates, as the trainer runtime's mode `init` saw it."""

    call: str
    study_name: str | None = None
    directions: list[str] = Field(min_length=1)
    metric_names: list[str] | None = None
    sampler: Sampler | None = None
    pruner: Pruner | None = None
    n_trials: int | None = None
    timeout: float | None = None
    initial_trials: list[dict[str, Scalar]] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)


@dataclass(frozen=True)
class Options:
    """The options of the manifest that are not in the script."""

    script: str
    """Name of the file."""
    modules: Sequence[str]
    """Names of the files in its folder that it imports."""
    name: str
    image: str | None
    """None: the operator's trainer image."""
    gpus: int
    study: str | None = None
    """Which of the script's studies is tuned."""
    arguments: Sequence[str] = ()
    """Of the script."""


def study_name(given: str | None, in_script: str | None, script: str) -> str:
    """Return the name of the study: as given, or that of the script's study, or that of the script.

    Raises:
        PluginError: the given name is not valid for Kubernetes and the study's Jobs.
    """
    if given is not None:
        if given != _as_name(given):
            raise PluginError(
                f"--name {given}: use at most {names.MAX_STUDY_NAME} lower-case letters, digits and dashes, "
                f"for example {_as_name(given) or 'my-study'}"
            )
        return given
    return _as_name(in_script or "") or _as_name(script.removesuffix(".py")) or "study"


def _as_name(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower())[: names.MAX_STUDY_NAME].strip("-")


def manifest(study: ScriptStudy, options: Options) -> str:
    """Return the TuningStudy as YAML with comments.

    Raises:
        PluginError: the script's settings are not valid for a TuningStudy; the message names the fields.
    """
    spec = _spec(study, options)
    _check(spec)
    resource = {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": options.name},
        "spec": spec,
    }
    head = [f"Created from {options.script}. Its suggest calls define the search space.", *study.notes]
    text = yaml_of(resource, default_flow_style=None, width=100)
    return (
        "".join(f"# {' '.join(line.split())}\n" for line in head) + _commented(text, _comments(study)) + REFIT
    )


def kustomization(options: Options, manifest_file: str) -> str:
    """Return a kustomization.yaml that adds the ConfigMap with the script to the study."""
    files = ", ".join([options.script, *options.modules])
    return (
        "apiVersion: kustomize.config.k8s.io/v1beta1\n"
        "kind: Kustomization\n"
        "resources:\n"
        f"- {manifest_file}\n"
        "configMapGenerator:\n"
        f"- name: {_code(options.name)}\n"
        f"  files: [{files}]\n"
        "generatorOptions:\n"
        "  disableNameSuffixHash: true   # kustomize does not know the study's field with the name\n"
    )


def _code(study: str) -> str:
    return f"{study}-code"


def _spec(study: ScriptStudy, options: Options) -> dict[str, Any]:
    container = {"name": names.TRAINER_CONTAINER, "image": options.image}
    spec: dict[str, Any] = {
        "objectives": _objectives(study),
        "sampler": study.sampler and study.sampler.model_dump(),
        "pruner": study.pruner and study.pruner.model_dump(),
        "maxTrials": DEFAULT_TRIALS if study.n_trials is None else study.n_trials,
        "parallelism": 1,
        "timeout": None if study.timeout is None else f"{max(1, round(study.timeout))}s",
        "initialTrials": study.initial_trials or None,
        "trial": {
            "script": shlex.join([options.script, *options.arguments]),
            **({"study": options.study} if options.study else {}),
            "source": {"configMap": _code(options.name)},
            "gpus": options.gpus,
            **({"template": {"spec": {"containers": [container]}}} if options.image else {}),
        },
    }
    return {field: value for field, value in spec.items() if value is not None}


def _objectives(study: ScriptStudy) -> list[dict[str, str]]:
    several = len(study.directions) > 1
    unnamed = [f"value{i}" if several else "value" for i in range(len(study.directions))]
    metrics = study.metric_names or unnamed
    return [
        {"metric": _METRIC.sub("_", metric), "direction": direction}
        for metric, direction in zip(metrics, study.directions, strict=True)
    ]


def _comments(study: ScriptStudy) -> Mapping[str, str]:
    """Return the comments beside the fields of the spec."""
    limit = "" if study.n_trials is not None else "the script sets no limit; "
    return {
        "objectives": "" if study.metric_names else "rename to your metric's name",
        "sampler": "from the script",
        "pruner": "from the script",
        "maxTrials": f"{limit}raise it later to continue the study",
        "parallelism": "trials that run at the same time, each in its own pod",
        "timeout": "for the whole study",
        "initialTrials": "tried first",
        "trial": "add `timeout: 1h` to limit each trial",
    }


def _commented(text: str, comments: Mapping[str, str]) -> str:
    """Add comments to the fields of the spec, which are indented by two."""
    lines = []
    for line in text.splitlines():
        field = re.match(r"  (\w+):", line)
        comment = comments.get(field[1]) if field else None
        lines.append(f"{line}   # {comment}" if comment else line)
    return "\n".join(lines) + "\n"


def _check(spec: Mapping[str, Any]) -> None:
    try:
        valid = TuningStudySpec.model_validate(spec)
    except ValidationError as error:
        found = [(field_path(flaw["loc"]), flaw["msg"]) for flaw in error.errors()]
    else:
        definition = StudyDefinition(
            objectives=valid.objectives,
            sampler=valid.sampler,
            pruner=valid.pruner,
            initial_trials=valid.initial_trials,
        )
        found = [(problem.field, problem.message) for problem in study_server_problems(definition)]
    if found:
        problems = "\n".join(f"  spec.{field}: {message}" for field, message in found)
        raise PluginError(f"the script's settings are not valid for a TuningStudy:\n{problems}")
