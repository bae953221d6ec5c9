"""What a pod template means on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tuning_operator.kube.plan.work import Trial, program
from tuning_operator.local.gpus import devices_in, visible_gpus
from tuning_operator.local.pods import Machine, Place, place

from tests.unit.kube.builders import study

RUN = Path("/runs/mnist-0")
OWN = "trial.template.spec.containers[0]"
POD = "trial.template.spec"


def read(
    pod: dict[str, Any] | None = None,
    trial: dict[str, Any] | None = None,
    machine: dict[str, Any] | None = None,
    **container: Any,
) -> Place:
    """Return what a template with these fields is on a machine."""
    template = {"spec": {"containers": [{"name": "trainer", "image": "i", **container}], **(pod or {})}}
    given = study(trial={"template": template, **(trial or {})})
    values = {"folder": Path("/work"), "config_maps": {}, "volumes": {}, "environ": {}, "gpus": 0}
    fields = {"metadata.name": "mnist-0"}
    return place(program(given, Trial(0)), Machine(**{**values, **(machine or {})}), RUN, fields)


def problem(found: Place) -> tuple[str, str]:
    assert len(found.problems) == 1, found.problems
    return found.problems[0].field, found.problems[0].message


def test_environment() -> None:
    maps = {"settings": {"SIZE": "3", "unused": "x"}}
    env = [
        {"name": "PLAIN", "value": "1"},
        {"name": "AGAIN", "value": "$(PLAIN)-$(SIZE)-$(MISSING)-$$(PLAIN)-a$$b$$$(PLAIN)$"},
        {"name": "SIZE_OF", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "SIZE"}}},
        {"name": "API_KEY", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "api"}}},
        {"name": "MAYBE", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "b", "optional": True}}},
        {"name": "RUN", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "OMP_NUM_THREADS", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
    ]
    machine = {"config_maps": maps, "environ": {"API_KEY": "secret"}}
    found = read(
        env=env, envFrom=[{"configMapRef": {"name": "settings"}}], machine=machine,
        resources={"limits": {"cpu": "1500m"}},
    )  # fmt: skip
    assert found.problems == []
    assert found.environ == {
        "SIZE": "3", "unused": "x", "PLAIN": "1", "AGAIN": "1-3-$(MISSING)-$(PLAIN)-a$b$1$", "SIZE_OF": "3",
        "API_KEY": "secret", "RUN": "mnist-0", "OMP_NUM_THREADS": "2",
    }  # fmt: skip


def test_paths_are_rewritten_once_wherever_they_come_from() -> None:
    volumes = [{"name": "data", "persistentVolumeClaim": {"claimName": "images"}}]
    env = [
        {"name": "DATA", "value": "/data"},
        {"name": "TRAIN", "value": "$(DATA)/train"},
        {"name": "TEST", "value": "$(ROOT)/test"},
    ]
    found = read(
        {"volumes": volumes}, volumeMounts=[{"name": "data", "mountPath": "/data"}], env=env,
        envFrom=[{"configMapRef": {"name": "settings"}}],
        machine={
            "volumes": {"data": Path("/data/images")}, "config_maps": {"settings": {"ROOT": "/data"}},
            "environ": {"HOME": "/home/me"},
        },
    )  # fmt: skip
    assert found.environ["TRAIN"] == "/data/images/train"
    assert found.environ["TEST"] == "/data/images/test"
    argument = "--in=$(TRAIN) --of=$(NUMBER) $(HOME) $$(DATA)"
    assert found.text(argument, {"NUMBER": "3"}) == "--in=/data/images/train --of=3 $(HOME) $(DATA)"


def test_volumes_and_paths_below_them() -> None:
    volumes = [
        {"name": "data", "persistentVolumeClaim": {"claimName": "images"}},
        {"name": "scratch", "emptyDir": {}},
        {"name": "table", "configMap": {"name": "table"}},
        {"name": "unmounted", "nfs": {}},
    ]
    mounts = [
        {"name": "data", "mountPath": "/data"},
        {"name": "scratch", "mountPath": "/data/cache"},
        {"name": "table", "mountPath": "/etc/table", "subPath": "a.csv"},
    ]
    env = [
        {"name": "DATA", "value": "/data/train:/database:/x/data"},
        {"name": "CACHE", "value": "/data/cache/1"},
    ]
    found = read(
        {"volumes": volumes}, volumeMounts=mounts, env=env,
        machine={"volumes": {"data": Path("/mnt/images")}, "config_maps": {"table": {}}},
    )  # fmt: skip
    assert found.problems == []
    assert found.environ["DATA"] == "/mnt/images/train:/database:/x/data"
    assert found.environ["CACHE"] == "/runs/mnist-0/volumes/scratch/1"
    assert found.mounts["/etc/table"] == RUN / "config" / "table" / "a.csv"
    assert found.localized("--out=/data/cache/m") == "--out=/runs/mnist-0/volumes/scratch/m"


def test_the_items_of_a_config_map() -> None:
    items = [{"key": "a.csv", "path": "tables/a.csv"}, {"key": "missing", "path": "b.csv"}]
    config_map = {"name": "table", "items": items, "optional": True}
    pod = {"volumes": [{"name": "table", "configMap": config_map}]}
    mounts = [{"name": "table", "mountPath": "/etc/table"}]
    machine = {"config_maps": {"table": {"a.csv": "1,2", "unused": ""}}}
    found = read(pod, volumeMounts=mounts, machine=machine)
    assert found.problems == []
    assert found.mounts["/etc/table"] == RUN / "volumes" / "table"
    assert found.files == {RUN / "volumes" / "table" / "tables" / "a.csv": "1,2"}
    del config_map["optional"]
    key = f"{POD}.volumes[0].configMap.items[1].key"
    message = "the ConfigMap table has no key missing: add it."
    assert problem(read(pod, volumeMounts=mounts, machine=machine)) == (key, message)


def test_without_effect() -> None:
    found = read(
        {"nodeSelector": {"gpu": "h200"}, "containers": [
            {"name": "proxy", "image": "p"},
            {"name": "trainer", "image": "i", "securityContext": {}},
        ]},
    )  # fmt: skip
    assert found.problems == []
    assert found.ignored == [
        f"{POD}.nodeSelector", f"{POD}.containers[1].securityContext", f"{POD}.containers[0] (proxy)"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("found", "field", "message"),
    [
        (read(env=[{"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]),
         f"{OWN}.env[0].valueFrom.secretKeyRef",
         "the Secret s can't be read on this machine: set the variable KEY in your shell, for example with "
         "`export KEY=...`."),
        (read(envFrom=[{"secretRef": {"name": "s"}}]), f"{OWN}.envFrom[0].secretRef",
         "the Secret s can't be read on this machine: list its variables under env, each with a "
         "secretKeyRef, and set them in your shell."),
        (read({"volumes": [{"name": "data", "hostPath": {"path": "/data"}}]},
              volumeMounts=[{"name": "data", "mountPath": "/data"}]), f"{POD}.volumes[0].hostPath",
         "the volume data can't be mounted on this machine: give a folder in its place, "
         "--volume data=FOLDER."),
        (read({"volumes": [{"name": "data", "emptyDir": {}}]},
              volumeMounts=[{"name": "data", "mountPath": "/data", "subPath": "/x"}]),
         f"{OWN}.volumeMounts[0].subPath", "/x must be a path below the volume, without `..`: correct it."),
        (read({"volumes": [{"name": "t", "configMap": {
                  "name": "t", "items": [{"key": "k", "path": "../k"}]}}]},
              volumeMounts=[{"name": "t", "mountPath": "/t"}], machine={"config_maps": {"t": {"k": ""}}}),
         f"{POD}.volumes[0].configMap.items[0].path",
         "../k must be a path below the volume, without `..`: correct it."),
        (read(machine={"volumes": {"dta": Path("/d")}}), f"{POD}.volumes",
         "--volume dta=...: there is no volume of this name (the template has: none)."),
        (read({"nodeSelecter": {}}), f"{POD}.nodeSelecter",
         "Kubernetes has no field nodeSelecter here: did you mean nodeSelector?"),
        (read(resources={"limits": {"nvidia.com/gpu": 1}}), f"{OWN}.resources.limits",
         "a trial requests 1 GPU, and none was found on this machine (by CUDA_VISIBLE_DEVICES and "
         "nvidia-smi). To run without GPUs, use --gpus 0."),
        (read(resources={"limits": {"nvidia.com/gpu": 4}}, machine={"gpus": 2}), f"{OWN}.resources.limits",
         "a trial requests 4 GPUs, and this machine has 2. To run without GPUs, use --gpus 0."),
        (read(trial={"gpus": 1}), "trial.gpus",
         "a trial requests 1 GPU, and none was found on this machine (by CUDA_VISIBLE_DEVICES and "
         "nvidia-smi). To run without GPUs, use --gpus 0."),
        (read(workingDir="/no/such/folder"), f"{OWN}.workingDir",
         "/no/such/folder is not a folder on this machine: create it, remove workingDir, or mount a volume "
         "there and use --volume."),
        (read(trial={"source": {"configMap": "code"}}), "trial.source.configMap",
         "the ConfigMap code is neither in the manifest nor generated by a kustomization.yaml beside it "
         "(found: none). Add it, or run the folder that has it."),
        (read({"initContainers": [{"name": "fetch", "image": "i"}]}), f"{POD}.initContainers[0]",
         "The init container fetch needs its image, which can't run here: do its work by hand, give the "
         "folder to --volume, and remove the init container from a copy of the manifest."),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)  # fmt: skip
def test_refused(found: Place, field: str, message: str) -> None:
    assert problem(found) == (field, message)


def test_gpus_as_requested_unless_none_are_wanted() -> None:
    limits = {"limits": {"nvidia.com/gpu": "2", "memory": "4Gi", "rdma/hca": 1}}
    found = read(resources=limits, machine={"gpus": 4})
    assert found.gpus == 2
    assert found.ignored == [f"{OWN}.resources (rdma/hca)"]
    without = read(resources=limits, machine={"gpus_chosen": True})
    assert (without.gpus, without.problems) == (0, [])


def test_gpus_of_this_machine() -> None:
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "2, 0"}) == ["2", "0"]
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}) == []
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "1,-1,0"}) == ["1"]
    assert visible_gpus({"PATH": "/nowhere"}) == []
    listing = "GPU 0: NVIDIA H100 (UUID: GPU-1)\nGPU 1: NVIDIA H100 (UUID: GPU-2)\n"
    assert devices_in(listing) == ["0", "1"]
    mig = "  MIG 1g.10gb Device 0: (UUID: MIG-a)\n  MIG 1g.10gb Device 1: (UUID: MIG-b)\n"
    assert devices_in(f"GPU 0: NVIDIA H100 (UUID: GPU-1)\n{mig}") == ["MIG-a", "MIG-b"]
