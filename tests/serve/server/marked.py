"""Sessions that fail on marked pictures, and requests that hold them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferryman.attest import Attestation
from ferryman.errors import EngineError
from ferryman.inference import grpc_service_pb2 as pb
from ferryman.runtimes.base import Arrays, Session, Settings
from ferryman.server.costs import Costs
from ferryman.server.loading import LoadedModel, load_model

from ..toy import SIDE
from .gate import any_batch_helps
from .inference.asking import infer

THROW, NAN = 251, 252  # of all channels of the first pixel


def canvas(mark: int) -> NDArray[np.uint8]:
    """(1, SIDE, SIDE, 3), of that value."""
    return np.full((1, SIDE, SIDE, 3), mark, np.uint8)


def marked(mark: int, model: str = "toy-classifier", **fields: Any) -> pb.ModelInferRequest:
    return infer(model, {"image": canvas(mark)}, **fields)


class MarkedSession(Session):
    """A real session behind a gate, but for pictures that are marked; broken: fails on all.

    seen: the marks of the pictures of each run
    """

    def __init__(self, session: Session, gate: Callable[[int], None]) -> None:
        super().__init__(session.spec)
        self.broken = False
        self.seen: list[list[int]] = []
        self._session = session
        self._gate = gate

    def _run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        pixels = inputs["image"][:, 0, 0]
        marks = [int(red) if red == green == blue else 0 for red, green, blue in pixels]
        self._gate(len(marks))
        self.seen.append(marks)
        if self.broken or THROW in marks:
            raise EngineError("the session threw")
        outputs = {name: array.copy() for name, array in self._session.run(inputs).items()}
        for row in [index for index, mark in enumerate(marks) if mark == NAN]:
            outputs["probabilities"][row, 1] = np.nan
        return outputs

    def attest(self, inputs: Arrays) -> Attestation:
        return self._session.attest(inputs)

    def _close(self) -> None:
        self._session.close()


class MarkedModels:
    """Loads models whose sessions are marked ones. sessions: all that were loaded, by NAME, in their order

    costs: of each session, by default of one that any batch helps
    """

    def __init__(
        self, gate: Callable[[int], None] = lambda size: None, costs: Callable[[], Costs] = any_batch_helps
    ) -> None:
        self._gate = gate
        self.sessions: dict[str, list[MarkedSession]] = {}
        self._costs = costs

    def __call__(self, folder: Path) -> LoadedModel:
        model = load_model(folder, settings=Settings(threads=1))
        session = MarkedSession(model.sessions[0], self._gate)
        self.sessions.setdefault(model.name, []).append(session)
        return replace(model, sessions=(session,), costs=(self._costs(),))
