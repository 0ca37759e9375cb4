"""Calls that no client of gRPC's makes, in HTTP/2 byte for byte, and requests that never come whole."""

import asyncio
import re
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from ferryman.server import tidying
from ferryman.server.rpc import server as rpc
from ferryman.server.tidying import Tidier

from .inside import calling, running, until
from .marked import marked

INFER = b"/inference.GRPCInferenceService/ModelInfer"
NAME = INFER[1:].decode()
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
END_STREAM, END_HEADERS = 1, 4


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def headers(path: bytes) -> bytes:
    """HPACK's literals, without its tables."""
    fields = {
        b":method": b"POST", b":scheme": b"http", b":path": path, b":authority": b"x", b"te": b"trailers",
        b"content-type": b"application/grpc",
    }  # fmt: skip
    return b"".join(bytes([0, len(name)]) + name + bytes([len(value)]) + value for name, value in fields.items())


class Raw:
    """A connection. statuses: of gRPC, of the calls that have ended"""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._stream = -1
        self.statuses = Counter[int]()
        writer.write(PREFACE + frame(4, 0, 0, struct.pack(">HI", 1, 0)))  # no table of headers: each is written out
        self._reading = asyncio.create_task(self._read(reader))

    def call(self, path: bytes, data: bytes | None = b"") -> None:
        """data: of a request that does not end; None for none, and the end of it"""
        self._stream += 2
        flags = END_HEADERS | (END_STREAM if data is None else 0)
        self._writer.write(frame(1, flags, self._stream, headers(path)))
        if data:
            self._writer.write(frame(0, 0, self._stream, data))

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while True:
            head = await reader.readexactly(9)
            payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
            if head[3] == 1 and (found := re.search(rb"grpc-status.(\d+)", payload, re.DOTALL)):
                self.statuses[int(found[1])] += 1

    async def close(self) -> None:
        self._reading.cancel()
        await asyncio.wait([self._reading])
        self._writer.close()


async def connect(address: str) -> Raw:
    host, port = address.split(":")
    return Raw(*await asyncio.open_connection(host, int(port)))


@pytest.mark.parametrize(
    ("path", "data", "status"),
    [(b"/\xff\xfe", b"", 12), (b"", b"", 12), (INFER, None, 3), (b"/grpc.health.v1.Health/Check", None, 3)],
    ids=["a path that is no text", "no path", "no request", "no request for health"],
)
async def test_calls_that_no_client_makes(toy_repository: Path, path: bytes, data: bytes | None, status: int) -> None:
    async with running(toy_repository) as server, calling(server.address) as caller:
        raw = await connect(server.address)
        raw.call(path, data)
        await until(lambda: raw.statuses == {status: 1})
        await raw.close()
        assert (await caller.inference.ModelInfer(marked(1))).outputs


async def test_a_request_that_does_not_come_is_waited_for_in_vain_for_a_time(toy_repository: Path) -> None:
    async with running(toy_repository, receive_seconds=1.0) as server, calling(server.address) as caller:
        raw = await connect(server.address)
        raw.call(INFER)
        raw.call(INFER, struct.pack(">BI", 0, 1000) + bytes(999))
        await until(lambda: raw.statuses == {4: 2})
        await raw.close()
        assert server.observer.counts.calls[NAME, "DEADLINE_EXCEEDED"] == 2
        assert (await caller.inference.ModelInfer(marked(1))).outputs


async def test_calls_without_a_request(toy_repository: Path) -> None:
    """Ended so by their clients, who are told, or given up before it came: which is no mistake of theirs."""
    async with running(toy_repository) as server, calling(server.address) as caller:
        calls = server.observer.counts.calls
        ask: Any = caller.channel.stream_unary(f"/{NAME}")  # grpc has no types for the methods of a channel
        empty = ask()
        await empty.done_writing()
        with pytest.raises(grpc.aio.AioRpcError, match="the call holds no request"):
            await empty
        given_up = ask()
        await until(lambda: server.calls_inside == 1)
        given_up.cancel()
        late = ask(timeout=0.3)
        assert await late.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: calls.total() == 3 and server.calls_inside == 0)
        assert calls == {(NAME, "INVALID_ARGUMENT"): 1, (NAME, "CANCELLED"): 1, (NAME, "DEADLINE_EXCEEDED"): 1}


async def test_few_requests_may_come_slowly(toy_repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each may be there but for its last byte. The oldest of the host with most of them gives way."""
    monkeypatch.setattr(rpc, "_LOOK_S", 0.05)
    monkeypatch.setattr(rpc, "_SLOW_S", 0.2)
    limits: dict[str, Any] = {"max_message_bytes": 100_000, "receive_bytes": 250_000}
    async with running(toy_repository, **limits) as server, calling(server.address) as caller:
        raw = await connect(server.address)
        for _ in range(5):
            raw.call(INFER, struct.pack(">BI", 0, 50_000) + bytes(10_000))
        await until(lambda: raw.statuses == {8: 3})
        await asyncio.sleep(0.5)
        assert raw.statuses == {8: 3}
        await raw.close()
        assert (await caller.inference.ModelInfer(marked(1))).outputs


async def test_one_host_has_half_of_the_places(toy_repository: Path) -> None:
    """Whether its requests come or not; the rest is told, and counted."""
    async with running(toy_repository, max_calls=8) as server:
        raw = await connect(server.address)
        for _ in range(6):
            raw.call(INFER)
        await until(lambda: raw.statuses == {8: 2})
        assert server.observer.counts.calls[NAME, "RESOURCE_EXHAUSTED"] == 2
        await raw.close()
        await until(lambda: server.calls_inside == 0)
        async with calling(server.address) as caller:
            assert (await caller.inference.ModelInfer(marked(1))).outputs


async def test_memory_is_given_back_at_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tidying, "_LOOK_S", 0.01)
    monkeypatch.setattr(tidying, "_PAUSE_S", 0.0)
    given: list[int] = []
    inside, done = 1, 5
    monkeypatch.setattr(tidying, "give_back", lambda: given.append(done))
    tidier = Tidier(lambda: inside, lambda: done)
    tidier.start()
    await asyncio.sleep(0.1)
    assert given == []  # nothing was done since the start
    done = 6
    await asyncio.sleep(0.1)
    assert given == []  # something is inside
    inside = 0
    await until(lambda: given == [6])
    await asyncio.sleep(0.1)
    assert given == [6]  # once
    await tidier.stop()
