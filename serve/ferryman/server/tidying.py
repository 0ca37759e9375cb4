"""Gives memory back once the server has come to rest."""

import asyncio
import time
from collections.abc import Callable

from ferryman.heap import give_back

_LOOK_S = 2.0
_PAUSE_S = 10.0  # between two times


class Tidier:
    """Pictures and requests of megabytes leave holes in the heap, which grows to several times of what is inside at a
    time, and stays so. At rest it is given back: not before, as what was given back must be asked for again.

    inside: how much is being answered; done: a number that grows with what was
    """

    def __init__(self, inside: Callable[[], int], done: Callable[[], int]) -> None:
        self._inside, self._done = inside, done
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._tidy())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _tidy(self) -> None:
        tidied, before, last = self._done(), -1, -_PAUSE_S
        while True:
            await asyncio.sleep(_LOOK_S)
            done = self._done()
            rests = self._inside() == 0 and done == before
            before = done
            if rests and done != tidied and time.monotonic() - last > _PAUSE_S:
                await asyncio.to_thread(give_back)
                tidied, last = done, time.monotonic()
