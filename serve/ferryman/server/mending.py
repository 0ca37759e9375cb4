"""A session that fails again and again is not asked any more until it has been built anew."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

log = logging.getLogger(__name__)
# In a row, of batches or of images that were run again alone: a picture that the model can't take is one or two.
FAILURES = 3
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0


class Mender:
    """Counts failures in a row, and repairs until it succeeds.

    repair: tries once, on the event loop; on_ready: told False when the model can't be asked any more, then True
    pause_s: before the second try; each pause after it is twice as long, up to a minute
    """

    def __init__(
        self,
        name: str,
        repair: Callable[[], Awaitable[None]],
        on_ready: Callable[[bool], None],
        pause_s: float = _FIRST_PAUSE_S,
    ) -> None:
        self.ready = True
        self._name = name
        self._repair = repair
        self._on_ready = on_ready
        self._pause_s = pause_s
        self._failures = 0
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None

    def note(self, failed: bool) -> None:
        """A run has failed or not; called in the threads that run."""
        self._failures = self._failures + 1 if failed else 0
        if self._failures >= FAILURES and self.ready:
            self.ready = False  # here already: what comes now is refused
            self._loop.call_soon_threadsafe(self._start)

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def _start(self) -> None:
        self._task = asyncio.create_task(self._mend())

    async def _mend(self) -> None:
        log.error("session failed %d times in a row and is rebuilt: model=%s", FAILURES, self._name)
        self._on_ready(False)
        pause_s = self._pause_s
        while True:
            [error] = await asyncio.gather(self._repair(), return_exceptions=True)
            if error is None:
                break
            log.error("session can't be rebuilt, tried again in %.0f s: model=%s reason=%s", pause_s, self._name, error)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        self._failures = 0
        self.ready = True
        self._on_ready(True)
        log.info("session rebuilt: model=%s", self._name)
