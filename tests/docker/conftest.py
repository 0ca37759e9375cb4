"""What a server in a container has to serve."""

from pathlib import Path

import pytest

from ..serve.toy import make_toy_repository


@pytest.fixture(scope="session")
def toy_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository with one detector. Not to be written to."""
    return make_toy_repository(tmp_path_factory.mktemp("toys"), ["toy-detector"])
