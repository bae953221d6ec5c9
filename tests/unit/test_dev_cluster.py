"""What of dev/cluster needs no cluster: the cache, processes, what is rendered, what is decided."""

import base64
import json
import ssl
import tarfile
import threading

import psutil
import pytest
import yaml
from cryptography import x509

from dev.cluster import (
    archive,
    bare_engine,
    baseimages,
    build,
    cache,
    credentials,
    host_settings,
    nodeimage,
    processes,
    programs,
    run,
    runc_within_limits,
)
from dev.cluster.console import LackingError


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "ROOT", tmp_path)
    return tmp_path


class TestCache:
    def test_makes_once(self, root):
        made = []

        def make(path):
            made.append(path)
            path.write_text("x")

        first = cache.cached("bin/tool-v1", make)
        second = cache.cached("bin/tool-v1", make)
        assert first == second == root / "bin" / "tool-v1"
        assert len(made) == 1

    def test_what_failed_half_way_does_not_count(self, root):
        def breaks(path):
            path.write_text("half")
            raise OSError("disk full")

        with pytest.raises(OSError, match="disk full"):
            cache.cached("bin/tool-v1", breaks)
        assert list((root / "bin").iterdir()) == []
        assert cache.cached("bin/tool-v1", lambda path: path.write_text("whole")).read_text() == "whole"

    def test_what_a_killed_maker_left_is_removed_but_not_a_living_ones(self, root):
        left = root / "bin" / ".making-dead"
        left.mkdir(parents=True)
        (left / "tool").write_text("half")
        inside, go_on = threading.Event(), threading.Event()

        def slow(path):
            inside.set()
            assert go_on.wait(10)
            path.write_text("slow")

        other = threading.Thread(target=cache.cached, args=("bin/slow", slow))
        other.start()
        assert inside.wait(10)
        cache.cached("bin/quick", lambda path: path.write_text("quick"))
        assert not left.exists()
        go_on.set()
        other.join()
        assert (root / "bin" / "slow").read_text() == "slow"

    def test_together_makes_only_what_is_missing(self, root):
        asked = []

        def make(folder, missing):
            asked.append(missing)
            for name in missing:
                (folder / name).write_text(name)

        cache.cached_together("bin", ["a", "b"], make)
        cache.cached_together("bin", ["a", "c"], make)
        assert asked == [["a", "b"], ["c"]]

    def test_key_changes_with_content_and_with_where_a_part_ends(self, tmp_path):
        file = tmp_path / "go.mod"
        file.write_text("one")
        before = cache.digest("v1", file)
        file.write_text("two")
        assert cache.digest("v1", file) != before
        assert cache.digest("ab", "c") != cache.digest("a", "bc")


class TestProcesses:
    def test_are_found_by_folder_and_stopped(self, tmp_path):
        (tmp_path / "file").touch()
        started = processes.start(tmp_path, "tail", "tail", "-f", f"{tmp_path}/file")
        assert processes.alive(started)
        other = tmp_path / "other"
        run.wait("its command line", lambda: bool(processes.running(tmp_path, "tail")), 10)
        assert processes.running(tmp_path, "tail") == [started]
        assert processes.running(other, "tail") == []
        assert processes.running(tmp_path, "etcd") == []
        processes.stop(tmp_path, "tail")
        assert processes.running(tmp_path, "tail") == []
        assert not processes.alive(started)

    def test_log_holds_what_was_said(self, tmp_path):
        processes.start(tmp_path, "ls", "ls", f"{tmp_path}/missing")
        run.wait("the end", lambda: "missing" in processes.log_tail(tmp_path, "ls"), 10)

    def test_missing_program_is_told(self, tmp_path):
        with pytest.raises(run.CommandError, match="no program nonesuch"):
            processes.start(tmp_path, "nonesuch", "nonesuch")


class TestRun:
    def test_failure_holds_the_last_words(self):
        with pytest.raises(run.CommandError, match="it broke"):
            run.run("sh", "-c", "echo it broke >&2; exit 3")

    def test_pipe_hands_on_and_tells_failures_of_both_ends(self, tmp_path):
        target = tmp_path / "out"
        run.pipe(["echo", "content"], ["tee", str(target)])
        assert target.read_text() == "content\n"
        with pytest.raises(run.CommandError, match="giver broke"):
            run.pipe(["sh", "-c", "echo giver broke >&2; exit 1"], ["cat"])
        with pytest.raises(run.CommandError, match="taker broke"):
            run.pipe(["echo"], ["sh", "-c", "cat; echo taker broke >&2; exit 1"])

    def test_wait_has_an_end(self):
        with pytest.raises(run.CommandError, match="the moon: not within"):
            run.wait("the moon", lambda: False, 0)


class TestCredentials:
    def test_kubeconfig_holds_all_it_needs_and_names_the_server(self, tmp_path):
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

    def test_certificates_are_of_the_authority_and_for_the_names(self, tmp_path):
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

    def test_keys_are_for_their_owner_only(self, tmp_path):
        credentials.Authority(tmp_path)
        assert (tmp_path / "ca.key").stat().st_mode & 0o077 == 0


class TestArchive:
    @pytest.fixture
    def program(self, tmp_path):
        path = tmp_path / "program"
        path.write_bytes(b"binary")
        return path

    def test_is_an_image_whose_layer_is_what_the_config_says(self, tmp_path, program):
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

    def test_program_lies_on_top_of_its_base(self, tmp_path, program):
        base = tmp_path / "base.tar"
        with tarfile.open(base, "w") as tree:
            tree.add(program, "etc/base")
        archive.image_of(tmp_path / "image.tar", "name:1", program, "/bin/program", base=base)
        with tarfile.open(tmp_path / "image.tar") as image:
            (manifest,) = json.load(image.extractfile("manifest.json"))
            assert image.extractfile(manifest["Layers"][0]).read() == base.read_bytes()
            assert len(manifest["Layers"]) == 2


class TestRuntimeWithinLimits:
    def test_the_missing_capability_is_not_asked_for(self):
        process = {"capabilities": {"bounding": ["CAP_SYS_RESOURCE", "CAP_KILL"], "effective": []}}
        runc_within_limits.within_limits(process)
        assert process["capabilities"]["bounding"] == ["CAP_KILL"]

    def test_limits_stay_below_the_machines(self, monkeypatch):
        monkeypatch.setattr(runc_within_limits.resource, "getrlimit", lambda _: (10, 100))
        process = {"rlimits": [{"type": "RLIMIT_NOFILE", "hard": 5000, "soft": 50}]}
        runc_within_limits.within_limits(process)
        assert process["rlimits"][0] == {"type": "RLIMIT_NOFILE", "hard": 100, "soft": 50}

    @pytest.mark.parametrize("words", [["create", "--bundle", "/b", "id"], ["create", "--bundle=/b", "id"]])
    def test_finds_the_bundle(self, words):
        assert runc_within_limits.option(words, "--bundle", "-b") == "/b"

    def test_rewrites_the_bundle_and_becomes_runc(self, tmp_path, monkeypatch):
        config = tmp_path / "config.json"
        config.write_text(json.dumps({"process": {"capabilities": {"bounding": ["CAP_SYS_RESOURCE"]}}}))
        became = []
        monkeypatch.setattr(runc_within_limits.shutil, "which", lambda *_, **__: "/usr/sbin/runc")
        monkeypatch.setattr(runc_within_limits.os, "execv", lambda path, words: became.append((path, words)))
        runc_within_limits.main(["create", "--bundle", str(tmp_path), "id"])
        assert json.loads(config.read_text())["process"]["capabilities"]["bounding"] == []
        assert became == [("/usr/sbin/runc", ["runc", "create", "--bundle", str(tmp_path), "id"])]


def test_dockers_firewall_rules_go_and_others_stay():
    saved = (
        "*filter\n:FORWARD DROP [0:0]\n:DOCKER-USER - [0:0]\n-A FORWARD -j DOCKER-USER\n"
        "-A FORWARD -i br-0123456789ab -o docker0 -j ACCEPT\n-A FORWARD -i br-lan -j ACCEPT\nCOMMIT\n"
    )
    assert bare_engine.without_dockers_rules(saved) == (
        "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -i br-lan -j ACCEPT\nCOMMIT\n"
    )


class TestNoEngineAnswers:
    @pytest.fixture(autouse=True)
    def machine(self, monkeypatch, tmp_path):
        monkeypatch.setattr(bare_engine, "STATE", tmp_path)
        monkeypatch.setattr(bare_engine.engine, "answers", lambda: False)
        monkeypatch.setattr(bare_engine.engine, "complaint", lambda: "permission denied on the socket")
        monkeypatch.setattr(bare_engine.os, "geteuid", lambda: 0)
        monkeypatch.setattr(bare_engine.sys, "platform", "linux")
        monkeypatch.setattr(bare_engine, "found", lambda _: None)
        monkeypatch.setattr(bare_engine, "_others", list)
        monkeypatch.delenv("DOCKER_HOST", raising=False)

    def test_who_is_not_root_is_told_the_clients_words_and_the_mend(self, monkeypatch):
        monkeypatch.setattr(bare_engine.os, "geteuid", lambda: 1000)
        with pytest.raises(LackingError, match=r"permission denied on the socket.*usermod -aG docker"):
            bare_engine.up()

    def test_an_engine_elsewhere_is_named(self, monkeypatch):
        monkeypatch.setenv("DOCKER_HOST", "tcp://far:2375")
        with pytest.raises(LackingError, match="DOCKER_HOST=tcp://far:2375 does not answer"):
            bare_engine.up()

    def test_anothers_engine_that_hangs_is_left_alone(self, monkeypatch):
        monkeypatch.setattr(bare_engine, "_others", lambda: [psutil.Process()])
        with pytest.raises(LackingError, match=r"process \d+\) but does not answer"):
            bare_engine.up()

    def test_a_cache_folder_that_can_not_hold_overlays_is_told(self, monkeypatch):
        monkeypatch.setattr(bare_engine, "run", lambda *_: "overlayfs\n")
        with pytest.raises(LackingError, match="set XDG_CACHE_HOME"):
            bare_engine.up()


@pytest.mark.parametrize(
    ("told", "enough"),
    [
        ("go version go1.26.8 linux/amd64", True),
        ("go version go1.27 linux/arm64", True),
        ("go version go2.0 linux/amd64", True),
        ("go version go1.19.8 linux/amd64", False),
        ("something else", False),
    ],
)
def test_an_old_go_is_not_taken(told, enough):
    assert programs.is_new_enough(told) is enough


class TestBuild:
    def test_base_is_what_the_dockerfile_names(self):
        assert (
            build.base_image("# text\nARG BASE_IMAGE=python:3.13-slim\nFROM ${BASE_IMAGE}\n")
            == "python:3.13-slim"
        )

    def test_dockerfile_without_a_base_argument_is_refused(self):
        with pytest.raises(run.CommandError, match="ARG BASE_IMAGE"):
            build.base_image("FROM python:3.13-slim\n")

    def test_machine_without_settings_builds_from_the_base_itself(self, monkeypatch):
        for name in (*host_settings.CERTIFICATE_VARIABLES, *host_settings.INDEX_VARIABLES):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(host_settings, "PIP_SETTINGS", ())
        assert host_settings.base_with_settings("python:3.13-slim") == "python:3.13-slim"

    def test_settings_go_where_pip_and_uv_look(self):
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
    @pytest.mark.parametrize("name", list(baseimages.PACKAGES))
    def test_stand_in_has_a_recipe(self, name):
        folder = baseimages.RECIPES / name.partition(":")[0]
        assert (folder / "Dockerfile").read_text().startswith("# Stands in for")

    def test_another_package_is_another_image(self, monkeypatch):
        before = baseimages.recipe_key(baseimages.PYTHON)
        monkeypatch.setitem(baseimages.PACKAGES, baseimages.PYTHON, ["python3"])
        assert baseimages.recipe_key(baseimages.PYTHON) != before

    def test_another_version_is_another_node_image(self, monkeypatch):
        before = nodeimage.key()
        monkeypatch.setitem(programs.MODULES, "etcd", ("go.etcd.io/etcd/server/v3", "v9"))
        assert nodeimage.key() != before

    def test_manifests_of_the_node_use_images_that_are_in_it(self):
        folder = nodeimage.RECIPE / "files" / "kind" / "manifests"
        storage = (folder / "default-storage.yaml").read_text()
        for document in yaml.safe_load_all(storage):
            if document["kind"] == "Deployment":
                image = document["spec"]["template"]["spec"]["containers"][0]["image"]
                assert image == "docker.io/tuning.dev/local-path-provisioner:1"
        assert (folder / "default-cni.yaml").exists()
