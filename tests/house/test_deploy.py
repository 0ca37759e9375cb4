"""docs/deploy.md says of each of its blocks who has tried it; what it has people type on a laptop runs."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ferryman.client import Client

from ..serve.server.process import free_address
from ..serve.toy import make_picture, make_toy_repository

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
FERRYMAN = [sys.executable, "-W", "error", "-m", "ferryman"]
REMARK = re.compile(r"^(\*Tried\*|\*By hand\*|\*\*Not tried\*\*)[,:] \S", re.MULTILINE)
_FIGURES = re.compile(r"<!-- figures .*?<!-- end of figures -->", re.DOTALL)  # which say by themselves who measured
_BLOCK = re.compile(r"(?:(?<=\n\n)(?:    [^\n]+\n+)+|```\w+\n.*?```\n)", re.DOTALL)


def sections() -> Iterator[tuple[str, str]]:
    """Each block of the page, and what stands between it and the next, or the next heading."""
    page = _FIGURES.sub("", PAGE)
    found = list(_BLOCK.finditer(page))
    ends = [block.start() for block in found[1:]] + [len(page)]
    for block, end in zip(found, ends, strict=True):
        yield block[0], re.split(r"^##", page[block.end() : end], flags=re.MULTILINE)[0]


def test_each_block_says_whether_it_was_tried() -> None:
    found = list(sections())
    assert len(found) > 12
    assert [block for block, after in found if len(REMARK.findall(after)) != 1] == []


def test_what_the_page_names_is_there() -> None:
    named = set(re.findall(r"\b(?:tests|docker)/[\w./-]*\w", PAGE))
    assert len(named) > 15
    assert sorted(path for path in named if not (ROOT / path).exists()) == []


@pytest.mark.slow
def test_the_lines_for_a_laptop(tmp_path: Path) -> None:
    """At an address of its own."""
    (block,) = [block for block, _ in sections() if block.lstrip().startswith("ferryman export")]
    export, serve = ([*FERRYMAN, *line.split()[1:]] for line in block.split("\n") if line)
    subprocess.run(export, cwd=tmp_path, check=True, capture_output=True)
    address = free_address()
    with subprocess.Popen([*serve, "--address", address], cwd=tmp_path, stdout=subprocess.DEVNULL) as server:
        try:
            with Client(address) as client:
                client.wait_ready("detr-digits", timeout=120)
                client.detect([make_picture((240, 20, 10))], model="detr-digits")
            server.send_signal(signal.SIGTERM)
            assert server.wait(60) == 0
        finally:
            server.kill()


def test_an_edge_boxs_memory_is_measured(tmp_path: Path) -> None:
    """By the line of the page, on a toy: figures come, whatever they are."""
    (block,) = [block for block, _ in sections() if "docker/edge/measure.py" in block]
    words = block.split()
    script = words[words.index("python") + 1 :]
    make_toy_repository(tmp_path / "models", ["toy-detector"])
    (tmp_path / "picture").write_bytes(make_picture((240, 20, 10)))
    places = {"models": str(tmp_path / "models"), "detr-digits": "toy-detector", "PICTURE": str(tmp_path / "picture")}
    line = [sys.executable, *(places.get(word, word) for word in script)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures = dict(word.split("=") for word in done.stdout.split())
    assert figures.keys() == {"ready_s", "cpu_s", "VmRSS_mb", "RssAnon_mb", "RssFile_mb", "VmHWM_mb"}
    assert 0 < float(figures["VmRSS_mb"]) <= float(figures["VmHWM_mb"])
