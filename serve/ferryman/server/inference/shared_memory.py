"""Regions of POSIX shared memory that local clients registered for inputs and outputs, each for itself alone."""

import os
import re
import stat
from collections.abc import Callable, Collection
from dataclasses import dataclass

from ferryman.errors import UnservedError, UsageError
from ferryman.inference import grpc_service_pb2 as pb
from ferryman.server.inference.parameters import Parameters, read_number, read_text

MAX_REGIONS = 1024  # each holds a file descriptor
_FOLDER = "/dev/shm"  # where Linux keeps what shm_open names
_KEY = re.compile(r"/?([A-Za-z0-9_-][A-Za-z0-9._-]{0,253})")


@dataclass(frozen=True)
class Place:
    """size_bytes from offset, in bytes, of a region."""

    region: str
    offset: int
    size_bytes: int


def place_from_parameters(parameters: Parameters) -> Place | None:
    """Where an input's or output's values lie, None when they travel in the message. Raises UsageError."""
    region = read_text(parameters, "shared_memory_region")
    if region is None:
        return None
    size = read_number(parameters, "shared_memory_byte_size")
    if size is None:
        raise UsageError("shared_memory_region without shared_memory_byte_size", "parameters")
    return Place(region, read_number(parameters, "shared_memory_offset") or 0, size)


@dataclass(frozen=True)
class _Region:
    descriptor: int
    status: pb.SystemSharedMemoryStatusResponse.RegionStatus


class SharedMemory:
    """The regions of all clients.

    limit_bytes: of all regions together; 0 refuses all
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.regions: dict[tuple[str, str], _Region] = {}  # by owner and name

    def keep_owners(self, owners: Collection[str]) -> None:
        """Forgets what others registered."""
        for key in [key for key in self.regions if key[0] not in owners]:
            os.close(self.regions.pop(key).descriptor)

    def close(self) -> None:
        """Forgets all regions."""
        while self.regions:
            os.close(self.regions.popitem()[1].descriptor)


class Regions:
    """Shared memory as the caller under way sees it: its own regions, and no sign of the others'.

    Reads and writes copy through the file. A mapping would spare the copy, and would let a client that shrinks its
    region kill the server (SIGBUS), or change a picture between its check and its use.

    owner: names the caller under way. Not its connection: a client may register on one and infer on another.
    """

    def __init__(self, memory: SharedMemory, owner: Callable[[], str]) -> None:
        self._memory = memory
        self._owner = owner

    @property
    def enabled(self) -> bool:
        return self._memory.limit_bytes > 0

    def register(self, name: str, key: str, offset: int, size_bytes: int) -> None:
        """key: of `shm_open`; offset, size_bytes: the part of it that is used.

        Raises UnservedError where shared memory is off, UsageError for anything that can't be right.
        """
        if not self.enabled:
            raise UnservedError(
                "shared memory is off in this server; give shared_memory_bytes in its configuration to allow it"
            )
        match = _KEY.fullmatch(key)
        if not name or match is None or match[1].startswith("sem."):  # files of semaphores
            raise UsageError("a region needs a name, and a key such as /frames: letters, digits, '.', '_' and '-'")
        mine, regions, limit = (self._owner(), name), self._memory.regions, self._memory.limit_bytes
        if mine in regions:
            raise UsageError(f"region {name[:100]!r} is registered already; unregister it first", "name")
        used = sum(region.status.byte_size for region in regions.values())
        if not 0 < size_bytes <= limit - used or len(regions) >= MAX_REGIONS:
            raise UsageError(
                f"{size_bytes} bytes are not in what is left: {limit - used} of {limit} bytes, "
                f"and {MAX_REGIONS - len(regions)} of {MAX_REGIONS} regions",
                "byte_size",
            )
        descriptor = _open(match[1], offset + size_bytes)
        status = pb.SystemSharedMemoryStatusResponse.RegionStatus(
            name=name, key=key, offset=offset, byte_size=size_bytes
        )
        regions[mine] = _Region(descriptor, status)

    def unregister(self, name: str) -> None:
        """Forgets a region, all of the caller's when the name is empty; one that is not there is fine."""
        for known in [name] if name else self._names():
            region = self._memory.regions.pop((self._owner(), known), None)
            if region is not None:
                os.close(region.descriptor)

    def status(self, name: str) -> pb.SystemSharedMemoryStatusResponse:
        """Of one region, of all when the name is empty. Raises UsageError for one that is not there."""
        return pb.SystemSharedMemoryStatusResponse(
            regions={known: self._get(known).status for known in ([name] if name else self._names())}
        )

    def check(self, place: Place) -> None:
        """Raises UsageError unless the place lies in a region."""
        region = self._get(place.region)
        if place.offset + place.size_bytes > region.status.byte_size:
            raise UsageError(
                f"{place.size_bytes} bytes at {place.offset} reach beyond region {place.region[:100]!r}, which has "
                f"{region.status.byte_size}",
                "parameters",
            )

    def read(self, place: Place) -> bytes:
        """A copy. Raises UsageError, also for a region that became smaller."""
        self.check(place)
        region = self._get(place.region)
        data = os.pread(region.descriptor, place.size_bytes, region.status.offset + place.offset)
        if len(data) != place.size_bytes:
            raise UsageError(f"region {place.region[:100]!r} is smaller than it was when it was registered")
        return data

    def write(self, place: Place, data: bytes) -> None:
        """Raises UsageError for data larger than the place, and see `read`."""
        self.check(place)
        region = self._get(place.region)
        if len(data) > place.size_bytes:
            raise UsageError(
                f"an output of {len(data)} bytes does not fit the {place.size_bytes} of shared memory for it",
                "outputs",
            )
        start = region.status.offset + place.offset
        # Writing would make it larger again: nothing of the client's, but not what it asked for either.
        shrunk = os.fstat(region.descriptor).st_size < start + len(data)
        if shrunk or os.pwrite(region.descriptor, data, start) != len(data):
            raise UsageError(f"region {place.region[:100]!r} is smaller than it was when it was registered")

    def _names(self) -> list[str]:
        mine = self._owner()
        return [name for owner, name in self._memory.regions if owner == mine]

    def _get(self, name: str) -> _Region:
        region = self._memory.regions.get((self._owner(), name))
        if region is None:
            raise UsageError(f"there is no region {name[:100]!r} of shared memory; register it first")
        return region


def _open(key: str, size_bytes: int) -> int:
    """Raises UsageError unless there is shared memory of that name and at least that size."""
    # As shm_open, but never through a link, and never waiting for what turns out to be a pipe.
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        descriptor = os.open(f"{_FOLDER}/{key}", flags)
    except OSError as error:
        raise UsageError(f"there is no shared memory {key!r} that the server may use", "key") from error
    facts = os.fstat(descriptor)
    if not stat.S_ISREG(facts.st_mode) or facts.st_size < size_bytes:
        os.close(descriptor)
        raise UsageError(f"shared memory {key!r} is smaller than {size_bytes} bytes", "byte_size")
    return descriptor
