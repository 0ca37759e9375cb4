"""Toy bundles and a real server over them, for all tests of what runs on the device."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from .server.process import ServerProcess
from .toy import make_toy_repository


@pytest.fixture(scope="session")
def toy_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository with version 1 of each toy. Not to be written to."""
    return make_toy_repository(tmp_path_factory.mktemp("toys"))


@pytest.fixture(scope="session")
def toy_server(toy_repository: Path) -> Iterator[str]:
    """The address of a server process over `toy_repository`."""
    with ServerProcess({"repository": str(toy_repository), "threads": 1}) as server:
        yield server.address


@pytest.fixture
def folder(toy_repository: Path, tmp_path: Path) -> Path:
    """A detector's bundle of one's own."""
    return shutil.copytree(toy_repository / "toy-detector" / "1", tmp_path / "models" / "toy-detector" / "1")
