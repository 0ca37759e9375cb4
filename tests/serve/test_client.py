"""Both clients against a real server process, and against one whose failures the tests choose."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ferryman.bundle import Bundle
from ferryman.client import Answer, AsyncClient, Client
from ferryman.errors import (
    FerrymanError,
    FileAccessError,
    ImageError,
    ModelNotFoundError,
    TaskError,
    UnavailableError,
    UsageError,
)
from ferryman.predictor import Predictor
from ferryman.results import Embedding

from .both import PATIENCE_S, Both
from .server.process import ServerProcess
from .toy import make_picture, make_pictures


@pytest.fixture
def both(toy_server: str) -> Both:
    return Both(toy_server)


def test_classify(both: Both, toy_repository: Path, tmp_path: Path) -> None:
    pictures = make_pictures(3)
    path = tmp_path / "picture.png"
    path.write_bytes(pictures[2])
    answer = both.classify([*pictures[:2], path], model="toy-classifier", top_k=2)
    with Predictor.open(toy_repository / "toy-classifier") as predictor:
        expected, _ = predictor.classify(pictures, top_k=2)
    for found, wanted in zip(answer.results, expected, strict=True):
        assert found.size == wanted.size
        assert [p.label for p in found.predictions] == [p.label for p in wanted.predictions]
        assert [p.score for p in found.predictions] == pytest.approx([p.score for p in wanted.predictions])
    assert answer.timings.total_ms > 0
    assert (answer.answerer.name, answer.answerer.version) == ("toy-classifier", 1)
    assert answer.answerer.bundle_digest == Bundle.open(toy_repository / "toy-classifier").digest
    assert len(both.classify(pictures, model="toy-classifier").results[0].predictions) == 4


def test_all_addresses_of_a_name(toy_server: str) -> None:
    """tests/docker/kubernetes/test_draining.py has two of them."""
    answer = Both(f"dns:///{toy_server}").classify(make_pictures(1), model="toy-classifier")
    assert answer.answerer.name == "toy-classifier"


def test_detect(both: Both) -> None:
    answer = both.detect([make_picture((200, 40, 90), 300, 100)], model="toy-detector", version=1, score_threshold=0)
    [result] = answer.results
    assert result.size == (300, 100)
    assert len(result.detections) == 3
    for found in result.detections:
        x1, y1, x2, y2 = found.box_xyxy
        assert 0 <= x1 < x2 <= 300
        assert 0 <= y1 < y2 <= 100
    assert both.detect([make_picture((9, 9, 9))], model="toy-detector", score_threshold=1).results[0].detections == ()


def test_embed(both: Both, toy_repository: Path) -> None:
    picture = make_picture((10, 200, 100))
    with Predictor.open(toy_repository / "toy-embedder") as predictor:
        [expected], _ = predictor.embed([picture])
    [found] = both.embed([picture], model="toy-embedder").results
    assert found.patches.shape == (4, 4, 3)
    np.testing.assert_allclose(found.cls, expected.cls, atol=1e-6)
    np.testing.assert_allclose(found.patches, expected.patches, atol=1e-6)


def test_model_info(both: Both, toy_repository: Path) -> None:
    facts = both.model_info("toy-detector")
    bundle = Bundle.open(toy_repository / "toy-detector")
    assert (facts.name, facts.version, facts.task) == ("toy-detector", 1, "detection")
    assert (facts.bundle_digest, facts.checkpoint_digest) == (bundle.digest, bundle.manifest.source.sha256)
    assert facts.labels == bundle.spec.labels
    assert {one.output: one.limit for one in facts.parity}["logits"] is None
    assert facts.parity[1].max_abs_error <= (facts.parity[1].limit or 0)


def test_readiness(both: Both) -> None:
    both.wait_ready(timeout=PATIENCE_S)
    both.wait_ready("toy-detector", timeout=PATIENCE_S)
    assert both.is_ready(timeout=PATIENCE_S)
    assert both.is_ready("toy-detector", timeout=PATIENCE_S)
    assert not both.is_ready("vit", timeout=PATIENCE_S)
    with pytest.raises(ModelNotFoundError, match="has no model 'vit'"):
        both.wait_ready("vit", timeout=PATIENCE_S)


PICTURE = make_picture((1, 2, 3))
WRONG: dict[str, tuple[str, tuple[Any, ...], dict[str, Any], type[FerrymanError], str]] = {
    "no image": ("classify", ([],), {"model": "toy-classifier"}, UsageError, "holds no image"),
    "an image, not a list": ("classify", (PICTURE,), {"model": "toy-classifier"}, UsageError, "write [image]"),
    "a number": ("classify", ([7],), {"model": "toy-classifier"}, UsageError, "bytes or the path of a file, got int"),
    "a name": ("classify", (["cat.png"],), {"model": "toy-classifier"}, FileAccessError, "can't read cat.png: No such"),
    "no such file": (
        "classify", ([Path("/no/such/file")],), {"model": "toy-classifier"}, FileAccessError, "can't read /no/such/"),
    "a folder": ("classify", ([Path("/")],), {"model": "toy-classifier"}, FileAccessError, "can't read /: "),
    "text": ("detect", ([b"hello"],), {"model": "toy-detector"}, ImageError, "the 5 bytes are not a JPEG"),
    "unknown model": ("embed", ([PICTURE],), {"model": "vit"}, ModelNotFoundError, "there is no model 'vit'"),
    "another task": ("embed", ([PICTURE],), {"model": "toy-detector"}, TaskError, "toy-detector is a detection model"),
    "top_k 0": ("classify", ([PICTURE],), {"model": "toy-classifier", "top_k": 0}, UsageError, "top_k is 0"),
    "top_k that no message holds": (
        "classify", ([PICTURE],), {"model": "toy-classifier", "top_k": 2**31}, UsageError, "top_k is 2147483648"),
    "version that no message holds": (
        "model_info", ("toy-classifier",), {"version": 2**63}, UsageError, "which is out of range"),
    "threshold 2": (
        "detect", ([PICTURE],), {"model": "toy-detector", "score_threshold": 2}, UsageError, "score_threshold is 2"),
    "maps of what was exported without": (
        "embed", ([PICTURE],), {"model": "toy-embedder", "explain": True}, UsageError,
        "toy-embedder was exported without attention maps"),
    "no time": (
        "detect", ([PICTURE],), {"model": "toy-detector", "timeout": 0}, UsageError, "timeout is 0, expected seconds"),
    "too large for this client": (
        "classify", ([bytes(2**20)],), {"model": "toy-classifier"}, UsageError, "more than the limit of 1,000,000"),
}  # fmt: skip


@pytest.mark.parametrize(("method", "arguments", "options", "error", "message"), WRONG.values(), ids=WRONG)
def test_wrong_calls(
    toy_server: str,
    method: str,
    arguments: tuple[Any, ...],
    options: dict[str, Any],
    error: type[FerrymanError],
    message: str,
) -> None:
    both = Both(toy_server, max_message_bytes=1_000_000)
    with pytest.raises(error) as caught:
        getattr(both, method)(*arguments, **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_error_names_the_field(toy_server: str) -> None:
    with Client(toy_server) as client, pytest.raises(UsageError) as caught:
        client.detect([PICTURE], model="toy-detector", score_threshold=-1)
    assert caught.value.field == "score_threshold"


def test_an_answer_larger_than_the_client_takes(toy_server: str) -> None:
    with Client(toy_server, max_message_bytes=6_000) as client, pytest.raises(UsageError, match="larger than max"):
        client.embed([make_picture((1, 2, 3), 1, 1)] * 40, model="toy-embedder")


def test_a_request_larger_than_the_server_takes(toy_repository: Path) -> None:
    with (
        ServerProcess({"repository": str(toy_repository), "max_message_bytes": 2048}) as server,
        Client(server.address) as client,
        pytest.raises(UsageError, match="larger than max"),
    ):
        client.classify([bytes(4096)], model="toy-classifier")


def test_hundreds_of_requests_each_get_their_own_answer(toy_server: str, toy_repository: Path) -> None:
    pictures = make_pictures(300)
    with Predictor.open(toy_repository / "toy-classifier") as predictor:
        expected, _ = predictor.classify(pictures, top_k=4)
    with Client(toy_server, timeout=PATIENCE_S) as client, ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(partial(client.classify, model="toy-classifier"), [[one] for one in pictures]))
    for answer, wanted in zip(answers, expected, strict=True):
        assert answer.results[0].size == wanted.size
        scores = {p.label: p.score for p in answer.results[0].predictions}
        assert scores == pytest.approx({p.label: p.score for p in wanted.predictions}, abs=1e-6)


async def test_hundreds_of_tasks_each_get_their_own_answer(toy_server: str, toy_repository: Path) -> None:
    pictures = make_pictures(200)
    with Predictor.open(toy_repository / "toy-classifier") as predictor:
        expected, _ = predictor.classify(pictures, top_k=1)
    async with AsyncClient(toy_server, timeout=PATIENCE_S) as client:
        # Requests of one to five pictures, all at once.
        starts = [sum(1 + i % 5 for i in range(count)) for count in range(66)]
        asked = [
            client.classify(pictures[start : start + 1 + i % 5], model="toy-classifier", top_k=1)
            for i, start in enumerate(starts)
        ]
        answers = await asyncio.gather(*asked)
    found = [result for answer in answers for result in answer.results]
    assert len(found) > 190
    assert [result.predictions[0].label for result in found] == [
        result.predictions[0].label for result in expected[: len(found)]
    ]


def test_a_closed_client(toy_server: str) -> None:
    client = Client(toy_server)
    client.close()
    client.close()
    with pytest.raises(UnavailableError, match="the client is closed"):
        client.classify([PICTURE], model="toy-classifier")
    with pytest.raises(UnavailableError, match="the client is closed"):
        list(client.stream_detect([PICTURE], model="toy-detector"))


async def test_a_closed_async_client(toy_server: str) -> None:
    client = AsyncClient(toy_server)
    await client.close()
    await client.close()
    with pytest.raises(UnavailableError, match="the client is closed"):
        await client.classify([PICTURE], model="toy-classifier")
    with pytest.raises(UnavailableError, match="the client is closed"):
        _ = [frame async for frame in client.stream_detect([PICTURE], model="toy-detector")]


def test_both_clients_offer_the_same() -> None:
    """And say so to `help`, though each method is written once for both."""

    def methods(client: type) -> dict[str, list[str]]:
        return {
            name: list(signature(method).parameters)
            for name, method in vars(client).items()
            if not name.startswith("_")
        }

    assert methods(Client) == methods(AsyncClient)
    assert len(methods(Client)) == 12
    assert methods(Client)["embed"] == ["self", "images", "model", "version", "explain", "timeout"]
    assert methods(Client)["stream_detect"][:3] == ["self", "frames", "model"]
    assert signature(AsyncClient.embed).return_annotation == Answer[Embedding]
    assert all(method.__doc__ and method.__name__ == name for name, method in vars(Client).items() if name[0] != "_")
