"""The shape of the repository that people and machines rely on."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("flows", "tasks", "models", "mlflow", "infra", "tests", "docs", ".ci", ".dvc")
FILES = (
    "README.md",
    "CHANGELOG.md",
    "LICENSE",
    "Makefile",
    "pyproject.toml",
    "requirements.lock",
    "params.yaml",
    "dvc.yaml",
    "data.dvc",
)
MACHINE = re.compile(r"(?<![\w.:/-])/(?:home|Users|root|work|mnt|tmp/\w+)/[\w.-]+")
INDEX = re.compile(
    r"pypi\.\w+|pythonhosted\.\w+|^\s*--(?:extra-)?index-url|https?://\S+/simple\b", re.MULTILINE
)


def committed() -> list[Path]:
    """The files that git holds or would hold, as paths below the root."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return sorted(Path(name) for name in listed.split("\0") if name and (ROOT / name).is_file())


def found_in(pattern: re.Pattern[str]) -> list[str]:
    """`file: match` for every match of `pattern` in a text file that git holds."""
    matches = []
    for file in committed():
        try:
            text = (ROOT / file).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        matches += [f"{file}: {match.group()}" for match in pattern.finditer(text)]
    return matches


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_is_there(name: str):
    assert (ROOT / name).is_dir()


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_there(name: str):
    assert (ROOT / name).is_file()


@pytest.mark.parametrize("folder", ["mlflow", "tests"])
def test_a_folder_that_is_no_package_has_no_init(folder: str):
    assert list((ROOT / folder).rglob("__init__.py")) == []


def test_ci_runs_the_tests():
    script = ROOT / ".ci" / "run"
    assert "make test" in script.read_text(encoding="utf-8").splitlines()
    assert script.stat().st_mode & 0o111


def test_the_readmes_first_screen_has_what_it_is_and_both_commands_and_a_picture():
    first = (ROOT / "README.md").read_text(encoding="utf-8").partition("\n## ")[0]
    assert len(first.splitlines()) <= 30
    assert re.search(r"^make demo\b", first, re.MULTILINE)
    assert re.search(r"^make test\b", first, re.MULTILINE)
    assert "![" in first


def test_the_changelog_begins_with_what_is_unreleased():
    heads = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert heads[0] == "Unreleased"


def test_no_text_names_a_place_on_one_machine():
    assert found_in(MACHINE) == []


def test_no_text_names_a_package_index():
    assert found_in(INDEX) == []


@pytest.mark.parametrize(
    "text", ["see " + "/home" + "/ann/x", "'" + "/work" + "/main'", "(" + "/root" + "/.cache"]
)
def test_the_search_finds_a_place(text: str):
    assert MACHINE.search(text)


@pytest.mark.parametrize("text", ["data/work/x", "https://host/home/page", "~/my-videos", "/dev/null"])
def test_the_search_lets_pass(text: str):
    assert not MACHINE.search(text)
