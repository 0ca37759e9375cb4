"""Regions of a GPU's memory, which a client allocates with CUDA and lends by an IPC handle.

They are reached through NVIDIA's driver, whose library is there with every driver, so that nothing need be installed.
Written after NVIDIA's reference of the driver API, and never tried on a GPU: see docs/serving.md.
"""

import ctypes
import logging
import threading
from collections.abc import Generator
from contextlib import contextmanager
from ctypes import POINTER, byref, c_char, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p
from dataclasses import dataclass
from typing import Any

from ferryman.errors import EngineError, FerrymanError, UnservedError, UsageError

log = logging.getLogger(__name__)
_LIBRARY = "libcuda.so.1"
_HANDLE_BYTES = 64
_LAZY_PEER_ACCESS = 1  # CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS, the one way to open a handle
# CU_STREAM_PER_THREAD. Copies in the default stream would wait for the models that run on the GPU.
_STREAM = 2


class _Handle(ctypes.Structure):
    """CUipcMemHandle, which is passed by value."""

    _fields_ = (("reserved", c_char * _HANDLE_BYTES),)


_CALLS: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
    "cuDeviceGetCount": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuDevicePrimaryCtxRelease_v2": (c_int,),
    "cuCtxPushCurrent_v2": (c_void_p,),
    "cuCtxPopCurrent_v2": (POINTER(c_void_p),),
    "cuIpcOpenMemHandle_v2": (POINTER(c_uint64), _Handle, c_uint),
    "cuIpcCloseMemHandle": (c_uint64,),
    "cuMemGetAddressRange_v2": (POINTER(c_uint64), POINTER(c_size_t), c_uint64),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_uint64, c_size_t, c_void_p),
    "cuMemcpyHtoDAsync_v2": (c_uint64, c_void_p, c_size_t, c_void_p),
    "cuStreamSynchronize": (c_void_p,),
}


class Driver:
    """missing: what CUDA shared memory takes and this machine lacks, None when it is all there."""

    def __init__(self) -> None:
        self._devices = c_int()
        self._contexts: dict[int, c_void_p] = {}  # of the GPUs in use: their primary ones, which the models use too
        self._lock = threading.Lock()
        self.missing = self._load()

    def _load(self) -> str | None:
        try:
            self._library = ctypes.CDLL(_LIBRARY)
            for name, arguments in _CALLS.items():
                getattr(self._library, name).argtypes = arguments
        except (OSError, AttributeError) as error:
            return f"{_LIBRARY}, of NVIDIA's driver, can't be loaded ({error})"
        try:
            self.call("cuInit", 0)
            self.call("cuDeviceGetCount", byref(self._devices))
        except EngineError as error:
            return f"NVIDIA's driver finds no GPU ({error})"
        return None

    def call(self, name: str, *arguments: Any) -> None:
        """Raises EngineError when it fails."""
        status = getattr(self._library, name)(*arguments)
        if status:
            text = c_char_p()
            self._library.cuGetErrorName(status, byref(text))
            raise EngineError(f"CUDA can't do {name}: {(text.value or b'error %d' % status).decode()}")

    def use(self, device: int) -> None:
        """Makes a GPU ready for `open`, which takes up to seconds when nothing uses it yet.

        Raises UnservedError where something is missing, UsageError for a GPU that is not there, EngineError.
        """
        if self.missing is not None:
            raise UnservedError(f"this server takes no CUDA shared memory: {self.missing}; use system shared memory")
        if not 0 <= device < self._devices.value:
            raise UsageError(
                f"there is no GPU {device}; the server's driver has {self._devices.value}, from 0", "device_id"
            )
        with self._lock:
            if device not in self._contexts:
                context = c_void_p()
                self.call("cuDevicePrimaryCtxRetain", byref(context), self._get(device))
                self._contexts[device] = context

    def open(self, handle: bytes, device: int, size_bytes: int) -> "CudaRegion":
        """handle: of `cudaIpcGetMemHandle`; device: one in use

        Raises UsageError unless it stands for memory of at least that size, EngineError.
        """
        if len(handle) != _HANDLE_BYTES:
            raise UsageError(f"raw_handle has {len(handle)} bytes; a handle of CUDA has {_HANDLE_BYTES}", "raw_handle")
        pointer = c_uint64()
        with self.using(device):
            try:
                self.call("cuIpcOpenMemHandle_v2", byref(pointer), _Handle.from_buffer_copy(handle), _LAZY_PEER_ACCESS)
            except EngineError as error:
                raise UsageError(f"raw_handle opens no memory on GPU {device}: {error}", "raw_handle") from error
        region = CudaRegion(self, device, size_bytes, pointer.value)
        try:
            room = region.measure()
            if room < size_bytes:
                raise UsageError(f"the memory has {room} bytes, and not {size_bytes}", "byte_size")
        except FerrymanError:
            region.close()
            raise
        return region

    @contextmanager
    def using(self, device: int) -> Generator[None]:
        """Calls of this thread go to a GPU in use; then to what they went to before."""
        self.call("cuCtxPushCurrent_v2", self._contexts[device])
        try:
            yield
        finally:
            self.call("cuCtxPopCurrent_v2", byref(c_void_p()))

    def close(self) -> None:
        """Leaves the GPUs. Regions must be closed before."""
        while self._contexts:
            device, _ = self._contexts.popitem()
            try:
                self.call("cuDevicePrimaryCtxRelease_v2", self._get(device))
            except EngineError as error:
                log.warning("GPU %d was not left: %s", device, error)

    def _get(self, device: int) -> c_int:
        found = c_int()
        self.call("cuDeviceGet", byref(found), device)
        return found


@dataclass(frozen=True)
class CudaRegion:
    """size_bytes from a pointer, in the server, to a client's memory; see `Region`."""

    driver: Driver
    device: int
    size_bytes: int
    pointer: int

    def measure(self) -> int:
        """The bytes from its start to the end of what was allocated."""
        base, size = c_uint64(), c_size_t()
        with self.driver.using(self.device):
            self.driver.call("cuMemGetAddressRange_v2", byref(base), byref(size), self.pointer)
        return base.value + size.value - self.pointer

    def read(self, offset: int, size_bytes: int) -> bytes:
        buffer = ctypes.create_string_buffer(size_bytes)
        self._copy("cuMemcpyDtoHAsync_v2", buffer, self.pointer + offset, size_bytes)
        return buffer.raw

    def write(self, offset: int, data: bytes) -> None:
        self._copy("cuMemcpyHtoDAsync_v2", self.pointer + offset, data, len(data))

    def close(self) -> None:
        try:
            with self.driver.using(self.device):
                self.driver.call("cuIpcCloseMemHandle", self.pointer)
        except EngineError as error:
            log.warning("a region of CUDA shared memory was not closed: %s", error)

    def _copy(self, call: str, target: Any, source: Any, size_bytes: int) -> None:
        with self.driver.using(self.device):
            self.driver.call(call, target, source, size_bytes, _STREAM)
            self.driver.call("cuStreamSynchronize", _STREAM)  # a copy to the GPU may still be under way
