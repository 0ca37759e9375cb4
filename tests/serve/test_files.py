"""Files and folders that are whole or absent."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest

from ferryman.errors import FileAccessError
from ferryman.files import replace_file, temporary_folder

from .toy import list_tree


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt], ids=["fine", "error", "Ctrl-C"])
def test_a_file_is_whole_or_the_old_one(tmp_path: Path, error: type[BaseException] | None) -> None:
    place = tmp_path / "new" / "file.txt"
    place.parent.mkdir()
    place.write_text("old", encoding="utf-8")

    def write() -> None:
        with replace_file(place) as temporary:
            temporary.write_text("half", encoding="utf-8")
            if error is not None:
                raise error

    if error is None:
        write()
    else:
        with pytest.raises(error):
            write()
    assert place.read_text(encoding="utf-8") == ("half" if error is None else "old")
    assert os.listdir(place.parent) == ["file.txt"]


def _folder_there(place: Path) -> None:
    place.mkdir()


def _file_above(place: Path) -> None:
    place.parent.rmdir()
    place.parent.write_text("in the way", encoding="utf-8")


@pytest.mark.parametrize("obstacle", [_folder_there, os.mkfifo, _file_above], ids=["folder", "pipe", "file above"])
def test_what_can_not_be_replaced(tmp_path: Path, obstacle: Callable[[Path], object]) -> None:
    """A pipe or a device is not a file to be replaced: as root, /dev/null would be gone."""
    place = tmp_path / "above" / "file.txt"
    place.parent.mkdir()
    obstacle(place)
    before = list_tree(tmp_path)
    with pytest.raises(FileAccessError, match=r"can't write .*file.txt: "), replace_file(place):
        pytest.fail("there is nothing to write to")
    assert list_tree(tmp_path) == before


def test_a_temporary_folder_is_gone(tmp_path: Path) -> None:
    with temporary_folder(tmp_path / "a" / "b", "name") as folder:
        assert folder.parent == tmp_path / "a" / "b"
        assert folder.name.startswith(".name.")
        (folder / "x").touch()
        (folder.parent / "kept").touch()
    assert list_tree(tmp_path) == ["a", "a/b", "a/b/kept"]


def test_a_parent_without_use_is_gone_too(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with temporary_folder(tmp_path / "a" / "b" / "c", "name"):
        pass
    assert list_tree(tmp_path) == ["a"]


MAKING = """
import sys
from pathlib import Path

from ferryman.files import temporary_folder

with temporary_folder(Path(sys.argv[1]), "name") as folder:
    (folder / "half").touch()
    print(folder.name, flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    """By the next one, but nothing that is held, young, or of another kind."""

    def make_another() -> list[str]:
        with temporary_folder(tmp_path, "name"):
            pass
        return list_tree(tmp_path)

    others = [".name.unfinished", ".name.settings", ".name.new-files", ".names.new-abcd1234", ".name.new-toolong12"]
    young = ".name.new-abcd1234"
    for other in (*others, young):
        (tmp_path / other).mkdir()
    command = [sys.executable, "-c", MAKING, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        left = process.stdout.readline().strip()
        for place in (*others, left):
            os.utime(tmp_path / place, (0, 0))
        assert make_another() == sorted([*others, young, left, f"{left}/half"])
        process.kill()
    assert make_another() == sorted([*others, young])
    os.utime(tmp_path / young, (0, 0))
    assert make_another() == sorted(others)


class Told(Exception):
    pass


def tell(number: int, _frame: FrameType | None) -> None:
    raise Told(number)


def fill(folder: Path) -> None:
    (folder / "half").touch()
    (folder / "rest").touch()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
@pytest.mark.parametrize("moment", ["made", "cleared"])
def test_a_signal_cuts_nothing_in_two(
    moment: str, number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes while the folder is made, or with half of it cleared away."""
    make, clear = os.mkdir, shutil.rmtree

    def making(path: Path, mode: int = 0o777) -> None:
        make(path, mode)
        signal.raise_signal(number)

    def clearing(path: Path, ignore_errors: bool) -> None:
        (path / "half").unlink()
        signal.raise_signal(number)
        clear(path, ignore_errors=ignore_errors)

    monkeypatch.setattr(*((os, "mkdir", making) if moment == "made" else (shutil, "rmtree", clearing)))
    before = signal.signal(number, tell)
    try:
        with pytest.raises(Told), temporary_folder(tmp_path / "a", "name") as folder:
            fill(folder)
        assert signal.getsignal(number) is tell
    finally:
        signal.signal(number, before)
    assert list_tree(tmp_path) == []
