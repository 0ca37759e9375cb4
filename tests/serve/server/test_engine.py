"""The engine in this process, over a real model: the right answers, and who is let in."""

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from ferryman.errors import (
    DeadlineError,
    EngineError,
    ImageError,
    OverloadedError,
    TaskError,
    TensorError,
    UnavailableError,
    UsageError,
)
from ferryman.predictor import Predictor, fit_images
from ferryman.results import Detections, detections_from_outputs
from ferryman.server.admission import EngineLimits
from ferryman.server.clients import ClientLimits, Clients
from ferryman.server.decoding import Decoder
from ferryman.server.engine import Engine
from ferryman.server.loading import LoadedModel

from ..toy import SPECS, make_pictures
from .gate import Gate, load_gated
from .inside import until

SPEC = SPECS["toy-detector"]
to_detections = partial(detections_from_outputs, spec=SPEC, score_threshold=0.0)


@pytest.fixture
def gate() -> Gate:
    return Gate(is_open=True)


@pytest.fixture
async def engine(toy_repository: Path, gate: Gate) -> AsyncIterator[Engine]:
    """A detector that takes 4 images a batch and 12 in all."""
    model = await asyncio.to_thread(load_gated, toy_repository / "toy-detector" / "1", gate)
    decoder = Decoder(4)
    with ThreadPoolExecutor(4) as pool:
        engine = Engine(model, EngineLimits(max_batch=4, queue_limit=12), decoder, Clients(ClientLimits()), pool)
        yield engine
        gate.open()
        await engine.close()
        await decoder.close()


@pytest.fixture
def shut(gate: Gate) -> Gate:
    gate.shut()
    return gate


async def test_concurrent_requests_get_their_own_answers(toy_repository: Path, engine: Engine, gate: Gate) -> None:
    pictures = make_pictures(60)
    with Predictor.open(toy_repository / "toy-detector") as predictor:
        expected, _ = predictor.detect(pictures, score_threshold=0.0)
    places = asyncio.Semaphore(4)

    async def ask(start: int) -> list[Detections]:
        async with places:
            results, _ = await engine.answer(pictures[start : start + 3], to_detections)
            return results

    answers = await asyncio.gather(*(ask(start) for start in range(0, 60, 3)))
    assert_equal([result for answer in answers for result in answer], expected)
    assert max(gate.batches) > 1
    assert engine.images_inside == 0


def assert_equal(found: list[Detections], expected: list[Detections]) -> None:
    """Equal but for the rounding that the size of a batch makes."""
    assert [result.size for result in found] == [result.size for result in expected]
    for one, other in zip(found, expected, strict=True):
        assert [d.label for d in one.detections] == [d.label for d in other.detections]
        np.testing.assert_allclose([d.score for d in one.detections], [d.score for d in other.detections], atol=1e-6)
        boxes = [[d.box_xyxy for d in result.detections] for result in (one, other)]
        np.testing.assert_allclose(boxes[0], boxes[1], atol=1e-3)


async def test_every_stage_is_timed(engine: Engine) -> None:
    _, timings = await engine.answer(make_pictures(9), to_detections)
    stages = timings.decode_ms + timings.resize_ms + timings.queue_ms + timings.compute_ms + timings.postprocess_ms
    assert min(timings.decode_ms, timings.resize_ms, timings.compute_ms, timings.postprocess_ms) > 0
    assert stages <= timings.total_ms


async def test_a_full_engine_refuses_until_there_is_room(engine: Engine, shut: Gate) -> None:
    pictures = make_pictures(12)
    inside = asyncio.create_task(engine.answer(pictures[:10], to_detections))
    await shut.wait_for_batches(1)
    assert engine.images_inside == 10
    with pytest.raises(OverloadedError, match="has 10 images to answer already, the limit is 12") as caught:
        await engine.answer(pictures[:3], to_detections)
    assert caught.value.retry_after_s is not None
    assert 0 < caught.value.retry_after_s <= 5
    with pytest.raises(UsageError, match="13 images at a time are more than the limit of 12"):
        await engine.answer([*pictures, pictures[0]], to_detections)
    fits = asyncio.create_task(engine.answer(pictures[:2], to_detections))
    shut.open()
    await inside
    await fits
    assert engine.images_inside == 0


async def test_cancelling_frees_the_places(engine: Engine, shut: Gate) -> None:
    pictures = make_pictures(12)
    running = asyncio.create_task(engine.answer(pictures[:4], to_detections))
    await shut.wait_for_batches(1)
    waiting = asyncio.create_task(engine.answer(pictures[4:], to_detections))
    await asyncio.sleep(0)
    assert engine.images_inside == 12
    waiting.cancel()
    await asyncio.wait([waiting])
    assert engine.images_inside == 4
    shut.open()
    await running
    assert shut.batches == [4]


async def test_a_failed_request_frees_its_places(engine: Engine) -> None:
    with pytest.raises(ImageError, match="image 2 of 2: the 3 bytes are not"):
        await engine.answer([*make_pictures(1), b"abc"], to_detections)
    with pytest.raises(UsageError, match="no image"):
        await engine.answer([], to_detections)
    assert engine.images_inside == 0


async def test_a_late_request_is_not_even_decoded(engine: Engine, gate: Gate) -> None:
    with pytest.raises(DeadlineError):
        await engine.answer([b"not an image"], to_detections, deadline=time.monotonic())
    fitted = fit_images(make_pictures(1), [SPEC.preprocess])
    with pytest.raises(DeadlineError):
        await engine.run(fitted.canvases, fitted.geometries, deadline=time.monotonic())
    assert gate.batches == []


async def test_run_takes_canvases(engine: Engine) -> None:
    fitted = fit_images(make_pictures(5), [SPEC.preprocess])
    computed = await engine.run(fitted.canvases, fitted.geometries)
    assert [output["boxes"].shape for output in computed.outputs] == [(1, 3, 4)] * 5
    empty = await engine.run((), ())
    assert empty.outputs == ()


@pytest.mark.parametrize(
    "canvas",
    [np.zeros((32, 31, 3), np.uint8), np.zeros((32, 32, 3), np.float32), np.zeros((32, 32), np.uint8)],
    ids=["size", "type", "rank"],
)
async def test_run_refuses_other_canvases(engine: Engine, canvas: np.ndarray) -> None:
    geometries = fit_images(make_pictures(1), [SPEC.preprocess]).geometries
    with pytest.raises(TensorError, match=r"a canvas must be uint8 \(32, 32, 3\)"):
        await engine.run([canvas], geometries)


async def test_a_runtime_failure_is_an_engine_error(engine: Engine) -> None:
    engine.model.close()
    with pytest.raises(EngineError, match="closed"):
        await engine.answer(make_pictures(2), to_detections)
    assert engine.images_inside == 0


async def test_requests_and_batches_are_counted(engine: Engine, shut: Gate) -> None:
    fitted = fit_images(make_pictures(5), [SPEC.preprocess])
    first = asyncio.create_task(engine.run(fitted.canvases, fitted.geometries))
    await shut.wait_for_batches(1)
    second = asyncio.create_task(engine.answer(make_pictures(3), to_detections))
    left = asyncio.create_task(engine.answer(make_pictures(4), to_detections))
    with pytest.raises(OverloadedError):
        await engine.answer(make_pictures(9), to_detections)
    await asyncio.sleep(0.05)
    left.cancel()
    await asyncio.wait([left])
    shut.open()
    await asyncio.gather(first, second)
    found = engine.statistics
    # 4 of the first request, then its fifth with the three of the second
    assert shut.batches == [4, 4]
    assert {size: stages.compute_infer.count for size, stages in found.batches.items()} == {4: 2}
    assert (found.images, found.success.count, found.fail.count, found.queue.count) == (8, 2, 2, 2)
    assert found.last_ms == pytest.approx(time.time() * 1e3, abs=60_000)
    requests, batches = found.requests, found.batches[4]
    for name in ("compute_input", "compute_infer", "compute_output"):
        assert getattr(requests, name).count == 2
        assert getattr(batches, name).ns > 0
    # the first request was in both batches, the second in one of them
    assert batches.compute_infer.ns < requests.compute_infer.ns < 2 * batches.compute_infer.ns
    assert found.queue.ns + requests.compute_infer.ns < found.success.ns


async def test_what_waits_is_answered_by_a_new_session(toy_repository: Path, shut: Gate) -> None:
    """It has answered the first before the event loop gets to say that the model is ready again."""
    folder = toy_repository / "toy-detector" / "1"

    async def reload() -> LoadedModel:
        model = await asyncio.to_thread(load_gated, folder, shut)
        shut.fail_with(None)
        asyncio.get_running_loop().call_soon(time.sleep, 0.3)
        return model

    model, decoder = await asyncio.to_thread(load_gated, folder, shut), Decoder(1)
    with ThreadPoolExecutor(1) as pool:
        engine = Engine(model, EngineLimits(max_batch=1), decoder, Clients(ClientLimits()), pool, reload)
        asked = [asyncio.create_task(engine.answer(make_pictures(1), to_detections)) for _ in range(6)]
        await until(lambda: engine.images_waiting == 5)
        shut.fail_with(EngineError("broken"))
        shut.open()
        answers = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 30)
        assert [type(answer) for answer in answers] == [EngineError] * 3 + [tuple] * 3
        await until(lambda: engine.ready)
        await engine.close()
        await decoder.close()


async def test_draining_answers_what_is_inside(engine: Engine, shut: Gate) -> None:
    inside = asyncio.create_task(engine.answer(make_pictures(9), to_detections))
    await shut.wait_for_batches(1)
    draining = asyncio.create_task(engine.drain())
    await asyncio.sleep(0)
    with pytest.raises(UnavailableError, match="toy-detector version 1 is being unloaded"):
        await engine.answer(make_pictures(1), to_detections)
    assert not draining.done()
    shut.open()
    results, _ = await inside
    assert len(results) == 9
    await draining


async def test_a_closed_engine_is_unavailable(engine: Engine) -> None:
    await engine.close()
    with pytest.raises(UnavailableError):
        await engine.answer(make_pictures(1), to_detections)


async def test_the_task_is_checked(engine: Engine) -> None:
    engine.check_task("detection")
    with pytest.raises(TaskError, match="toy-detector is a detection model and can't answer embedding requests"):
        engine.check_task("embedding")
