"""Regions of shared memory that local clients registered for inputs and outputs, each for itself alone.

What they are is said by their kinds: `posix` for the machine's memory, `cuda` for a GPU's.
"""

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

from ferryman.errors import UnservedError, UsageError
from ferryman.server.inference.cuda import Driver
from ferryman.server.inference.parameters import Parameters, read_number, read_text
from ferryman.server.inference.posix import SystemRegion

MAX_REGIONS = 1024  # each holds a file descriptor, or addresses of a GPU


class Region(Protocol):
    """A client's memory that was opened. Who reads and writes has checked places against size_bytes."""

    @property
    def size_bytes(self) -> int: ...

    def read(self, offset: int, size_bytes: int) -> bytes:
        """A copy. Raises UsageError for memory that became smaller, EngineError for a device that fails."""
        ...

    def write(self, offset: int, data: bytes) -> None:
        """Raises as `read`."""
        ...

    def close(self) -> None:
        """Never raises: what can't be closed is logged, and forgotten like the rest."""
        ...


_Kind = TypeVar("_Kind", bound=Region)


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


class SharedMemory:
    """The regions of all clients, of both kinds.

    limit_bytes: of all regions together; 0 refuses all
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.cuda = Driver() if limit_bytes else None
        self.regions: dict[tuple[str, str], Region] = {}  # by owner and name

    def keep_owners(self, owners: Collection[str]) -> None:
        """Forgets what others registered."""
        for key in [key for key in self.regions if key[0] not in owners]:
            self.regions.pop(key).close()

    def close(self) -> None:
        """Forgets all regions."""
        while self.regions:
            self.regions.popitem()[1].close()
        if self.cuda is not None:
            self.cuda.close()


class Regions:
    """Shared memory as the caller under way sees it: its own regions, and no sign of the others'.

    Names are of both kinds together, so that a request need not say which one it means.

    owner: names the caller under way. Not its connection: a client may register on one and infer on another.
    """

    def __init__(self, memory: SharedMemory, owner: Callable[[], str]) -> None:
        self._memory = memory
        self._owner = owner

    @property
    def kinds(self) -> list[str]:
        """That clients may register."""
        cuda = self._memory.cuda
        return [] if cuda is None else ["system"] if cuda.missing else ["system", "cuda"]

    def register(self, name: str, key: str, offset: int, size_bytes: int) -> None:
        """key: of `shm_open`; offset, size_bytes: the part of it that is used.

        Raises UnservedError where shared memory is off, UsageError for anything that can't be right.
        """
        self._driver()
        self._add(name, size_bytes, partial(SystemRegion.open, name, key, offset, size_bytes))

    async def register_cuda(self, name: str, handle: bytes, device: int, size_bytes: int) -> None:
        """See `Driver.open`. Raises also UnservedError where shared memory is off or no GPU is there, EngineError."""
        driver = self._driver()
        await asyncio.to_thread(driver.use, device)
        self._add(name, size_bytes, partial(driver.open, handle, device, size_bytes))

    def _driver(self) -> Driver:
        if self._memory.cuda is None:
            raise UnservedError(
                "shared memory is off in this server; give shared_memory_bytes in its configuration to allow it"
            )
        return self._memory.cuda

    def _add(self, name: str, size_bytes: int, open_region: Callable[[], Region]) -> None:
        """open_region: called when all else is right"""
        if not name:
            raise UsageError("a region needs a name", "name")
        mine, regions, limit = (self._owner(), name), self._memory.regions, self._memory.limit_bytes
        if mine in regions:
            raise UsageError(f"region {name[:100]!r} is registered already; unregister it first", "name")
        used = sum(region.size_bytes for region in regions.values())
        if not 0 < size_bytes <= limit - used or len(regions) >= MAX_REGIONS:
            raise UsageError(
                f"{size_bytes} bytes are not in what is left: {limit - used} of {limit} bytes, "
                f"and {MAX_REGIONS - len(regions)} of {MAX_REGIONS} regions",
                "byte_size",
            )
        regions[mine] = open_region()

    def unregister(self, kind: type[Region], name: str) -> None:
        """Forgets a region, all of the caller's when the name is empty; one of that kind that is not there is fine."""
        for known, region in self._of(kind).items():
            if name in {"", known}:
                del self._memory.regions[self._owner(), known]
                region.close()

    def find(self, kind: type[_Kind], name: str) -> dict[str, _Kind]:
        """One region by its name, all when the name is empty. Raises UsageError for one that is not there."""
        found = self._of(kind)
        if name and name not in found:
            raise _unknown(name)
        return {name: found[name]} if name else found

    def check(self, place: Place) -> None:
        """Raises UsageError unless the place lies in a region."""
        self._get(place)

    def read(self, place: Place) -> bytes:
        """A copy. Raises UsageError, also for a region that became smaller, and EngineError."""
        return self._get(place).read(place.offset, place.size_bytes)

    def write(self, place: Place, data: bytes) -> None:
        """Raises UsageError for data larger than the place, and see `read`."""
        region = self._get(place)
        if len(data) > place.size_bytes:
            raise UsageError(
                f"an output of {len(data)} bytes does not fit the {place.size_bytes} of shared memory for it",
                "outputs",
            )
        region.write(place.offset, data)

    def _of(self, kind: type[_Kind]) -> dict[str, _Kind]:
        mine = self._owner()
        return {
            name: region
            for (owner, name), region in self._memory.regions.items()
            if owner == mine and isinstance(region, kind)
        }

    def _get(self, place: Place) -> Region:
        region = self._memory.regions.get((self._owner(), place.region))
        if region is None:
            raise _unknown(place.region)
        if place.offset + place.size_bytes > region.size_bytes:
            raise UsageError(
                f"{place.size_bytes} bytes at {place.offset} reach beyond region {place.region[:100]!r}, which has "
                f"{region.size_bytes}",
                "parameters",
            )
        return region


def _unknown(name: str) -> UsageError:
    return UsageError(f"there is no region {name[:100]!r} of shared memory; register it first")
