"""A repository in Ray Serve, on a cluster of two nodes in this machine: answers, errors, models, a node that dies.

With FERRYMAN_RAY, in an environment that has Ray. A minute, and several on a busy machine.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil
import pytest

from ferryman.client import Client
from ferryman.errors import ImageError, ModelNotFoundError, TaskError, UsageError

from ..server.process import free_address
from ..toy import make_picture, make_toy_repository

MISSING = """
import sys
sys.modules["ray"] = None
from ferryman.integrations.ray import start
start()
"""

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore"),  # Ray's own: deprecations of pydantic, sockets of nodes that end
]
MODELS = ["toy-classifier", "toy-detector", "toy-embedder"]
RED, BLUE = make_picture((250, 10, 10)), make_picture((10, 10, 250))


class Cluster:
    """Two nodes, each with room for one replica; a client reaches all by the proxy of the first."""

    def __init__(self, repository: Path, **options: object) -> None:
        from ferryman.integrations.ray import Options, app, start

        self._ray: Any = import_module("ray")
        self._serve: Any = import_module("ray.serve")
        head = {"num_cpus": 1, "include_dashboard": False}
        self.nodes: Any = import_module("ray.cluster_utils").Cluster(initialize_head=True, head_node_args=head)
        self.second = self.nodes.add_node(num_cpus=1)
        self._ray.init(address=self.nodes.address, log_to_driver=False)
        self.address = free_address()
        start(int(self.address.rpartition(":")[2]))
        facts = Options(repository=repository, min_replicas=2, max_replicas=2, **options)  # pyright: ignore
        self.handle: Any = self._serve.run(app(facts), name="ferryman", route_prefix="/ferryman")

    def end(self) -> None:
        self._serve.shutdown()
        self._ray.shutdown()
        self.nodes.shutdown()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Generator[Cluster]:
    if "FERRYMAN_RAY" not in os.environ:
        pytest.skip("set FERRYMAN_RAY (minutes; pip install '.[ray]')")
    one = Cluster(make_toy_repository(tmp_path_factory.mktemp("ray"), MODELS), max_models=2)
    yield one
    one.end()


@pytest.fixture
def client(cluster: Cluster) -> Generator[Client]:
    with Client(cluster.address, timeout=60) as client:
        end = time.monotonic() + 120
        while not client.is_ready("toy-classifier"):  # a proxy that has not heard of the application finds nothing
            assert time.monotonic() < end
            time.sleep(0.2)
        yield client


def test_what_is_missing_is_told_with_what_installs_it() -> None:
    done = subprocess.run([sys.executable, "-c", MISSING], capture_output=True, text=True, check=False)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ferryman.errors.MissingExtraError: Ray Serve (ray")
    assert last.endswith("install it with: pip install 'ferryman[ray]'")


def test_it_answers_as_a_server_does(client: Client) -> None:
    answers = [client.classify([picture], model="toy-classifier") for picture in (RED, BLUE)]
    assert [answer.results[0].predictions[0].label for answer in answers] == ["red", "blue"]
    assert answers[0].answerer.name == "toy-classifier"
    assert client.detect([RED], model="toy-detector", score_threshold=0.0).results[0].detections
    assert client.embed([RED], model="toy-embedder").results[0].cls.shape == (3,)
    assert client.model_info("toy-detector").task == "detection"
    frames = [RED, b"no picture", RED]
    streamed = list(client.stream_detect(frames, model="toy-detector", score_threshold=0.0))
    assert [frame.frame_id for frame in streamed] == [0, 1, 2]
    assert [type(frame.error) for frame in streamed] == [type(None), ImageError, type(None)]
    cases: list[tuple[type[Exception], Callable[[], object]]] = [
        (ModelNotFoundError, lambda: client.classify([RED], model="none")),
        (ModelNotFoundError, lambda: client.wait_ready("none", timeout=5)),
        (TaskError, lambda: client.classify([RED], model="toy-detector")),
        (UsageError, lambda: client.classify([RED], model="toy-classifier", top_k=0)),
        (ImageError, lambda: client.classify([b"no picture"], model="toy-classifier")),
    ]
    for kind, ask in cases:
        with pytest.raises(kind):
            ask()


def test_a_replica_holds_no_more_models_than_it_may(cluster: Cluster, client: Client) -> None:
    for _ in range(3):
        for _ in range(4):  # both replicas
            client.classify([RED], model="toy-classifier")
            client.detect([RED], model="toy-detector")
            client.embed([RED], model="toy-embedder")
        assert len(cluster.handle.loaded.remote().result()) <= 2


def kill_a_replica() -> None:
    """With calls inside."""
    found = [one for one in psutil.process_iter() if "ServeReplica" in " ".join(one.cmdline())]
    found[0].suspend()
    time.sleep(0.5)
    found[0].kill()


@pytest.mark.parametrize("what", ["a replica", "a node"])
def test_what_dies_loses_no_answer(cluster: Cluster, client: Client, what: str) -> None:
    end = time.monotonic() + 10

    def ask_on() -> int:
        count = 0
        while time.monotonic() < end:
            answer = client.classify([RED], model="toy-classifier")
            assert answer.results[0].predictions[0].label == "red"
            count += 1
        return count

    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(ask_on) for _ in range(6)]
        time.sleep(2)
        if what == "a replica":
            kill_a_replica()
        else:
            cluster.nodes.remove_node(cluster.second, allow_graceful=False)
        assert sum(one.result() for one in asked) > 50
