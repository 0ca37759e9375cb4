"""Files that are read again when they change."""

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock
from typing import Generic, TypeVar

from ferryman.errors import FerrymanError

log = logging.getLogger(__name__)
T = TypeVar("T")


class Watched(Generic[T]):
    """What was read from some files. A change that can't be read is logged once, and what was read before stays.

    paths: whose change is a reason to read again; read: raises FerrymanError, which its first call may do here
    what: of the log's lines
    """

    def __init__(self, paths: Sequence[Path], read: Callable[[], T], what: str) -> None:
        self._paths, self._read, self._what = tuple(paths), read, what
        self._lock = Lock()
        self._seen = self._look()
        self.value = read()

    def refresh(self) -> bool:
        """Reads again if a file has changed. Whether `value` is new. From any thread."""
        with self._lock:
            return self._refresh()

    def _refresh(self) -> bool:
        seen = self._look()
        if seen == self._seen:
            return False
        self._seen = seen  # before reading: a file that changes meanwhile is read once more
        try:
            self.value = self._read()
        except FerrymanError as error:
            log.error("%s changed and can't be used, what was read before stays: reason=%s", self._what, error)
            return False
        log.info("%s read again", self._what)
        return True

    def _look(self) -> tuple[tuple[int, int, int] | None, ...]:
        return tuple(map(_signature, self._paths))


def _signature(path: Path) -> tuple[int, int, int] | None:
    """Differs when the file was replaced or written to; None for one that is not there."""
    try:
        facts = os.stat(path)
    except OSError:
        return None
    return facts.st_ino, facts.st_size, facts.st_mtime_ns
