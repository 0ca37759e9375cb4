"""What one client may ask of all models together, however much room there is."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import Field

from ferryman.errors import OverloadedError, UsageError
from ferryman.specs import Facts

_KEPT = 1024  # buckets, before those that are full again are forgotten


class ClientLimits(Facts):
    """client_by: what tells clients apart that show no token, to take turns and to be limited. A connection by default,
        since behind a proxy all have one host; `host` where clients can't be trusted not to open many connections
    client_images: of one client that may be inside at a time, 0 for any number
    client_rate: images of one client a second in the long run, 0 for any number
    client_burst: images that a client may send at once after a pause, where there is a rate

    No limits by default: clients take turns whatever they send, and behind a proxy all of them may look like one.
    """

    client_by: Literal["connection", "host"] = "connection"
    client_images: Annotated[int, Field(ge=0)] = 0
    client_rate: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    client_burst: Annotated[int, Field(ge=1)] = 64


class Clients:
    """Counts what each client has inside, and meters what it sends: a token bucket of images. From any thread.

    A request is let in while there is a token, and may leave its client in debt: so none is too large for the bucket.
    """

    def __init__(self, limits: ClientLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self.limited = bool(limits.client_images or limits.client_rate)  # else all else may be left
        self._lock = threading.Lock()  # of what follows
        self._inside: Counter[str] = Counter()
        self._buckets: dict[str, tuple[float, float]] = {}  # tokens, and when there were so many

    @property
    def known(self) -> int:
        """Clients that something is remembered of."""
        return len(self._inside.keys() | self._buckets.keys())

    def check(self, client: str, images: int) -> None:
        """Raises OverloadedError when the client has too many images inside, or sends them too fast, UsageError when
        they are more than may ever be.
        """
        with self._lock:
            self._check(client, images)

    def _check(self, client: str, images: int) -> None:
        limit = self._limits.client_images
        if limit and images > limit:
            raise UsageError(
                f"{images} images at a time are more than a client's limit of {limit}; send fewer", "images"
            )
        if limit and self._inside[client] + images > limit:
            raise OverloadedError(
                f"this client has {self._inside[client]} images to be answered already, its limit is {limit}", 0.05
            )
        rate = self._limits.client_rate
        if rate and (tokens := self._tokens(client, self._clock())) < 1:
            wait_s = (1 - tokens) / rate
            raise OverloadedError(
                f"this client sends more than {rate:g} images a second; ask again in {wait_s:.2f} s", wait_s
            )

    def enter(self, client: str, images: int) -> None:
        """Counts images as inside, until they `leave`, and as sent. Raises as `check`."""
        with self._lock:
            self._check(client, images)
            self._take_tokens(client, images)
            self._inside[client] += images

    def leave(self, client: str, images: int) -> None:
        with self._lock:
            self._inside[client] -= images
            if self._inside[client] <= 0:
                del self._inside[client]

    def _take_tokens(self, client: str, images: int) -> None:
        if not self._limits.client_rate:
            return
        now = self._clock()
        self._buckets[client] = self._tokens(client, now) - images, now
        if len(self._buckets) > _KEPT:
            burst = self._limits.client_burst
            self._buckets = {one: bucket for one, bucket in self._buckets.items() if self._tokens(one, now) < burst}

    def _tokens(self, client: str, now: float) -> float:
        burst = float(self._limits.client_burst)
        tokens, then = self._buckets.get(client, (burst, now))
        return min(burst, tokens + (now - then) * self._limits.client_rate)
