"""Both clients against a real server process, and against one whose failures the tests choose."""

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_status import rpc_status

from ferryman.bundle import Bundle
from ferryman.client import Answer, AsyncClient, Client, RetryPolicy
from ferryman.errors import (
    DeadlineError,
    FerrymanError,
    FileAccessError,
    ImageError,
    ModelNotFoundError,
    OverloadedError,
    TaskError,
    UnavailableError,
    UsageError,
)
from ferryman.predictor import Predictor
from ferryman.results import Classification
from ferryman.status import status_from_error
from ferryman.v1 import vision_pb2 as pb
from ferryman.v1 import vision_pb2_grpc

from .server.process import ServerProcess
from .toy import make_picture, make_pictures

ONCE = RetryPolicy(attempts=1)
FAST = RetryPolicy(attempts=4, first_pause_s=0.001, max_pause_s=0.002)


class Both:
    """One interface to both clients: each call is made by the one and by the other, and the answers must agree."""

    def __init__(self, address: str, **settings: Any) -> None:
        self._address = address
        self._settings = settings

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            with Client(self._address, **self._settings) as client:
                blocking = _outcome(lambda: getattr(client, name)(*arguments, **options))

            async def ask() -> Any:
                async with AsyncClient(self._address, **self._settings) as client:
                    return await getattr(client, name)(*arguments, **options)

            awaited = _outcome(lambda: asyncio.run(ask()))
            assert type(blocking) is type(awaited), (blocking, awaited)
            if isinstance(blocking, Answer):
                assert blocking.answerer == awaited.answerer
            elif not isinstance(blocking, FerrymanError):
                assert blocking == awaited
            if isinstance(blocking, FerrymanError):
                raise blocking
            return blocking

        return call


def _outcome(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except FerrymanError as error:
        return error


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
    both.wait_ready()
    both.wait_ready("toy-detector")
    assert both.is_ready()
    assert both.is_ready("toy-detector")
    assert not both.is_ready("vit")
    with pytest.raises(ModelNotFoundError, match="has no model 'vit'"):
        both.wait_ready("vit")


PICTURE = make_picture((1, 2, 3))
WRONG: dict[str, tuple[str, tuple[Any, ...], dict[str, Any], type[FerrymanError], str]] = {
    "no image": ("classify", ([],), {"model": "toy-classifier"}, UsageError, "holds no image"),
    "an image, not a list": ("classify", (PICTURE,), {"model": "toy-classifier"}, UsageError, "write [image]"),
    "a word": ("classify", (["cat.png"],), {"model": "toy-classifier"}, UsageError, "bytes or a Path, got str"),
    "no such file": (
        "classify", ([Path("/no/such/file")],), {"model": "toy-classifier"}, FileAccessError, "can't read /no/such/file"),
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
    with Client(toy_server, max_message_bytes=8_000) as client, pytest.raises(UsageError, match="larger than max"):
        client.embed([PICTURE] * 40, model="toy-embedder")


def test_a_request_larger_than_the_server_takes(toy_repository: Path) -> None:
    with ServerProcess({"repository": str(toy_repository), "max_message_bytes": 2048}) as server:
        with Client(server.address) as client, pytest.raises(UsageError, match="larger than max"):
            client.classify([bytes(4096)], model="toy-classifier")


def test_hundreds_of_requests_each_get_their_own_answer(toy_server: str, toy_repository: Path) -> None:
    pictures = make_pictures(300)
    with Predictor.open(toy_repository / "toy-classifier") as predictor:
        expected, _ = predictor.classify(pictures, top_k=4)
    with Client(toy_server) as client, ThreadPoolExecutor(24) as pool:
        ask: Callable[[bytes], Answer[Classification]] = lambda one: client.classify(  # noqa: E731
            [one], model="toy-classifier"
        )
        answers = list(pool.map(ask, pictures))
    for answer, wanted in zip(answers, expected, strict=True):
        assert answer.results[0].size == wanted.size
        scores = {p.label: p.score for p in answer.results[0].predictions}
        assert scores == pytest.approx({p.label: p.score for p in wanted.predictions}, abs=1e-6)


async def test_hundreds_of_tasks_each_get_their_own_answer(toy_server: str, toy_repository: Path) -> None:
    pictures = make_pictures(200)
    with Predictor.open(toy_repository / "toy-classifier") as predictor:
        expected, _ = predictor.classify(pictures, top_k=1)
    async with AsyncClient(toy_server) as client:
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


class Moody(vision_pb2_grpc.VisionServiceServicer):
    """Fails as told, one error a call; then answers. None stands for an answer that never comes."""

    def __init__(self, errors: list[FerrymanError | None]) -> None:
        self.errors = errors
        self.calls: list[float] = []
        self.released = threading.Event()

    def Classify(self, request: pb.ClassifyRequest, context: grpc.ServicerContext) -> pb.ClassifyResponse:
        self.calls.append(time.monotonic())
        if self.errors:
            error = self.errors.pop(0)
            if error is None:
                self.released.wait(60)
            else:
                context.abort_with_status(rpc_status.to_status(status_from_error(error)))
        return pb.ClassifyResponse(answerer=pb.Answerer(model=request.model))


@contextmanager
def moody(*errors: FerrymanError | None) -> Iterator[tuple[Moody, str]]:
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        servicer = Moody(list(errors))
        vision_pb2_grpc.add_VisionServiceServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield servicer, f"127.0.0.1:{port}"
        finally:
            servicer.released.set()
            server.stop(None).wait()


def overloaded(seconds: float | None) -> OverloadedError:
    return OverloadedError("too much", seconds)


RETRIES: dict[str, tuple[list[FerrymanError | None], type[FerrymanError] | None, int]] = {
    "stopping, then another server": ([UnavailableError("stopping")], None, 2),
    "full, then room": ([overloaded(0.001)] * 3, None, 4),
    "full for too long": ([overloaded(0.001)] * 4, OverloadedError, 4),
    "full, and no word of when to come back": ([overloaded(None)], OverloadedError, 1),
    "full for longer than the deadline": ([overloaded(60)], OverloadedError, 1),
    "a wrong request": ([UsageError("wrong")], UsageError, 1),
    "a failed engine": ([FerrymanError("broken")], FerrymanError, 1),
    "no time left": ([DeadlineError("late")], DeadlineError, 1),
}


@pytest.mark.parametrize(("errors", "raised", "calls"), RETRIES.values(), ids=RETRIES)
def test_retries_only_where_they_are_safe(
    errors: list[FerrymanError | None], raised: type[FerrymanError] | None, calls: int
) -> None:
    with moody(*errors) as (servicer, address), Client(address, retry=FAST) as client:
        if raised is None:
            assert client.classify([PICTURE], model="toy").answerer.name == "toy"
        else:
            with pytest.raises(raised):
                client.classify([PICTURE], model="toy")
        assert len(servicer.calls) == calls


async def test_retries_of_the_async_client() -> None:
    with moody(UnavailableError("stopping"), overloaded(0.05)) as (servicer, address):
        async with AsyncClient(address, retry=FAST) as client:
            assert (await client.classify([PICTURE], model="toy")).answerer.name == "toy"
        assert len(servicer.calls) == 3
        assert servicer.calls[2] - servicer.calls[1] >= 0.05  # the server's word on when to come back


def test_a_deadline_ends_a_call_that_is_not_repeated() -> None:
    with moody(None) as (servicer, address), Client(address, retry=FAST) as client:
        with pytest.raises(DeadlineError, match="did not answer in time"):
            client.classify([PICTURE], model="toy", timeout=0.1)
        assert len(servicer.calls) == 1


async def test_cancelling_the_caller_cancels_the_call() -> None:
    with moody(None) as (servicer, address):
        async with AsyncClient(address) as client:
            asked = asyncio.create_task(client.classify([PICTURE], model="toy"))
            async with asyncio.timeout(60):
                while not servicer.calls:
                    await asyncio.sleep(0.005)
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_nobody_there() -> None:
    address = f"127.0.0.1:{free_port()}"
    both = Both(address, retry=ONCE)
    assert not both.is_ready(timeout=1)
    with pytest.raises(UnavailableError, match=f"no server answers at {address} .*is `ferryman serve` running there"):
        both.classify([PICTURE], model="toy")
    with pytest.raises(DeadlineError, match=r"the server at .* was not ready within 0.2 s: no server answers"):
        both.wait_ready(timeout=0.2)


def test_a_server_that_starts_late(toy_repository: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    patient = RetryPolicy(attempts=1000, first_pause_s=0.01, max_pause_s=0.1)
    with Client(address, retry=patient, timeout=60) as client, ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(client.wait_ready, "toy-classifier", timeout=60)
        answer = pool.submit(client.classify, [PICTURE], model="toy-classifier")
        with ServerProcess({"repository": str(toy_repository), "address": address, "threads": 1}):
            assert answer.result().answerer.name == "toy-classifier"
            waiting.result()


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


def test_streams(toy_server: str, tmp_path: Path) -> None:
    path = tmp_path / "frame.png"
    path.write_bytes(PICTURE)
    with Client(toy_server) as client:
        frames = list(client.stream_detect([PICTURE, b"", path], model="toy-detector", score_threshold=0))
        assert [frame.frame_id for frame in frames] == [0, 1, 2]
        assert frames[0].result == frames[2].result
        assert len(frames[0].result.detections) == 3
        assert isinstance(frames[1].error, ImageError)
        with pytest.raises(ImageError, match="empty"):
            _ = frames[1].result
        classes = client.stream_classify([PICTURE] * 2, model="toy-classifier", top_k=1)
        assert [len(frame.result.predictions) for frame in classes] == [1, 1]
        assert list(client.stream_detect([], model="toy-detector")) == []


async def test_async_streams(toy_server: str) -> None:
    async def camera() -> AsyncIterator[bytes]:
        for picture in (PICTURE, b"", PICTURE):
            yield picture

    async with AsyncClient(toy_server) as client:
        frames = [frame async for frame in client.stream_detect(camera(), model="toy-detector")]
        assert [frame.error is None for frame in frames] == [True, False, True]
        classes = client.stream_classify([PICTURE] * 2, model="toy-classifier", top_k=1)
        assert [len(frame.result.predictions) async for frame in classes] == [1, 1]


def test_a_camera_that_fails_is_heard_of_after_its_frames(toy_server: str) -> None:
    def camera() -> Iterator[bytes | Path]:
        yield PICTURE
        yield Path("/no/such/file")

    with Client(toy_server) as client:
        stream = client.stream_detect(camera(), model="toy-detector")
        assert next(stream).error is None
        with pytest.raises(FileAccessError):
            next(stream)


async def test_an_async_camera_that_fails_is_heard_of_after_its_frames(toy_server: str) -> None:
    async def camera() -> AsyncIterator[bytes]:
        yield PICTURE
        raise ZeroDivisionError

    async with AsyncClient(toy_server) as client:
        stream = client.stream_detect(camera(), model="toy-detector")
        assert (await anext(stream)).error is None
        with pytest.raises(ZeroDivisionError):
            await anext(stream)


def test_a_stream_can_be_left(toy_server: str) -> None:
    def camera() -> Iterator[bytes]:
        while True:
            yield PICTURE

    with Client(toy_server) as client:
        for frame in client.stream_detect(camera(), model="toy-detector"):
            if frame.frame_id == 5:
                break
        assert client.is_ready()


async def test_an_async_stream_can_be_left(toy_server: str) -> None:
    async with AsyncClient(toy_server) as client:
        stream = client.stream_detect(iter(lambda: PICTURE, None), model="toy-detector")
        async for frame in stream:
            if frame.frame_id == 5:
                break
        await stream.aclose()
        assert await client.is_ready()


def test_a_stream_without_a_server() -> None:
    with Client(f"127.0.0.1:{free_port()}") as client, pytest.raises(UnavailableError):
        list(client.stream_detect([PICTURE], model="toy-detector"))


@pytest.mark.parametrize("policy", [{"attempts": 0}, {"first_pause_s": -1.0}, {"max_pause_s": -1.0}])
def test_a_retry_policy_is_checked(policy: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        RetryPolicy(**policy)


def test_pauses_grow_and_differ() -> None:
    policy = RetryPolicy(attempts=100, first_pause_s=0.1, max_pause_s=2.0)
    error = UnavailableError("gone")
    for attempt, longest in ((1, 0.1), (2, 0.2), (3, 0.4), (10, 2.0), (99, 2.0)):
        pauses = [policy.pause_after(attempt, error) or 0.0 for _ in range(200)]
        assert longest / 2 <= min(pauses) < max(pauses) <= longest
    assert policy.pause_after(100, error) is None
