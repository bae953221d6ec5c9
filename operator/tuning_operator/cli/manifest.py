"""The manifest of a study that an Optuna script asks for. Pure: texts in, texts out."""

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import ValidationError

from tuning_operator.cli.asked_study import AskedStudy
from tuning_operator.cli.errors import PluginError
from tuning_operator.protocol import StudyDefinition
from tuning_operator.resource import names
from tuning_operator.resource.study import TuningStudySpec
from tuning_operator.studies.definition.samplers import problems_of

DEFAULT_TRIALS = 100
"""Where the script sets no limit; the API server wants one."""
GPU = "nvidia.com/gpu"

REFIT = """\
  # One more Job once the study has completed: what stands below `optimize` runs, with the best parameters.
  # refit: {}
"""

_METRIC = re.compile(r"[^A-Za-z0-9_.\-]")


@dataclass(frozen=True)
class Wishes:
    """What the user says beside the script."""

    script: str
    """The file's name."""
    modules: Sequence[str]
    """Files beside it that it imports."""
    name: str
    image: str
    gpus: int


def study_name(given: str | None, asked: str | None, script: str) -> str:
    """Return the resource's name: the user's, else the script's study's, else the script's.

    Raises:
        PluginError: the user's is no name that Kubernetes and its Jobs can have.
    """
    if given is not None:
        if given != _as_name(given):
            raise PluginError(
                f"--name {given}: use at most {names.MAX_STUDY_NAME} lower-case letters, digits and dashes, "
                f"for example {_as_name(given) or 'my-study'}"
            )
        return given
    return _as_name(asked or "") or _as_name(script.removesuffix(".py")) or "study"


def _as_name(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower())[: names.MAX_STUDY_NAME].strip("-")


def manifest(asked: AskedStudy, wishes: Wishes) -> str:
    """Return the TuningStudy as YAML with comments.

    Raises:
        PluginError: no TuningStudy can be what the script asks for; the message names the fields.
    """
    spec = _spec(asked, wishes)
    _check(spec)
    resource = {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": wishes.name},
        "spec": spec,
    }
    head = [f"What {wishes.script} asks of Optuna. Its suggest calls are the search space.", *asked.notes]
    text = yaml.safe_dump(resource, sort_keys=False, default_flow_style=None, width=100, allow_unicode=True)
    return (
        "".join(f"# {' '.join(line.split())}\n" for line in head) + _commented(text, _comments(asked)) + REFIT
    )


def kustomization(wishes: Wishes, manifest_file: str) -> str:
    """Return the kustomization.yaml that makes the ConfigMap of the script beside the study."""
    files = ", ".join([wishes.script, *wishes.modules])
    return (
        "apiVersion: kustomize.config.k8s.io/v1beta1\n"
        "kind: Kustomization\n"
        "resources:\n"
        f"- {manifest_file}\n"
        "configMapGenerator:\n"
        f"- name: {_code(wishes.name)}\n"
        f"  files: [{files}]\n"
        "generatorOptions:\n"
        "  disableNameSuffixHash: true   # the study names the ConfigMap in a field unknown to kustomize\n"
    )


def _code(study: str) -> str:
    return f"{study}-code"


def _spec(asked: AskedStudy, wishes: Wishes) -> dict[str, Any]:
    resources = {"resources": {"limits": {GPU: wishes.gpus}}} if wishes.gpus else {}
    container = {"name": names.TRAINER_CONTAINER, "image": wishes.image, **resources}
    spec: dict[str, Any] = {
        "objectives": _objectives(asked),
        "sampler": asked.sampler and asked.sampler.model_dump(),
        "pruner": asked.pruner and asked.pruner.model_dump(),
        "maxTrials": DEFAULT_TRIALS if asked.n_trials is None else asked.n_trials,
        "parallelism": asked.parallelism or 1,
        "timeout": None if asked.timeout is None else f"{max(1, round(asked.timeout))}s",
        "initialTrials": asked.initial_trials or None,
        "trial": {
            "script": wishes.script,
            "source": {"configMap": _code(wishes.name)},
            "template": {"spec": {"containers": [container]}},
        },
    }
    return {field: value for field, value in spec.items() if value is not None}


def _objectives(asked: AskedStudy) -> list[dict[str, str]]:
    several = len(asked.directions) > 1
    unnamed = [f"value{i}" if several else "value" for i in range(len(asked.directions))]
    metrics = asked.metric_names or unnamed
    return [
        {"metric": _METRIC.sub("_", metric), "direction": direction}
        for metric, direction in zip(metrics, asked.directions, strict=True)
    ]


def _comments(asked: AskedStudy) -> Mapping[str, str]:
    """Return what is said beside the fields of the spec."""
    limit = "" if asked.n_trials is not None else "the script sets no limit; "
    return {
        "objectives": "" if asked.metric_names else "call the metric what it is: kubectl and plots show it",
        "sampler": "the script's own",
        "pruner": "the script's own",
        "maxTrials": f"{limit}raise it later: a finished study goes on",
        "parallelism": "trials at the same time, each in a pod of its own",
        "timeout": "of the whole study",
        "initialTrials": "tried first",
        "trial": "add `timeout: 1h` for a limit of one trial",
    }


def _commented(text: str, comments: Mapping[str, str]) -> str:
    """Put comments beside the fields of the spec, which are indented by two."""
    lines = []
    for line in text.splitlines():
        field = re.match(r"  (\w+):", line)
        comment = comments.get(field[1]) if field else None
        lines.append(f"{line}   # {comment}" if comment else line)
    return "\n".join(lines) + "\n"


def _check(spec: Mapping[str, Any]) -> None:
    try:
        good = TuningStudySpec.model_validate(spec)
    except ValidationError as error:
        found = [(".".join(map(str, flaw["loc"])), flaw["msg"]) for flaw in error.errors()]
    else:
        definition = StudyDefinition(
            objectives=good.objectives,
            sampler=good.sampler,
            pruner=good.pruner,
            initial_trials=good.initial_trials,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some of Optuna's classes are experimental
            found = [(problem.field, problem.message) for problem in problems_of(definition)]
    if found:
        told = "\n".join(f"  spec.{field}: {message}" for field, message in found)
        raise PluginError(f"what the script asks for cannot be a TuningStudy as it is:\n{told}")
