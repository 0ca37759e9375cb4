"""Figures in the docs come from commands that stand beside them: docs/figures.py measures them again."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "docs" / "figures.py"
# What writes and deletes lies in demo/, which git ignores.
OURS = re.compile(
    r"(sh -c ')?(rm -rf( demo/bench/[\w-]+)+ && |for model in [a-z -]+; do )?([A-Z_]+=\w+ )*"
    r"(ferryman |python -m (ferryman|tests)[._])"
)
PAGE = """# A page

<!-- figures right: python3 -c "print('  4.2 ms')" -->
yesterday's
<!-- end of figures -->

Words between.

<!-- figures noisy: python3 -c "raise SystemExit(1)" -->
kept
<!-- end of figures -->
"""


@pytest.fixture
def page(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    shutil.copy(SCRIPT, tmp_path / "docs")
    page = tmp_path / "README.md"
    page.write_text(PAGE, encoding="utf-8")
    return page


def run(folder: Path, *names: str) -> tuple[int, str]:
    command = [sys.executable, str(folder / "docs" / "figures.py"), *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == ""
    return done.returncode, done.stderr


LACKING = """<!-- figures elsewhere needs no-such_feature NEED: python3 -c "print(1)" -->
of another machine
<!-- end of figures -->
"""


@pytest.mark.parametrize(
    ("need", "there"), [("README.md", False), ("./README.md", True), ("./absent", False), ("no-amx_int9", True)]
)
def test_what_another_machine_measured(page: Path, need: str, there: bool) -> None:
    page.write_text(LACKING.replace("NEED", need), encoding="utf-8")
    for names, expected in [((), 0), (("elsewhere",), 0 if there else 1)]:
        status, said = run(page.parent, *names)
        assert (status, f"left as it was, for it needs {need}" in said) == (expected, not there)
        assert ("of another machine" in page.read_text(encoding="utf-8")) is not there


def test_what_is_measured_again(page: Path) -> None:
    assert run(page.parent, "right")[0] == 0
    text = page.read_text(encoding="utf-8")
    assert re.search(
        r"-->\n\n\d{4}-\d\d-\d\d, `python3 -c .*`, on .+ processors \(.*\); Python 3.* numpy \d.*:\n\n"
        r"```text\n  4\.2 ms\n```\n\n<!-- end of f",
        text,
    )
    assert text.endswith(PAGE[PAGE.index("Words between") :])
    status, complaint = run(page.parent)
    assert (status, "noisy: exit status 1, left as it was" in complaint) == (1, True)
    assert "\nkept\n" in page.read_text(encoding="utf-8")


def test_ctrl_c_keeps_what_was_measured(page: Path) -> None:
    started = page.with_name("started")
    waiting = f"import pathlib, time; pathlib.Path('{started}').touch(); time.sleep(60)"
    page.write_text(PAGE.replace("raise SystemExit(1)", waiting), encoding="utf-8")
    command = [sys.executable, str(page.parent / "docs" / "figures.py")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        while not started.exists():
            assert process.poll() is None
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the command is told too
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert said.endswith("interrupted; what was measured until now stands in the pages\n")
    text = page.read_text(encoding="utf-8")
    assert ("yesterday's" in text, "\nkept\n" in text) == (False, True)


BROKEN = {
    "an end is missing": (PAGE.replace("<!-- end of figures -->", "", 1), "has lost its other half"),
    "twice": (PAGE.replace("noisy", "right"), "names of figures stand twice"),
}


@pytest.mark.parametrize(("text", "complaint"), BROKEN.values(), ids=BROKEN)
def test_pages_that_are_broken(page: Path, text: str, complaint: str) -> None:
    page.write_text(text, encoding="utf-8")
    status, said = run(page.parent)
    assert (status, complaint in said) == (1, True)
    assert page.read_text(encoding="utf-8") == text


def test_our_own_pages() -> None:
    """Whole, with commands of ours alone, and measured."""
    status, said = run(SCRIPT.parents[1], "no-such")
    assert (status, said.startswith("no figures no-such; there are ")) == (2, True)
    blocks = [
        block
        for page in (SCRIPT.parents[1] / "README.md", *SCRIPT.parent.glob("*.md"))
        for block in re.findall(
            r"<!-- figures [^:]+: (.+?) -->\n(.*?)<!-- end", page.read_text(encoding="utf-8"), re.DOTALL
        )
    ]
    assert blocks
    for command, body in blocks:
        assert OURS.match(command), command
        assert re.search(
            rf"^\d{{4}}-\d\d-\d\d, `{re.escape(shlex.join(shlex.split(command)))}`, on .+:$", body, re.MULTILINE
        )
