"""What the README tells people to type exists, and the figures it quotes are those of the model cards."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from ..serve.server.process import ServerProcess
from ..serve.toy import LABELS, make_picture, make_toy_repository

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


def test_python_code_runs(tmp_path: Path) -> None:
    """Against a server over toys, whose address and model's name stand in for the README's."""
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (tmp_path / "street.png").write_bytes(make_picture((240, 20, 10)))
    make_toy_repository(tmp_path / "models", ["toy-detector"])
    with ServerProcess({"repository": str(tmp_path / "models"), "threads": 1}) as server:
        code = code.replace("127.0.0.1:8001", server.address).replace("detr-digits", "toy-detector")
        command = [sys.executable, "-W", "error", "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert re.match(rf"({'|'.join(LABELS)}) 0\.\d+ \(", done.stdout)
    assert "total_ms=" in done.stdout


@pytest.mark.parametrize("name", ["vit-digits", "detr-digits"])
def test_figures_are_those_of_the_cards(name: str) -> None:
    card = (ROOT / "models" / "ferryman_models" / "zoo" / name / "README.md").read_text(encoding="utf-8")
    figures = re.findall(r"^\| (?:Top-1|COCO).*? \| [0-9]\.[0-9]{3} \|$", card, re.MULTILINE)
    assert len(figures) >= 2
    section = README.split("## The embedded models")[1]
    assert set(figures) <= set(section.splitlines())
    (parameters,) = re.findall(r"([0-9,]+) parameters", card)
    assert parameters in section
