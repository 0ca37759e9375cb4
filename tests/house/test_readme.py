"""What the README tells people to type exists, and the figures it quotes are those of the model cards."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^    ferryman (.+?)(?:\s{2,}#.*)?$", README, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_command_exists(command: str) -> None:
    subcommand, *arguments = command.split()
    help_text = subprocess.run(
        [sys.executable, "-m", "ferryman", subcommand, "--help"], capture_output=True, text=True, check=True
    ).stdout
    options = [argument for argument in arguments if argument.startswith("-")]
    assert [option for option in options if not re.search(rf"(?<![\w-]){option}\b", help_text)] == []


def test_the_two_commands_are_targets() -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    named = re.findall(r"^    make (\w+)", README, re.MULTILINE)
    assert named == ["demo", "test"]
    assert set(named) <= set(targets)


def test_python_code_is_python_and_imports_what_exists() -> None:
    import ferryman

    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    imported = [
        alias.name
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.ImportFrom) and node.module == "ferryman"
        for alias in node.names
    ]
    assert imported
    assert set(imported) <= set(ferryman.__all__)


@pytest.mark.parametrize("name", ["vit-digits", "detr-digits"])
def test_figures_are_those_of_the_cards(name: str) -> None:
    card = (ROOT / "models" / "ferryman_models" / "zoo" / name / "README.md").read_text(encoding="utf-8")
    figures = re.findall(r"^\| (?:Top-1|COCO).*? \| ([0-9.]+) \|$", card, re.MULTILINE)
    assert figures
    section = README.split("## The embedded models")[1]
    assert [figure for figure in figures if figure not in section] == []
