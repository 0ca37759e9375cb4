"""A server process is told to stop while streams of both services are busy: nothing that it took is lost or wrong."""

import asyncio
import signal
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import pytest

from ferryman.client import AsyncClient
from ferryman.errors import UnavailableError
from ferryman.inference import grpc_service_pb2 as oip
from ferryman.preprocess import preprocess_image, stack_inputs
from ferryman.results import Detections, detections_from_outputs
from ferryman.v1 import vision_pb2 as pb

from ..toy import SPECS, make_picture, toy_reference
from .inference.asking import arrays_of, infer_pictures
from .inside import Caller, calling
from .process import ServerProcess

MODEL = "toy-detector"
PICTURES = [make_picture((40 * seed, 255 - 30 * seed, 90), seed=seed) for seed in range(5)]
# Of each kind; answers that each has before the server is told. The log's line a request must fit a pipe of 64 KiB.
STREAMS, FRAMES = 3, 20


def reference() -> tuple[list[dict[str, Any]], list[Detections]]:
    """What each picture's answer is, as tensors and as typed detections, in numpy."""
    spec = SPECS[MODEL]
    tensors: list[dict[str, Any]] = []
    detections: list[Detections] = []
    for picture in PICTURES:
        canvas, geometry = preprocess_image(picture, spec.preprocess)
        outputs = dict(toy_reference(MODEL, stack_inputs([canvas], [geometry], spec.input_names)))
        tensors.append(outputs)
        detections.append(detections_from_outputs(outputs, 0, geometry, spec, 0.0))
    return tensors, detections


@dataclass
class Stream:
    """A camera that sends on and on, up to ten frames ahead of the answers.

    answered: numbers of the frames that were, in the order of the answers; wrong: of those with another's answer
    """

    answered: list[int] = field(default_factory=list[int])
    wrong: list[int] = field(default_factory=list[int])
    end: tuple[str, str] = ("", "")

    def __post_init__(self) -> None:
        self._ahead = asyncio.Semaphore(10)

    async def numbers(self) -> AsyncIterator[int]:
        for number in count():
            await self._ahead.acquire()
            yield number

    def note(self, number: int, right: bool) -> None:
        self.answered.append(number)
        if not right:
            self.wrong.append(number)
        self._ahead.release()


async def watch_typed(caller: Caller, stream: Stream, expected: Sequence[Detections]) -> None:
    async def frames() -> AsyncIterator[pb.StreamDetectRequest]:
        async for number in stream.numbers():
            images = [PICTURES[number % len(PICTURES)]]
            request = pb.DetectRequest(model=pb.ModelRef(name=MODEL), images=images, score_threshold=0.0)
            yield pb.StreamDetectRequest(frame_id=number, request=request)

    async for answer in caller.vision.StreamDetect(frames()):
        right = expected[answer.frame_id % len(PICTURES)]
        found = answer.response.results[0].detections if answer.HasField("response") else []
        boxes = [[one.box.x1, one.box.y1, one.box.x2, one.box.y2] for one in found]
        same = [one.class_id for one in found] == [one.class_id for one in right.detections]
        stream.note(answer.frame_id, same and np.allclose(boxes, [one.box_xyxy for one in right.detections], atol=1e-2))


async def watch_tensors(caller: Caller, stream: Stream, expected: Sequence[dict[str, Any]]) -> None:
    async def requests() -> AsyncIterator[oip.ModelInferRequest]:
        async for number in stream.numbers():
            yield infer_pictures(MODEL, [PICTURES[number % len(PICTURES)]], id=str(number))

    async for answer in caller.inference.ModelStreamInfer(requests()):
        number = int(answer.infer_response.id)
        found = {} if answer.error_message else arrays_of(answer.infer_response)
        right = expected[number % len(PICTURES)]
        stream.note(number, bool(found) and all(np.allclose(found[name], right[name], atol=1e-4) for name in right))


async def watch_our_client(address: str, stream: Stream, expected: Sequence[Detections]) -> None:
    async def pictures() -> AsyncIterator[bytes]:
        async for number in stream.numbers():
            yield PICTURES[number % len(PICTURES)]

    async with AsyncClient(address) as client:
        try:
            async for frame in client.stream_detect(pictures(), model=MODEL, score_threshold=0.0):
                right = expected[frame.frame_id % len(PICTURES)].detections
                boxes = [one.box_xyxy for one in frame.result.detections]
                stream.note(frame.frame_id, np.allclose(boxes, [one.box_xyxy for one in right], atol=1e-2))
        except UnavailableError as error:
            stream.end = (error.grpc_status, str(error))


async def follow(watch: Any, caller: Caller, stream: Stream, expected: Any) -> None:
    try:
        await watch(caller, stream, expected)
    except grpc.aio.AioRpcError as error:
        stream.end = (error.code().name, error.details() or "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_streams_are_answered_what_was_taken(toy_repository: Path, number: signal.Signals) -> None:
    tensors, detections = reference()
    settings = {"repository": str(toy_repository), "threads": 1, "log_requests": True, "grace_seconds": 60}
    server = await asyncio.to_thread(ServerProcess, settings)
    with server:
        async with calling(server.address) as one, calling(server.address) as two:
            streams, ours = [Stream() for _ in range(2 * STREAMS)], Stream()
            everyone = (*streams, ours)
            kinds = [(watch_typed, detections), (watch_tensors, tensors)]
            async with asyncio.timeout(240), asyncio.TaskGroup() as group:
                for index, stream in enumerate(streams):
                    watch, expected = kinds[index % 2]
                    group.create_task(follow(watch, (one, two)[index // 2 % 2], stream, expected))
                group.create_task(watch_our_client(server.address, ours, detections))
                while any(len(stream.answered) < FRAMES for stream in everyone):
                    await asyncio.sleep(0.001)
                server.signal(number)
        assert await asyncio.to_thread(server.wait) == 0
    assert [stream.wrong for stream in everyone] == [[]] * len(everyone)
    assert (ours.end[0], ours.answered) == ("UNAVAILABLE", list(range(len(ours.answered))))
    for index, stream in enumerate(streams):
        code, text = stream.end
        # A client that was sending just then: grpc.aio forgets what the server said.
        lost = stream.end == ("INTERNAL", "Internal error from Core")
        assert lost or (code, text.startswith("the server is stopping; the ")) == ("UNAVAILABLE", True), stream.end
        # All frames up to one, each once; those of VisionService in their order.
        found = stream.answered if index % 2 == 0 else sorted(stream.answered)
        assert found == list(range(len(found)))
    # The server's own account: as many as were answered were taken.
    lines = [line for line in server.stderr.splitlines() if " request: " in line]
    assert all("code=OK images=1" in line for line in lines)
    assert len(lines) == sum(len(stream.answered) for stream in everyone)
    assert f"in_flight={len(streams) + 1} cancelled=0" in server.stderr
    assert "Traceback" not in server.stderr
