"""A Ray cluster for each file of tests, which it may leave in any state."""

from collections.abc import Generator

import pytest

from .cluster import Cluster


@pytest.fixture(scope="module")
def cluster() -> Generator[Cluster]:
    one = Cluster()
    yield one
    one.end()
