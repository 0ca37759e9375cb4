"""Fixtures that every room may use."""

import os
from pathlib import Path

import pytest

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
