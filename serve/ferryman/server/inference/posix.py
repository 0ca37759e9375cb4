"""Regions of POSIX shared memory, which lies in a folder as files do."""

import os
import re
import stat
from dataclasses import dataclass
from typing import Self

from ferryman.errors import UsageError

_FOLDER = "/dev/shm"  # where Linux keeps what shm_open names
_KEY = re.compile(r"/?([A-Za-z0-9_-][A-Za-z0-9._-]{0,253})")


@dataclass(frozen=True)
class SystemRegion:
    """size_bytes from offset of the memory `key`, see `Region`.

    Reads and writes copy through the file. A mapping would spare the copy, and would let a client that shrinks its
    region kill the server (SIGBUS), or change a picture between its check and its use.
    """

    name: str
    key: str
    offset: int
    size_bytes: int
    descriptor: int

    @classmethod
    def open(cls, name: str, key: str, offset: int, size_bytes: int) -> Self:
        """key: of `shm_open`. Raises UsageError unless there is shared memory of that name and at least that size."""
        match = _KEY.fullmatch(key)
        if match is None or match[1].startswith("sem."):  # files of semaphores
            raise UsageError("a region needs a key such as /frames: letters, digits, '.', '_' and '-'", "key")
        return cls(name, key, offset, size_bytes, _open(match[1], offset + size_bytes))

    def read(self, offset: int, size_bytes: int) -> bytes:
        data = os.pread(self.descriptor, size_bytes, self.offset + offset)
        if len(data) != size_bytes:
            raise self._shrunk()
        return data

    def write(self, offset: int, data: bytes) -> None:
        start = self.offset + offset
        # Writing would make it larger again: nothing of the client's, but not what it asked for either.
        shrunk = os.fstat(self.descriptor).st_size < start + len(data)
        if shrunk or os.pwrite(self.descriptor, data, start) != len(data):
            raise self._shrunk()

    def close(self) -> None:
        os.close(self.descriptor)

    def _shrunk(self) -> UsageError:
        return UsageError(f"region {self.name[:100]!r} is smaller than it was when it was registered")


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
