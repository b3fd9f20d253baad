"""What the README tells people to type exists: commands, options, stages, targets, files, settings."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main
import yaml
from dvc.cli.parser import get_main_parser

from flows.cli import app
from tasks.settings import Settings

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROSE = re.sub(r"^```.*?^```", "", README, flags=re.MULTILINE | re.DOTALL)
NO_SETTINGS = {"UNDERSTUDY_DEBUG", "UNDERSTUDY_TEST_KILLS"}  # of the command and of a test alone
MADE = (
    ".understudy",
    ".venv",
    "artifacts",
    "data/index",
    "data/modalities",
    "data/raw",
    "dvc.lock",
    "reports",
)
"""What a run makes; the repository does not hold them."""
OF_A_SOURCE = ("annotations.csv", "videos/", "detections/", "a.mp4.jsonl", "detections/P01_01.jsonl")
"""Files of a user's own data."""


def command_lines() -> Iterator[list[str]]:
    """The words of every line of the README's shell blocks, without environment variables and comments."""
    for block in re.findall(r"^```bash\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            while words and re.match(r"[A-Z_]+=", words[0]):
                words.pop(0)
            if words:
                yield words


def of(program: str) -> list[list[str]]:
    return [words[1:] for words in command_lines() if words[0] == program]


def stages() -> set[str]:
    """The names that `understudy run` and `dvc repro` take."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    found = set()
    for name, stage in yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"].items():
        section = stage.get("foreach", "").strip("${}")
        found |= {name, *(f"{name}@{item}" for item in params.get(section, ()))}
    return found


def test_the_readme_has_commands_of_every_program():
    assert {"make", "understudy", "dvc"} <= {words[0] for words in command_lines()}


@pytest.mark.parametrize("words", of("understudy"), ids=" ".join)
def test_understudy_takes_the_line(words: list[str]):
    group = typer.main.get_command(app)
    command = group.commands[words[0]]  # type: ignore[attr-defined]
    context = command.make_context(words[0], words[1:])
    asked = (
        [*(context.params.get("stages") or ()), *(context.params.get("force") or ())]
        if words[0] == "run"
        else []
    )
    assert set(asked) <= stages()


def test_every_command_of_understudy_is_shown():
    group = typer.main.get_command(app)
    assert {words[0] for words in of("understudy")} == set(group.commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("words", of("dvc"), ids=" ".join)
def test_dvc_takes_the_line(words: list[str]):
    arguments = get_main_parser().parse_args(words)
    if words[0] == "repro":
        assert set(arguments.targets) <= stages()


@pytest.mark.parametrize("words", of("make"), ids=" ".join)
def test_make_has_the_target(words: list[str]):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert set(words) <= set(targets)


def paths() -> list[str]:
    """What the README's text names as a file or folder of the repository, outside shell blocks."""
    linked = re.findall(r"\]\(([^)#]+)\)", PROSE)
    quoted = re.findall(r"`([^`\s]+)`", PROSE)
    looks = re.compile(r"[\w.-]+(/[\w.-]+)*/?")
    files = [
        word for word in quoted if looks.fullmatch(word) and ("/" in word or Path(word).suffix in SUFFIXES)
    ]
    links = [word for word in linked if "://" not in word]
    return sorted({*files, *links})


SUFFIXES = {
    ".csv",
    ".html",
    ".json",
    ".jsonl",
    ".lock",
    ".md",
    ".png",
    ".py",
    ".svg",
    ".toml",
    ".yaml",
    ".dvc",
}


@pytest.mark.parametrize("name", paths())
def test_a_path_exists(name: str):
    generated = any(Path(name).is_relative_to(folder) for folder in MADE)
    assert generated or name in OF_A_SOURCE or (ROOT / name).exists()


@pytest.mark.parametrize(
    "folder", [folder for folder in MADE if not folder.startswith((".", "data/raw", "dvc"))]
)
def test_a_folder_that_a_run_makes_is_an_output(folder: str):
    assert folder in (ROOT / "dvc.yaml").read_text(encoding="utf-8")


def test_every_setting_named_exists():
    names = {f"UNDERSTUDY_{field.upper()}" for field in Settings.model_fields}
    assert set(re.findall(r"UNDERSTUDY_[A-Z_]+", README)) - NO_SETTINGS <= names


@pytest.mark.parametrize("field", Settings.model_fields)
def test_a_setting_is_described_as_in_the_code(field: str):
    row = next(line for line in README.splitlines() if line.startswith(f"| `UNDERSTUDY_{field.upper()}`"))
    _, _, default, description, _ = (cell.strip() for cell in row.split("|"))
    about = Settings.model_fields[field]
    assert description == about.description
    if about.default_factory is None:
        assert default == f"`{about.default}`"


@pytest.mark.parametrize("stage", sorted(name for name in stages() if "@" not in name))
def test_a_stage_is_described(stage: str):
    assert re.search(rf"^\| `{stage}(@\w)?` \|", README, flags=re.MULTILINE)
