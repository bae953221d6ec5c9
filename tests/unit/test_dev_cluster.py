"""The parts of dev/cluster that need no cluster."""

import base64
import contextlib
import json
import os
import ssl
import tarfile
import threading
from pathlib import Path

import psutil
import pytest
import yaml
from cryptography import x509

from dev.cluster import cache, credentials, host_settings, images, kind, processes, programs, run
from dev.cluster.bare import archive, docker_engine, node_image, runc_within_limits, stand_ins
from dev.cluster.console import RequirementError
from dev.demo import system


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "ROOT", tmp_path)
    return tmp_path


class TestCache:
    def test_entry_is_made_once(self, root):
        made = []

        def make(path):
            made.append(path)
            path.write_text("x")

        first = cache.cached("bin/tool-v1", make)
        second = cache.cached("bin/tool-v1", make)
        assert first == second == root / "bin" / "tool-v1"
        assert len(made) == 1

    def test_failed_entry_is_not_kept(self, root):
        def breaks(path):
            path.write_text("half")
            raise OSError("disk full")

        with pytest.raises(OSError, match="disk full"):
            cache.cached("bin/tool-v1", breaks)
        assert list((root / "bin").iterdir()) == []
        assert cache.cached("bin/tool-v1", lambda path: path.write_text("whole")).read_text() == "whole"

    def test_scratch_folder_of_a_killed_process_is_removed_and_of_a_running_one_kept(self, root):
        left = root / "bin" / ".making-dead"
        left.mkdir(parents=True)
        (left / "tool").write_text("half")
        inside, go_on = threading.Event(), threading.Event()

        def slow(path):
            inside.set()
            assert go_on.wait(60)
            path.write_text("slow")

        other = threading.Thread(target=cache.cached, args=("bin/slow", slow))
        other.start()
        assert inside.wait(60)
        cache.cached("bin/quick", lambda path: path.write_text("quick"))
        assert not left.exists()
        go_on.set()
        other.join()
        assert (root / "bin" / "slow").read_text() == "slow"

    def test_only_missing_entries_are_made(self, root):
        asked = []

        def make(folder, missing):
            asked.append(missing)
            for name in missing:
                (folder / name).write_text(name)

        cache.cached_together("bin", ["a", "b"], make)
        cache.cached_together("bin", ["a", "c"], make)
        assert asked == [["a", "b"], ["c"]]

    def test_digest_depends_on_contents_and_on_the_boundaries_between_parts(self, tmp_path):
        file = tmp_path / "go.mod"
        file.write_text("one")
        before = cache.digest("v1", file)
        file.write_text("two")
        assert cache.digest("v1", file) != before
        assert cache.digest("ab", "c") != cache.digest("a", "bc")


class TestProcesses:
    def test_processes_are_found_by_folder_and_stopped(self, tmp_path):
        (tmp_path / "file").touch()
        started = processes.start(tmp_path, "tail", "tail", "-f", f"{tmp_path}/file")
        assert processes.alive(started)
        other = tmp_path / "other"
        run.wait("its command line", lambda: bool(processes.running(tmp_path, "tail")), 60)
        assert processes.running(tmp_path, "tail") == [started]
        assert processes.running(other, "tail") == []
        assert processes.running(tmp_path, "etcd") == []
        processes.stop(tmp_path, "tail")
        assert processes.running(tmp_path, "tail") == []
        assert not processes.alive(started)

    def test_log_contains_the_output(self, tmp_path):
        processes.start(tmp_path, "ls", "ls", f"{tmp_path}/missing")
        run.wait("the end", lambda: "missing" in processes.log_tail(tmp_path, "ls"), 60)

    def test_missing_program_is_an_error(self, tmp_path):
        with pytest.raises(run.CommandError, match="nonesuch not found"):
            processes.start(tmp_path, "nonesuch", "nonesuch")


class TestRun:
    def test_error_contains_the_last_lines_of_output(self):
        with pytest.raises(run.CommandError, match="it broke"):
            run.run("sh", "-c", "echo it broke >&2; exit 3")

    def test_pipe_reports_failures_of_both_programs(self, tmp_path):
        target = tmp_path / "out"
        run.pipe(["echo", "content"], ["tee", str(target)])
        assert target.read_text() == "content\n"
        with pytest.raises(run.CommandError, match="first broke"):
            run.pipe(["sh", "-c", "echo first broke >&2; exit 1"], ["cat"])
        with pytest.raises(run.CommandError, match="second broke"):
            run.pipe(["echo"], ["sh", "-c", "cat; echo second broke >&2; exit 1"])

    def test_wait_times_out(self):
        with pytest.raises(run.CommandError, match="timed out after 0 s waiting for the moon"):
            run.wait("the moon", lambda: False, 0)


class TestCredentials:
    def test_kubeconfig_is_self_contained(self, tmp_path):
        authority = credentials.Authority(tmp_path)
        authority.issue("admin", "someone", group="system:masters")
        text = credentials.kubeconfig("https://127.0.0.1:7", "here", tmp_path, "admin")
        config = yaml.safe_load(text)
        assert config["current-context"] == "here"
        assert str(tmp_path) not in text
        held = base64.b64decode(config["users"][0]["user"]["client-certificate-data"])
        assert held == (tmp_path / "admin.crt").read_bytes()
        (tmp_path / "kubeconfig").write_text(text)
        assert credentials.server_of(tmp_path / "kubeconfig") == "https://127.0.0.1:7"

    def test_certificates_are_signed_by_the_authority_for_the_names(self, tmp_path):
        authority = credentials.Authority(tmp_path)
        authority.issue("server", "kube-apiserver", addresses=("127.0.0.1",))
        authority.issue("admin", "someone", group="system:masters")
        ca = x509.load_pem_x509_certificate((tmp_path / "ca.crt").read_bytes())
        server = x509.load_pem_x509_certificate((tmp_path / "server.crt").read_bytes())
        admin = x509.load_pem_x509_certificate((tmp_path / "admin.crt").read_bytes())
        server.verify_directly_issued_by(ca)
        admin.verify_directly_issued_by(ca)
        names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert "kubernetes.default.svc" in names.get_values_for_type(x509.DNSName)
        assert admin.subject.rfc4514_string() == "CN=someone,O=system:masters"
        ssl.create_default_context(cafile=str(tmp_path / "ca.crt"))

    def test_keys_are_readable_only_by_their_owner(self, tmp_path):
        credentials.Authority(tmp_path)
        assert (tmp_path / "ca.key").stat().st_mode & 0o077 == 0


class TestArchive:
    @pytest.fixture
    def program(self, tmp_path):
        path = tmp_path / "program"
        path.write_bytes(b"binary")
        return path

    def test_layer_matches_the_config(self, tmp_path, program):
        archive.image_of(tmp_path / "image.tar", "registry/name:1", program, "/bin/program", ("/bin/sh",))
        with tarfile.open(tmp_path / "image.tar") as image:
            (manifest,) = json.load(image.extractfile("manifest.json"))
            config = json.load(image.extractfile(manifest["Config"]))
            (layer_name,) = manifest["Layers"]
            layer = image.extractfile(layer_name).read()
            image.extract(layer_name, tmp_path, filter="data")
        assert manifest["RepoTags"] == ["registry/name:1"]
        assert config["config"]["Entrypoint"] == ["/bin/program"]
        assert config["rootfs"]["diff_ids"] == [f"sha256:{archive.hashlib.sha256(layer).hexdigest()}"]
        with tarfile.open(tmp_path / layer_name) as content:
            assert content.extractfile("bin/program").read() == b"binary"
            assert content.getmember("bin/program").mode == 0o755
            assert content.getmember("bin/sh").linkname == "/bin/program"

    def test_program_is_a_layer_on_the_base(self, tmp_path, program):
        base = tmp_path / "base.tar"
        with tarfile.open(base, "w") as tree:
            tree.add(program, "etc/base")
        archive.image_of(tmp_path / "image.tar", "name:1", program, "/bin/program", base=base)
        with tarfile.open(tmp_path / "image.tar") as image:
            (manifest,) = json.load(image.extractfile("manifest.json"))
            assert image.extractfile(manifest["Layers"][0]).read() == base.read_bytes()
            assert len(manifest["Layers"]) == 2


class TestRuntimeWithinLimits:
    def test_missing_capability_is_removed(self):
        process = {"capabilities": {"bounding": ["CAP_SYS_RESOURCE", "CAP_KILL"], "effective": []}}
        runc_within_limits.within_limits(process)
        assert process["capabilities"]["bounding"] == ["CAP_KILL"]

    def test_limits_are_capped_at_the_machines(self, monkeypatch):
        monkeypatch.setattr(runc_within_limits.resource, "getrlimit", lambda _: (10, 100))
        process = {"rlimits": [{"type": "RLIMIT_NOFILE", "hard": 5000, "soft": 50}]}
        runc_within_limits.within_limits(process)
        assert process["rlimits"][0] == {"type": "RLIMIT_NOFILE", "hard": 100, "soft": 50}

    @pytest.mark.parametrize("words", [["create", "--bundle", "/b", "id"], ["create", "--bundle=/b", "id"]])
    def test_option_is_found(self, words):
        assert runc_within_limits.option(words, "--bundle", "-b") == "/b"

    def test_bundle_is_rewritten_and_runc_executed(self, tmp_path, monkeypatch):
        config = tmp_path / "config.json"
        config.write_text(json.dumps({"process": {"capabilities": {"bounding": ["CAP_SYS_RESOURCE"]}}}))
        became = []
        monkeypatch.setattr(runc_within_limits.shutil, "which", lambda *_, **__: "/usr/sbin/runc")
        monkeypatch.setattr(runc_within_limits.os, "execv", lambda path, words: became.append((path, words)))
        runc_within_limits.main(["create", "--bundle", str(tmp_path), "id"])
        assert json.loads(config.read_text())["process"]["capabilities"]["bounding"] == []
        assert became == [("/usr/sbin/runc", ["runc", "create", "--bundle", str(tmp_path), "id"])]


def test_only_dockers_firewall_rules_are_removed():
    saved = (
        "*filter\n:FORWARD DROP [0:0]\n:DOCKER-USER - [0:0]\n-A FORWARD -j DOCKER-USER\n"
        "-A FORWARD -i br-0123456789ab -o docker0 -j ACCEPT\n-A FORWARD -i br-lan -j ACCEPT\nCOMMIT\n"
    )
    assert docker_engine.without_dockers_rules(saved) == (
        "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -i br-lan -j ACCEPT\nCOMMIT\n"
    )


class TestNoEngineAnswers:
    @pytest.fixture(autouse=True)
    def machine(self, monkeypatch, tmp_path):
        monkeypatch.setattr(docker_engine, "STATE", tmp_path)
        monkeypatch.setattr(docker_engine.engine, "answers", lambda: False)
        monkeypatch.setattr(docker_engine.engine, "error_message", lambda: "permission denied on the socket")
        monkeypatch.setattr(docker_engine.os, "geteuid", lambda: 0)
        monkeypatch.setattr(docker_engine.sys, "platform", "linux")
        monkeypatch.setattr(docker_engine, "found", lambda _: None)
        monkeypatch.setattr(docker_engine, "_others", list)
        monkeypatch.delenv("DOCKER_HOST", raising=False)

    def test_message_for_other_users_than_root_has_the_clients_error_and_the_fix(self, monkeypatch):
        monkeypatch.setattr(docker_engine.os, "geteuid", lambda: 1000)
        with pytest.raises(RequirementError, match=r"permission denied on the socket.*usermod -aG docker"):
            docker_engine.up()

    def test_message_names_a_remote_engine(self, monkeypatch):
        monkeypatch.setenv("DOCKER_HOST", "tcp://far:2375")
        with pytest.raises(RequirementError, match="DOCKER_HOST=tcp://far:2375 does not respond"):
            docker_engine.up()

    def test_unresponsive_engine_is_left_alone(self, monkeypatch):
        monkeypatch.setattr(docker_engine, "_others", lambda: [psutil.Process()])
        with pytest.raises(RequirementError, match=r"process \d+\) but does not respond"):
            docker_engine.up()

    def test_cache_on_an_unsuitable_file_system_is_an_error(self, monkeypatch):
        monkeypatch.setattr(docker_engine, "run", lambda *_: "overlayfs\n")
        with pytest.raises(RequirementError, match="Set XDG_CACHE_HOME"):
            docker_engine.up()


@pytest.mark.parametrize(
    ("output", "enough"),
    [
        ("go version go1.26.8 linux/amd64", True),
        ("go version go1.27 linux/arm64", True),
        ("go version go2.0 linux/amd64", True),
        ("go version go1.19.8 linux/amd64", False),
        ("something else", False),
    ],
)
def test_go_version_check(output, enough):
    assert programs.is_new_enough(output) is enough


class TestBuild:
    def test_base_image_is_read_from_the_dockerfile(self):
        assert (
            images.base_image("# text\nARG BASE_IMAGE=python:3.13-slim\nFROM ${BASE_IMAGE}\n")
            == "python:3.13-slim"
        )

    def test_dockerfile_without_a_base_argument_is_an_error(self):
        with pytest.raises(run.CommandError, match="ARG BASE_IMAGE"):
            images.base_image("FROM python:3.13-slim\n")

    def test_an_engine_is_started_before_an_image_is_looked_for(self, monkeypatch):
        calls = []
        monkeypatch.setattr(images.docker_engine, "up", lambda: calls.append("up"))
        monkeypatch.setattr(images.engine, "image_id", lambda name: calls.append(name) or "sha256:1")
        monkeypatch.setattr(images.stand_ins, "is_outdated", lambda _: False)
        images.ensure("postgres:17")
        assert calls == ["up", "postgres:17"]

    def test_without_settings_the_base_image_is_used_as_is(self, monkeypatch):
        for name in (*host_settings.CERTIFICATE_VARIABLES, *host_settings.INDEX_VARIABLES):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(host_settings, "PIP_SETTINGS", ())
        assert host_settings.base_with_settings("python:3.13-slim") == "python:3.13-slim"

    def test_settings_are_put_where_pip_and_uv_look(self):
        text = host_settings.dockerfile(
            "base:1", ["ca.crt", "pip.conf"], {"UV_DEFAULT_INDEX": "https://index"}
        )
        assert text.splitlines() == [
            "FROM base:1",
            "COPY ca.crt /etc/ssl/certs/ca-certificates.crt",
            "COPY pip.conf /etc/pip.conf",
            f"ENV SSL_CERT_FILE={host_settings.BUNDLE} PIP_CERT={host_settings.BUNDLE}",
            "ENV UV_DEFAULT_INDEX=https://index",
        ]


class TestRecipes:
    @pytest.mark.parametrize("name", stand_ins.PACKAGES | stand_ins.PROGRAMS | stand_ins.BASES)
    def test_stand_in_has_a_recipe(self, name):
        assert (stand_ins.recipe(name) / "Dockerfile").read_text().startswith("# Stands in for")

    def test_other_packages_change_the_key_of_a_stand_in(self, monkeypatch):
        before = stand_ins.recipe_key(images.PYTHON)
        monkeypatch.setitem(stand_ins.PACKAGES, images.PYTHON, ["python3"])
        assert stand_ins.recipe_key(images.PYTHON) != before

    @pytest.mark.parametrize(("image", "program"), stand_ins.PROGRAMS.items())
    def test_stand_in_has_the_version_of_its_program(self, image, program):
        assert image.rpartition(":")[2].removeprefix("v") == programs.MODULES[program][1].removeprefix("v")

    def test_stand_in_of_the_dashboard_has_the_version_that_the_chart_names(self):
        chart = yaml.safe_load((system.CHART / "values.yaml").read_text())["dashboard"]["image"]
        assert f"{chart['repository']}:{chart['tag']}" == images.DASHBOARD
        requirements = (stand_ins.recipe(images.DASHBOARD) / "requirements.txt").read_text().splitlines()
        assert f"optuna-dashboard=={images.DASHBOARD.rpartition(':v')[2]}" in requirements

    def test_a_stand_in_is_built_on_the_base_image_of_this_machine(self, monkeypatch):
        ensured, built = [], []
        monkeypatch.setattr(images.docker_engine, "up", lambda: None)
        monkeypatch.setattr(images.engine, "image_id", lambda _: None)
        monkeypatch.setattr(images.engine, "pull", lambda name, **_: ensured.append(name))
        monkeypatch.setattr(stand_ins, "root_tar", lambda *_: Path(os.devnull))
        monkeypatch.setattr(stand_ins, "build_context", lambda *_: contextlib.nullcontext("context"))
        monkeypatch.setattr(stand_ins, "base_with_settings", lambda base: f"{base} with settings")
        monkeypatch.setattr(images.engine, "build", lambda *options: built.append(options))
        images.ensure(images.DASHBOARD)
        assert ensured == [images.DASHBOARD, images.PYTHON]
        assert [options[-2] for options in built] == [images.PYTHON, images.DASHBOARD]
        assert f"--build-arg=BASE_IMAGE={images.PYTHON} with settings" in built[-1]

    def test_other_versions_change_the_key_of_the_node_image(self, monkeypatch, tmp_path):
        before = node_image.key()
        (tmp_path / "go.mod").write_text("module cluster/kubernetes\n")
        monkeypatch.setattr(programs, "KUBERNETES_MODULE", tmp_path)
        assert node_image.key() != before

    def test_programs_of_the_module_are_its_tools(self):
        """`go mod tidy` removes from go.mod what no tool and no package of the module needs."""
        text = (programs.KUBERNETES_MODULE / "go.mod").read_text()
        tools = {line.strip() for line in text.partition("tool (")[2].partition(")")[0].splitlines()}
        assert set(programs.PACKAGES.values()) - {"./coredns"} == tools - {""}

    def test_manifests_of_the_node_use_images_in_the_node(self):
        folder = node_image.RECIPE / "files" / "kind" / "manifests"
        storage = (folder / "default-storage.yaml").read_text()
        for document in yaml.safe_load_all(storage):
            if document["kind"] == "Deployment":
                image = document["spec"]["template"]["spec"]["containers"][0]["image"]
                assert image == "docker.io/tuning.dev/local-path-provisioner:1"
        assert (folder / "default-cni.yaml").exists()

    def test_network_of_several_nodes_uses_an_image_in_the_node(self):
        manifest = node_image.NETWORK / "files" / "kind" / "manifests" / "default-cni.yaml"
        [daemon] = [d for d in yaml.safe_load_all(manifest.read_text()) if d["kind"] == "DaemonSet"]
        [container] = daemon["spec"]["template"]["spec"]["containers"]
        assert container["image"] == "docker.io/tuning.dev/kube-router:1"

    def test_nodes_are_named_as_kind_names_them(self):
        assert kind.DEVELOPMENT.nodes == ("tuning-control-plane",)
        assert kind.THREE_NODES.nodes == (
            "tuning-nodes-control-plane",
            "tuning-nodes-worker",
            "tuning-nodes-worker2",
        )
