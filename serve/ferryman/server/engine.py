"""Answers for one loaded model: decoding, batching, computing, results, all off the event loop. Knows no gRPC."""

import asyncio
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ferryman.errors import OverloadedError, TaskError, TensorError, UnavailableError, UsageError
from ferryman.predictor import Fitted, Timings, fit_images
from ferryman.preprocess import MAX_PIXELS, Geometry, stack_inputs
from ferryman.results import Outputs
from ferryman.server.batcher import Batcher, check_deadline
from ferryman.server.loading import LoadedModel
from ferryman.server.request import current_trace
from ferryman.server.statistics import Stages, Statistics
from ferryman.server.tracing import RequestTrace, trace_batch
from ferryman.specs import Facts, Task

T = TypeVar("T")
MakeResult = Callable[[Outputs, int, Geometry], T]
_Canvas = tuple[int, NDArray[np.uint8], Geometry, RequestTrace | None]  # with the index of its size
_Ran = tuple[Outputs, Stages]  # one image's outputs, and what its batch took


class EngineLimits(Facts):
    """max_batch: images in one run of the session

    queue_limit: images of one model that may be inside at a time: being decoded, waiting or running
    max_pixels: of one encoded picture
    """

    max_batch: int = 8
    queue_limit: int = 256
    max_pixels: int = MAX_PIXELS


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
    """A loaded model that many callers may ask at the same time, from one event loop.

    Every method raises OverloadedError when more than `queue_limit` images would be inside, DeadlineError
    when the deadline (in seconds of `time.monotonic`) passes before the work is launched, and EngineError
    when the runtime fails. Cancelling a call frees its place at once.

    pool: threads that decode and make results, shared by all engines of a process
    """

    def __init__(self, model: LoadedModel, limits: EngineLimits, pool: Executor) -> None:
        self.model = model
        self.limits = limits
        self.statistics = Statistics()
        self._pool = pool
        self._inside = 0
        self._draining = False
        self._empty = asyncio.Event()
        self._empty.set()
        # A batch is of one size: of that of the canvas that has waited longest.
        self._batcher = Batcher[_Canvas, _Ran](
            self._compute, limits.max_batch, f"{model.name}-{model.version}", key=lambda canvas: canvas[0]
        )

    @property
    def images_inside(self) -> int:
        """Images that are being decoded, waiting or running now."""
        return self._inside

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
        self, images: Sequence[bytes], make: MakeResult[T], deadline: float | None = None
    ) -> tuple[list[T], Timings]:
        """A result for each encoded picture.

        make: from (outputs, index, geometry) to a result, such as `partial(detections_from_outputs,
            spec=...)`; called in a thread
        Raises ImageError for a picture that can't be decoded, UsageError for none, and see the class.
        """
        start = time.perf_counter()
        with self._admit(len(images)):
            fitted = await self._in_pool(self._fit, images, deadline)
            computed = await self._submit(fitted.sizes, fitted.canvases, fitted.geometries, deadline)
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
        self, canvases: Sequence[NDArray[np.uint8]], geometries: Sequence[Geometry], deadline: float | None = None
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
        with self._admit(len(canvases)):
            computed = await self._submit(sizes, canvases, geometries, deadline)
            total_ns, queue_ns = int((time.perf_counter() - start) * 1e9), int(computed.queue_ms * 1e6)
            self.statistics.add_answer(len(canvases), total_ns, queue_ns, computed.stages)
            return computed

    async def drain(self) -> None:
        """Refuses new requests; returns when those inside are answered."""
        self._draining = True
        await self._empty.wait()

    async def close(self) -> None:
        """Refuses what waits, lets what runs end, frees the model."""
        await self._batcher.close()
        self.model.close()

    @contextmanager
    def _admit(self, count: int) -> Generator[None]:
        if self._draining:
            raise UnavailableError(f"{self.model.name} version {self.model.version} is being unloaded")
        limit = self.limits.queue_limit
        if count > limit:
            raise UsageError(f"{count} images at a time are more than the limit of {limit}; send fewer", "images")
        if self._inside + count > limit:
            # The time that what is inside takes, as far as the last batch can tell.
            self.statistics.add_failure(0)
            wait_s = min(5.0, max(0.05, self._inside * self._batcher.last_item_s))
            raise OverloadedError(
                f"{self.model.name} has {self._inside} images to answer already, the limit is {limit}; "
                f"ask again in {wait_s:.2f} s",
                wait_s,
            )
        start = time.perf_counter()
        self._inside += count
        self._empty.clear()
        try:
            yield
        except BaseException:  # cancelled as well
            self.statistics.add_failure(int((time.perf_counter() - start) * 1e9))
            raise
        finally:
            self._inside -= count
            if self._inside == 0:
                self._empty.set()

    def _fit(self, images: Sequence[bytes], deadline: float | None) -> Fitted:
        check_deadline(deadline)  # it may have passed while all threads were busy
        specs = [spec.preprocess for spec in self.model.bundle.manifest.specs]
        return fit_images(images, specs, self.limits.max_pixels)

    async def _submit(
        self,
        sizes: Sequence[int],
        canvases: Sequence[NDArray[np.uint8]],
        geometries: Sequence[Geometry],
        deadline: float | None,
    ) -> Computed:
        check_deadline(deadline)
        start = time.perf_counter()
        traces = [current_trace()] * len(sizes)
        done = await self._batcher.submit(list(zip(sizes, canvases, geometries, traces, strict=True)), deadline)
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
        outputs = session.run(inputs)
        ran = time.perf_counter_ns()
        rows = [{name: array[i : i + 1] for name, array in outputs.items()} for i in range(len(batch))]
        stages = Stages(ready - start, ran - ready, time.perf_counter_ns() - ran)
        self.statistics.add_batch(len(batch), stages)
        now = time.time_ns()
        trace_batch(traces, len(batch), now - (time.perf_counter_ns() - start), now)
        return [(row, stages) for row in rows]

    async def _in_pool(self, work: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)


def _make_all(make: MakeResult[T], outputs: Sequence[Outputs], geometries: Sequence[Geometry]) -> list[T]:
    return [make(output, 0, geometry) for output, geometry in zip(outputs, geometries, strict=True)]
