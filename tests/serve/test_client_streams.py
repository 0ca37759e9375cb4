"""Streams of both clients against a real server process."""

from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path

import pytest

from ferryman.client import AsyncClient, Client
from ferryman.errors import (
    FileAccessError,
    ImageError,
    UsageError,
)

from .toy import make_picture

PICTURE = make_picture((1, 2, 3))


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
        (unexplained,) = client.stream_classify([PICTURE], model="toy-classifier", explain=True)
        assert isinstance(unexplained.error, UsageError)
        assert "was exported without attention maps" in str(unexplained.error)


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
    def camera() -> Generator[bytes | Path, None, None]:
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
