"""The documentation's links, lists and paths match the repository."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KUBE = ROOT / "operator" / "tuning_operator" / "kube"
PAGES = [
    *ROOT.glob("*.md"),
    *(page for folder in ("docs", "charts", "examples") for page in (ROOT / folder).rglob("*.md")),
]


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub makes for a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_existing_files_and_headings(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, anchor = link.partition("#")
        if ":" not in path:
            target = page.parent / path if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_upgrades_keep_values_and_get_the_defaults_of_a_newer_chart(page: Path) -> None:
    """With `--reuse-values`, the templates of a newer chart would lack the values that it has added."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)
    for command in re.findall(r"helm upgrade (?:[^\n]*\\\n)*[^\n]*", "\n".join(blocks)):
        assert " --reset-then-reuse-values " in command, command


def test_index_lists_all_pages() -> None:
    links = re.findall(r"\]\(([^)]+)\)", (ROOT / "docs" / "README.md").read_text())
    linked = {(ROOT / "docs" / link).resolve() for link in links}
    assert {page for page in PAGES if page.is_relative_to(ROOT / "docs")} - linked == {
        ROOT / "docs" / "README.md"
    }


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_modules_to_read_exist(page: str) -> None:
    modules = re.findall(r"`(\w+(?:/\w+)+\.py)`", (ROOT / page).read_text())
    assert len(modules) == 6
    assert all((KUBE / module).exists() for module in modules)


def test_layout_lists_all_folders_of_code() -> None:
    layout = (ROOT / "docs" / "architecture.md").read_text().partition("## Layout")[2].split("```")[1]
    described, above = set(), [""]
    for indent, name in re.findall(r"^( *)([\w/-]+/|[\w/-]+\.py) ", layout, re.MULTILINE):
        above[len(indent) // 2 :] = [name]
        described.add("".join(above).removesuffix("/").replace("operator/", "operator/tuning_operator/", 1))
    missing = {path for path in described if not (ROOT / path).exists()}
    assert not missing
    modules = [
        path for folder in ("operator", "trainer-image", "dev") for path in (ROOT / folder).rglob("*.py")
    ]
    folders = {str(module.relative_to(ROOT).parent) for module in modules}
    folders |= {
        str(path.relative_to(ROOT)) for path in (ROOT / "tests").iterdir() if any(path.glob("**/*.py"))
    }
    folders |= {f"dev/{module.name}" for module in (ROOT / "dev").glob("[a-z]*.py")}
    undescribed = folders - described - {"operator/tuning_operator", "dev"}
    assert not undescribed
