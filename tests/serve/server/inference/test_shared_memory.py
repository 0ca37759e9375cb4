"""Regions of shared memory: which names are taken, which bytes are reached, whose they are, and what can't be done."""

import os
import re
from collections.abc import Iterator
from multiprocessing.shared_memory import SharedMemory as Memory
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ferryman.errors import UnservedError, UsageError
from ferryman.inference import grpc_service_pb2 as pb
from ferryman.server.inference.posix import SystemRegion
from ferryman.server.inference.shared_memory import Place, Regions, SharedMemory
from ferryman.server.security.tokens import make_token

from ...toy import SIDE, make_pictures
from ..inside import administering, calling, running
from .asking import arrays_of, as_parameters, bearer, infer, infer_pictures, prefixed, status_of, tensor

PAGE = 4096


@pytest.fixture
def memory() -> Iterator[Memory]:
    memory = Memory(create=True, size=4 * PAGE)
    yield memory
    memory.close()
    memory.unlink()


@pytest.fixture
def shared() -> Iterator[SharedMemory]:
    shared = SharedMemory(8 * PAGE)
    yield shared
    shared.close()


@pytest.fixture
def regions(shared: SharedMemory) -> Regions:
    return Regions(shared, lambda: "me")


def test_what_is_written_is_read(memory: Memory, regions: Regions) -> None:
    regions.register("r", memory.name, 10, 100)
    regions.write(Place("r", 5, 20), b"abc")
    assert bytes(bytes_of(memory)[14:19]) == b"\0abc\0"
    assert regions.read(Place("r", 4, 5)) == b"\0abc\0"
    bytes_of(memory)[109:111] = b"xy"
    assert regions.read(Place("r", 99, 1)) == b"x"
    assert regions.read(Place("r", 100, 0)) == b""


def bytes_of(memory: Memory) -> memoryview:
    buffer = memory.buf
    assert buffer is not None
    return buffer


PLACES = {
    "another region": (Place("other", 0, 1), "there is no region 'other'"),
    "beyond the end": (Place("r", 0, 101), "101 bytes at 0 reach beyond region 'r', which has 100"),
    "from beyond the end": (Place("r", 101, 0), "reach beyond"),
    "huge": (Place("r", 2**62, 2**62), "reach beyond"),
}


@pytest.mark.parametrize(("place", "message"), PLACES.values(), ids=PLACES)
def test_nothing_beyond_the_region_is_reached(memory: Memory, regions: Regions, place: Place, message: str) -> None:
    regions.register("r", memory.name, 10, 100)
    for reach in (regions.check, regions.read, lambda place: regions.write(place, b"")):
        with pytest.raises(UsageError, match=message):
            reach(place)
    with pytest.raises(UsageError, match="an output of 9 bytes does not fit the 8 of shared memory for it"):
        regions.write(Place("r", 0, 8), b"123456789")


KEYS = [
    "",
    "/",
    "..",
    "/..",
    "/../etc/passwd",
    "a/b",
    "/a/b",
    "//a",
    ".hidden",
    "a\0b",
    "ä",
    "x" * 300,
    "sem.s",
    "/sem.s",
]


@pytest.mark.parametrize("key", KEYS)
def test_keys_that_name_no_shared_memory(regions: Regions, key: str) -> None:
    with pytest.raises(UsageError, match="a key such as /frames"):
        regions.register("r", key, 0, 1)


def test_what_is_no_shared_memory(memory: Memory, regions: Regions, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no shared memory 'ferryman-none' that"):
        regions.register("r", "/ferryman-none", 0, 1)
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(100))
    place = Path(f"/dev/shm/ferryman-{os.getpid()}")
    for make in (lambda: place.symlink_to(secret), place.mkdir, lambda: os.mkfifo(place)):
        make()
        try:
            with pytest.raises(UsageError, match=r"there is no shared memory|is smaller than"):
                regions.register("r", place.name, 0, 1)
        finally:
            place.rmdir() if place.is_dir() and not place.is_symlink() else place.unlink()
    assert not regions.find(SystemRegion, "")


def test_registering(memory: Memory, regions: Regions) -> None:
    with pytest.raises(UnservedError, match="shared memory is off in this server"):
        Regions(SharedMemory(0), str).register("r", memory.name, 0, 1)
    with pytest.raises(UsageError, match=f"is smaller than {4 * PAGE + 1} bytes"):
        regions.register("r", memory.name, 1, 4 * PAGE)
    with pytest.raises(UsageError, match="is smaller than"):
        regions.register("r", memory.name, 2**64 - 2, 1)
    with pytest.raises(UsageError, match=f"{8 * PAGE + 1} bytes are not in what is left"):
        regions.register("r", memory.name, 0, 8 * PAGE + 1)
    with pytest.raises(UsageError, match="0 bytes are not in what is left"):
        regions.register("r", memory.name, 0, 0)
    with pytest.raises(UsageError, match="a region needs a name"):
        regions.register("", memory.name, 0, 1)
    files = len(os.listdir("/proc/self/fd"))
    regions.register("r", memory.name, 0, 4 * PAGE)
    with pytest.raises(UsageError, match="region 'r' is registered already"):
        regions.register("r", memory.name, 0, 1)
    regions.register("s", f"/{memory.name}", 0, 4 * PAGE)
    with pytest.raises(UsageError, match=re.escape(f"1 bytes are not in what is left: 0 of {8 * PAGE} bytes")):
        regions.register("t", memory.name, 0, 1)
    assert sorted(regions.find(SystemRegion, "")) == ["r", "s"]
    assert regions.find(SystemRegion, "s")["s"].key == f"/{memory.name}"
    regions.unregister(SystemRegion, "none")
    regions.unregister(SystemRegion, "r")
    assert list(regions.find(SystemRegion, "")) == ["s"]
    regions.unregister(SystemRegion, "")
    assert len(os.listdir("/proc/self/fd")) == files


def test_what_one_registers_nobody_else_sees(memory: Memory, shared: SharedMemory, regions: Regions) -> None:
    other = Regions(shared, lambda: "other")
    regions.register("r", memory.name, 0, 100)
    regions.write(Place("r", 0, 3), b"abc")
    for reach in (other.check, other.read, lambda place: other.write(place, b"")):
        with pytest.raises(UsageError, match="there is no region 'r' of shared memory; register it first"):
            reach(Place("r", 0, 3))
    with pytest.raises(UsageError, match="there is no region 'r'"):
        other.find(SystemRegion, "r")
    assert not other.find(SystemRegion, "")
    other.register("r", memory.name, 50, 50)  # the name is free
    other.unregister(SystemRegion, "")
    other.unregister(SystemRegion, "r")
    assert regions.read(Place("r", 0, 3)) == b"abc"
    other.register("s", memory.name, 0, 4 * PAGE)  # the room is shared
    with pytest.raises(UsageError, match="are not in what is left"):
        regions.register("t", memory.name, 0, 4 * PAGE)
    files = len(os.listdir("/proc/self/fd"))
    shared.close()
    assert len(os.listdir("/proc/self/fd")) == files - 2


async def test_a_region_is_its_tokens_on_every_connection(memory: Memory, toy_repository: Path, tmp_path: Path) -> None:
    """Not another administrator's, not a camera's that guesses its name, not that of the address without tokens."""
    size = SIDE * SIDE * 3
    place: dict[str, Any] = {"shared_memory_region": "r", "shared_memory_byte_size": size}
    request = pb.ModelInferRequest(
        model_name="toy-classifier", inputs=[tensor("image", "UINT8", (1, SIDE, SIDE, 3), **place)]
    )
    register = pb.SystemSharedMemoryRegisterRequest(name="r", key=memory.name, byte_size=size)
    tokens = tmp_path / "tokens"
    made = [make_token(name, f"fm_{name}", admin=name != "camera") for name in ("mine", "other", "camera")]
    tokens.write_text("\n".join(token.line for token in made), encoding="utf-8")
    settings: dict[str, Any] = {"shared_memory_bytes": 2**20, "admin_address": "127.0.0.1:0", "tokens": tokens}
    async with (
        running(toy_repository, **settings) as server,
        calling(server.address) as caller,
        calling(server.address) as again,
        calling(str(server.admin_address)) as admin,
    ):
        mine, *strangers = (bearer(f"fm_{name}") for name in ("mine", "other", "camera"))
        await caller.inference.SystemSharedMemoryRegister(register, metadata=mine)
        callers = [(admin, None), *((caller, metadata) for metadata in strangers)]
        for one, metadata in callers:
            found = await status_of(one.inference.ModelInfer(request, metadata=metadata))
            assert found == ("INVALID_ARGUMENT", "there is no region 'r' of shared memory; register it first")
            stream = one.inference.ModelStreamInfer(iter([request]), metadata=metadata)
            assert "there is no region 'r'" in (await stream.read()).error_message
        for one, metadata in callers[:2]:
            status = one.inference.SystemSharedMemoryStatus(pb.SystemSharedMemoryStatusRequest(), metadata=metadata)
            assert not (await status).regions
            for name in ("", "r"):
                unregister = pb.SystemSharedMemoryUnregisterRequest(name=name)
                await one.inference.SystemSharedMemoryUnregister(unregister, metadata=metadata)
        assert (await again.inference.ModelInfer(request, metadata=mine)).outputs
        answer = await again.inference.ModelStreamInfer(iter([request]), metadata=mine).read()
        assert (answer.error_message, len(answer.infer_response.outputs)) == ("", 2)
        status = again.inference.SystemSharedMemoryStatus(pb.SystemSharedMemoryStatusRequest(), metadata=mine)
        assert list((await status).regions) == ["r"]
        await again.inference.SystemSharedMemoryUnregister(pb.SystemSharedMemoryUnregisterRequest(), metadata=mine)
        assert (await status_of(again.inference.ModelInfer(request, metadata=mine)))[0] == "INVALID_ARGUMENT"
        # at the address for administrators a region is theirs on every connection
        await admin.inference.SystemSharedMemoryRegister(register)
        async with calling(str(server.admin_address)) as next_admin:
            assert (await next_admin.inference.ModelInfer(request)).outputs
    # where nobody has a token, that address's regions are still not those of the other one
    async with (
        running(toy_repository, **settings | {"tokens": None}) as server,
        calling(server.address) as caller,
        calling(str(server.admin_address)) as admin,
    ):
        await admin.inference.SystemSharedMemoryRegister(register)
        assert (await admin.inference.ModelInfer(request)).outputs
        assert (await status_of(caller.inference.ModelInfer(request)))[0] == "INVALID_ARGUMENT"


async def test_a_token_that_is_gone_leaves_no_region(memory: Memory, toy_repository: Path, tmp_path: Path) -> None:
    """Its place is free for others; those of other tokens, and of the other address, stay."""
    tokens, half = tmp_path / "tokens", 2**19
    made = {name: make_token(name, f"fm_{name}", admin=True).line for name in ("gone", "stays")}
    tokens.write_text("\n".join(made.values()), encoding="utf-8")
    settings: dict[str, Any] = {"shared_memory_bytes": 3 * half, "admin_address": "127.0.0.1:0", "tokens": tokens}
    async with (
        running(toy_repository, **settings) as server,
        calling(server.address) as caller,
        calling(str(server.admin_address)) as admin,
    ):
        register = pb.SystemSharedMemoryRegisterRequest(name="r", key=memory.name, byte_size=4 * PAGE)
        await admin.inference.SystemSharedMemoryRegister(register)
        for name in made:
            await caller.inference.SystemSharedMemoryRegister(register, metadata=bearer(f"fm_{name}"))
        files = len(os.listdir("/proc/self/fd"))
        tokens.write_text(made["stays"] + "\n", encoding="utf-8")
        status = pb.SystemSharedMemoryStatusRequest()
        theirs = caller.inference.SystemSharedMemoryStatus(status, metadata=bearer("fm_stays"))
        assert list((await theirs).regions) == ["r"]
        assert list((await admin.inference.SystemSharedMemoryStatus(status)).regions) == ["r"]
        assert len(os.listdir("/proc/self/fd")) == files - 1
        # a new one of the name finds nothing of the old one's
        tokens.write_text("\n".join(made.values()), encoding="utf-8")
        again = caller.inference.SystemSharedMemoryStatus(status, metadata=bearer("fm_gone"))
        assert not (await again).regions


async def test_a_client_that_shrinks_its_region(memory: Memory, toy_repository: Path) -> None:
    """A mapping of it would end the server with a bus error."""
    size = SIDE * SIDE * 3
    place: dict[str, Any] = {"shared_memory_region": "r", "shared_memory_byte_size": size}
    async with administering(toy_repository, shared_memory_bytes=2**20) as caller:
        await caller.inference.SystemSharedMemoryRegister(
            pb.SystemSharedMemoryRegisterRequest(name="r", key=memory.name, byte_size=4 * PAGE)
        )
        request = pb.ModelInferRequest(
            model_name="toy-classifier", inputs=[tensor("image", "UINT8", (1, SIDE, SIDE, 3), **place)]
        )
        right = await caller.inference.ModelInfer(request)
        assert arrays_of(right)["logits"].shape == (1, 4)
        os.truncate(f"/dev/shm/{memory.name}", 100)
        assert await status_of(caller.inference.ModelInfer(request)) == (
            "INVALID_ARGUMENT", "region 'r' is smaller than it was when it was registered"
        )  # fmt: skip
        canvas = {"image": np.zeros((1, SIDE, SIDE, 3), np.uint8)}
        output = infer("toy-classifier", canvas, ["logits"])
        for name, value in as_parameters(place | {"shared_memory_offset": 200}).items():
            output.outputs[0].parameters[name].CopyFrom(value)
        assert (await status_of(caller.inference.ModelInfer(output)))[0] == "INVALID_ARGUMENT"
        assert os.path.getsize(f"/dev/shm/{memory.name}") == 100
        assert arrays_of(await caller.inference.ModelInfer(infer("toy-classifier", canvas)))


async def test_pictures_in_shared_memory(memory: Memory, toy_repository: Path) -> None:
    pictures = make_pictures(2)
    data = prefixed(pictures)
    bytes_of(memory)[7 : 7 + len(data)] = data
    limits: dict[str, Any] = {"shared_memory_bytes": 2**20, "max_message_bytes": 2 * PAGE + 1000}
    assert len(data) < 4 * PAGE
    async with administering(toy_repository, **limits) as caller:
        await caller.inference.SystemSharedMemoryRegister(
            pb.SystemSharedMemoryRegisterRequest(name="r", key=memory.name, offset=7, byte_size=3 * PAGE)
        )
        for size, message in ((len(data), None), (len(data) - 1, "says that it has"), (3 * PAGE, "the limit is 9192")):
            place: dict[str, Any] = {"shared_memory_region": "r", "shared_memory_byte_size": size}
            request = pb.ModelInferRequest(
                model_name="toy-classifier", inputs=[tensor("image_bytes", "BYTES", (2,), **place)]
            )
            call = caller.inference.ModelInfer(request)
            if message is None:
                expected = await caller.inference.ModelInfer(infer_pictures("toy-classifier", pictures))
                assert arrays_of(await call)["logits"].tolist() == arrays_of(expected)["logits"].tolist()
            else:
                code, found = await status_of(call)
                assert (code, message in found) == ("INVALID_ARGUMENT", True), found
