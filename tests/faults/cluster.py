"""The faults of a cluster. Each is injected into a study, which must end as if nothing had happened."""

from __future__ import annotations

import shlex
import time
from pathlib import Path

from dev.cluster.kind import DEVELOPMENT
from dev.cluster.run import run
from dev.demo import system
from tests.e2e.kit import SYSTEM
from tests.faults.fault import Faults
from tests.faults.running import (
    NODE,
    OPERATOR,
    POSTGRES,
    RELEASE,
    SERVER,
    RunningStudy,
    in_node,
    pause,
    stopped,
)

PRODUCTION = Path(__file__).parents[2] / "docs" / "production.md"

FAULTS = Faults()
fault = FAULTS.add


# --- the product's own processes


@fault(
    "The operator, then the study server, is killed",
    "Trials run on. Values are reported once the server is back; no trial starts twice.",
    quick=True,
)
def both_once(study: RunningStudy) -> None:
    study.kill(OPERATOR)
    study.wait_finished(8)
    study.kill(SERVER)


@fault("The operator is killed ten times, every 4 s", "Trials run on; the next operator continues.")
def operator_again_and_again(study: RunningStudy) -> None:
    study.keep_killing(OPERATOR, times=10, every=4)


@fault("The study server is killed six times, every 8 s", "Every reported value is in the record once.")
def server_again_and_again(study: RunningStudy) -> None:
    study.keep_killing(SERVER, times=6, every=8)


@fault(
    "Operator, study server and Postgres are killed at once, three times, every 15 s",
    "Same as when one of them is killed.",
)
def everything(study: RunningStudy) -> None:
    study.keep_killing(OPERATOR, SERVER, POSTGRES, times=3, every=15)


@fault("Two operators at once", "Each trial has one Job at a time.")
def two_operators(study: RunningStudy) -> None:
    study.scale(f"deployment/{RELEASE}", 2)
    try:
        study.wait_finished(16)
    finally:
        study.scale(f"deployment/{RELEASE}", 1)


@fault("The chart is upgraded and all pods of the release restart", "Running trials continue.")
def upgrade(study: RunningStudy) -> None:
    workloads = (f"deployment/{RELEASE}", f"statefulset/{RELEASE}-study-server")
    study.system.run("rollout", "restart", *workloads)
    for workload in workloads:
        study.ready(workload)


# --- the chart


@fault("The certificates are renewed, with a new CA", "Running trials trust the new CA after a few minutes.")
def certificates_renewed(study: RunningStudy) -> None:
    system.install(f"renewCertificates=at-{time.time_ns()}")
    study.kill(SERVER)  # otherwise it would read its certificate only after a minute


@fault("The chart is upgraded with other settings, and rolled back", "Running trials continue.")
def rolled_back(study: RunningStudy) -> None:
    system.install("logLevel=DEBUG")  # restarts the operator and the study server
    system.roll_back()


@fault("The chart is uninstalled, and installed again", "Running trials continue.")
def installed_again(study: RunningStudy) -> None:
    system.uninstall()
    system.install()


@fault(
    "Postgres is restored from a backup, as documented",
    "Trials that ran when the backup was made, and those after it, run again.",
)
def backup_restored(study: RunningStudy) -> None:
    metadata = {"name": "tuning-backups", "namespace": SYSTEM}
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    study.system.apply(
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}
    )
    try:
        system.install("postgres.backup.enabled=true", "postgres.backup.existingClaim=tuning-backups")
        study.system.run("create", "job", f"--from=cronjob/{RELEASE}-backup", "backup")
        study.system.run("wait", "--for=condition=complete", "job/backup", "--timeout=180s", timeout=190)
        study.wait_finished(8)
        for command in commands(PRODUCTION, "### Restore"):
            run(study.kubectl.kubectl, f"--kubeconfig={study.kubectl.kubeconfig}", *command)
    finally:
        study.system.run("delete", "jobs", "backup", "restore", "--ignore-not-found")
        study.system.run("delete", "pvc", "tuning-backups", "--wait=false")


def commands(page: Path, heading: str) -> list[list[str]]:
    """Return the arguments of the calls of kubectl in the first block of commands below a heading."""
    block = page.read_text().partition(heading)[2].partition("```sh\n")[2].partition("```")[0]
    return [shlex.split(line, comments=True)[1:] for line in block.replace("\\\n", " ").splitlines()]


# --- the database


@fault("Postgres is killed", "The study server waits and continues; nothing that was acknowledged is lost.")
def postgres_killed(study: RunningStudy) -> None:
    study.kill(POSTGRES)


@fault(
    "Postgres is unavailable for 60 s",
    "Trials run on and report afterwards; the study's condition says so.",
)
def postgres_away(study: RunningStudy) -> None:
    study.scale(f"statefulset/{RELEASE}-postgres", 0)
    pause(60)
    study.scale(f"statefulset/{RELEASE}-postgres", 1)
    study.ready(f"statefulset/{RELEASE}-postgres")


@fault("Postgres hangs for 60 s", "No trial is lost between the record and the memory of the server.")
def postgres_hangs(study: RunningStudy) -> None:
    with stopped("postgres"):
        pause(60)


@fault("Postgres is read-only for 20 s", "The study server tries again until it can write.")
def postgres_read_only(study: RunningStudy) -> None:
    study.sql("ALTER SYSTEM SET default_transaction_read_only = on; SELECT pg_reload_conf();")
    pause(20)
    reset = "SET default_transaction_read_only = off; ALTER SYSTEM RESET default_transaction_read_only;"
    study.sql(f"{reset} SELECT pg_reload_conf();")


@fault("All connections of Postgres are taken for 20 s", "The study server tries again until it gets one.")
def postgres_connections(study: RunningStudy) -> None:
    taken = "for i in $(seq 120); do psql -U tuning -qtc 'SELECT pg_sleep(20)' tuning & done"
    others = "pid <> pg_backend_pid() AND query !~ 'pg_sleep'"
    end = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}"
    study.in_database_pod(f'{taken}; psql -U tuning -qtc "{end}" tuning; wait')


# --- Kubernetes


@fault("The API server is killed twice", "Trials run on; the operator reconnects.")
def api_server_killed(study: RunningStudy) -> None:
    for _ in range(2):
        in_node("pkill", "-KILL", "-x", "kube-apiserver")
        pause(15)


@fault("The API server hangs for 20 s", "Calls time out and are repeated.")
def api_server_hangs(study: RunningStudy) -> None:
    with stopped("kube-apiserver"):
        pause(20)


@fault("The node's kubelet restarts", "Trials run on.")
def kubelet_restarts(study: RunningStudy) -> None:
    in_node("systemctl", "restart", "kubelet")


@fault("The node is drained, and usable again after 5 s", "Each trial that was evicted gets another pod.")
def drained(study: RunningStudy) -> None:
    options = ("--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=120s")
    try:
        study.kubectl.run("drain", NODE, *options, timeout=130)
        pause(5)
    finally:
        study.kubectl.run("uncordon", NODE)


@fault("The node is rebooted", "Each trial that ran gets another pod.")
def rebooted(study: RunningStudy) -> None:
    run("docker", "restart", "--time=0", NODE)
    DEVELOPMENT.up()
    for image in ("postgres", SERVER):
        study.ready(f"statefulset/{RELEASE}-{image}")
    study.ready(f"deployment/{RELEASE}")


# --- pods and Jobs


@fault(
    "Three trials' pods are deleted",
    "Each trial gets another pod, with its number and parameters.",
    quick=True,
    disruptive=False,
)
def pods_deleted(study: RunningStudy) -> None:
    study.kubectl.run("delete", "pod", "--wait=false", *study.pods(3))


@fault("Three trials' pods are evicted", "As if they were deleted.")
def pods_evicted(study: RunningStudy) -> None:
    for pod in study.pods(3):
        study.evict(pod)


@fault(
    "All trials are preempted for 10 s", "They wait for the GPUs, and start again with the same parameters."
)
def preempted(study: RunningStudy) -> None:
    with study.all_gpus_taken():
        pause(10)


@fault("Three Jobs of running trials are deleted", "Each trial gets another Job, one at a time.")
def jobs_deleted(study: RunningStudy) -> None:
    study.kubectl.run("delete", "job", "--wait=false", *study.running_jobs()[:3])


@fault("A Job is suspended for 15 s", "The study says so; the trial continues afterwards.")
def job_suspended(study: RunningStudy) -> None:
    job = study.running_jobs()[0]
    study.patch_job(job, suspend=True)
    pause(15)
    study.patch_job(job, suspend=False)


@fault("A trial's pod has no network for 60 s", "Its values are reported afterwards.")
def pod_without_network(study: RunningStudy) -> None:
    [pod] = study.pods(1)
    address = study.kubectl.json("get", "pod", pod)["status"]["podIP"]
    rule = ("FORWARD", "-s", address, "-j", "DROP")
    in_node("iptables", "-I", *rule)
    pause(60)
    in_node("iptables", "-D", *rule)


# --- what refuses


@fault("A quota allows no more Jobs for 20 s", "The study says so, and continues when there is room.")
def quota(study: RunningStudy) -> None:
    spec = {"hard": {"count/jobs.batch": "1"}}
    kubectl = study.kubectl
    kubectl.apply({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "few"}, "spec": spec})
    pause(20)
    kubectl.run("delete", "resourcequota", "few")


@fault("An admission policy denies Jobs for 20 s", "The study says so, and continues when they are allowed.")
def admission(study: RunningStudy) -> None:
    namespace = study.kubectl.namespace
    group, name = "admissionregistration.k8s.io/v1", f"no-jobs-{namespace}"
    rule = {"apiGroups": ["batch"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["jobs"]}
    policy = {
        "matchConstraints": {"resourceRules": [rule]},
        "validations": [{"expression": "false", "message": "no Jobs today"}],
    }
    labels = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    matching = {"namespaceSelector": labels}
    binding = {"policyName": name, "validationActions": ["Deny"], "matchResources": matching}
    kinds = {"ValidatingAdmissionPolicy": policy, "ValidatingAdmissionPolicyBinding": binding}
    for kind_, spec in kinds.items():
        study.kubectl.apply({"apiVersion": group, "kind": kind_, "metadata": {"name": name}, "spec": spec})
    pause(20)
    for kind_ in kinds:
        study.kubectl.run("delete", kind_, name)


# --- users


@fault("The study is suspended and resumed, with another parallelism", "Running trials finish first.")
def suspended(study: RunningStudy) -> None:
    study.kubectl.patch(study.name, suspend=True)
    study.wait(lambda s: s["status"]["trials"]["running"] == 0 and s["status"]["trials"]["pending"] == 0)
    study.kubectl.patch(study.name, suspend=False, parallelism=3)


@fault(
    "The study is deleted while trials run, and created again",
    "It continues its record. The trials that were stopped are PRUNED, and don't count as failures.",
    stops_trials=True,
)
def created_again(study: RunningStudy) -> None:
    manifest = study.kubectl.study(study.name)
    again = {key: manifest[key] for key in ("apiVersion", "kind", "spec")}
    study.kubectl.run("delete", "tuningstudy", study.name, "--wait=false")
    study.kubectl.run("wait", "--for=delete", f"tuningstudy/{study.name}", "--timeout=60s")
    study.kubectl.apply({**again, "metadata": {"name": study.name}})


@fault("The trainer's ConfigMap is deleted", "It is created again before the next trial needs it.")
def runtime_deleted(study: RunningStudy) -> None:
    study.kubectl.run("delete", "configmap", "-l", f"tuning.dev/study={study.name}")


@fault("The certificate authority of the study server is replaced", "Running trials report to the new one.")
def certificate_replaced(study: RunningStudy) -> None:
    study.system.run("delete", "secret", f"{RELEASE}-study-server-tls")
    system.install()


# --- pods that take one trial after another

WORKERS = {"reusePods": True}
PACKED = {"reusePods": True, "trialsPerPod": 2}


@fault(
    "Operator, study server and Postgres are killed, with reused pods",
    "Same as with a pod for each trial.",
    trial=WORKERS,
)
def workers_without_servers(study: RunningStudy) -> None:
    study.kill(OPERATOR)
    study.wait_finished(8)
    study.kill(SERVER, POSTGRES)


@fault(
    "The certificate authority of the study server is replaced, with reused pods",
    "Same as with a pod for each trial.",
    trial=WORKERS,
)  # fmt: skip
def workers_certificate_replaced(study: RunningStudy) -> None:
    certificate_replaced(study)


@fault("Two reused pods are deleted", "The next pods run the same trials.", trial=WORKERS)
def workers_deleted(study: RunningStudy) -> None:
    study.kubectl.run("delete", "pod", "--wait=false", *study.pods(2))


@fault("Two pods with two trials each are killed", "The next pods run the same trials.", trial=PACKED)
def packed_killed(study: RunningStudy) -> None:
    study.kubectl.run("delete", "pod", "--grace-period=0", "--force", "--wait=false", *study.pods(2))


@fault("Reused pods are preempted for 10 s", "They start again, and with them their trials.", trial=WORKERS)
def workers_preempted(study: RunningStudy) -> None:
    preempted(study)


@fault("The Jobs of two reused pods are deleted", "Each gets another Job, one at a time.", trial=WORKERS)
def worker_jobs_deleted(study: RunningStudy) -> None:
    study.kubectl.run("delete", "job", "--wait=false", *study.running_jobs()[:2])


@fault(
    "A study with reused pods is suspended, and resumed", "Idle pods end; running trials finish.",
    trial=WORKERS,
)  # fmt: skip
def workers_suspended(study: RunningStudy) -> None:
    suspended(study)


@fault(
    "A study with reused pods is deleted while trials run, and created again",
    "Same as with a pod for each trial.",
    stops_trials=True, trial=PACKED,
)  # fmt: skip
def workers_created_again(study: RunningStudy) -> None:
    created_again(study)
