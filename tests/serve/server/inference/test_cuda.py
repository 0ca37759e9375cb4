"""Regions of a GPU's memory, on a server whose driver is played by driver.c; NVIDIA's client on a real GPU too.

What is real and what is not stands in driver.c. The server is told nothing: it finds that library as it finds NVIDIA's.
"""

import base64
import ctypes
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ferryman.inference import grpc_service_pb2 as pb
from ferryman.server.inference.cuda import Driver
from ferryman.server.security.tokens import make_token

from ...toy import SIDE
from ..inside import Caller, calling
from ..process import ServerProcess, free_address
from .asking import arrays_of, as_parameters, bearer, infer, status_of, tensor
from .device import Device
from .test_nvidia import ask

SOURCE = Path(__file__).with_name("driver.c")
MODEL, DETECTOR = "toy-classifier", "toy-detector"
CANVAS = np.random.default_rng(3).integers(0, 256, (1, SIDE, SIDE, 3), dtype=np.uint8)
SIZE = CANVAS.nbytes
LIMIT = 2**20
ILLEGAL_ADDRESS = 700


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler, cc, to make the driver of")
    path = tmp_path_factory.mktemp("driver") / "libcuda.so.1"
    command = [compiler, "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", str(path), str(SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture(scope="module")
def device(library: Path) -> Device:
    return Device(str(library))


@pytest.fixture
def memory(device: Device) -> Iterator[int]:
    """A pointer to as many bytes as the model's input has."""
    pointer = device.allocate(SIZE)
    yield pointer
    device.free(pointer)


class Server:
    """A server and its address for administrators. tokens: the file of those that are asked for elsewhere"""

    def __init__(self, repository: Path, tokens: Path) -> None:
        self.admin, self.tokens = free_address(), tokens
        tokens.write_text("", encoding="utf-8")
        settings = {
            "repository": str(repository), "threads": 1, "shared_memory_bytes": LIMIT, "admin_address": self.admin,
            "tokens": str(tokens),
        }  # fmt: skip
        self.process = ServerProcess(settings)

    @property
    def opened(self) -> int:
        """How much memory of GPUs it holds open."""
        maps = Path(f"/proc/{self.process.process.pid}/maps").read_text(encoding="ascii")
        return maps.count("/dev/shm/ferryman-gpu-")


@pytest.fixture(scope="module")
def server(library: Path, toy_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LD_LIBRARY_PATH", str(library.parent))
        server = Server(toy_repository, tmp_path_factory.mktemp("server") / "tokens")
    with server.process:
        yield server
    assert "Traceback" not in server.process.stderr


@pytest.fixture
async def caller(server: Server) -> AsyncIterator[Caller]:
    """Afterwards the server answers, and holds nothing of the test's."""
    async with calling(server.admin) as caller:
        yield caller
        await caller.inference.CudaSharedMemoryUnregister(pb.CudaSharedMemoryUnregisterRequest())
        assert arrays_of(await caller.inference.ModelInfer(infer(MODEL, {"image": CANVAS})))
    assert server.opened == 0


def register(handle: bytes, **fields: Any) -> pb.CudaSharedMemoryRegisterRequest:
    facts: dict[str, Any] = {"name": "r", "device_id": 0, "byte_size": SIZE} | fields
    return pb.CudaSharedMemoryRegisterRequest(raw_handle=handle, **facts)


def reading(region: str = "r") -> pb.ModelInferRequest:
    """A request whose input lies in a region."""
    place: dict[str, Any] = {"shared_memory_region": region, "shared_memory_byte_size": SIZE}
    return pb.ModelInferRequest(model_name=MODEL, inputs=[tensor("image", "UINT8", CANVAS.shape, **place)])


def writing(region: str = "r") -> pb.ModelInferRequest:
    """A request whose output goes to a region."""
    request = infer(MODEL, {"image": CANVAS}, ["logits"])
    for name, value in as_parameters({"shared_memory_region": region, "shared_memory_byte_size": SIZE}).items():
        request.outputs[0].parameters[name].CopyFrom(value)
    return request


async def status(caller: Caller, kind: str = "Cuda", **fields: Any) -> Any:
    request = getattr(pb, f"{kind}SharedMemoryStatusRequest")(**fields)
    return (await getattr(caller.inference, f"{kind}SharedMemoryStatus")(request)).regions


def check_shared(admin: str, played: bool) -> None:
    found = ask(admin, "share_cuda", DETECTOR, np.concatenate([CANVAS] * 3), played)
    for name in ("boxes", "scores"):
        assert np.array_equal(found[name], found["right"][name])
        assert found[name].any()
    assert found["status"] == {
        "frames": {"name": "frames", "byte_size": str(4096 + 3 * SIZE)},
        "boxes": {"name": "boxes", "byte_size": "2048"},
    }
    assert {"system_shared_memory", "cuda_shared_memory"} <= set(found["extensions"])
    assert found["left"] == found["system"] == {}


def test_nvidias_client(server: Server, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(library.parent))
    check_shared(server.admin, played=True)
    assert server.opened == 0


def test_nvidias_client_on_a_gpu(toy_repository: Path, tmp_path: Path) -> None:
    missing = Driver().missing
    if missing is not None:
        pytest.skip(missing)
    server = Server(toy_repository, tmp_path / "tokens")
    with server.process:
        check_shared(server.admin, played=False)


REFUSED = {
    "more than was allocated": ({"byte_size": SIZE + 1}, "INVALID_ARGUMENT", f"{SIZE} bytes, and not {SIZE + 1}"),
    "more than is allowed": ({"byte_size": LIMIT + 1}, "INVALID_ARGUMENT", "bytes are not in what is left"),
    "nothing": ({"byte_size": 0}, "INVALID_ARGUMENT", "0 bytes are not in what is left"),
    "no name": ({"name": ""}, "INVALID_ARGUMENT", "a region needs a name"),
    "noise": ({"raw_handle": bytes(range(64))}, "INVALID_ARGUMENT",
              "raw_handle opens no memory on GPU 0: CUDA can't do cuIpcOpenMemHandle_v2: CUDA_ERROR_INVALID_HANDLE"),
    "no handle": ({"raw_handle": b""}, "INVALID_ARGUMENT", "raw_handle has 0 bytes; a handle of CUDA has 64"),
    "as HTTP has it": ({"raw_handle": base64.b64encode(bytes(64))}, "INVALID_ARGUMENT", "raw_handle has 88 bytes"),
    "a GPU that is not there": ({"device_id": 2}, "INVALID_ARGUMENT", "there is no GPU 2; the server's driver has 2"),
    "a negative one": ({"device_id": -1}, "INVALID_ARGUMENT", "there is no GPU -1"),
}  # fmt: skip


@pytest.mark.parametrize(("fields", "code", "message"), REFUSED.values(), ids=REFUSED)
async def test_what_is_not_registered(
    server: Server, caller: Caller, device: Device, memory: int, fields: dict[str, Any], code: str, message: str
) -> None:
    request = register(device.handle(memory))
    for name, value in fields.items():
        setattr(request, name, value)
    found = await status_of(caller.inference.CudaSharedMemoryRegister(request))
    assert (found[0], message in found[1]) == (code, True), found
    assert not await status(caller)
    assert server.opened == 0


async def test_a_name_is_of_one_region_of_either_kind(caller: Caller, device: Device, memory: int) -> None:
    handle = device.handle(memory)
    await caller.inference.CudaSharedMemoryRegister(register(handle))
    system = pb.SystemSharedMemoryRegisterRequest(name="r", key=handle.rstrip(b"\0").decode(), byte_size=SIZE)
    taken = ("INVALID_ARGUMENT", "region 'r' is registered already; unregister it first")
    assert await status_of(caller.inference.CudaSharedMemoryRegister(register(handle))) == taken
    assert await status_of(caller.inference.SystemSharedMemoryRegister(system)) == taken
    # what is of one kind the calls of the other don't see, and don't forget
    await caller.inference.SystemSharedMemoryUnregister(pb.SystemSharedMemoryUnregisterRequest(name="r"))
    await caller.inference.SystemSharedMemoryUnregister(pb.SystemSharedMemoryUnregisterRequest())
    assert not await status(caller, "System")
    unknown = pb.SystemSharedMemoryStatusRequest(name="r")
    assert (await status_of(caller.inference.SystemSharedMemoryStatus(unknown)))[0] == "INVALID_ARGUMENT"
    assert (await status(caller, name="r"))["r"].byte_size == SIZE
    await caller.inference.CudaSharedMemoryUnregister(pb.CudaSharedMemoryUnregisterRequest(name="r"))
    await caller.inference.SystemSharedMemoryRegister(system)
    assert await status_of(caller.inference.CudaSharedMemoryRegister(register(handle))) == taken
    await caller.inference.SystemSharedMemoryUnregister(pb.SystemSharedMemoryUnregisterRequest())


async def test_many_regions(server: Server, caller: Caller, device: Device, memory: int) -> None:
    """The same memory under several names and on another GPU; all of them are forgotten at once."""
    device.copy(memory, CANVAS.tobytes(), SIZE)
    for name, number in (("a", 0), ("b", 0), ("c", 1)):
        await caller.inference.CudaSharedMemoryRegister(register(device.handle(memory), name=name, device_id=number))
    assert {name: region.device_id for name, region in (await status(caller)).items()} == {"a": 0, "b": 0, "c": 1}
    expected = arrays_of(await caller.inference.ModelInfer(infer(MODEL, {"image": CANVAS})))["logits"]
    for name in "abc":
        await caller.inference.CudaSharedMemoryUnregister(pb.CudaSharedMemoryUnregisterRequest(name="none"))
        assert np.array_equal(arrays_of(await caller.inference.ModelInfer(reading(name)))["logits"], expected)
        if name != "c":
            await caller.inference.CudaSharedMemoryUnregister(pb.CudaSharedMemoryUnregisterRequest(name=name))
    [output] = (await caller.inference.ModelInfer(writing("c"))).outputs
    assert output.parameters["shared_memory_byte_size"].int64_param == expected.nbytes
    found = bytearray(expected.nbytes)
    device.copy((ctypes.c_char * len(found)).from_buffer(found), memory, len(found))
    assert bytes(found) == expected.tobytes()


async def test_a_gpu_that_fails(server: Server, caller: Caller, device: Device, memory: int) -> None:
    await caller.inference.CudaSharedMemoryRegister(register(device.handle(memory)))
    device.break_at(memory, ILLEGAL_ADDRESS)
    for request in (reading(), writing()):
        for _ in range(3):
            found = await status_of(caller.inference.ModelInfer(request))
            assert found == ("INTERNAL", "CUDA can't do cuStreamSynchronize: CUDA_ERROR_ILLEGAL_ADDRESS")
    assert arrays_of(await caller.inference.ModelInfer(infer(MODEL, {"image": CANVAS})))
    device.break_at(memory, 0)
    assert arrays_of(await caller.inference.ModelInfer(reading()))
    device.break_at(memory, 999)
    await caller.inference.CudaSharedMemoryUnregister(pb.CudaSharedMemoryUnregisterRequest(name="r"))
    assert (server.opened, len(await status(caller))) == (0, 0)
    found = await status_of(caller.inference.CudaSharedMemoryRegister(register(device.handle(memory))))
    assert found == ("INTERNAL", "CUDA can't do cuMemGetAddressRange_v2: error 999")
    assert server.opened == 0


async def test_a_region_is_its_tokens(server: Server, caller: Caller, device: Device, memory: int) -> None:
    made = {name: make_token(name, f"fm_{name}", admin=True).line for name in ("mine", "other")}
    server.tokens.write_text("\n".join(made.values()), encoding="utf-8")
    mine, other = bearer("fm_mine"), bearer("fm_other")
    handle = device.handle(memory)
    async with calling(server.process.address) as elsewhere:
        inference = elsewhere.inference
        await inference.CudaSharedMemoryRegister(register(handle), metadata=mine)
        assert (await inference.ModelInfer(reading(), metadata=mine)).outputs
        unknown = ("INVALID_ARGUMENT", "there is no region 'r' of shared memory; register it first")
        for request in (reading(), writing()):
            assert await status_of(inference.ModelInfer(request, metadata=other)) == unknown
        assert await status_of(caller.inference.ModelInfer(reading())) == unknown
        await inference.CudaSharedMemoryUnregister(pb.CudaSharedMemoryUnregisterRequest(), metadata=other)
        await inference.CudaSharedMemoryRegister(register(handle), metadata=other)  # the name is free
        assert server.opened == 1  # twice the same
        server.tokens.write_text(made["other"], encoding="utf-8")
        assert (await inference.ModelInfer(reading(), metadata=other)).outputs
        server.tokens.write_text("", encoding="utf-8")
        assert (await status_of(inference.ModelInfer(reading(), metadata=other)))[0] == "UNAUTHENTICATED"
    assert server.opened == 0


async def test_a_server_that_ends_closes_what_is_open(
    library: Path, toy_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: Device, memory: int
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(library.parent))
    server = Server(toy_repository, tmp_path / "tokens")
    with server.process:
        async with calling(server.admin) as caller:
            await caller.inference.CudaSharedMemoryRegister(register(device.handle(memory)))
        device.break_at(memory, ILLEGAL_ADDRESS)  # so that the log tells of it
        server.process.signal(signal.SIGTERM)
        assert server.process.wait() == 0
    assert server.process.stderr.count("a region of CUDA shared memory was not closed") == 1


def lack_driver(folder: Path, _library: Path) -> str:
    (folder / "libcuda.so.1").write_text("no library", encoding="utf-8")
    return "libcuda.so.1, of NVIDIA's driver, can't be loaded ("


def lack_calls(folder: Path, _library: Path) -> str:
    """As a driver that is too old."""
    (folder / "empty.c").touch()
    subprocess.run(["cc", "-shared", "-o", str(folder / "libcuda.so.1"), str(folder / "empty.c")], check=True)
    return "undefined symbol: cu"


def lack_gpu(folder: Path, library: Path) -> str:
    shutil.copy(library, folder)
    return "NVIDIA's driver finds no GPU (CUDA can't do cuInit: CUDA_ERROR_NO_DEVICE)"


@pytest.mark.parametrize("lack", [lack_driver, lack_calls, lack_gpu])
async def test_what_is_missing_is_named(
    library: Path, toy_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lack: Any
) -> None:
    message = lack(tmp_path, library)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    server = Server(toy_repository, tmp_path / "tokens")
    with server.process:
        async with calling(server.admin) as caller:
            metadata = await caller.inference.ServerMetadata(pb.ServerMetadataRequest())
            assert [name for name in metadata.extensions if "memory" in name] == ["system_shared_memory"]
            code, said = await status_of(caller.inference.CudaSharedMemoryRegister(register(bytes(64))))
            assert (code, message in said) == ("UNIMPLEMENTED", True), said
            assert said.endswith("; use system shared memory")
            assert not await status(caller)
            await caller.inference.CudaSharedMemoryUnregister(pb.CudaSharedMemoryUnregisterRequest())
            assert arrays_of(await caller.inference.ModelInfer(infer(MODEL, {"image": CANVAS})))
