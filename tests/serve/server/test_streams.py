"""Streams: order, errors of single frames, back-pressure, and how they end."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import pytest

from ferryman.v1 import vision_pb2 as pb

from ..toy import make_picture, make_pictures
from .gate import Gate
from .inside import calling, running, until

DETECTOR = pb.ModelRef(name="toy-detector")
CLASSIFIER = pb.ModelRef(name="toy-classifier")


def detect_frame(frame_id: int, picture: bytes, score_threshold: float | None = None) -> pb.StreamDetectRequest:
    request = pb.DetectRequest(model=DETECTOR, images=[picture], score_threshold=score_threshold)
    return pb.StreamDetectRequest(frame_id=frame_id, request=request)


async def test_answers_come_in_order_and_a_bad_frame_ends_nothing(toy_repository: Path) -> None:
    # A large picture is decoded long after the small ones that follow it.
    pictures = [make_picture((9, 9, 200), 700, 700), *make_pictures(30)]
    frames = [detect_frame(1000 - i, picture) for i, picture in enumerate(pictures)]
    frames[7] = detect_frame(7, b"not an image")
    frames[8] = detect_frame(8, pictures[8], score_threshold=2)
    frames[9] = pb.StreamDetectRequest(frame_id=9, request=pb.DetectRequest(model=CLASSIFIER, images=pictures[:1]))
    async with running(toy_repository) as server, calling(server.address) as caller:
        answers = [answer async for answer in caller.vision.StreamDetect(iter(frames))]
        assert [answer.frame_id for answer in answers] == [frame.frame_id for frame in frames]
        for index, (picture, answer) in enumerate(zip(pictures, answers, strict=True)):
            if index in {7, 8, 9}:
                assert answer.WhichOneof("answer") == "error"
                continue
            alone = await caller.vision.Detect(pb.DetectRequest(model=DETECTOR, images=[picture]))
            [found], [expected] = answer.response.results, alone.results
            assert found.size == expected.size
            assert [d.label for d in found.detections] == [d.label for d in expected.detections]
            assert [d.score for d in found.detections] == pytest.approx([d.score for d in expected.detections])
            assert answer.response.timings.total_ms > 0
        errors = {answer.frame_id: answer.error for answer in answers if answer.HasField("error")}
        invalid = grpc.StatusCode.INVALID_ARGUMENT.value[0]
        assert [errors[i].code for i in (7, 8, 9)] == [invalid] * 3
        assert [errors[i].reason for i in (7, 8, 9)] == ["ImageError", "UsageError", "TaskError"]
        assert "not a JPEG" in errors[7].message


async def test_classes_stream_too(toy_repository: Path) -> None:
    async def frames() -> AsyncIterator[pb.StreamClassifyRequest]:
        for index, picture in enumerate(make_pictures(5)):
            request = pb.ClassifyRequest(model=CLASSIFIER, images=[picture], top_k=1)
            yield pb.StreamClassifyRequest(frame_id=index, request=request)

    async with running(toy_repository) as server, calling(server.address) as caller:
        answers = [answer async for answer in caller.vision.StreamClassify(frames())]
        assert [answer.frame_id for answer in answers] == [0, 1, 2, 3, 4]
        assert all(len(answer.response.results[0].predictions) == 1 for answer in answers)


async def test_an_empty_stream_ends(toy_repository: Path) -> None:
    async with running(toy_repository) as server, calling(server.address) as caller:
        assert [answer async for answer in caller.vision.StreamDetect(iter(()))] == []


async def test_an_unexpected_error_ends_only_its_frame(toy_repository: Path) -> None:
    gate = Gate(is_open=True)
    gate.fail_with(ZeroDivisionError("secret"))
    async with running(toy_repository, gate) as server, calling(server.address) as caller:
        stream = caller.vision.StreamDetect()
        await stream.write(detect_frame(1, make_picture((1, 2, 3))))
        answer = await stream.read()
        assert answer.error.code == grpc.StatusCode.INTERNAL.value[0]
        assert answer.error.message == "the server met an unexpected error; its log says more"
        gate.fail_with(None)
        await stream.write(detect_frame(2, make_picture((1, 2, 3))))
        assert (await stream.read()).frame_id == 2
        await stream.done_writing()
        assert await stream.read() == grpc.aio.EOF


async def test_a_fast_camera_is_held_back(toy_repository: Path) -> None:
    gate = Gate()
    async with running(toy_repository, gate, stream_window=3) as server, calling(server.address) as caller:
        engine = await server.models.get("toy-detector")
        stream = caller.vision.StreamDetect(detect_frame(i, make_picture((i, 0, 0))) for i in range(20))
        await until(lambda: engine.images_inside == 3)
        # Another request passes through all stages while the stream could go on, and it has not.
        other = await caller.vision.ModelInfo(pb.ModelInfoRequest(model=DETECTOR))
        assert other.model.name == "toy-detector"
        assert engine.images_inside == 3
        gate.open()
        assert [answer.frame_id async for answer in stream] == list(range(20))
        assert engine.images_inside == 0
        assert max(gate.batches) <= 3


async def test_a_client_that_leaves_frees_its_places(toy_repository: Path) -> None:
    gate = Gate()
    async with running(toy_repository, gate) as server, calling(server.address) as caller:
        engine = await server.models.get("toy-detector")
        stream = caller.vision.StreamDetect(detect_frame(i, make_picture((i, 0, 0))) for i in range(20))
        await until(lambda: engine.images_inside == 4)
        stream.cancel()
        await until(lambda: engine.images_inside == 0)
        await until(lambda: server.calls.count == 0)


async def test_a_stopping_server_answers_the_frames_that_it_has_read(toy_repository: Path) -> None:
    gate = Gate()
    async with running(toy_repository, gate) as server, calling(server.address) as caller:
        engine = await server.models.get("toy-detector")
        stream, idle = caller.vision.StreamDetect(), caller.vision.StreamDetect()
        for index in range(3):
            await stream.write(detect_frame(index, make_picture((index, 0, 0))))
        await idle.write(detect_frame(9, b""))
        assert (await idle.read()).frame_id == 9
        await until(lambda: engine.images_inside == 3)
        stopping = asyncio.create_task(server.stop())
        await asyncio.sleep(0)
        gate.open()
        assert [(await stream.read()).frame_id for _ in range(3)] == [0, 1, 2]
        for call in (stream, idle):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
            assert "the frames that it had read are answered" in (caught.value.details() or "")
        await stopping
