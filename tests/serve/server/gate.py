"""A session that is real, but for the gate that each batch must pass: tests decide when a batch ends."""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ferryman.attest import Attestation
from ferryman.runtimes.base import Arrays, Session, Settings
from ferryman.server.costs import Costs
from ferryman.server.loading import LoadedModel, load_model

PATIENCE_S = 240


class Gate:
    """Open or shut. batches: the size of each batch that has arrived."""

    def __init__(self, is_open: bool = False) -> None:
        self.batches: list[int] = []
        self._error: Exception | None = None
        self._open = threading.Event()
        self._arrived = threading.Condition()
        if is_open:
            self._open.set()

    def __call__(self, size: int) -> None:
        with self._arrived:
            self.batches.append(size)
            self._arrived.notify_all()
        if not self._open.wait(PATIENCE_S):
            raise TimeoutError("the gate was never opened")
        if self._error is not None:
            raise self._error

    def fail_with(self, error: Exception | None) -> None:
        """Batches that pass from now on fail."""
        self._error = error

    def shut(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    async def wait_for_batches(self, count: int) -> None:
        """Returns once `count` batches have arrived."""

        def wait() -> bool:
            with self._arrived:
                return self._arrived.wait_for(lambda: len(self.batches) >= count, PATIENCE_S)

        assert await asyncio.to_thread(wait)


class GatedSession(Session):
    def __init__(self, session: Session, gate: Callable[[int], None]) -> None:
        super().__init__(session.spec)
        self._session = session
        self._gate = gate

    def _run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        self._gate(len(inputs["image"]))
        return self._session.run(inputs)

    def attest(self, inputs: Arrays) -> Attestation:
        return self._session.attest(inputs)

    def _close(self) -> None:
        self._session.close()


def any_batch_helps() -> Costs:
    """Of a session that takes no longer for 64 than for one."""
    return Costs({1: 0.001, 64: 0.001})


def load_gated(folder: Path, gate: Callable[[int], None]) -> LoadedModel:
    """`load_model`, whose sessions then stand behind the gate, and for which any batch helps."""
    model = load_model(folder, settings=Settings(threads=1))
    sessions = tuple(GatedSession(session, gate) for session in model.sessions)
    return replace(model, sessions=sessions, costs=tuple(any_batch_helps() for _ in sessions))
