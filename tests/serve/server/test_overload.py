"""A server that is asked for more than it can do: who is refused, when, and in whose favour. Counts, never times."""

import asyncio
import contextlib
import time
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from grpc_status import rpc_status

from ferryman import predictor
from ferryman.inference import grpc_service_pb2 as pb
from ferryman.server.costs import Costs
from ferryman.v1 import vision_pb2 as v1

from ..toy import make_pictures
from .gate import Gate
from .inference.asking import as_parameters, infer_pictures, status_of
from .inside import Caller, calling, running, until
from .marked import MarkedModels, marked


def ask(caller: Caller, mark: int, timeout: float | None = None, **fields: Any) -> Any:
    return asyncio.ensure_future(caller.inference.ModelInfer(marked(mark, **fields), timeout=timeout))


def one_by_one(seconds: float = 0.001) -> Costs:
    return Costs({1: seconds})


async def retry_of(call: Any) -> float:
    """Seconds after which one who is refused is to ask again."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    status = rpc_status.from_call(caught.value)  # pyright: ignore[reportArgumentType]
    assert status is not None
    retry = RetryInfo()
    assert any(detail.Unpack(retry) for detail in status.details)
    return retry.retry_delay.ToNanoseconds() / 1e9


async def test_who_would_be_answered_too_late_is_refused_at_once(toy_repository: Path) -> None:
    """A picture takes 10 s as far as is known, so that of requests that have 60 s three fit, into 48 s less one."""
    gate = Gate()
    models = MarkedModels(gate, lambda: one_by_one(10.0))
    async with running(toy_repository, gate, models, queue_seconds=100.0) as server, calling(server.address) as caller:
        inside = [ask(caller, 1, timeout=60)]
        await gate.wait_for_batches(1)
        inside += [ask(caller, mark, timeout=60) for mark in (2, 3)]
        engine = await server.models.get("toy-classifier")
        await until(lambda: engine.images_inside == 3)
        for call in [ask(caller, mark, timeout=60) for mark in range(4, 24)]:
            assert 0 < await retry_of(call) <= 5
        # one that has the time is let in, and another client's turn comes before the second of the first's
        inside += [ask(caller, 30, timeout=240)]
        await until(lambda: engine.images_inside == 4)
        async with calling(server.address) as other:
            inside += [ask(other, 40, timeout=60)]
            await until(lambda: engine.images_inside == 5)
            gate.open()
            assert len(await asyncio.gather(*inside)) == 5
        assert [mark for run in models.sessions["toy-classifier"][0].seen for mark in run] == [1, 2, 40, 3, 30]
        found = await caller.inference.ModelStatistics(pb.ModelStatisticsRequest(name="toy-classifier"))
        assert (
            found.model_stats[0].inference_stats.success.count,
            found.model_stats[0].inference_stats.fail.count,
        ) == (
            5,
            20,
        )


async def test_the_queue_is_bounded_by_time(toy_repository: Path) -> None:
    gate = Gate()
    models = MarkedModels(gate, lambda: one_by_one(10.0))
    async with running(toy_repository, gate, models, queue_seconds=25.0) as server, calling(server.address) as caller:
        inside = [ask(caller, 1)]
        await gate.wait_for_batches(1)
        inside += [ask(caller, 2)]
        engine = await server.models.get("toy-classifier")
        await until(lambda: engine.images_inside == 2)
        inside += [ask(caller, 3)]
        await until(lambda: engine.images_inside == 3)
        assert await retry_of(ask(caller, 4)) > 0
        gate.open()
        assert len(await asyncio.gather(*inside)) == 3


async def test_a_flood_is_answered_or_refused_to_the_last_request(toy_repository: Path) -> None:
    """300 requests at once from three clients where 16 have room; then all goes on as before."""
    models = MarkedModels(lambda size: time.sleep(0.005), one_by_one)
    settings: dict[str, Any] = {"queue_limit": 16, "max_images_per_request": 4}
    async with (
        running(toy_repository, None, models, **settings) as server,
        calling(server.address) as first,
        calling(server.address) as second,
        calling(server.address) as third,
    ):
        calls = [ask(caller, mark % 200, timeout=240) for mark in range(100) for caller in (first, second, third)]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        codes = [answer.code().name if isinstance(answer, grpc.aio.AioRpcError) else "OK" for answer in answers]
        assert set(codes) == {"OK", "RESOURCE_EXHAUSTED"}
        assert sum(map(len, models.sessions["toy-classifier"][0].seen)) == codes.count("OK")
        await until(lambda: server.calls.count == 0)
        engine = await server.models.get("toy-classifier")
        assert engine.images_inside == 0
        assert (await ask(first, 1)).outputs


async def test_a_client_with_many_does_not_make_another_wait_for_all(toy_repository: Path) -> None:
    gate = Gate()
    models = MarkedModels(gate, one_by_one)
    async with (
        running(toy_repository, gate, models) as server,
        calling(server.address) as greedy,
        calling(server.address) as modest,
    ):
        engine = await server.models.get("toy-classifier")
        calls = [ask(greedy, 0)]
        await gate.wait_for_batches(1)
        calls += [ask(greedy, mark) for mark in range(1, 101)]
        await until(lambda: engine.images_inside == 101)
        calls += [ask(modest, 200)]
        await until(lambda: engine.images_inside == 102)
        gate.open()
        await asyncio.gather(*calls)
        order = [mark for run in models.sessions["toy-classifier"][0].seen for mark in run]
        assert order.index(200) == 2
        assert sorted(order) == [*range(101), 200]


async def test_a_full_queue_has_room_for_who_has_fewer_inside(toy_repository: Path) -> None:
    """8 places, all taken by one client: its newest give way, until both have as many."""
    gate = Gate()
    models = MarkedModels(gate, one_by_one)
    settings: dict[str, Any] = {"queue_limit": 8, "max_images_per_request": 8}
    async with (
        running(toy_repository, gate, models, **settings) as server,
        calling(server.address) as greedy,
        calling(server.address) as modest,
    ):
        engine = await server.models.get("toy-classifier")
        calls: dict[int, Any] = {}
        for mark in range(8):
            calls[mark] = ask(greedy, mark)
            await until(lambda: engine.images_inside == len(calls))
        assert await retry_of(ask(greedy, 8)) > 0
        for mark in range(100, 104):
            calls[mark] = ask(modest, mark)
            assert await retry_of(calls.pop(107 - mark)) > 0  # 7, 6, 5, 4
            await until(lambda: engine.images_inside == 8)
        assert await retry_of(ask(modest, 104)) > 0
        gate.open()
        await asyncio.gather(*calls.values())
        order = [mark for run in models.sessions["toy-classifier"][0].seen for mark in run]
        assert order == [0, 1, 100, 2, 101, 3, 102, 103]


async def test_work_marked_low_comes_after_the_rest(toy_repository: Path) -> None:
    gate = Gate()
    models = MarkedModels(gate, one_by_one)
    async with running(toy_repository, gate, models) as server, calling(server.address) as caller:
        engine = await server.models.get("toy-classifier")
        calls = [ask(caller, 0)]
        await gate.wait_for_batches(1)
        metadata = (("ferryman-priority", "low"),)
        calls += [asyncio.ensure_future(caller.inference.ModelInfer(marked(100), metadata=metadata))]
        await until(lambda: engine.images_inside == 2)
        calls += [ask(caller, 101, parameters=as_parameters({"priority": 2}))]
        await until(lambda: engine.images_inside == 3)
        for mark, priority in ((1, 0), (2, 1), (3, 0)):
            calls += [ask(caller, mark, parameters=as_parameters({"priority": priority}))]
            await until(lambda inside=3 + mark: engine.images_inside == inside)
        gate.open()
        await asyncio.gather(*calls)
        assert models.sessions["toy-classifier"][0].seen == [[0], [1], [2], [3], [100], [101]]
        wrong = caller.inference.ModelInfer(marked(1), metadata=(("ferryman-priority", "urgent"),))
        assert await status_of(wrong) == (
            "INVALID_ARGUMENT",
            "ferryman-priority is 'urgent', expected high or low",
        )


async def test_a_client_has_its_own_limit(toy_repository: Path) -> None:
    gate = Gate()
    models = MarkedModels(gate, one_by_one)
    settings: dict[str, Any] = {"client_images": 2, "client_rate": 0.001, "client_burst": 4}
    async with (
        running(toy_repository, gate, models, **settings) as server,
        calling(server.address) as first,
        calling(server.address) as second,
    ):
        engine = await server.models.get("toy-classifier")
        calls = [ask(first, 1), ask(first, 2)]
        await until(lambda: engine.images_inside == 2)
        assert "its limit is 2" in (await status_of(ask(first, 3)))[1]
        calls += [ask(second, 4)]
        await until(lambda: engine.images_inside == 3)
        gate.open()
        await asyncio.gather(*calls)
        await asyncio.gather(ask(first, 5), ask(first, 6))
        assert await retry_of(ask(first, 7)) > 0
        assert (await ask(second, 8)).outputs


class HeldDecoding:
    """Pictures are decoded when the gate lets them; counts them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gate = Gate()
        decode = predictor.decode_image

        def held(data: bytes, max_pixels: int) -> Any:
            self.gate(1)
            return decode(data, max_pixels)

        monkeypatch.setattr(predictor, "decode_image", held)

    @property
    def count(self) -> int:
        return len(self.gate.batches)


async def test_pictures_of_a_cancelled_request_are_not_decoded(
    toy_repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoding = HeldDecoding(monkeypatch)
    settings: dict[str, Any] = {"decode_threads": 2}
    async with (
        running(toy_repository, decoding.gate, MarkedModels(), **settings) as server,
        calling(server.address) as caller,
    ):
        engine = await server.models.get("toy-classifier")
        request = v1.ClassifyRequest(model=v1.ModelRef(name="toy-classifier"), images=make_pictures(30))
        left = caller.vision.Classify(request)
        late = asyncio.ensure_future(caller.vision.Classify(request, timeout=1))
        await decoding.gate.wait_for_batches(2)
        left.cancel()
        assert (await status_of(late))[0] == "DEADLINE_EXCEEDED"
        await until(lambda: engine.images_inside == 0)
        decoding.gate.open()
        found = await caller.inference.ModelInfer(infer_pictures("toy-classifier", make_pictures(3)))
        assert found.outputs[0].shape[0] == 3
        assert decoding.count == 2 + 3


async def test_pictures_that_wait_to_be_decoded_count(toy_repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as none was decoded a picture is taken to need 5 ms: of 50 the last waits a quarter of a second."""
    decoding = HeldDecoding(monkeypatch)
    settings: dict[str, Any] = {"decode_threads": 1, "queue_seconds": 0.2}
    async with (
        running(toy_repository, decoding.gate, MarkedModels(), **settings) as server,
        calling(server.address) as caller,
        calling(server.address) as other,
    ):
        engine = await server.models.get("toy-classifier")
        first = asyncio.ensure_future(caller.inference.ModelInfer(infer_pictures("toy-classifier", make_pictures(50))))
        await until(lambda: engine.images_inside == 50)
        assert await retry_of(caller.inference.ModelInfer(infer_pictures("toy-classifier", make_pictures(1)))) > 0
        # tensors need none of that: they are refused only for what waits for the device itself
        assert (await ask(other, 1)).outputs
        decoding.gate.open()
        assert (await first).outputs[0].shape[0] == 50
        assert decoding.count == 50


async def test_low_gives_way_to_high(toy_repository: Path) -> None:
    """8 places, all taken by low work of many clients, each with one: none has more than who comes."""
    gate = Gate()
    models = MarkedModels(gate, one_by_one)
    settings: dict[str, Any] = {"queue_limit": 8, "max_images_per_request": 8}
    low = as_parameters({"priority": 2})
    async with running(toy_repository, gate, models, **settings) as server, contextlib.AsyncExitStack() as opened:
        callers = [await opened.enter_async_context(calling(server.address)) for _ in range(9)]
        engine = await server.models.get("toy-classifier")
        calls: list[Any] = []
        for mark in range(8):
            calls.append(ask(callers[mark], mark, parameters=low))
            await until(lambda: engine.images_inside == len(calls))
        assert await retry_of(ask(callers[8], 9, parameters=low)) > 0
        high = ask(callers[8], 100)
        assert await retry_of(calls.pop()) > 0  # the newest
        gate.open()
        await asyncio.gather(high, *calls)
        assert models.sessions["toy-classifier"][0].seen[:2] == [[0], [100]]


async def test_pictures_that_wait_to_be_decoded_give_way(toy_repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """8 places, all taken by one client's pictures, of which one is being decoded: another client has room."""
    decoding = HeldDecoding(monkeypatch)
    settings: dict[str, Any] = {"queue_limit": 8, "max_images_per_request": 8, "decode_threads": 1}
    async with (
        running(toy_repository, decoding.gate, MarkedModels(), **settings) as server,
        calling(server.address) as greedy,
        calling(server.address) as modest,
    ):
        engine = await server.models.get("toy-classifier")
        picture = infer_pictures("toy-classifier", make_pictures(1))
        calls = [asyncio.ensure_future(greedy.inference.ModelInfer(picture)) for _ in range(8)]
        await decoding.gate.wait_for_batches(1)
        await until(lambda: engine.images_inside == 8)
        assert (await ask(modest, 1)).outputs  # a tensor, which need not be decoded
        decoding.gate.open()
        answers = await asyncio.gather(*calls, return_exceptions=True)
        refused = [one for one in answers if isinstance(one, grpc.aio.AioRpcError)]
        assert [one.code().name for one in refused] == ["RESOURCE_EXHAUSTED"]


async def test_a_request_that_takes_several_runs_is_refused_when_they_take_too_long(toy_repository: Path) -> None:
    """A run takes a second as far as is known: three can't be done in two, though the device is idle."""
    models = MarkedModels(Gate(is_open=True), lambda: one_by_one(1.0))
    async with running(toy_repository, None, models) as server, calling(server.address) as caller:
        three = marked(1)
        three.inputs[0].shape[0] = 3
        three.raw_input_contents[0] *= 3
        assert await retry_of(caller.inference.ModelInfer(three, timeout=2)) > 0
        assert models.sessions["toy-classifier"][0].seen == []
        assert (await ask(caller, 1, timeout=2)).outputs  # of one run only trying tells


async def test_runs_side_by_side_are_one_turn(toy_repository: Path) -> None:
    """Three runs of a second each, all at once, can be done in two."""
    models = MarkedModels(Gate(is_open=True), lambda: one_by_one(1.0))
    async with running(toy_repository, None, models, concurrency=3) as server, calling(server.address) as caller:
        three = marked(1)
        three.inputs[0].shape[0] = 3
        three.raw_input_contents[0] *= 3
        assert (await caller.inference.ModelInfer(three, timeout=2)).outputs


async def test_the_timeout_of_a_request_holds(toy_repository: Path) -> None:
    gate = Gate()
    async with running(toy_repository, gate, MarkedModels(gate)) as server, calling(server.address) as caller:
        late = ask(caller, 1, parameters=as_parameters({"timeout": 20_000}))
        await gate.wait_for_batches(1)
        await asyncio.sleep(0.05)
        gate.open()
        assert (await status_of(late))[0] == "DEADLINE_EXCEEDED"


async def test_a_model_has_limits_of_its_own(toy_repository: Path) -> None:
    gate = Gate()
    models = MarkedModels(gate, one_by_one)
    own = {"toy-classifier": {"concurrency": 2, "queue_limit": 64}}
    async with running(toy_repository, gate, models, per_model=own) as server, calling(server.address) as caller:
        calls = [ask(caller, 1), ask(caller, 2)]
        await gate.wait_for_batches(2)  # side by side
        for model, runs in (("toy-classifier", 2), ("toy-embedder", 1)):
            found = await caller.inference.ModelConfig(pb.ModelConfigRequest(name=model))
            assert [group.count for group in found.config.instance_group] == [runs]
        engine = await server.models.get("toy-classifier")
        assert (engine.limits.queue_limit, (await server.models.get("toy-embedder")).limits.queue_limit) == (64, 256)
        gate.open()
        await asyncio.gather(*calls)


async def test_who_is_refused_has_sent_nothing(toy_repository: Path) -> None:
    """By its own rate, of two pictures in a thousand seconds, when there is no room for any."""
    gate = Gate()
    models = MarkedModels(gate, one_by_one)
    settings: dict[str, Any] = {
        "client_rate": 0.001, "client_burst": 2, "queue_limit": 1, "max_images_per_request": 1
    }  # fmt: skip
    async with (
        running(toy_repository, gate, models, **settings) as server,
        calling(server.address) as other,
        calling(server.address) as caller,
    ):
        held = ask(other, 1)
        await gate.wait_for_batches(1)
        for mark in range(3):
            assert "has 1 images to answer already" in (await status_of(ask(caller, mark)))[1]
        gate.open()
        await held
        for mark in range(2):
            assert (await ask(caller, mark)).outputs
        assert "more than 0.001 images a second" in (await status_of(ask(caller, 3)))[1]
