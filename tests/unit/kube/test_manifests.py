"""The Job of a trial and the trainer's ConfigMap."""

from __future__ import annotations

import base64
import json
import math
from typing import Any

import pytest
from tuning_operator.kube.jobs import manifests
from tuning_operator.kube.jobs.evidence import STOPPED
from tuning_operator.kube.jobs.manifests import trainer_config_map
from tuning_operator.kube.jobs.runtime import Runtime
from tuning_operator.kube.plan.validation import definition
from tuning_operator.kube.plan.work import Refit, Trial, Work, Worker, program
from tuning_operator.resource import names
from tuning_operator.resource.study import TuningStudy
from tuning_trainer.stopping import EXIT_CODE

from tests.unit.kube.builders import UID, study

RUNTIME = Runtime(b"zip", "https://studies.tuning:8443/", "PEM")
SPEC: dict[str, Any] = {
    "source": {"configMap": "mnist-code"},
    "timeout": "20m",
    "ttlAfterFinished": "2h",
    "template": {
        "metadata": {"labels": {"team": "vision"}, "annotations": {"note": "mine"}},
        "spec": {
            "serviceAccountName": "trainer-account",
            "nodeSelector": {"gpu": "h200"},
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}],
            "containers": [
                {
                    "name": "trainer",
                    "image": "torch:2",
                    "resources": {"limits": {"nvidia.com/gpu": 1}},
                    "env": [
                        {"name": "HF_HOME", "value": "/data"},
                        {"name": "TUNING_STUDY", "value": "forged"},
                    ],
                    "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                },
                {"name": "logger", "image": "logger:1", "command": ["log"]},
            ],
        },
    },
}


def trial_job(study: TuningStudy, trial: int, runtime: Runtime) -> dict[str, Any]:
    return manifests.job(study, Trial(trial), runtime)


def refit_job(study: TuningStudy, trial: int = 7) -> dict[str, Any]:
    refit = study.spec.refit
    assert refit
    return manifests.job(study, Refit.of(refit, trial), RUNTIME)


def container(job: dict[str, Any], name: str = "trainer") -> dict[str, Any]:
    return next(c for c in job["spec"]["template"]["spec"]["containers"] if c["name"] == name)


def test_the_job() -> None:
    job = trial_job(study(trial=SPEC), 7, RUNTIME)
    labels = {names.LABEL_STUDY: "mnist", names.LABEL_TRIAL: "7", names.LABEL_ROLE: "trial"}
    assert set(job["metadata"].pop("annotations")) == {names.ANNOTATION_PROGRAM}
    assert job["metadata"] == {
        "name": "mnist-7",
        "namespace": "ml",
        "labels": labels,
        "ownerReferences": [
            {
                "apiVersion": "tuning.dev/v1alpha1",
                "kind": "TuningStudy",
                "name": "mnist",
                "uid": UID,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }
    spec = job["spec"]
    assert spec["backoffLimit"] == 3, "pods that were deleted, or that a node rejected"
    assert spec["ttlSecondsAfterFinished"] == 7200
    assert spec["podFailurePolicy"]["rules"] == [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {
            "action": "FailJob",
            "onExitCodes": {"containerName": "trainer", "operator": "NotIn", "values": [143]},
        },
    ]
    assert spec["template"]["metadata"]["labels"] == {"team": "vision", **labels}


def test_the_users_template_is_kept() -> None:
    job = trial_job(study(trial=SPEC), 7, RUNTIME)
    pod = job["spec"]["template"]["spec"]
    assert job["spec"]["template"]["metadata"]["annotations"] == {"note": "mine"}
    assert pod["nodeSelector"] == {"gpu": "h200"}
    assert pod["serviceAccountName"] == "trainer-account"
    assert pod["volumes"][0] == {"name": "data", "persistentVolumeClaim": {"claimName": "data"}}
    assert container(job, "logger") == {"name": "logger", "image": "logger:1", "command": ["log"]}
    trainer = container(job)
    assert trainer["image"] == "torch:2"
    assert trainer["resources"] == {"limits": {"nvidia.com/gpu": 1}}
    assert trainer["volumeMounts"][0] == {"name": "data", "mountPath": "/data"}


def test_a_command_is_not_pruned_unless_it_says_so() -> None:
    command = {name: value for name, value in SPEC.items() if name != "objective"} | {"command": ["./train"]}
    for pruner, name in ((None, "NopPruner"), ({"name": "MedianPruner"}, "MedianPruner")):
        assert definition(study(trial=command | {"objective": None}, pruner=pruner)).pruner.name == name


def test_the_chosen_study_applies_to_the_trials_script() -> None:
    script = {name: value for name, value in SPEC.items() if name != "objective"} | {"script": "train.py"}
    chosen = {**script, "study": "high"}

    def config(work: Work, refit: dict[str, Any]) -> dict[str, Any]:
        job = manifests.job(study(trial=chosen | {"objective": None}, refit=refit), work, RUNTIME)
        return json.loads(next(e["value"] for e in container(job)["env"] if e["name"] == "TUNING_CONFIG"))

    assert config(Trial(7), {})["study"] == "high"
    assert config(Refit(7, "d"), {})["study"] == "high"
    assert "study" not in config(Refit(7, "d"), {"script": "final.py"})
    digests = [program(study(trial=t | {"objective": None}), Trial(7)).digest for t in (script, chosen)]
    assert digests[0] != digests[1]


def test_the_trainer_container() -> None:
    job = trial_job(study(trial=SPEC), 7, RUNTIME)
    trainer, pod = container(job), job["spec"]["template"]["spec"]
    assert trainer["command"] == [
        "python3",
        "/var/run/tuning.dev/trainer/trainer.zip",
        "objective",
        "train:objective",
    ]
    env = {e["name"]: e["value"] for e in trainer["env"]}
    assert json.loads(env.pop("TUNING_CONFIG")) == {
        "timeoutSeconds": 1200,
        "storage": {
            "field": "spec.trial.template",
            "outlastPod": {"/": False, "/dev/shm": False, "/data": True},
        },
    }
    assert env == {
        "HF_HOME": "/data",
        "TUNING_TRIAL_URL": "https://studies.tuning:8443/v1/studies/ml/mnist/trials/7",
        "TUNING_TOKEN_FILE": "/var/run/tuning.dev/token/token",
        "TUNING_CA_FILE": "/var/run/tuning.dev/ca/ca.crt",
        "TUNING_STUDY": "ml/mnist",
        "TUNING_TRIAL_NUMBER": "7",
        "TUNING_ROLE": "trial",
        "TUNING_SOURCE": "/var/run/tuning.dev/source",
    }
    assert len(trainer["env"]) == len(env) + 1, "no variable is there twice: the last one would be used"
    mounts = {m["name"]: m["mountPath"] for m in trainer["volumeMounts"]}
    assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
    assert [m["name"] for m in trainer["volumeMounts"] if not m.get("readOnly")] == ["data"]
    token = next(v for v in pod["volumes"] if v["name"] == "tuning-token")["projected"]["sources"][0]
    assert token["serviceAccountToken"]["audience"] == f"{names.TOKEN_AUDIENCE}/{UID}"
    assert token["serviceAccountToken"]["expirationSeconds"] == 600, "the shortest that Kubernetes allows"
    assert pod["restartPolicy"] == "Never"
    assert pod["automountServiceAccountToken"] is False
    assert pod["activeDeadlineSeconds"] == 1200 + 3600, "the time to start does not count"
    assert trainer["terminationMessagePolicy"] == "FallbackToLogsOnError"


def test_the_templates_token_deadline_and_messages_are_kept() -> None:
    own = {"name": "trainer", "image": "i", "terminationMessagePolicy": "File"}
    template = {
        "spec": {"automountServiceAccountToken": True, "activeDeadlineSeconds": 5, "containers": [own]}
    }
    job = trial_job(study(trial={"template": template}), 0, RUNTIME)
    assert job["spec"]["template"]["spec"]["automountServiceAccountToken"] is True
    assert job["spec"]["template"]["spec"]["activeDeadlineSeconds"] == 5
    assert container(job)["terminationMessagePolicy"] == "File"


def test_which_exit_codes_end_a_trial() -> None:
    """The trainer's and those of init containers; a sidecar may fail when its pod is deleted."""
    proxy = {"name": "proxy", "image": "i", "restartPolicy": "Always"}
    inits = [{"name": f"fetch-{n}", "image": "i"} for n in range(30)]
    template = {
        "spec": {
            "initContainers": [proxy, *inits],
            "containers": [{"name": "trainer", "image": "i"}, {"name": "shipper", "image": "i"}],
        }
    }
    job = trial_job(study(trial={"template": template}), 0, RUNTIME)
    rules = job["spec"]["podFailurePolicy"]["rules"]
    named = [rule["onExitCodes"]["containerName"] for rule in rules[1:]]
    assert named == ["trainer", *(f"fetch-{n}" for n in range(18))]
    assert len(rules) == 20, "the API server takes no more"
    assert all(rule["action"] == "FailJob" for rule in rules[1:])


def test_the_exit_code_after_sigterm_is_the_trainers() -> None:
    assert STOPPED == EXIT_CODE


@pytest.mark.parametrize(
    ("template", "policy"),
    [
        ({"hostNetwork": True}, "ClusterFirstWithHostNet"),
        ({"hostNetwork": True, "dnsPolicy": "None"}, "None"),
        ({}, None),
    ],
)
def test_pods_in_the_hosts_network_find_the_study_server(
    template: dict[str, Any], policy: str | None
) -> None:
    spec = {"spec": {"containers": [{"name": "trainer", "image": "i"}], **template}}
    job = trial_job(study(trial={"template": spec}), 0, RUNTIME)
    assert job["spec"]["template"]["spec"].get("dnsPolicy") == policy


def test_any_program_and_any_python() -> None:
    command = {"objective": None, "command": ["./train.sh", "--fast"], "python": "/opt/conda/bin/python"}
    trainer = container(trial_job(study(trial=command), 0, RUNTIME))
    assert trainer["command"][0] == "/opt/conda/bin/python"
    assert trainer["command"][2:] == ["command", "--", "./train.sh", "--fast"]


def test_how_a_commands_metrics_are_read() -> None:
    metrics = {"pattern": "accuracy=(.*)"}
    command = {"objective": None, "command": ["./train.sh"], "metrics": metrics}
    env = {e["name"]: e["value"] for e in container(trial_job(study(trial=command), 0, RUNTIME))["env"]}
    assert json.loads(env["TUNING_CONFIG"])["metrics"] == metrics


def test_a_whole_script() -> None:
    script = {"objective": None, "script": "examples/train.py"}
    trainer = container(trial_job(study(trial=script), 0, RUNTIME))
    assert trainer["command"][2:] == ["script", "examples/train.py"]
    script = {"objective": None, "script": "train.py --epochs 3 --data 'a b'"}
    trainer = container(trial_job(study(trial=script), 0, RUNTIME))
    assert trainer["command"][2:] == ["script", "train.py", "--epochs", "3", "--data", "a b"]


INSTALLED = Runtime(b"zip", "https://studies:8443", image="tuning-trainer:1", gpu_resource="amd.com/gpu")


def test_without_a_template_a_trial_runs_in_the_trainer_image_on_one_gpu() -> None:
    """In a pod that the Pod Security Standard `restricted` admits."""
    job = trial_job(study(trial={"template": None}), 0, INSTALLED)
    pod, trainer = job["spec"]["template"]["spec"], container(job)
    assert trainer["image"] == "tuning-trainer:1"
    assert trainer["resources"] == {"limits": {"amd.com/gpu": 1}}
    assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    assert trainer["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }


@pytest.mark.parametrize(
    ("gpus", "limits"), [(None, {"memory": "1Gi"}), (2, {"memory": "1Gi", "amd.com/gpu": 2})]
)
def test_the_image_and_the_gpus_complete_a_template(gpus: int | None, limits: dict[str, Any]) -> None:
    trainer = {"name": "trainer", "resources": {"limits": {"memory": "1Gi"}}}
    trial = {"gpus": gpus, "template": {"spec": {"containers": [trainer]}}}
    found = container(trial_job(study(trial=trial), 0, INSTALLED))
    assert found["image"] == "tuning-trainer:1"
    assert found["resources"] == {"limits": limits}
    named = {"template": {"spec": {"containers": [{**trainer, "image": "mine:2"}]}}}
    assert container(trial_job(study(trial=named), 0, INSTALLED))["image"] == "mine:2"


def test_a_refit_with_a_template_has_the_gpus_in_it() -> None:
    own = {"spec": {"containers": [{"name": "trainer"}]}}
    refit = study(trial={"template": None, "gpus": 2}, refit={"template": own})
    assert "resources" not in container(refit_job(refit))
    refit = study(trial={"template": None, "gpus": 2}, refit={})
    assert container(refit_job(refit))["resources"] == {"limits": {"nvidia.com/gpu": 2}}


def test_without_source_and_certificate_authority() -> None:
    job = trial_job(study(), 0, Runtime(b"zip", "http://studies:8080"))
    env = {e["name"] for e in container(job)["env"]}
    assert not env & {"TUNING_SOURCE", "TUNING_CA_FILE"}
    assert "tuning-source" not in {v["name"] for v in job["spec"]["template"]["spec"]["volumes"]}


def test_the_template_of_the_study_is_not_changed() -> None:
    given = study(trial=SPEC)
    before = given.model_dump_json()
    trial_job(given, 7, RUNTIME)
    assert given.model_dump_json() == before


def test_the_config_map_is_named_by_its_content() -> None:
    first = trainer_config_map(study(), RUNTIME)
    assert first["immutable"] is True
    assert base64.b64decode(first["binaryData"]["trainer.zip"]) == b"zip"
    assert first["data"] == {"server-url": "https://studies.tuning:8443/", "ca-config-map": "study-server-ca"}
    assert first["metadata"]["labels"] == {names.LABEL_STUDY: "mnist"}, (
        "`kubectl tuning` finds it by this label"
    )
    assert first["metadata"]["ownerReferences"][0]["uid"] == UID
    volume = next(
        v
        for v in trial_job(study(), 0, RUNTIME)["spec"]["template"]["spec"]["volumes"]
        if v["name"] == "tuning-trainer"
    )
    assert volume["configMap"]["name"] == first["metadata"]["name"]
    others = {
        trainer_config_map(study(), r)["metadata"]["name"]
        for r in (
            RUNTIME,
            Runtime(b"zap", "u", "PEM"),
            Runtime(b"zip", "u"),
            Runtime(b"zip", "v"),
        )
    }
    assert len(others) == 4
    renewed = trainer_config_map(study(), Runtime(b"zip", RUNTIME.server_url, "RENEWED"))
    assert renewed == first, "the CA is in a ConfigMap of its own, since running pods need the new one"


@pytest.mark.parametrize("trial", [0, 99_999])
def test_names_fit(trial: int) -> None:
    """The names of pods are six characters longer than their Job's, and names and labels have at most 63."""
    longest = study().model_copy(
        update={"metadata": {"name": "m" * names.MAX_STUDY_NAME, "namespace": "ml", "uid": UID}}
    )
    job = trial_job(longest, trial, RUNTIME)
    assert len(job["metadata"]["name"]) + 6 <= 63
    assert all(len(value) <= 63 for value in job["metadata"]["labels"].values())
    assert len(trainer_config_map(longest, RUNTIME)["metadata"]["name"]) <= 253
    assert names.parse_job_name(job["metadata"]["name"]) == (longest.metadata["name"], str(trial))


def test_the_refits_job_differs_from_a_trials_by_its_role() -> None:
    given = study(trial=SPEC, refit={})
    job, trial = refit_job(given), trial_job(given, 7, RUNTIME)
    digest = job["metadata"]["labels"][names.LABEL_DIGEST]
    labels = {
        names.LABEL_STUDY: "mnist",
        names.LABEL_TRIAL: "7",
        names.LABEL_ROLE: "final",
        names.LABEL_DIGEST: digest,
    }
    for made in (job, trial):
        assert made["metadata"].pop("annotations")
    assert job["metadata"] == trial["metadata"] | {"name": "mnist-refit", "labels": labels}
    assert job["spec"]["backoffLimit"] == 2
    assert job["spec"]["podFailurePolicy"]["rules"] == trial["spec"]["podFailurePolicy"]["rules"][:1]
    template = job["spec"]["template"]
    assert template["metadata"]["labels"] == {"team": "vision", **labels}
    assert "activeDeadlineSeconds" not in template["spec"], "the trial's timeout does not apply to it"
    own, trials = container(job), container(trial)
    assert own["command"] == trials["command"]
    env, trials_env = ({e["name"]: e["value"] for e in c["env"]} for c in (own, trials))
    config, trials_config = (json.loads(variables.pop("TUNING_CONFIG")) for variables in (env, trials_env))
    assert config | {"timeoutSeconds": 1200} == trials_config
    assert env == trials_env | {
        "TUNING_ROLE": "final",
        "TUNING_TRIAL_URL": "https://studies.tuning:8443/v1/studies/ml/mnist/refit",
    }
    assert template["spec"]["volumes"] == trial["spec"]["template"]["spec"]["volumes"]


def test_the_runtime_knows_which_folders_outlast_the_pod() -> None:
    volumes = [
        {"name": "scratch", "emptyDir": {}},
        {"name": "host", "hostPath": {"path": "/mnt"}},
        {"name": "settings", "configMap": {"name": "settings"}},
        {"name": "share", "nfs": {"server": "nas", "path": "/"}},
    ]
    mounts = [{"name": volume["name"], "mountPath": f"/{volume['name']}/"} for volume in volumes]
    mounts += [{"name": "share", "mountPath": "/dev/shm", "subPath": "memory"}]
    trainer = {"name": "trainer", "volumeMounts": mounts}
    template = {"spec": {"volumes": volumes, "containers": [trainer]}}
    job = refit_job(study(trial=SPEC, refit={"template": template}))
    variables = {e["name"]: e["value"] for e in container(job)["env"]}
    assert json.loads(variables["TUNING_CONFIG"])["storage"] == {
        "field": "spec.refit.template",
        "outlastPod": {
            "/": False,
            "/dev/shm": True,
            "/scratch": False,
            "/host": True,
            "/settings": False,
            "/share": True,
        },
    }


def test_the_refits_own_fields() -> None:
    template = {"spec": {"containers": [{"name": "trainer", "image": "torch:full"}]}}
    refit = {
        "script": "final.py",
        "source": {"configMap": "final-code"},
        "retries": 0,
        "timeout": "6h",
        "template": template,
    }
    job = refit_job(study(trial=SPEC, refit=refit))
    pod = job["spec"]["template"]["spec"]
    assert job["spec"]["backoffLimit"] == 3, "pods that were deleted are replaced ..."
    failure = job["spec"]["podFailurePolicy"]["rules"][1]
    assert (failure["action"], failure["onExitCodes"]["containerName"]) == ("FailJob", "trainer"), (
        "... no others"
    )
    assert container(job)["image"] == "torch:full"
    assert container(job)["command"][2:] == ["script", "final.py"]
    assert pod["activeDeadlineSeconds"] == 7 * 3600
    assert {"name": "tuning-source", "configMap": {"name": "final-code"}} in pod["volumes"]


def parameters(values: dict[str, Any]) -> Any:
    made = manifests.job(study(), Trial(7, values), RUNTIME)
    return json.loads(made["metadata"]["annotations"].get(names.ANNOTATION_PARAMETERS, "null"))


def test_the_parameters_are_an_annotation() -> None:
    assert parameters({}) is None
    assert parameters({"lr": 0.1, "kind": None, "c": math.inf}) == {"lr": 0.1, "kind": None, "c": "Infinity"}
    assert Trial(7, {"lr": 0.1}) == Trial(7)
    assert len({Trial(7, {"lr": 0.1}), Trial(7)}) == 1


def test_the_annotation_with_the_parameters_is_bounded() -> None:
    long = parameters({f"p{n}": "x" * 1000 for n in range(100)})
    assert [*long] == ["p0", "p1", "p2", "p3", "..."]
    assert long["..."] == "96 more"
    assert parameters({"text": "x" * 5000}) == {"...": "1 more"}


def test_labels_and_annotations_of_the_job_itself() -> None:
    metadata = {"labels": {"kueue.x-k8s.io/queue-name": "gpus"}, "annotations": {"note": "mine"}}
    for job in (
        trial_job(study(trial={**SPEC, "job": metadata}), 7, RUNTIME),
        refit_job(study(trial={**SPEC, "job": metadata}, refit={})),
    ):
        assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
        assert job["metadata"]["labels"][names.LABEL_STUDY] == "mnist"
        assert job["metadata"]["annotations"]["note"] == "mine"
        assert "kueue.x-k8s.io/queue-name" not in job["spec"]["template"]["metadata"]["labels"]


def test_a_job_is_kept_until_its_end_was_seen() -> None:
    job = trial_job(study(trial={**SPEC, "ttlAfterFinished": "0s"}), 7, RUNTIME)
    assert job["spec"]["ttlSecondsAfterFinished"] == 60


def test_the_digest_of_what_a_job_runs() -> None:
    """It changes with what a user may correct while a Job waits, and not with the rest of the spec."""

    def digest(**spec: Any) -> str:
        job = trial_job(study(**{"trial": SPEC, **spec}), 7, RUNTIME)
        return str(job["metadata"]["annotations"][names.ANNOTATION_PROGRAM])

    base = digest()
    assert digest(maxTrials=3, parallelism=1, refit={}) == base
    changes = [
        {"timeout": "21m"}, {"source": {"configMap": "other"}}, {"python": "python3.12"},
        {"objective": "train:other"}, {"job": {"labels": {"a": "b"}}},
        {"template": {"spec": {"containers": [{"name": "trainer", "image": "torch:3"}]}}},
    ]  # fmt: skip
    assert len({base, *(digest(trial={**SPEC, **change}) for change in changes)}) == 7


OBJECTIVE: dict[str, Any] = {"objective": "train:objective"}
SCRIPT: dict[str, Any] = {"objective": None, "script": "train.py"}
COMMAND: dict[str, Any] = {"objective": None, "command": ["./train"]}


@pytest.mark.parametrize("work", [Trial(0), Worker(0)], ids=str)
@pytest.mark.parametrize(
    ("code", "digest"),
    [(OBJECTIVE, "d448dfff96e69317"), (SCRIPT, "95ba8a28b764c12d"), (COMMAND, "2f6eb122e70a7109")],
)
def test_jobs_of_an_earlier_version_are_current(work: Work, code: dict[str, Any], digest: str) -> None:
    """An upgrade of the operator replaces no Job whose study keeps to the defaults, written out or not."""
    pruner = "NopPruner" if "command" in code else "MedianPruner"
    written_out = study(
        trial={**code, "pruneGrace": "30s"}, sampler={"name": "TPESampler"}, pruner={"name": pruner}
    )
    assert {program(one, work).digest for one in (study(trial=code), written_out)} == {digest}


CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "metrics.pattern": ({}, {"metrics": {"pattern": "acc (.+)"}}),
    "metrics.file": ({}, {"metrics": {"file": "log"}}),
    "sampler": ({"sampler": {"name": "RandomSampler"}}, {}),
    "sampler.args": ({"sampler": {"name": "TPESampler", "args": {"seed": 1}}}, {}),
    "pruner": ({"pruner": {"name": "HyperbandPruner"}}, {}),
    "pruner.args": ({"pruner": {"name": "MedianPruner", "args": {"n_warmup_steps": 5}}}, {}),
    "pruneGrace": ({}, {"pruneGrace": "5m"}),
}
"""By field: what it changes of the spec, and of the spec's trial."""
METRICS = {"metrics.pattern", "metrics.file"}
COMPONENTS = {"sampler", "sampler.args", "pruner", "pruner.args"}


@pytest.mark.parametrize(
    ("work", "code", "matter"),
    [
        (Trial(0), OBJECTIVE, set()),
        (Trial(0), SCRIPT, COMPONENTS),
        (Trial(0), COMMAND, {*METRICS, "pruneGrace"}),
        (Worker(0), OBJECTIVE, {"pruneGrace"}),
        (Worker(0), SCRIPT, {*COMPONENTS, "pruneGrace"}),
        (Worker(0), COMMAND, {*METRICS, "pruneGrace"}),
        (Refit(0, "d"), OBJECTIVE, set()),
        (Refit(0, "d"), SCRIPT, set()),
        (Refit(0, "d"), COMMAND, METRICS),
    ],
)
def test_the_digest_follows_the_settings_that_the_run_uses(
    work: Work, code: dict[str, Any], matter: set[str]
) -> None:
    """A corrected one reaches Jobs that wait and workers; another one replaces none of them."""

    def run_of(spec: dict[str, Any], trial: dict[str, Any]) -> tuple[str, str]:
        one = study(**spec, trial={**code, **trial}, refit={})
        job = manifests.job(one, work, RUNTIME)
        config = next(e["value"] for e in container(job)["env"] if e["name"] == "TUNING_CONFIG")
        return job["metadata"]["annotations"][names.ANNOTATION_PROGRAM], config

    allowed = {name: change for name, change in CHANGES.items() if "command" in code or name not in METRICS}
    digest, config = run_of({}, {})
    runs = {name: run_of(*change) for name, change in allowed.items()}
    assert {name for name, (other, _) in runs.items() if other != digest} == matter
    assert {name for name, (_, other) in runs.items() if other != config} == matter
    assert len({digest, *(other for other, _ in runs.values())}) == 1 + len(matter)


def test_the_pruner_of_a_script_with_several_objectives_replaces_no_job() -> None:
    """It can only be the NopPruner, and a pod ignores the script's own."""
    objectives = [{"metric": name, "direction": "maximize"} for name in ("a", "b")]
    two = [
        study(trial=SCRIPT, objectives=objectives, **pruner)
        for pruner in ({}, {"pruner": {"name": "NopPruner"}})
    ]
    assert {program(one, Trial(0)).digest for one in two} == {"95ba8a28b764c12d"}


def test_the_digest_depends_on_the_gpus() -> None:
    digests = {program(study(trial={"gpus": gpus}), Trial(0)).digest for gpus in (None, 0, 1)}
    assert len(digests) == 3


def test_the_digest_of_a_refit() -> None:
    """It depends on the trial and the refit's spec; a default that is written out changes nothing."""
    refits = [
        study(refit=fields).spec.refit for fields in ({}, {"retries": 2}, {"retries": 3}, {"script": "f.py"})
    ]
    digests = [Refit.of(refit, 7).digest for refit in refits if refit]
    assert digests[0] == digests[1]
    assert len({*digests, *(Refit.of(refit, 8).digest for refit in refits if refit)}) == 6
