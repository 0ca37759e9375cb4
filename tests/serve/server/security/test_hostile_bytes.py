"""A server process under hostile bytes: it stays up, its memory stays bounded, and honest callers are answered."""

import contextlib
import io
import itertools
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image

from ferryman.client import Client, RetryPolicy
from ferryman.v1 import vision_pb2 as pb
from ferryman.v1 import vision_pb2_grpc

from ...toy import make_bomb, make_picture
from ..process import ServerProcess

MIB = 2**20
MODEL = pb.ModelRef(name="toy-classifier")
PICTURE = make_picture((200, 10, 10), 320, 240)
SMALL = make_picture((200, 10, 10), 8, 8)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
LIMIT_BYTES = 4 * MIB
# Some requests at their limit, and what allocators keep; 28 MiB were measured at most.
GROWTH_MIB = 64


class Victim:
    def __init__(self, process: ServerProcess) -> None:
        self.pid, self.address = process.process.pid, process.address
        self.host, port = self.address.split(":")
        self.port = int(port)

    @property
    def memory_mib(self) -> float:
        """Resident."""
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii")
        return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) / 1024

    @property
    def peak_mib(self) -> float:
        """The most that was ever resident."""
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii")
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1024

    def connect(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), timeout=60)

    def answers(self) -> None:
        """An honest caller is answered, over a connection of its own."""
        with Client(self.address, retry=RetryPolicy(attempts=1), timeout=60) as client:
            assert client.classify([PICTURE], model="toy-classifier").results[0].predictions[0].label == "red"


@pytest.fixture(scope="module")
def victim(toy_repository: Path) -> Iterator[Victim]:
    settings = {
        "repository": str(toy_repository), "threads": 1, "max_message_bytes": LIMIT_BYTES, "max_pixels": 2_000_000
    }  # fmt: skip
    with ServerProcess(settings) as process:
        victim = Victim(process)
        for _ in range(3):
            victim.answers()
        yield victim
        victim.answers()
    assert "Traceback" not in process.stderr
    assert "fm_secret" not in process.stderr


@contextmanager
def bounded(victim: Victim, growth_mib: float = GROWTH_MIB) -> Generator[None, None, None]:
    """Afterwards the server has not grown beyond the limit, not even for a moment, and answers honest callers."""
    Path(f"/proc/{victim.pid}/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    before = victim.memory_mib
    yield
    victim.answers()
    assert victim.peak_mib - before < growth_mib


@contextmanager
def vision(victim: Victim, **options: Any) -> Generator[Any, None, None]:
    settings = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1), *options.items()]
    with grpc.insecure_channel(victim.address, settings) as channel:
        yield vision_pb2_grpc.VisionServiceStub(channel)


def status_of(ask: Callable[[], Any]) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        ask()
    error: Any = caught.value
    return error.code().name, error.details()


def zeros_png(side: int) -> bytes:
    """A picture within the limits of pixels, a thousand times smaller than what it becomes."""
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_pictures_that_are_bombs(victim: Victim) -> None:
    """Of 900 million pixels, and 8 at once of as many pixels as are allowed."""
    bomb = make_bomb(30_000, 30_000)
    allowed = zeros_png(1400)
    # eight of 6 MB each, decoded and converted, where there is a core for each
    with bounded(victim, 160), vision(victim) as stub:
        for _ in range(3):
            code, details = status_of(lambda: stub.Classify(pb.ClassifyRequest(model=MODEL, images=[bomb])))
            assert (code, "the limit is 2,000,000" in details) == ("INVALID_ARGUMENT", True)
        answer = stub.Classify(pb.ClassifyRequest(model=MODEL, images=[allowed] * 8), timeout=120)
        assert len(answer.results) == 8


def test_truncated_and_garbled_pictures(victim: Victim) -> None:
    random = np.random.default_rng(7)
    whole = {kind: make_picture((9, 200, 9), 200, 150, kind=kind) for kind in ("JPEG", "PNG", "BMP", "WEBP")}
    asked = 0
    with bounded(victim), vision(victim) as stub:
        for data in whole.values():
            broken = [data[: int(len(data) * part)] for part in (0.01, 0.1, 0.5, 0.9)]
            for _ in range(25):
                garbled = bytearray(data)
                for place in random.integers(0, len(garbled), 10):
                    garbled[place] = random.integers(0, 256)
                broken.append(bytes(garbled))
            for picture in broken:
                try:
                    stub.Classify(pb.ClassifyRequest(model=MODEL, images=[picture]), timeout=60)
                except grpc.RpcError as error:
                    refused: Any = error
                    assert refused.code() == grpc.StatusCode.INVALID_ARGUMENT, refused.details()
                asked += 1
    assert asked == 116


def test_messages_beyond_the_limit(victim: Victim) -> None:
    """Plain, 16 of them; and compressed a thousand times, which is found out before they are whole in memory."""
    request = pb.ClassifyRequest(model=MODEL, images=[bytes(8 * MIB)])
    with bounded(victim), vision(victim) as stub, ThreadPoolExecutor(8) as pool:
        refused = list(pool.map(lambda _: status_of(lambda: stub.Classify(request)), range(16)))
        assert {code for code, _ in refused} == {"RESOURCE_EXHAUSTED"}
        large = pb.ClassifyRequest(model=MODEL, images=[bytes(64 * MIB)])
        for kind in (grpc.Compression.Gzip, grpc.Compression.Deflate):
            code, details = status_of(lambda kind=kind: stub.Classify(large, compression=kind, timeout=120))
            assert (code, "larger than max" in details) == ("RESOURCE_EXHAUSTED", True)


def test_messages_of_nothing(victim: Victim) -> None:
    """Two bytes each that a parser makes a hundred of: refused before they are parsed, in calls and in streams."""
    bombs = {number: bytes([number << 3 | 2, 0]) * ((LIMIT_BYTES - 1000) // 2) for number in (5, 6, 7)}
    service = "/inference.GRPCInferenceService/"
    with bounded(victim), grpc.insecure_channel(victim.address, [("grpc.max_send_message_length", -1)]) as channel:
        call, stream = channel.unary_unary(f"{service}ModelInfer"), channel.stream_stream(f"{service}ModelStreamInfer")
        asks = (lambda data: call(data, timeout=60), lambda data: next(stream(iter([data]), timeout=60)))
        for ask, data in itertools.product(asks, bombs.values()):
            code, details = status_of(partial(ask, data))
            assert (code, "more than 16,384 fields" in details) == ("INVALID_ARGUMENT", True)


def test_metadata_beyond_the_limit(victim: Victim) -> None:
    request = pb.ClassifyRequest(model=MODEL, images=[PICTURE])
    with bounded(victim), vision(victim, **{"grpc.max_metadata_size": 10 * MIB}) as stub:
        for size in (17_000, 100_000, MIB):
            code, details = status_of(lambda size=size: stub.Classify(request, metadata=[("x", "y" * size)]))
            assert code == "RESOURCE_EXHAUSTED"
            assert "metadata size" in details
        many = [(f"x-{number}", "y" * 100) for number in range(5000)]
        assert status_of(lambda: stub.Classify(request, metadata=many))[0] == "RESOURCE_EXHAUSTED"


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Of HTTP/2."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def noise() -> dict[str, bytes]:
    random = np.random.default_rng(17)
    settings = frame(4, 0, 0, b"")

    def call(path: bytes, value: bytes) -> bytes:
        """Headers, as HPACK's literals."""
        fields = ((b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"x"),
                  (b"te", b"trailers"), (b"content-type", b"application/grpc"), (b"authorization", value))  # fmt: skip
        literals = (bytes([0, len(name)]) + name + bytes([len(text)]) + text for name, text in fields)
        return PREFACE + settings + frame(1, 4, 1, b"".join(literals))

    return {
        "nothing": b"",
        "a path that is no text": call(b"/\xff\xfe", b"x"),
        "a header that is no text": call(b"/inference.GRPCInferenceService/ModelInfer", b"Bearer fm_secret\xff"),
        "random": random.bytes(100_000),
        "zeros": bytes(100_000),
        "HTTP/1.1": b"GET /v2/models HTTP/1.1\r\nHost: x\r\n\r\n" * 100,
        "a TLS hello": bytes.fromhex("160301020001") + random.bytes(512),
        "half a preface": PREFACE[:10],
        "a preface and noise": PREFACE + random.bytes(100_000),
        "a frame of 16 MB that never comes": PREFACE + settings + b"\xff\xff\xff\x00\x00\x00\x00\x00\x01",
        "noise in a header block": PREFACE + settings + frame(1, 4, 1, random.bytes(10_000)),
        "continuations without end": PREFACE
        + settings
        + frame(1, 0, 1, b"\x00" * 10)
        + frame(9, 0, 1, b"\x00" * 10) * 5000,
        "settings without end": PREFACE + settings * 20_000,
        "pings without end": PREFACE + settings + frame(6, 0, 0, b"12345678") * 20_000,
        "streams that are reset": PREFACE
        + settings
        + b"".join(frame(1, 4, 2 * n + 1, b"\x82") + frame(3, 0, 2 * n + 1, bytes(4)) for n in range(10_000)),
        "a window of nothing": PREFACE + settings + frame(8, 0, 0, bytes(4)),
    }


def test_bytes_that_are_no_grpc(victim: Victim) -> None:
    with bounded(victim):
        for name, data in noise().items():
            with victim.connect() as connection:
                connection.settimeout(5)
                with contextlib.suppress(OSError):  # it may hang up at any time
                    connection.sendall(data)
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(65536):
                        pass
            assert Path(f"/proc/{victim.pid}").exists(), name
        victim.answers()


def test_many_connections_that_say_nothing(victim: Victim) -> None:
    """And many that have said half of what they came to say."""
    with bounded(victim), contextlib.ExitStack() as held:
        for number in range(300):
            connection = held.enter_context(victim.connect())
            if number % 2:
                connection.sendall(PREFACE + frame(4, 0, 0, b"")[: number % 9])
        victim.answers()


def test_clients_that_do_not_read(victim: Victim) -> None:
    """Streams whose answers nobody takes are read no further than their window allows."""
    stop = threading.Event()
    sent = [0] * 4

    def frames(number: int) -> Iterator[pb.StreamClassifyRequest]:
        while not stop.is_set():
            yield pb.StreamClassifyRequest(
                frame_id=sent[number], request=pb.ClassifyRequest(model=MODEL, images=[SMALL], top_k=4)
            )
            sent[number] += 1

    with bounded(victim), contextlib.ExitStack() as held:
        # as little as a client can promise to take unread
        options: dict[str, Any] = {"grpc.http2.lookahead_bytes": 1024, "grpc.http2.bdp_probe": 0}
        calls = [held.enter_context(vision(victim, **options)).StreamClassify(frames(number)) for number in range(4)]
        seen = [-1] * 4
        end = time.monotonic() + 60
        while sent != seen:  # until all of them stand still
            assert time.monotonic() < end, sent
            seen = list(sent)
            time.sleep(0.5)
        victim.answers()
        stop.set()
        for call in calls:
            call.cancel()
