"""How often a caller may ask, and how many of its calls may be inside at a time."""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from threading import Lock

from ferryman.errors import OverloadedError


class Limiter:
    """A bucket that holds one second's requests, at least one, and fills at `rate` a second; and a count. From any
    thread.

    rate: requests a second, None for any; in_flight: calls at a time, None for any; clock: in seconds
    """

    def __init__(self, rate: float | None, in_flight: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._in_flight, self._clock = rate, in_flight, clock
        self._size = max(1.0, rate or 0.0)
        self._lock = Lock()  # of what follows
        self._left = self._size
        self._filled = clock()
        self._inside = 0

    def take(self) -> float:
        """Takes a request out of the bucket. 0 when there was one, else the seconds until there is."""
        if self._rate is None:
            return 0.0
        with self._lock:
            now = self._clock()
            self._left = min(self._size, self._left + (now - self._filled) * self._rate)
            self._filled = now
            if self._left < 1:
                return (1 - self._left) / self._rate
            self._left -= 1
            return 0.0

    def take_or_refuse(self) -> None:
        """Raises OverloadedError, which says when to ask again."""
        wait = self.take()
        if wait:
            raise OverloadedError(f"this token may ask {self._rate:g} times a second; ask again later", wait)

    @contextmanager
    def inside(self) -> Generator[None, None, None]:
        """Around a call. Raises OverloadedError when too many are inside."""
        with self._lock:
            if self._in_flight is not None and self._inside >= self._in_flight:
                raise OverloadedError(
                    f"this token may have {self._in_flight} calls at a time; wait for one of them to end"
                )
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
