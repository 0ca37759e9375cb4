"""A client's side of the driver that is played, driver.c; and `cuda.bindings` over it, for NVIDIA's client."""

import ctypes
import sys
from ctypes import byref, c_char, c_int, c_size_t, c_uint64, c_void_p
from enum import IntEnum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

_BROKEN_AT = 12  # of a block's first page
_FIRST = 1 << 60  # of the addresses of GPUs
_STREAM = c_void_p(2)


class Device:
    """The memory of a GPU that is played, as its owner sees it. Its thread's calls go there from then on.

    library: of driver.c
    """

    def __init__(self, library: str, number: int = 0) -> None:
        self._library = ctypes.CDLL(library)
        context = c_void_p()
        self._call("cuInit", 0)
        self._call("cuDevicePrimaryCtxRetain", byref(context), number)
        self._call("cuCtxPushCurrent_v2", context)

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        assert status == 0, (name, status)

    def allocate(self, size: int) -> int:
        pointer = c_uint64()
        self._call("cuMemAlloc_v2", byref(pointer), c_size_t(size))
        return pointer.value

    def free(self, pointer: int) -> None:
        self._call("cuMemFree_v2", c_uint64(pointer))

    def handle(self, pointer: int) -> bytes:
        found = (c_char * 64)()
        self._call("cuIpcGetMemHandle", found, c_uint64(pointer))
        return found.raw

    def copy(self, target: Any, source: Any, size: int) -> None:
        """One of them in the GPU, the other here."""
        if isinstance(target, int) and target >= _FIRST:
            self._call("cuMemcpyHtoDAsync_v2", c_uint64(target), _here(source), c_size_t(size), _STREAM)
        else:
            self._call("cuMemcpyDtoHAsync_v2", _here(target), c_uint64(source), c_size_t(size), _STREAM)
        self._call("cuStreamSynchronize", _STREAM)

    def break_at(self, pointer: int, error: int) -> None:
        """All that is asked about that memory fails from now on, not at all with error 0."""
        name = self.handle(pointer).rstrip(b"\0").decode()
        with Path(f"/dev/shm{name}").open("r+b") as block:
            block.seek(_BROKEN_AT)
            block.write(c_int(error))


def _here(place: Any) -> Any:
    return c_void_p(place) if isinstance(place, int) else place


class _Error(IntEnum):
    cudaSuccess = 0


def play_bindings() -> None:
    """Lets `cuda.bindings` be what NVIDIA's client needs of it, on a Device."""
    device = Device("libcuda.so.1")
    done = _Error.cudaSuccess
    runtime: Any = ModuleType("cuda.bindings.runtime")
    runtime.cudaError_t, runtime.cudaIpcMemHandle_t = _Error, SimpleNamespace
    runtime.cudaMemcpyKind = SimpleNamespace(cudaMemcpyDefault=4)
    runtime.cudaDeviceAttr = SimpleNamespace(cudaDevAttrUnifiedAddressing=41)
    runtime.cudaDeviceGetAttribute = lambda _attribute, _device: (done, 1)
    runtime.cudaGetDevice = lambda: (done, 0)
    runtime.cudaSetDevice = lambda _device: (done,)
    runtime.cudaMalloc = lambda size: (done, device.allocate(size))
    runtime.cudaFree = lambda pointer: (done, device.free(pointer))[:1]
    runtime.cudaIpcGetMemHandle = lambda pointer: (done, SimpleNamespace(reserved=device.handle(pointer)))
    runtime.cudaStreamCreate = lambda: (done, 1)
    runtime.cudaStreamSynchronize = runtime.cudaStreamDestroy = lambda _stream: (done,)
    runtime.cudaMemcpyAsync = lambda target, source, size, _kind, _stream: (
        done, device.copy(target, source, int(size))
    )[:1]  # fmt: skip
    driver: Any = ModuleType("cuda.bindings.driver")
    driver.CUresult = _Error
    driver.cuDeviceGet = lambda number: (done, number)
    driver.cuDevicePrimaryCtxGetState = lambda _device: (done, 0, 1)
    bindings: Any = ModuleType("cuda.bindings")
    bindings.runtime, bindings.driver = runtime, driver
    cuda: Any = ModuleType("cuda")
    cuda.bindings = bindings
    sys.modules |= {module.__name__: module for module in (cuda, bindings, runtime, driver)}
