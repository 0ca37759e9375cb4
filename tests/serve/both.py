"""Both clients behind one interface, for what they must do alike."""

import asyncio
from collections.abc import Callable
from typing import Any

from ferryman.client import Answer, AsyncClient, Client
from ferryman.errors import FerrymanError

PATIENCE_S = 240  # for machines that have other things to do


class Both:
    """One interface to both clients: each call is made by the one and by the other, and the answers must agree."""

    def __init__(self, address: str, **settings: Any) -> None:
        self._address = address
        self._settings: dict[str, Any] = {"timeout": PATIENCE_S} | settings

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            with Client(self._address, **self._settings) as client:
                blocking = _outcome(lambda: getattr(client, name)(*arguments, **options))

            async def ask() -> Any:
                async with AsyncClient(self._address, **self._settings) as client:
                    return await getattr(client, name)(*arguments, **options)

            awaited = _outcome(lambda: asyncio.run(ask()))
            assert type(blocking) is type(awaited), (blocking, awaited)
            if isinstance(blocking, Answer):
                assert blocking.answerer == awaited.answerer
            elif not isinstance(blocking, FerrymanError):
                assert blocking == awaited
            if isinstance(blocking, FerrymanError):
                raise blocking
            return blocking

        return call


def _outcome(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except FerrymanError as error:
        return error
