"""Answers for one loaded model: decoding, batching, computing, results, all off the event loop. Knows no gRPC."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ferryman.errors import TaskError, TensorError, UnavailableError, UsageError
from ferryman.predictor import Timings
from ferryman.preprocess import Geometry, stack_inputs
from ferryman.results import Outputs, check_outputs
from ferryman.server.admission import Admission, EngineLimits
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
from ferryman.specs import Task

log = logging.getLogger(__name__)
T = TypeVar("T")
_LOOK_S = 0.002  # between looks whether what is inside has been answered
MakeResult = Callable[[Outputs, int, Geometry], T]
_Canvas = tuple[int, NDArray[np.uint8], Geometry, RequestTrace | None]  # with the index of its size
_Ran = tuple[Outputs, Stages]  # one image's outputs, and what its batch took


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
    """A loaded model that many callers may ask at the same time; made on an event loop, where pictures must be asked
    for. Canvases may be from any thread, by a coroutine that goes on in `steps`.

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
        self._pool = pool
        self._reload = reload
        self._shapes = [(*spec.preprocess.size, 3) for spec in model.bundle.manifest.specs]
        self.batch_shapes = [(-1, *shape) for shape in self._shapes]  # of canvases of each size, -1 for any number
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
        self._admission = Admission(
            model.name,
            model.version,
            limits,
            lambda: self.model.costs,
            self._batcher,
            decoder,
            id(self),
            clients,
            self.statistics,
            lambda: self.ready,
        )

    @property
    def images_inside(self) -> int:
        """Images that are being decoded, waiting or running now."""
        return self._admission.inside

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
        with self._admission.pictures(len(images), deadline, caller):
            self._admission.begin_decoding(len(images), caller)
            sizes: Sequence[int] = ()
            try:
                specs = [spec.preprocess for spec in self.model.bundle.manifest.specs]
                fitted = await self._decoder.fit(images, specs, deadline, caller, id(self))
                sizes = fitted.sizes
            finally:
                self._admission.end_decoding(len(images), caller, sizes)
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
        shapes = self._shapes
        for canvas in canvases:  # here, where it can't harm the others of its batch
            if canvas.dtype != np.uint8 or canvas.shape not in shapes:
                wanted = " or ".join(map(str, shapes))
                raise TensorError(f"a canvas must be uint8 {wanted}, got {canvas.dtype} {canvas.shape}")
        sizes = [shapes.index(canvas.shape) for canvas in canvases]
        start = time.perf_counter()
        with self._admission.canvases(sizes, deadline, caller):
            computed = await self._submit(sizes, canvases, geometries, deadline, caller)
            total_ns, queue_ns = int((time.perf_counter() - start) * 1e9), int(computed.queue_ms * 1e6)
            self.statistics.add_answer(len(canvases), total_ns, queue_ns, computed.stages)
            return computed

    async def drain(self) -> None:
        """Refuses new requests; returns when those inside are answered."""
        self._admission.retire()
        while self._admission.inside:
            await asyncio.sleep(_LOOK_S)

    async def close(self) -> None:
        """Refuses what waits, lets what runs end, frees the model."""
        await self._mender.close()
        await self._batcher.close()
        self.model.close()

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
        if len(done) == 1:
            output, stages = done[0].output
            compute_ms = done[0].compute_ms
            return Computed((output,), max(0.0, elapsed_ms - compute_ms), compute_ms, stages)
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
        if traces.count(None) < len(traces):
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
