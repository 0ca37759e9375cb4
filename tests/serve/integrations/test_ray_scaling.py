"""Replicas in Ray Serve that come and go with the load, and the page's own lines that deploy them.

With FERRYMAN_RAY, in an environment that has Ray. Minutes: Ray looks at the load of the last half minute.
"""

import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import pytest

from ferryman.client import Client
from ferryman.errors import OverloadedError

from ..toy import make_picture, make_toy_repository
from .cluster import Cluster

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore"),  # Ray's own: deprecations of pydantic, sockets of nodes that end
]
PAGE = Path(__file__).parents[3] / "docs" / "deploy.md"
MODEL = "toy-classifier"
RED = make_picture((250, 10, 10))
CROWD, FEW = 12, 2  # callers, before and after
ONE, TWO = {"RUNNING": 1}, {"RUNNING": 2}


@pytest.fixture(scope="module")
def repository(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_toy_repository(tmp_path_factory.mktemp("ray"), [MODEL])


def wait_for(replicas: dict[str, int], cluster: Cluster, check: Callable[[], None], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while cluster.replicas() != replicas:
        check()
        assert time.monotonic() < end, f"there are {cluster.replicas()}, and not {replicas}"
        time.sleep(0.2)


def test_the_pages_lines_deploy_a_repository(cluster: Cluster, repository: Path) -> None:
    """With another place, port and number of processors."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    port = cluster.address.rpartition(":")[2]
    for old, new in (("/srv/models", str(repository)), ("port=9000", f"port={port}"), ("cpus=2", "cpus=1")):
        assert old in code
        code = code.replace(old, new)
    exec(code, {})
    with cluster.client(MODEL) as client:
        assert client.classify([RED], model=MODEL).results[0].predictions[0].label == "red"


class Callers:
    """Threads that ask on, each with a pause between its calls, until they are told to stop. A wrong answer raises."""

    def __init__(self, client: Client, count: int, pause_s: float = 0.0) -> None:
        self._client, self._pause_s, self._count = client, pause_s, count
        self._over = threading.Event()

    def __enter__(self) -> Self:
        self._pool = ThreadPoolExecutor(self._count)
        self._asked = [self._pool.submit(self._ask) for _ in range(self._count)]
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._pool.shutdown()

    def _ask(self) -> int:
        count = 0
        while not self._over.wait(self._pause_s):
            answer = self._client.classify([RED], model=MODEL)
            assert answer.results[0].predictions[0].label == "red"
            count += 1
        return count

    def check(self) -> None:
        for one in self._asked:
            if one.done():
                one.result()

    def stop(self) -> int:
        """Calls, all of them answered."""
        self._over.set()
        return sum(one.result() for one in self._asked)


def test_replicas_come_and_go_with_the_load(cluster: Cluster, repository: Path) -> None:
    options = {"target_requests": 2, "upscale_delay_s": 1, "downscale_delay_s": 5}
    handle = cluster.deploy(repository, min_replicas=1, max_replicas=2, **options)
    with cluster.client(MODEL) as client:
        wait_for(ONE, cluster, lambda: None)
        # So that calls are inside when a replica comes, and when it goes.
        with Callers(client, FEW, pause_s=0.05) as few:
            with Callers(client, CROWD) as crowd:
                wait_for(TWO, cluster, crowd.check)
                # A model is loaded by the first call that comes for it: the new one gets its share.
                end = time.monotonic() + 60
                while any(handle.loaded.remote().result() != [MODEL] for _ in range(20)):
                    crowd.check()
                    assert time.monotonic() < end
                    time.sleep(0.5)
                assert crowd.stop() > 100
            wait_for(ONE, cluster, few.check)
            assert few.stop() > 100
        assert client.classify([RED], model=MODEL).results[0].predictions[0].label == "red"


def test_what_waits_beyond_the_queue_is_refused(cluster: Cluster, repository: Path) -> None:
    """And what was let in is answered. Room in the replica for two, and before it for as many."""
    cluster.deploy(repository, target_requests=2, settings={"queue_limit": 2, "max_images_per_request": 1})

    def is_answered(client: Client) -> bool:
        try:
            return client.classify([RED], model=MODEL).results[0].predictions[0].label == "red"
        except OverloadedError:
            return False

    with cluster.client(MODEL) as client, ThreadPoolExecutor(CROWD) as pool:
        wait_for(ONE, cluster, lambda: None)
        answered = list(pool.map(is_answered, [client] * 20 * CROWD))
    assert 0 < sum(answered) < len(answered)
