"""Coroutines that go on in one thread after another, and calls that need no event loop."""

import asyncio
import random
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from ferryman.inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from ferryman.server.app import ServerConfig, VisionServer
from ferryman.server.steps import Later, SpareThread, Step, on_loop, wake

from ..toy import SIDE, make_pictures
from .inference.asking import arrays_of, infer, infer_pictures

PATIENCE_S = 60.0
NAME: ContextVar[str] = ContextVar("name", default="")


@pytest.fixture
def spare() -> Iterator[SpareThread]:
    thread = SpareThread("spare")
    yield thread
    thread.stop()


class Run:
    """A coroutine in steps. ended: how often it has"""

    def __init__(self, coroutine: Coroutine[Any, Any, None], spare: SpareThread, loop: Any = None) -> None:
        self.ended = 0
        self._over = threading.Event()
        self.step = Step(coroutine, copy_context(), loop, spare, self._end)

    def _end(self) -> None:
        self.ended += 1
        self._over.set()

    def wait(self) -> None:
        assert self._over.wait(PATIENCE_S)
        assert self.ended == 1


def test_it_goes_on_where_its_value_comes(spare: SpareThread) -> None:
    """In its own context, whichever thread that is; what is there already is not waited for."""
    here, handed, there = Later[int](), Later[int](), Later[int]()
    assert there.set(3) is None
    seen: list[tuple[int, str, str]] = []

    async def work() -> None:
        NAME.set("its own")
        for later in (there, here, handed):
            value = await later
            seen.append((value, threading.current_thread().name, NAME.get()))

    run = Run(work(), spare)
    run.step.begin()
    waiter = here.set(1)
    assert waiter is run.step
    assert here.set(7) is None  # the first one counts
    wake([waiter], here=True)
    assert run.ended == 0
    waiter = handed.set(2)
    assert waiter is run.step
    wake([waiter])
    run.wait()
    main = threading.current_thread().name
    assert seen == [(3, main, "its own"), (1, main, "its own"), (2, "spare", "its own")]
    assert NAME.get() == ""


def test_an_error_is_raised_where_its_value_is_awaited(spare: SpareThread) -> None:
    later, caught = Later[int](), list[str]()

    async def work() -> None:
        try:
            await later
        except KeyError as error:
            caught.append(str(error))

    run = Run(work(), spare)
    run.step.begin()
    wake([later.set(error=KeyError("gone"))], here=True)
    run.wait()
    assert caught == ["'gone'"]


@pytest.mark.parametrize("moment", ["while it waits", "while it runs"])
def test_cancelling(moment: str, spare: SpareThread) -> None:
    later, told = Later[int](), list[str]()

    async def work() -> None:
        if moment == "while it runs":
            run.step.cancel()
        try:
            await later
        except asyncio.CancelledError:
            told.append("cancelled")
            raise

    run = Run(work(), spare)
    run.step.begin()
    if moment == "while it waits":
        run.step.cancel()
    run.wait()
    wake([later.set(1)])  # too late
    assert (told, run.ended) == (["cancelled"], 1)


def test_it_ends_once_whoever_is_first(spare: SpareThread) -> None:
    """The value and the cancelling come at the same time from two threads, many times."""
    results: list[str] = []

    async def work(later: Later[int], second: Later[int]) -> None:
        try:
            results.append(f"{await later} {await second}")
        except asyncio.CancelledError:
            results.append("cancelled")
            raise

    chance = random.Random(0)
    with ThreadPoolExecutor(3) as pool:
        for _ in range(3000):
            later, second = Later[int](), Later[int]()
            run = Run(work(later, second), spare)
            start = threading.Barrier(3)

            def give(one: Later[int], here: bool, start: threading.Barrier = start) -> None:
                start.wait()
                wake([one.set(1)], here)

            def cancel(run: Run = run, start: threading.Barrier = start, late: bool = chance.random() < 0.5) -> None:
                start.wait()
                if not late:
                    run.step.cancel()

            run.step.begin()
            waits = [
                pool.submit(give, later, chance.random() < 0.5),
                pool.submit(give, second, True),
                pool.submit(cancel),
            ]
            for one in waits:
                one.result()
            run.wait()
    assert set(results) == {"1 1", "cancelled"}
    assert len(results) == 3000


async def test_what_needs_an_event_loop_goes_on_there(spare: SpareThread) -> None:
    loop, seen = asyncio.get_running_loop(), list[str]()
    later = Later[int]()

    async def work() -> None:
        NAME.set("its own")
        seen.append(threading.current_thread().name)
        await on_loop()
        await on_loop()  # it is there
        await asyncio.sleep(0)
        assert asyncio.get_running_loop() is loop
        seen.append(f"{threading.current_thread().name} {NAME.get()} {await later}")

    run = Run(work(), spare, loop)
    await asyncio.to_thread(lambda: (setattr(threading.current_thread(), "name", "first"), run.step.begin()))
    await asyncio.sleep(0.01)
    wake([later.set(5)])
    await asyncio.to_thread(run.wait)
    assert seen == ["first", f"{threading.main_thread().name} its own 5"]


async def test_cancelling_what_has_moved_to_the_loop(spare: SpareThread) -> None:
    loop, told = asyncio.get_running_loop(), list[str]()

    async def work(moment: str) -> None:
        try:
            await on_loop()
            await asyncio.sleep(PATIENCE_S)
        except asyncio.CancelledError:
            told.append(moment)
            raise

    for moment in ("before", "after"):
        run = Run(work(moment), spare, loop)
        await asyncio.to_thread(run.step.begin)
        if moment == "after":
            await asyncio.sleep(0.01)
        await asyncio.to_thread(run.step.cancel)
        await asyncio.to_thread(run.wait)
    assert told == ["before", "after"]


def test_ready_pixels_need_no_event_loop(toy_repository: Path) -> None:
    """They are answered while the server's is blocked; a picture, which is decoded first, is when it goes on."""
    blocked, release = threading.Event(), threading.Event()

    def block() -> None:
        blocked.set()
        release.wait(PATIENCE_S)

    async def start() -> VisionServer:
        server = VisionServer(ServerConfig(repository=toy_repository, address="127.0.0.1:0", threads=1))
        await server.start()
        return server

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = asyncio.run_coroutine_threadsafe(start(), loop).result(PATIENCE_S)
    with grpc.insecure_channel(server.address) as channel:
        ask: Any = GRPCInferenceServiceStub(channel)
        loop.call_soon_threadsafe(block)
        assert blocked.wait(PATIENCE_S)
        pixels = np.zeros((2, SIDE, SIDE, 3), np.uint8)
        picture = ask.ModelInfer.future(infer_pictures("toy-classifier", make_pictures(1)))
        for _ in range(10):
            answer = ask.ModelInfer(infer("toy-classifier", {"image": pixels}), timeout=PATIENCE_S)
            assert arrays_of(answer)["logits"].shape[0] == 2
        with pytest.raises(grpc.RpcError) as refused:
            ask.ModelInfer(infer("toy-classifier", {"image": pixels[:, 1:]}), timeout=PATIENCE_S)
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert not picture.done()
        release.set()
        assert len(picture.result(PATIENCE_S).outputs) > 0
    asyncio.run_coroutine_threadsafe(server.stop(), loop).result(PATIENCE_S)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
