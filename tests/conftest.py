"""Fixtures that every room may use."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ferryman.__main__ import main

from .serve.commands.outcome import Cli, Outcome

# Before torch is imported: workers side by side would each take every core, and wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).parents[1]


def _shared(name: str) -> Path:
    folder = ROOT.parent / "shared" / name
    if not folder.is_dir():
        pytest.skip(f"{folder} isn't there; it holds pictures and weights that the repository doesn't carry")
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real pictures beside the repository, `../shared/data`."""
    return _shared("data")


@pytest.fixture(scope="session")
def shared_checkpoints() -> Path:
    """The folder of published weights beside the repository, `../shared/checkpoints`."""
    return _shared("checkpoints")


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    """`ferryman ...` in this process, which spares the start of Python; signals are as they were afterwards."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["ferryman", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        assert "\x1b" not in captured.out + captured.err
        code = end.value.code
        return Outcome(code if isinstance(code, int) else 0, captured.out, captured.err)

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)
