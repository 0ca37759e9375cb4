"""The command line in this process, and files of all kinds to give it."""

import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ferryman.__main__ import main

from ..toy import make_bomb, make_picture
from .outcome import Cli, Outcome


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


@pytest.fixture
def copy(toy_repository: Path, tmp_path: Path) -> Path:
    """A repository of one's own."""
    return shutil.copytree(toy_repository, tmp_path / "models")


@pytest.fixture
def pictures(tmp_path: Path) -> dict[str, Path]:
    """Good and bad files by name."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    whole = make_picture((200, 30, 40), 60, 40, kind="JPEG", seed=1)
    files = {
        "red.png": make_picture((240, 20, 10), 70, 30),
        "blue.jpg": make_picture((10, 20, 240), 30, 70, kind="JPEG"),
        "empty.png": b"",
        "text.png": b"I am text\n" * 10,
        "half.jpg": whole[: len(whole) // 2],
        "bomb.png": make_bomb(30_000, 30_000),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return {name: folder / name for name in files} | {"nowhere.png": folder / "nowhere.png", "folder.png": folder}
