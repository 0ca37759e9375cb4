"""Answers for one loaded model: decoding, batching, computing, results, all off the event loop. Knows no gRPC."""

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ferryman.errors import OverloadedError, TaskError, TensorError, UnavailableError, UsageError
from ferryman.predictor import Timings
from ferryman.preprocess import Geometry, stack_inputs
from ferryman.results import Outputs, check_outputs
from ferryman.server.batcher import Batcher, check_deadline
from ferryman.server.clients import Clients
from ferryman.server.decoding import Decoder
from ferryman.server.loading import LoadedModel
from ferryman.server.mending import Mender
from ferryman.server.placement import ANYWHERE, Place
from ferryman.server.queueing import ANYONE, Caller
from ferryman.server.request import current_trace
from ferryman.server.statistics import Stages, Statistics
from ferryman.server.tracing import RequestTrace, trace_batch
from ferryman.specs import Facts, Task

log = logging.getLogger(__name__)
T = TypeVar("T")
MakeResult = Callable[[Outputs, int, Geometry], T]
_Canvas = tuple[int, NDArray[np.uint8], Geometry, RequestTrace | None]  # with the index of its size
_Ran = tuple[Outputs, Stages]  # one image's outputs, and what its batch took
SHARE = 0.8  # of the time until its deadline that a request may be foretold to take, but for one more run
_REMEMBERED = 64  # pictures whose size tells that of the next
_SHORTEST_WAIT_S, _LONGEST_WAIT_S = 0.05, 5.0  # that a client who is refused is told


class EngineLimits(Facts):
    """max_batch: images in one run of the session; fewer where more don't help, see `Costs`

    concurrency: runs of one model side by side; more than one pays where `streams` share a processor, or on a GPU
    queue_limit: images of one model that may be inside at a time: being decoded, waiting or running
    queue_seconds: the longest wait for its turn, by what batches took so far, that a request is let in to, whatever
        its deadline; a client that has waited longer has mostly gone
    """

    max_batch: Annotated[int, Field(ge=1)] = 32
    concurrency: Annotated[int, Field(ge=1, le=64)] = 1
    queue_limit: Annotated[int, Field(ge=1)] = 256
    queue_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 10.0


@dataclass(frozen=True)
class Computed:
    """outputs: for each image the graph's outputs as a batch of one; queue_ms: waiting; compute_ms: its batches.

    stages: of all its batches
    """

    outputs: tuple[Outputs, ...]
    queue_ms: float
    compute_ms: float
    stages: Stages


class Engine:
    """A loaded model that many callers may ask at the same time, from one event loop; made in it.

    Every method raises OverloadedError when more than `queue_limit` images would be inside, or when a request would
    wait longer than `queue_seconds` or its deadline (in seconds of `time.monotonic`) allow, or its client exceeds
    its own limits; DeadlineError when the deadline passes before the work is launched, EngineError when the runtime
    fails on this request's images or answers them with NaN, and UnavailableError while the session is rebuilt.
    Cancelling a call frees its place at once, and what it has waiting is neither decoded nor run.

    decoder, clients, pool: shared by all engines of a process; pool: threads that make results
    place: of the threads that run batches
    reload: loads the model once more, off the event loop; without it a session that fails is never rebuilt
    on_ready: told when the model can't be asked any more, and when it can again
    """

    def __init__(
        self,
        model: LoadedModel,
        limits: EngineLimits,
        decoder: Decoder,
        clients: Clients,
        pool: Executor,
        reload: Callable[[], Awaitable[LoadedModel]] | None = None,
        on_ready: Callable[[], None] = lambda: None,
        place: Place = ANYWHERE,
    ) -> None:
        self.model = model
        self.limits = limits
        self.statistics = Statistics()
        self._decoder = decoder
        self._clients = clients
        self._pool = pool
        self._reload = reload
        self._inside = 0
        self._of_clients = Counter[str]()
        self._decoding = Counter[Caller]()
        self._sizes = deque[int](maxlen=_REMEMBERED)  # of the last pictures
        self._draining = False
        self._empty = asyncio.Event()
        self._empty.set()
        name = f"{model.name}-{model.version}"
        self._on_ready = on_ready
        self._mender = Mender(name, self._repair, self._change_ready)
        # A batch is of one size, so that they are its keys.
        self._batcher = Batcher[_Canvas, _Ran](
            self._compute,
            name,
            lambda size: self.model.costs[size],
            key=lambda canvas: canvas[0],
            max_batch=limits.max_batch,
            concurrency=limits.concurrency,
            start_thread=place.take,
        )

    @property
    def images_inside(self) -> int:
        """Images that are being decoded, waiting or running now."""
        return self._inside

    @property
    def ready(self) -> bool:
        """Whether the session can be asked; False while it is rebuilt."""
        return self._mender.ready

    @property
    def images_waiting(self) -> int:
        """Images that are decoded, and wait for their batch."""
        return self._batcher.waiting

    def check_task(self, *tasks: Task) -> None:
        """Raises TaskError unless the model's task is one of these."""
        task = self.model.bundle.spec.task
        if task not in tasks:
            raise TaskError(f"{self.model.name} is a {task} model and can't answer {tasks[0]} requests")

    async def answer(
        self, images: Sequence[bytes], make: MakeResult[T], deadline: float | None = None, caller: Caller = ANYONE
    ) -> tuple[list[T], Timings]:
        """A result for each encoded picture.

        make: from (outputs, index, geometry) to a result, such as `partial(detections_from_outputs,
            spec=...)`; called in a thread
        Raises ImageError for a picture that can't be decoded, UsageError for none, and see the class.
        """
        if not images:
            raise UsageError("the request holds no image; send at least one", "images")
        start = time.perf_counter()
        with self._admit({self._guess_size(): len(images)}, deadline, caller, encoded=True):
            self._decoding[caller] += len(images)
            try:
                specs = [spec.preprocess for spec in self.model.bundle.manifest.specs]
                fitted = await self._decoder.fit(images, specs, deadline, caller, id(self))
                self._sizes.extend(fitted.sizes)
            finally:
                self._decoding[caller] -= len(images)
                if not self._decoding[caller]:
                    del self._decoding[caller]
            computed = await self._submit(fitted.sizes, fitted.canvases, fitted.geometries, deadline, caller)
            before = time.perf_counter()
            results = await self._in_pool(_make_all, make, computed.outputs, fitted.geometries)
            end = time.perf_counter()
            stages = computed.stages
            stages = Stages(
                stages.input_ns + int((fitted.decode_ms + fitted.resize_ms) * 1e6),
                stages.infer_ns,
                stages.output_ns + int((end - before) * 1e9),
            )
            self.statistics.add_answer(len(images), int((end - start) * 1e9), int(computed.queue_ms * 1e6), stages)
        return results, Timings(
            decode_ms=fitted.decode_ms,
            resize_ms=fitted.resize_ms,
            queue_ms=computed.queue_ms,
            compute_ms=computed.compute_ms,
            postprocess_ms=(end - before) * 1e3,
            total_ms=(end - start) * 1e3,
        )

    async def run(
        self,
        canvases: Sequence[NDArray[np.uint8]],
        geometries: Sequence[Geometry],
        deadline: float | None = None,
        caller: Caller = ANYONE,
    ) -> Computed:
        """The graph's outputs for canvases that `fit_image` made, (height, width, 3) uint8 of one of the model's sizes.

        Raises TensorError for canvases of another type or shape, and see the class.
        """
        shapes = [(*spec.preprocess.size, 3) for spec in self.model.bundle.manifest.specs]
        for canvas in canvases:  # here, where it can't harm the others of its batch
            if canvas.dtype != np.uint8 or canvas.shape not in shapes:
                wanted = " or ".join(map(str, shapes))
                raise TensorError(f"a canvas must be uint8 {wanted}, got {canvas.dtype} {canvas.shape}")
        sizes = [shapes.index(canvas.shape) for canvas in canvases]
        start = time.perf_counter()
        with self._admit(Counter(sizes), deadline, caller):
            computed = await self._submit(sizes, canvases, geometries, deadline, caller)
            total_ns, queue_ns = int((time.perf_counter() - start) * 1e9), int(computed.queue_ms * 1e6)
            self.statistics.add_answer(len(canvases), total_ns, queue_ns, computed.stages)
            return computed

    async def drain(self) -> None:
        """Refuses new requests; returns when those inside are answered."""
        self._draining = True
        await self._empty.wait()

    async def close(self) -> None:
        """Refuses what waits, lets what runs end, frees the model."""
        await self._mender.close()
        await self._batcher.close()
        self.model.close()

    @contextmanager
    def _admit(
        self, sizes: Mapping[int, int], deadline: float | None, caller: Caller, encoded: bool = False
    ) -> Generator[None]:
        """sizes: how many images there are of each size; encoded: they must be decoded first"""
        count = sum(sizes.values())
        start = time.perf_counter()
        try:
            self._check_open(count)
            check_deadline(deadline)
            self._check_wait(sizes, deadline, caller, encoded)
            self._clients.check(caller.client, count)
            self._make_room(count, caller)  # nobody gives way to who is refused, and who is refused has sent nothing
            with self._clients.admit(caller.client, count):
                self._inside += count
                self._of_clients[caller.client] += count
                self._empty.clear()
                try:
                    yield
                finally:
                    self._inside -= count
                    self._of_clients[caller.client] -= count
                    if not self._of_clients[caller.client]:
                        del self._of_clients[caller.client]
                    if self._inside == 0:
                        self._empty.set()
        except BaseException:  # cancelled as well
            self.statistics.add_failure(int((time.perf_counter() - start) * 1e9))
            raise

    def _check_open(self, count: int) -> None:
        if self._draining:
            raise UnavailableError(f"{self.model.name} version {self.model.version} is being unloaded")
        if not self.ready:
            raise UnavailableError(f"{self.model.name} has failed and is being rebuilt; ask again later")
        limit = self.limits.queue_limit
        if count > limit:
            raise UsageError(f"{count} images at a time are more than the limit of {limit}; send fewer", "images")

    def _guess_size(self) -> int:
        """The size of a picture is not known before it is decoded: that of most of the last ones stands for it."""
        return Counter(self._sizes).most_common(1)[0][0] if self._sizes else 0

    def _make_room(self, count: int, caller: Caller) -> None:
        limit = self.limits.queue_limit
        over = self._inside + count - limit
        if over <= 0:
            return
        # About the time in which one batch makes room, or one picture that is decoded.
        wait_s = max(costs.seconds(costs.best) for costs in self.model.costs)
        wait_s = _clip(max(wait_s, self._decoder.image_s() if self._decoding else 0.0))
        error = OverloadedError(
            f"{self.model.name} has {self._inside} images to answer already, the limit is {limit}; "
            f"ask again in {wait_s:.2f} s",
            wait_s,
        )
        # Low gives way to high; then who has most inside to who still has fewer with this request.
        [(greediest, most)] = self._of_clients.most_common(1)
        fewer = self._of_clients[caller.client] + count <= most - count
        for who in (None, *([greediest] if fewer else [])):
            if caller.priority == "high" and self._evict(who, over if who is None else count, error):
                return
        raise error

    def _evict(self, client: str | None, count: int, error: Exception) -> bool:
        """Takes out so many images of a client, or of low priority, first those that are not even decoded.

        Returns False, and leaves all as it is, when not so many wait.
        """
        encoded = self._decoder.newest(client, id(self))
        decoded = self._batcher.newest(client)
        if len(encoded) + len(decoded) < count:
            return False
        self._decoder.evict(encoded[:count], error)
        self._batcher.evict(decoded[: max(0, count - len(encoded))], error)
        return True

    def _check_wait(self, sizes: Mapping[int, int], deadline: float | None, caller: Caller, encoded: bool) -> None:
        coming: dict[Caller, float] = {}
        if self._decoding:
            image_s = self.model.costs[self._guess_size()].image_s()
            coming = {one: count * image_s for one, count in self._decoding.items()}
        wait_s = self._batcher.predict(sizes, caller, coming)
        if encoded:  # while pictures are decoded the device goes on with what waits for it
            wait_s = max(wait_s, self._decoder.predict(sum(sizes.values()), caller))
        own_s = self._batcher.own(sizes)
        if wait_s == 0:
            # It starts at once: whether one run takes too long only trying tells; of several in turn the times do.
            if self._batcher.fits_in_one_turn(sizes):
                return
            wait_s = own_s
        allowed_s = self.limits.queue_seconds + own_s
        if deadline is not None:
            # What waits may take longer than it did, and answers must travel.
            spare_s = max(self.model.costs[size].seconds(1) for size in sizes)
            allowed_s = min(allowed_s, SHARE * (deadline - time.monotonic()) - spare_s)
        if wait_s > allowed_s:
            again_s = _clip(wait_s - allowed_s)
            raise OverloadedError(
                f"{self.model.name} would take {wait_s:.2f} s to answer, and {max(0.0, allowed_s):.2f} s are allowed; "
                f"ask again in {again_s:.2f} s",
                again_s,
            )

    async def _submit(
        self,
        sizes: Sequence[int],
        canvases: Sequence[NDArray[np.uint8]],
        geometries: Sequence[Geometry],
        deadline: float | None,
        caller: Caller,
    ) -> Computed:
        check_deadline(deadline)
        start = time.perf_counter()
        traces = [current_trace()] * len(sizes)
        items = list(zip(sizes, canvases, geometries, traces, strict=True))
        done = await self._batcher.submit(items, deadline, caller)
        elapsed_ms = (time.perf_counter() - start) * 1e3
        batches = {one.batch: (one.compute_ms, one.output[1]) for one in done}.values()
        compute_ms = sum(compute_ms for compute_ms, _ in batches)
        stages = Stages(
            sum(stages.input_ns for _, stages in batches),
            sum(stages.infer_ns for _, stages in batches),
            sum(stages.output_ns for _, stages in batches),
        )
        return Computed(tuple(one.output[0] for one in done), max(0.0, elapsed_ms - compute_ms), compute_ms, stages)

    def _compute(self, batch: list[_Canvas]) -> list[_Ran]:
        start = time.perf_counter_ns()
        sizes, canvases, geometries, traces = zip(*batch, strict=True)
        session = self.model.sessions[sizes[0]]
        inputs = stack_inputs(canvases, geometries, session.spec.input_names)
        ready = time.perf_counter_ns()
        try:
            outputs = session.run(inputs)
            check_outputs(outputs)
        except Exception as error:
            log.error("batch failed: model=%s size=%d error=%r", self.model.name, len(batch), error)
            self._note(failed=True)
            raise
        self._note(failed=False)
        ran = time.perf_counter_ns()
        rows = [{name: array[i : i + 1] for name, array in outputs.items()} for i in range(len(batch))]
        stages = Stages(ready - start, ran - ready, time.perf_counter_ns() - ran)
        self.statistics.add_batch(len(batch), stages)
        now = time.time_ns()
        trace_batch(traces, len(batch), now - (time.perf_counter_ns() - start), now)
        return [(row, stages) for row in rows]

    def _note(self, failed: bool) -> None:
        if self._reload is None:
            return
        self._mender.note(failed)
        if not self.ready:  # what waits is for the session that comes
            self._batcher.hold()

    async def _repair(self) -> None:
        """What waits stays, and is answered by the new session, unless there is none at the first try."""
        assert self._reload is not None
        await self._batcher.pause()
        self.model.close()  # first: a device may not have room for both
        try:
            self.model = await self._reload()
        except BaseException:
            self._batcher.refuse(UnavailableError(f"{self.model.name} has failed and can't be rebuilt now"))
            raise

    def _change_ready(self, ready: bool) -> None:
        if ready:  # not earlier: a batch that ended before the model is ready would hold the batcher again, for ever
            self._batcher.resume()
        self._on_ready()

    async def _in_pool(self, work: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)


def _make_all(make: MakeResult[T], outputs: Sequence[Outputs], geometries: Sequence[Geometry]) -> list[T]:
    return [make(output, 0, geometry) for output, geometry in zip(outputs, geometries, strict=True)]


def _clip(wait_s: float) -> float:
    return min(_LONGEST_WAIT_S, max(_SHORTEST_WAIT_S, wait_s))
