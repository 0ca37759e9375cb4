"""Follows the repository folder while the server runs."""

import asyncio
import logging
from typing import Any

from ferryman.errors import FerrymanError
from ferryman.server.health import Health
from ferryman.server.repository import ModelRepository

log = logging.getLogger(__name__)


class Watcher:
    """Looks every so many seconds; `start` it once the server is ready, `stop` it before the models are closed.

    It polls: a look is a few system calls, works on every file system, network ones included, and a version appears
    whole, by one rename.
    """

    def __init__(self, models: ModelRepository[Any], health: Health, seconds: float) -> None:
        """seconds: 0 for never"""
        self._models = models
        self._health = health
        self._seconds = seconds
        self._task: asyncio.Task[None] | None = None
        self._problem = ""

    @property
    def problem(self) -> str:
        """Why the folder can't be followed now, empty when it can."""
        return self._problem

    def start(self) -> None:
        if self._seconds:
            self._task = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._seconds)
            try:
                changed = await self._models.refresh()
            except FerrymanError as error:
                self._note(str(error))
            except Exception:
                if not self._problem:
                    log.exception("repository can't be followed, by a bug")
                self._problem = "an unexpected error, see the server's log"
            else:
                self._note("")
                if changed:
                    await self._health.follow(self._models)

    def _note(self, problem: str) -> None:
        if problem and problem != self._problem:
            log.error("repository can't be followed, all stays as it is: %s", problem)
        if self._problem and not problem:
            log.info("repository is followed again")
        self._problem = problem
