"""Files of all kinds to give to the command line."""

import shutil
from pathlib import Path

import pytest

from ..toy import make_bomb, make_picture


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
