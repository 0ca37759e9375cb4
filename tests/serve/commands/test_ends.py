"""Stopped in the middle, or with nobody left to read: no traceback, nothing half-written."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from ferryman.golden import GoldenSamples

from ..toy import change_golden
from .outcome import finish, spawn


def _read_until(process: "subprocess.Popen[str]", text: str) -> str:
    assert process.stderr is not None
    read = ""
    for line in process.stderr:
        read += line
        if text in line:
            return read
    raise AssertionError(read)


SIGNALS = [(signal.SIGINT, 130, "ferryman: interrupted"), (signal.SIGTERM, 143, "ferryman: terminated")]


@contextmanager
def _killed(process: "subprocess.Popen[str]") -> Generator["subprocess.Popen[str]", None, None]:
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.parametrize(("number", "status", "line"), SIGNALS, ids=["Ctrl-C", "SIGTERM"])
@pytest.mark.parametrize("command", ["bench", "verify"])
def test_stopping_in_the_middle(copy: Path, command: str, number: signal.Signals, status: int, line: str) -> None:
    folder = copy / "toy-detector" / "1"
    if command == "verify":
        # Enough samples that the signal comes before the end.
        change_golden(folder, lambda golden: _repeat(golden, 1000))
    process = spawn(command, folder, "--json", *(["--seconds", "60"] if command == "bench" else []))
    before = sorted(str(path) for path in copy.rglob("*"))
    with _killed(process):
        _read_until(process, "- measure" if command == "bench" else "- ")
        if command == "bench":
            time.sleep(1)  # what was measured till then is told
        process.send_signal(number)
        outcome = finish(process)
    assert outcome.status == status
    assert outcome.complaint == line
    if command == "bench":
        assert outcome.document["ended"] == "it was told to stop"
        assert outcome.document["runs"][0]["figures"]["requests"] > 0
    else:
        assert outcome.stdout == ""
    assert sorted(str(path) for path in copy.rglob("*")) == before


def _repeat(golden: GoldenSamples, times: int) -> GoldenSamples:
    return GoldenSamples(
        golden.names * times,
        {name: np.concatenate([array] * times) for name, array in golden.inputs.items()},
        {name: np.concatenate([array] * times) for name, array in golden.outputs.items()},
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_serving_stops_gracefully(toy_repository: Path, tmp_path: Path, number: signal.Signals) -> None:
    """Some settings come from a file; the address on the command line wins over the file's."""
    (tmp_path / "settings").write_text("address = '127.0.0.1:1'\nmodels = ['toy-detector']\n", encoding="utf-8")
    options = ["--config", tmp_path / "settings", "--address", "127.0.0.1:0", "--threads", 1]
    process = spawn("serve", toy_repository, *options, "--json")
    with _killed(process):
        assert process.stdout is not None
        head = ""
        while not head.endswith("}\n"):
            head += process.stdout.readline()
        document = json.loads(head)
        assert document["models"] == ["toy-detector"]
        assert re.fullmatch(r"127\.0\.0\.1:\d+", document["address"])
        process.send_signal(number)
        outcome = finish(process)
    assert outcome.status == 0
    assert outcome.stdout == ""
    assert "\x1b" not in outcome.stderr


SLOW_LOAD = """
import sys, time

import ferryman.server.app

ferryman.server.app.load_model = lambda *args, **kwargs: time.sleep(3600)
sys.argv = ["ferryman", "serve", sys.argv[1], "--address", "127.0.0.1:0"]
from ferryman.__main__ import main

main()
"""


def test_a_model_that_still_loads_does_not_hold_up_the_end(toy_repository: Path) -> None:
    command = [sys.executable, "-c", SLOW_LOAD, str(toy_repository)]
    with _killed(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)) as process:
        _read_until(process, "model loading")
        process.send_signal(signal.SIGINT)
        outcome = finish(process)
    assert outcome.status == 0
    assert "stopped" in outcome.stderr


IMPORTING = """
import os, signal, sys


class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "typer":
            os.kill(os.getpid(), signal.SIGINT)


sys.meta_path.insert(0, Interrupt())
sys.argv = ["ferryman", "--help"]
from ferryman.__main__ import main

main()
"""


def test_stopping_while_the_command_line_is_imported() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTING], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "ferryman: interrupted\n")


SWALLOWING = """
import os, signal, sys

import ferryman.commands.doctor
from ferryman.errors import ExportError


def run(json_output):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except BaseException as error:
        raise ExportError("something else") from error


ferryman.commands.doctor.run_doctor = run
sys.argv = ["ferryman", "doctor"]
from ferryman.__main__ import main

main()
"""


def test_a_library_that_swallows_the_signal() -> None:
    done = subprocess.run([sys.executable, "-c", SWALLOWING], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (143, "", "ferryman: terminated\n")


# --- where the output goes -------------------------------------------------------------------------------------------

OUTPUTS = {
    "a table": ("inspect", "{bundle}"),
    "a document": ("inspect", "{bundle}", "--json"),
    "an error": ("verify", "nowhere", "--json"),
    "help": ("--help",),
}


@pytest.mark.parametrize("arguments", OUTPUTS.values(), ids=OUTPUTS)
def test_a_reader_that_went_away(toy_repository: Path, arguments: tuple[str, ...]) -> None:
    """As `ferryman ... | head -1`, at its worst: the reader is gone before anything is written."""
    bundle = str(toy_repository / "toy-detector")
    reader, writer = os.pipe()
    process = spawn(*(word.format(bundle=bundle) for word in arguments), stdout=writer)
    os.close(reader)
    os.close(writer)
    _, stderr = process.communicate(timeout=120)
    assert "Traceback" not in stderr
    assert "Exception ignored" not in stderr
    assert len(stderr.splitlines()) == (1 if "nowhere" in arguments else 0)
    assert process.returncode >= 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [OUTPUTS["a table"], OUTPUTS["a document"]], ids=["a table", "a document"])
def test_a_full_disk(toy_repository: Path, arguments: tuple[str, ...]) -> None:
    bundle = str(toy_repository / "toy-detector")
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        outcome = finish(spawn(*(word.format(bundle=bundle) for word in arguments), stdout=full))
    assert outcome.status == 1
    assert outcome.complaint == "ferryman: the operating system refused: No space left on device"
