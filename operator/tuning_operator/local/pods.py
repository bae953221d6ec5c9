"""What a pod template means on this machine: the container `trainer` as a process.

Fields that only matter on a cluster are ignored; those without which the program may not work are refused.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from tuning_operator.kube.plan.work import DEFAULT_TEMPLATE, Program
from tuning_operator.protocol import Problem
from tuning_operator.resource import names
from tuning_operator.resource.podshape import source_of
from tuning_operator.resource.quantity import quantity
from tuning_operator.resource.text import count

Json = Mapping[str, Any]
ConfigMaps = Mapping[str, Mapping[str, str]]
"""The content of ConfigMaps by name."""

POD = frozenset({"containers", "initContainers", "volumes", "terminationGracePeriodSeconds", "restartPolicy"})
POD_IGNORED = frozenset(
    [
        "activeDeadlineSeconds",
        "affinity",
        "automountServiceAccountToken",
        "dnsConfig",
        "dnsPolicy",
        "enableServiceLinks",
        "ephemeralContainers",
        "hostAliases",
        "hostIPC",
        "hostNetwork",
        "hostPID",
        "hostUsers",
        "hostname",
        "imagePullSecrets",
        "nodeName",
        "nodeSelector",
        "os",
        "overhead",
        "preemptionPolicy",
        "priority",
        "priorityClassName",
        "readinessGates",
        "resources",
        "runtimeClassName",
        "schedulerName",
        "schedulingGates",
        "securityContext",
        "serviceAccount",
        "serviceAccountName",
        "setHostnameAsFQDN",
        "shareProcessNamespace",
        "subdomain",
        "tolerations",
        "topologySpreadConstraints",
    ]
)
POD_REFUSED = {
    "resourceClaims": "devices can't be claimed on this machine: request GPUs in resources.limits instead."
}
CONTAINER = frozenset({"name", "image", "env", "envFrom", "workingDir", "resources", "volumeMounts"})
CONTAINER_IGNORED = frozenset(
    [
        "imagePullPolicy",
        "lifecycle",
        "livenessProbe",
        "ports",
        "readinessProbe",
        "resizePolicy",
        "restartPolicy",
        "securityContext",
        "startupProbe",
        "stdin",
        "stdinOnce",
        "terminationMessagePath",
        "terminationMessagePolicy",
        "tty",
    ]
)
CONTAINER_REFUSED = {"volumeDevices": "block devices can't be mounted on this machine: remove them."}

GRACE_SECONDS = 30
"""Kubernetes' default time between SIGTERM and SIGKILL."""
_GPU = re.compile(r"gpu|/mig-", re.IGNORECASE)
_VARIABLE = re.compile(r"\$(?:\$|\(([^)]*)\))")


@dataclass(frozen=True)
class Machine:
    """What a pod's place on this machine is made of."""

    folder: Path
    """The manifest's: the working directory of code that is not in a ConfigMap."""
    config_maps: ConfigMaps
    volumes: Mapping[str, Path]
    """The folders that were given for volumes, by the volume's name."""
    environ: Mapping[str, str]
    gpus: int
    """How many GPUs studies may use; 0: trials run without."""
    gpus_chosen: bool = False
    """Whether the user gave their number."""


@dataclass
class Place:
    """The container `trainer` on this machine."""

    environ: dict[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    """`environ` as in a pod, before paths were rewritten: what $(NAME) stands for."""
    working_dir: Path | None = None
    """As in the template; None: the run's own folder."""
    mounts: dict[str, Path] = field(default_factory=dict)
    """The folders and files on this machine by the path where a pod would mount them."""
    files: dict[Path, str] = field(default_factory=dict)
    """The content of the files that `items` selects from ConfigMaps."""
    gpus: int = 0
    grace: int = GRACE_SECONDS
    problems: list[Problem] = field(default_factory=list)
    """Why the container can't run here."""
    ignored: list[str] = field(default_factory=list)
    """The fields that have no effect here."""

    def localized(self, text: str) -> str:
        """Return a text in which paths below a mount are paths on this machine."""
        for mount in sorted(self.mounts, key=len, reverse=True):
            pattern = rf"(?<![\w.\-/]){re.escape(mount.rstrip('/'))}(?![\w.\-])"
            text = re.sub(pattern, lambda _, mount=mount: str(self.mounts[mount]), text)  # type: ignore[misc]
        return text

    def text(self, given: str, variables: Mapping[str, str] | None = None) -> str:
        """Return a value or argument as the program gets it; `variables` are those beside the template's."""
        return self.localized(_expanded(given, {**self.variables, **(variables or {})}))


def place(runs: Program, machine: Machine, run_folder: Path, fields: Mapping[str, str]) -> Place:
    """Return what a program's pod template is on this machine.

    Args:
        runs: the program.
        machine: this machine.
        run_folder: the run's own folder, with `volumes/` for temporary ones and `config/` for ConfigMaps.
        fields: the values of fieldRefs: metadata.name and others.
    """
    return _Reading(runs, machine, run_folder, fields).place()


def config_folder(run_folder: Path, name: str) -> Path:
    """Return the folder with a ConfigMap's files."""
    return run_folder / "config" / name


class _Reading:
    """Reads a template once."""

    def __init__(self, runs: Program, machine: Machine, run_folder: Path, fields: Mapping[str, str]) -> None:
        self._runs, self._machine, self._folder, self._fields = runs, machine, run_folder, fields
        self._pod: Json = runs.template["spec"]
        self._path = f"{runs.fields.template.removeprefix('spec.')}.spec"
        containers = self._pod["containers"]
        self._index = next(
            (i for i, c in enumerate(containers) if c.get("name") == names.TRAINER_CONTAINER), 0
        )
        self._container: Json = containers[self._index]
        self._own = f"{self._path}.containers[{self._index}]"
        self._place = Place()

    def place(self) -> Place:
        self._fields_of(self._pod, self._path, POD, POD_IGNORED, POD_REFUSED)
        self._fields_of(self._container, self._own, CONTAINER, CONTAINER_IGNORED, CONTAINER_REFUSED)
        self._other_containers()
        self._place.grace = int(self._pod.get("terminationGracePeriodSeconds", GRACE_SECONDS))
        self._source()
        self._mount()
        self._resources()
        self._environ()
        self._working_dir()
        return self._place

    def _problem(self, path: str, message: str) -> None:
        self._place.problems.append(Problem(field=path, message=message))

    def _fields_of(
        self, found: Json, path: str, used: frozenset[str], ignored: frozenset[str], refused: Json
    ) -> None:
        for name in found:
            if name in refused:
                self._problem(f"{path}.{name}", refused[name])
            elif name in ignored:
                if self._runs.template is DEFAULT_TEMPLATE:
                    continue  # nobody has written it
                self._place.ignored.append(f"{path}.{name}")
            elif name not in used and not (name in ("command", "args") and used is CONTAINER):
                known = get_close_matches(name, used | ignored, n=1)
                hint = f"did you mean {known[0]}?" if known else "remove it, or correct its place."
                self._problem(f"{path}.{name}", f"Kubernetes has no field {name} here: {hint}")

    def _other_containers(self) -> None:
        for index, container in enumerate(self._pod["containers"]):
            if index != self._index:
                self._place.ignored.append(f"{self._path}.containers[{index}] ({container.get('name')})")
        for index, container in enumerate(self._pod.get("initContainers") or ()):
            name = container.get("name")
            self._problem(
                f"{self._path}.initContainers[{index}]",
                f"The init container {name} needs its image, which can't run here: do its work by hand, give "
                "the folder to --volume, and remove the init container from a copy of the manifest.",
            )

    def _source(self) -> None:
        source = self._runs.source
        if source is not None and source not in self._machine.config_maps:
            field_ = f"{self._runs.fields.source.removeprefix('spec.')}.configMap"
            self._problem(field_, self._missing_config_map(source))

    def _missing_config_map(self, name: str) -> str:
        known = ", ".join(sorted(self._machine.config_maps)) or "none"
        return (
            f"the ConfigMap {name} is neither in the manifest nor generated by a kustomization.yaml beside "
            f"it (found: {known}). Add it, or run the folder that has it."
        )

    def _mount(self) -> None:
        volumes = {volume["name"]: volume for volume in self._pod.get("volumes") or ()}
        folders: dict[str, Path] = {}
        mounted = {mount["name"] for mount in self._container.get("volumeMounts") or ()}
        for index, (name, volume) in enumerate(volumes.items()):
            if name in mounted and (folder := self._volume(f"{self._path}.volumes[{index}]", name, volume)):
                folders[name] = folder
        for name in self._machine.volumes.keys() - volumes.keys():
            known = ", ".join(volumes) or "none"
            self._problem(
                f"{self._path}.volumes",
                f"--volume {name}=...: there is no volume of this name (the template has: {known}).",
            )
        for index, mount in enumerate(self._container.get("volumeMounts") or ()):
            if mount["name"] in folders:
                below = self._below(f"{self._own}.volumeMounts[{index}].subPath", mount.get("subPath", ""))
                self._place.mounts[mount["mountPath"]] = folders[mount["name"]] / below
            elif mount["name"] not in volumes:
                message = f"there is no volume {mount['name']} in {self._path}.volumes: add it."
                self._problem(f"{self._own}.volumeMounts[{index}].name", message)

    def _volume(self, path: str, name: str, volume: Json) -> Path | None:
        if name in self._machine.volumes:
            return self._machine.volumes[name]
        kind = source_of(volume)
        if kind == "emptyDir":
            return self._folder / "volumes" / name
        if config_map := volume.get("configMap"):
            return self._config_map(f"{path}.configMap", self._folder / "volumes" / name, config_map)
        self._problem(
            f"{path}.{kind}",
            f"the volume {name} can't be mounted on this machine: give a folder in its place, "
            f"--volume {name}=FOLDER.",
        )
        return None

    def _config_map(self, path: str, folder: Path, config_map: Json) -> Path | None:
        """Return the folder with a ConfigMap's files: `folder` for those that `items` selects."""
        name, required = config_map["name"], not config_map.get("optional")
        content = self._machine.config_maps.get(name)
        if content is None:
            if required:
                self._problem(f"{path}.name", self._missing_config_map(name))
            return None
        if not config_map.get("items"):
            return config_folder(self._folder, name)
        for index, item in enumerate(config_map["items"]):
            below = self._below(f"{path}.items[{index}].path", item["path"])
            if item["key"] in content:
                self._place.files[folder / below] = content[item["key"]]
            elif required:
                self._problem(f"{path}.items[{index}].key", _missing_key(name, item["key"]))
        return folder

    def _below(self, path: str, given: str) -> str:
        """Return a path in a volume as given, if Kubernetes accepts it."""
        if given.startswith("/") or ".." in given.split("/"):
            self._problem(path, f"{given} must be a path below the volume, without `..`: correct it.")
        return given

    def _resources(self) -> None:
        resources = self._container.get("resources") or {}
        wanted = {**(resources.get("requests") or {}), **(resources.get("limits") or {})}
        requested = sum(int(quantity(amount)) for name, amount in wanted.items() if _GPU.search(name))
        if self._runs.gpus is not None:
            requested = self._runs.gpus
        for name in wanted:
            if not _GPU.search(name) and "/" in name:
                self._place.ignored.append(f"{self._own}.resources ({name})")
        if not requested or (self._machine.gpus_chosen and not self._machine.gpus):
            return
        self._place.gpus = requested
        if requested > self._machine.gpus:
            have = "none was found on this machine"
            if self._machine.gpus:
                have = f"this machine has {self._machine.gpus}"
            elif not self._machine.gpus_chosen:
                have += " (by CUDA_VISIBLE_DEVICES and nvidia-smi)"
            self._problem(
                f"{self._own}.resources.limits" if self._runs.gpus is None else "trial.gpus",
                f"a {'refit' if 'refit' in self._path else 'trial'} requests {count(requested, 'GPU')}, and "
                f"{have}. To run without GPUs, use --gpus 0.",
            )

    def _environ(self) -> None:
        environ, variables = self._place.environ, self._place.variables
        for index, source in enumerate(self._container.get("envFrom") or ()):
            variables.update(self._from(f"{self._own}.envFrom[{index}]", source))
        environ.update(variables)
        for index, variable in enumerate(self._container.get("env") or ()):
            name = variable["name"]
            if "valueFrom" in variable:
                path = f"{self._own}.env[{index}].valueFrom"
                value = self._value_from(path, name, variable["valueFrom"])
                if value is not None:
                    environ[name] = variables[name] = value
            else:
                given = str(variable.get("value") or "")
                environ[name], variables[name] = self._place.text(given), _expanded(given, variables)

    def _from(self, path: str, source: Json) -> Iterator[tuple[str, str]]:
        prefix = source.get("prefix", "")
        if reference := source.get("configMapRef"):
            found = self._machine.config_maps.get(reference["name"])
            if found is None and not reference.get("optional"):
                self._problem(f"{path}.configMapRef.name", self._missing_config_map(reference["name"]))
            for key, value in (found or {}).items():
                yield f"{prefix}{key}", value
        elif (reference := source.get("secretRef")) and not reference.get("optional"):
            self._problem(
                f"{path}.secretRef",
                f"the Secret {reference['name']} can't be read on this machine: list its variables under "
                "env, each with a secretKeyRef, and set them in your shell.",
            )

    def _value_from(self, path: str, name: str, source: Json) -> str | None:
        readers: dict[str, Callable[[str, str, Json], str | None]] = {
            "configMapKeyRef": self._config_map_key,
            "secretKeyRef": self._secret_key,
            "fieldRef": self._field,
            "resourceFieldRef": self._resource,
        }
        kind = next(iter(source), "")
        if kind not in readers:
            self._problem(path, f"{kind} is not known on this machine: give the variable {name} a value.")
            return None
        return readers[kind](f"{path}.{kind}", name, source[kind])

    def _config_map_key(self, path: str, _: str, reference: Json) -> str | None:
        found = self._machine.config_maps.get(reference["name"])
        if found is not None and reference["key"] in found:
            return found[reference["key"]]
        if not reference.get("optional"):
            message = _missing_key(reference["name"], reference["key"])
            self._problem(path, message if found is not None else self._missing_config_map(reference["name"]))
        return None

    def _secret_key(self, path: str, name: str, reference: Json) -> str | None:
        value = self._machine.environ.get(name)
        if value is None and not reference.get("optional"):
            self._problem(
                path,
                f"the Secret {reference['name']} can't be read on this machine: set the variable {name} in "
                f"your shell, for example with `export {name}=...`.",
            )
        return value

    def _field(self, path: str, name: str, reference: Json) -> str | None:
        wanted = reference.get("fieldPath", "")
        if wanted in self._fields:
            return self._fields[wanted]
        self._problem(path, f"{wanted} is not known on this machine: give the variable {name} a value.")
        return None

    def _resource(self, path: str, name: str, reference: Json) -> str | None:
        kind, _, resource = str(reference.get("resource", "")).partition(".")
        resources = self._container.get("resources") or {}
        amount = (resources.get(kind) or {}).get(resource) or (resources.get("limits") or {}).get(resource)
        if amount is None:
            message = f"the container has no {kind}.{resource}: add it, or give the variable {name} a value."
            self._problem(path, message)
            return None
        return str(math.ceil(quantity(amount) / (quantity(reference.get("divisor", 1)) or 1)))

    def _working_dir(self) -> None:
        given = self._container.get("workingDir")
        if given is None:
            return
        folder = Path(self._place.localized(given))
        self._place.working_dir = self._machine.folder / folder
        in_run = folder.is_relative_to(self._folder)
        if not in_run and not self._place.working_dir.is_dir():
            self._problem(
                f"{self._own}.workingDir",
                f"{given} is not a folder on this machine: create it, remove workingDir, or mount a volume "
                "there and use --volume.",
            )


def _missing_key(config_map: str, key: str) -> str:
    return f"the ConfigMap {config_map} has no key {key}: add it."


def _expanded(text: str, environ: Mapping[str, str]) -> str:
    """Return a text with its $(NAME) filled in, and $ for $$, as the kubelet does."""

    def value(found: re.Match[str]) -> str:
        return "$" if found[1] is None else environ.get(found[1], found[0])

    return _VARIABLE.sub(value, text)


def unused_fields(places: Sequence[Place]) -> list[str]:
    """Return the fields that have no effect here, each once."""
    return list(dict.fromkeys(name for found in places for name in found.ignored))
