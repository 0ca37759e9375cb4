"""ModelStreamInfer: answers as they are done, a window that holds a fast client back, and how streams end."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import pytest

from ferryman.inference import grpc_service_pb2 as pb
from ferryman.server.inference.infer import InferLimits

from ...toy import SIDE
from ..gate import Gate
from ..inside import calling, running, until
from .asking import as_parameters, infer


def frame(number: int, model: str = "toy-classifier", **parameters: object) -> pb.ModelInferRequest:
    image = np.full((1, SIDE, SIDE, 3), number, np.uint8)
    return infer(model, {"image": image}, id=str(number), parameters=as_parameters(parameters))


async def test_what_is_done_first_is_answered_first(toy_repository: Path) -> None:
    gate = Gate()
    async with running(toy_repository, gate) as server, calling(server.address) as caller:
        waiting = asyncio.ensure_future(caller.inference.ModelInfer(frame(9)))
        await gate.wait_for_batches(1)
        # The first frame waits behind the gate; the second one is wrong, and its answer comes at once.
        stream = caller.inference.ModelStreamInfer(iter([frame(1), frame(2, "vit"), frame(3)]))
        first = await stream.read()
        assert (first.infer_response.id, "there is no model 'vit'" in first.error_message) == ("2", True)
        assert not first.infer_response.outputs
        gate.open()
        assert {(await stream.read()).infer_response.id for _ in range(2)} == {"1", "3"}
        assert await stream.read() is grpc.aio.EOF
        await waiting


async def test_the_final_flag_is_there_when_it_is_asked_for(toy_repository: Path) -> None:
    asked = frame(1, triton_enable_empty_final_response=True)
    async with running(toy_repository) as server, calling(server.address) as caller:
        stream = caller.inference.ModelStreamInfer(iter([asked, frame(2)]))
        answers = {answer.infer_response.id: answer.infer_response async for answer in stream}
        assert {name: value.bool_param for name, value in answers["1"].parameters.items()} == {
            "triton_final_response": True
        }
        assert not answers["2"].parameters


@pytest.mark.parametrize(("settings", "window"), [({}, InferLimits().stream_window), ({"infer_stream_window": 3}, 3)])
async def test_no_more_than_the_window_is_inside(toy_repository: Path, settings: dict[str, Any], window: int) -> None:
    gate = Gate()
    sent = 0

    async def requests() -> AsyncIterator[pb.ModelInferRequest]:
        nonlocal sent
        for number in range(4 * window):
            sent += 1
            yield frame(number)

    async with running(toy_repository, gate, **settings) as server, calling(server.address) as caller:
        engine = await server.models.get("toy-classifier")
        stream = caller.inference.ModelStreamInfer(requests())
        await until(lambda: engine.images_inside == window)
        await asyncio.sleep(0.1)
        assert engine.images_inside == window
        gate.open()
        assert {answer.infer_response.id async for answer in stream} == {str(number) for number in range(4 * window)}
        assert sent == 4 * window


async def test_a_stream_that_is_cancelled_leaves_nothing(toy_repository: Path) -> None:
    gate = Gate()
    async with running(toy_repository, gate) as server, calling(server.address) as caller:
        engine = await server.models.get("toy-classifier")
        stream = caller.inference.ModelStreamInfer(iter([frame(number) for number in range(5)]))
        await until(lambda: engine.images_inside == 5)
        stream.cancel()
        await until(lambda: engine.images_inside == 0 and server.calls.count == 0)
        gate.open()
        assert (await caller.inference.ModelInfer(frame(1))).outputs


async def test_a_server_that_stops_answers_what_it_has_read(toy_repository: Path) -> None:
    gate = Gate()
    release = asyncio.Event()

    async def requests() -> AsyncIterator[pb.ModelInferRequest]:
        for number in range(3):
            yield frame(number)
        await release.wait()  # a client that has more to come

    async with running(toy_repository, gate) as server, calling(server.address) as caller:
        engine = await server.models.get("toy-classifier")
        stream = caller.inference.ModelStreamInfer(requests())
        await until(lambda: engine.images_inside == 3)
        stopping = asyncio.create_task(server.stop())
        await until(server.calls.stopping.is_set)
        gate.open()
        found = [await stream.read() for _ in range(3)]
        assert {answer.infer_response.id for answer in found} == {"0", "1", "2"}
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        await stopping
        release.set()


async def test_an_empty_stream_ends(toy_repository: Path) -> None:
    async with running(toy_repository) as server, calling(server.address) as caller:
        assert [answer async for answer in caller.inference.ModelStreamInfer(iter([]))] == []
