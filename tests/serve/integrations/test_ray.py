"""A repository in Ray Serve, on a cluster of two nodes in this machine: answers, errors, models, a node that dies.

With FERRYMAN_RAY, in an environment that has Ray. A minute, and several on a busy machine.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest

from ferryman.client import Client
from ferryman.errors import ImageError, ModelNotFoundError, TaskError, UsageError

from ..toy import make_picture, make_toy_repository
from .cluster import Cluster

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


@pytest.fixture(scope="module")
def handle(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Any:
    repository = make_toy_repository(tmp_path_factory.mktemp("ray"), MODELS)
    return cluster.deploy(repository, min_replicas=2, max_replicas=2, max_models=2)


@pytest.fixture
def client(cluster: Cluster, handle: Any) -> Generator[Client]:
    with cluster.client("toy-classifier") as client:
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


def test_a_replica_holds_no_more_models_than_it_may(handle: Any, client: Client) -> None:
    for _ in range(3):
        for _ in range(4):  # both replicas
            client.classify([RED], model="toy-classifier")
            client.detect([RED], model="toy-detector")
            client.embed([RED], model="toy-embedder")
        assert len(handle.loaded.remote().result()) <= 2


def test_models_that_make_room_for_one_another_lose_no_answer(handle: Any, client: Client) -> None:
    """Of three models a replica holds two, and callers ask all at once: each takes out what another has calls in."""
    asks: list[Callable[[], bool]] = [
        lambda: client.classify([RED], model="toy-classifier").results[0].predictions[0].label == "red",
        lambda: bool(client.detect([RED], model="toy-detector", score_threshold=0.0).results[0].detections),
        lambda: client.embed([RED], model="toy-embedder").results[0].cls.shape == (3,),
    ]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda ask: ask(), asks * 20))
    assert answers == [True] * 60
    assert len(handle.loaded.remote().result()) <= 2


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
