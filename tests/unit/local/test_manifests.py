"""What `tuning run` reads, and what it says about what it can't read."""

from __future__ import annotations

from pathlib import Path

import pytest
from tuning_operator.cli.local.manifests import check, read
from tuning_operator.local import LocalError

EXAMPLES = Path(__file__).parents[3] / "examples"
STUDY = "apiVersion: tuning.dev/v1alpha1\nkind: TuningStudy\nmetadata: {name: small}\n"


@pytest.mark.parametrize(
    "path", sorted(file.parent for file in EXAMPLES.glob("*/kustomization.yaml")), ids=lambda path: path.name
)
def test_examples(path: Path) -> None:
    """A folder with one study is read whole, and each study by its file."""
    files = [file for file in path.glob("*.yaml") if "kind: TuningStudy" in file.read_text()]
    for file in files:
        manifest = read(file)
        check(manifest)
        source = manifest.document.data["spec"]["trial"].get("source")
        assert source is None or source["configMap"] in manifest.config_maps


def test_a_folder_has_its_generated_config_maps(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(f"{STUDY}spec: {{maxTrials: 1e1}}\n")
    (tmp_path / "train.py").write_text("code")
    (tmp_path / "some.env").write_text("# comment\nC=3\n")
    (tmp_path / "kustomization.yaml").write_text(
        "resources: [study.yaml, more]\n"
        "configMapGenerator:\n"
        "- {name: code, files: [train.py, other.py=train.py], literals: [A=1, 'B=\"2\"'], envs: [some.env]}\n"
    )
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "kustomization.yaml").write_text(
        "configMapGenerator: [{name: other, literals: [x=1]}]\n"
    )
    manifest = read(tmp_path)
    assert manifest.config_maps == {
        "code": {"train.py": "code", "other.py": "code", "A": "1", "B": "2", "C": "3"}, "other": {"x": "1"}
    }  # fmt: skip
    assert manifest.document.data["spec"]["maxTrials"] == 10
    assert read(tmp_path / "study.yaml").config_maps.keys() == {"code"}


def test_config_maps_in_the_manifest(tmp_path: Path) -> None:
    file = tmp_path / "all.yaml"
    file.write_text(f"{STUDY}---\nkind: ConfigMap\nmetadata: {{name: code}}\ndata: {{a.py: x}}\n")
    assert read(file).config_maps == {"code": {"a.py": "x"}}


@pytest.mark.parametrize(
    ("files", "given", "message"),
    [
        ({}, "study.yaml", "does not exist: give a manifest, or a folder with a kustomization.yaml."),
        ({"study.yaml": STUDY}, "", "has no kustomization.yaml: give the manifest itself,"),
        ({"a.yaml": "kind: Job\n"}, "a.yaml", "has no TuningStudy: add `kind: TuningStudy`, or give another"),
        ({"a.yaml": "- x\n"}, "a.yaml", "a.yaml is not a manifest: it has a list instead of fields."),
        ({"a.yaml": "a: [\n"}, "a.yaml", "a.yaml is not valid YAML:"),
        ({"kustomization.yaml": "resources: [a.yaml]\n"}, "", "the resource a.yaml does not exist"),
        ({"kustomization.yaml": "namePrefix: x-\n"}, "", "`namePrefix` is not known to `tuning run`."),
        ({"kustomization.yaml": "configMapGenerator: [{name: c, files: [t.py]}]\n"}, "", "the file t.py"),
        ({"kustomization.yaml": "resources: [a.yaml, b.yaml]\n", "a.yaml": STUDY, "b.yaml": STUDY}, "",
         "has 2 studies (small, small): run one of them, for example `tuning run "),
    ],
)  # fmt: skip
def test_refused(tmp_path: Path, files: dict[str, str], given: str, message: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(LocalError) as error:
        read(tmp_path / given)
    assert message in str(error.value)


def test_what_is_not_valid_is_named_by_line(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(f"{STUDY}spec:\n  objectives: [{{metric: x, direction: up}}]\n  maxTrial: 3\n")
    with pytest.raises(LocalError) as error:
        check(read(file))
    head, *lines = str(error.value).splitlines()
    assert head == "the manifest is not valid"
    assert any(line.startswith(f"{file}:6: spec.maxTrial: ") for line in lines)
    assert any(line.startswith(f"{file}:5: spec.objectives[0].direction: ") for line in lines)
