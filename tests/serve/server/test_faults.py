"""A session that throws or answers NaN, on a real server: who is told, who is answered all the same, how it mends."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import pytest
from grpc_health.v1 import health_pb2

from ferryman.errors import BundleError
from ferryman.inference import grpc_service_pb2 as pb
from ferryman.server.app import VisionServer
from ferryman.server.costs import Costs
from ferryman.server.loading import LoadedModel

from ..toy import toy_reference
from .gate import Gate
from .inference.asking import arrays_of, status_of
from .inside import Caller, calling, running, until
from .marked import NAN, THROW, MarkedModels, canvas, marked

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def ask(caller: Caller, mark: int, model: str = "toy-classifier") -> "asyncio.Future[pb.ModelInferResponse]":
    return asyncio.ensure_future(caller.inference.ModelInfer(marked(mark, model)))


def assert_right(response: pb.ModelInferResponse, mark: int) -> None:
    expected = toy_reference("toy-classifier", {"image": canvas(mark)})
    for name, array in arrays_of(response).items():
        np.testing.assert_allclose(array, expected[name], atol=1e-5)


async def test_only_the_marked_requests_of_a_batch_fail(toy_repository: Path) -> None:
    gate = Gate()
    models = MarkedModels(gate)
    async with running(toy_repository, gate, models) as server, calling(server.address) as caller:
        engine = await server.models.get("toy-classifier")
        first = ask(caller, 1)
        await gate.wait_for_batches(1)
        waiting: dict[int, asyncio.Future[pb.ModelInferResponse]] = {}
        for mark in (2, THROW, NAN, 3):
            waiting[mark] = ask(caller, mark)
            await until(lambda: engine.images_inside == 1 + len(waiting))
        gate.open()
        assert_right(await first, 1)
        assert_right(await waiting[2], 2)
        assert_right(await waiting[3], 3)
        assert await status_of(waiting[THROW]) == ("INTERNAL", "the session threw")
        code, message = await status_of(waiting[NAN])
        assert (code, "probabilities for this image are NaN" in message) == ("INTERNAL", True)
        assert models.sessions["toy-classifier"][0].seen == [[1], [2, THROW, NAN, 3], [2], [THROW], [NAN], [3]]
        assert await caller.status_of("toy-classifier") == SERVING
        # and alone it fails once, without another try
        assert (await status_of(ask(caller, NAN)))[0] == "INTERNAL"
        assert gate.batches[6:] == [1]
        assert_right(await ask(caller, 4), 4)
        assert len(models.sessions["toy-classifier"]) == 1


class FailingLoads(MarkedModels):
    """The classifier's first session is broken once it is loaded; the second can't be loaded until `mended`."""

    def __init__(self, gate: Gate, load_gate: Gate) -> None:
        super().__init__(gate, costs=lambda: Costs({1: 0.001}))
        self.mended = False
        self.loads = 0
        self._load_gate = load_gate

    def __call__(self, folder: Path) -> LoadedModel:
        if folder.parent.name != "toy-classifier":
            return super().__call__(folder)
        self.loads += 1
        if self.loads > 1:
            self._load_gate(1)
            if not self.mended:
                raise BundleError("the device has gone")
        model = super().__call__(folder)
        self.sessions["toy-classifier"][-1].broken = self.loads == 1
        return model


async def test_a_session_that_fails_again_and_again_is_rebuilt(
    toy_repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gate, load_gate = Gate(), Gate()
    models = FailingLoads(gate, load_gate)
    async with administered(toy_repository, gate, models) as (server, caller):
        models.mended = True
        engine = await server.models.get("toy-classifier")
        waiting = [ask(caller, mark) for mark in range(6)]
        await until(lambda: engine.images_inside == 6)
        gate.open()
        await load_gate.wait_for_batches(1)
        assert models.sessions["toy-classifier"][0].closed
        await assert_unready(caller, "its session has failed and is being rebuilt")
        load_gate.open()
        answers = await asyncio.gather(*waiting, return_exceptions=True)
        failed = [answer for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
        # three in a row; those that waited are answered by the new session
        assert [(error.code().name, error.details()) for error in failed] == [("INTERNAL", "the session threw")] * 3
        for mark, answer in enumerate(answers):
            if isinstance(answer, pb.ModelInferResponse):
                assert_right(answer, mark)
        await assert_ready(caller)
        assert engine.model.sessions == (models.sessions["toy-classifier"][1],)
    assert "session failed 3 times in a row and is rebuilt: model=toy-classifier-1" in caplog.text


async def test_a_session_that_can_not_be_rebuilt_is_tried_again(toy_repository: Path) -> None:
    gate = Gate(is_open=True)
    models = FailingLoads(gate, Gate(is_open=True))
    async with administered(toy_repository, gate, models) as (server, caller):
        for mark in range(3):
            assert (await status_of(ask(caller, mark)))[0] == "INTERNAL"
        await until(lambda: models.loads == 2)
        await assert_unready(caller, "its session has failed and is being rebuilt")
        models.mended = True
        await until(lambda: models.loads == 3)
        engine = await server.models.get("toy-classifier")
        await until(lambda: engine.ready)
        await assert_ready(caller)


async def test_a_server_is_not_ready_while_its_only_model_is_rebuilt(toy_repository: Path) -> None:
    gate = Gate(is_open=True)
    models = FailingLoads(gate, Gate(is_open=True))
    async with (
        running(toy_repository, gate, models, models=("toy-classifier",)) as server,
        calling(server.address) as caller,
    ):
        assert server.health.ready
        for mark in range(3):
            assert (await status_of(ask(caller, mark)))[0] == "INTERNAL"
        await until(lambda: not server.health.ready)
        assert await caller.status_of("") == NOT_SERVING
        assert not (await caller.inference.ServerReady(pb.ServerReadyRequest())).ready
        assert [engine.ready for engine in server.models.loaded()] == [False]  # it is told of, all the same
        models.mended = True
        await until(lambda: server.health.ready)
        assert await caller.status_of("") == SERVING


async def test_a_server_stops_while_a_session_is_rebuilt(toy_repository: Path) -> None:
    gate, load_gate = Gate(is_open=True), Gate()
    models = FailingLoads(gate, load_gate)
    async with running(toy_repository, gate, models) as server, calling(server.address) as caller:
        for mark in range(3):
            assert (await status_of(ask(caller, mark)))[0] == "INTERNAL"
        await load_gate.wait_for_batches(1)
        await server.stop()
        load_gate.open()


@asynccontextmanager
async def administered(
    repository: Path, gate: Gate, models: MarkedModels
) -> AsyncGenerator[tuple[VisionServer, Caller]]:
    """A server, and stubs of which everything may be asked."""
    async with (
        running(repository, gate, models, admin_address="127.0.0.1:0") as server,
        calling(str(server.admin_address)) as caller,
    ):
        yield server, caller


async def assert_unready(caller: Caller, reason: str) -> None:
    """The classifier is not served, and all else is."""
    await until_status(caller, NOT_SERVING)
    code, message = await status_of(ask(caller, 9))
    assert (code, "is being rebuilt" in message) == ("UNAVAILABLE", True)
    assert not (await caller.inference.ModelReady(pb.ModelReadyRequest(name="toy-classifier"))).ready
    index = (await caller.inference.RepositoryIndex(pb.RepositoryIndexRequest())).models
    states: dict[str, Any] = {one.name: (one.state, one.reason) for one in index}
    assert states["toy-classifier"] == ("UNAVAILABLE", reason)
    assert states["toy-detector"] == ("READY", "")
    for name in ("", "toy-detector"):
        assert await caller.status_of(name) == SERVING
    assert (await ask(caller, 9, "toy-detector")).outputs


async def assert_ready(caller: Caller) -> None:
    await until_status(caller, SERVING)
    assert (await caller.inference.ModelReady(pb.ModelReadyRequest(name="toy-classifier"))).ready
    assert_right(await ask(caller, 7), 7)


async def until_status(caller: Caller, status: int) -> None:
    while await caller.status_of("toy-classifier") != status:
        await asyncio.sleep(0.005)
