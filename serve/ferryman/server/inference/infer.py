"""ModelInfer: from a request to an answer, through the model's engine."""

import time
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferryman.errors import TensorError, UsageError
from ferryman.inference import grpc_service_pb2 as pb
from ferryman.preprocess import Geometry
from ferryman.results import Outputs
from ferryman.server.admission import RetiredError
from ferryman.server.batcher import check_deadline
from ferryman.server.engine import Engine
from ferryman.server.inference.outputs import add_output, join_images, wanted_from_request
from ferryman.server.inference.parameters import read_flag, read_number
from ferryman.server.inference.shared_memory import Regions
from ferryman.server.inference.tensors import BYTES, DATATYPES, Input, inputs_from_request, read_array, read_elements
from ferryman.server.observing import observed
from ferryman.server.queueing import Caller
from ferryman.server.repository import ModelRepository
from ferryman.server.request import note_model
from ferryman.server.steps import on_loop
from ferryman.specs import Facts

# Encoded pictures. No graph has an input of that name: see the contract in `specs`.
PICTURES = "image_bytes"
TIMINGS = "timings"  # parameter of a request that wants to be told how long each stage took
_Answered = tuple[tuple[Outputs, ...], dict[str, float]]  # and the milliseconds of its stages


class InferLimits(Facts):
    """max_images: of one request; max_bytes: of encoded pictures that one request has in shared memory

    stream_window: requests of one stream that may be inside at a time
    """

    max_images: int = 64
    max_bytes: int = 64 * 1024 * 1024
    stream_window: int = 16


class Inferer:
    def __init__(self, models: ModelRepository[Engine], regions: Regions, limits: InferLimits) -> None:
        self._models = models
        self._regions = regions
        self._limits = limits

    @observed
    async def infer(
        self, request: pb.ModelInferRequest, deadline: float | None, caller: Caller
    ) -> pb.ModelInferResponse:
        """deadline: in seconds of `time.monotonic`; the request's own timeout counts as well, from now on.

        Its own priority counts as well: 0 and 1 leave the caller's, 2 and more are low.

        Raises UsageError, TensorError and ImageError for what the request got wrong, and what the engine raises.
        Needs an event loop for pictures and shared memory alone, see `steps`.
        """
        if _has_parameters(request):
            await on_loop()  # where shared memory is registered
        try:
            return await self._infer(request, deadline, caller)
        except RetiredError:  # between its being found and asked
            await on_loop()
            return await self._infer(request, deadline, caller)

    async def _infer(
        self, request: pb.ModelInferRequest, deadline: float | None, caller: Caller
    ) -> pb.ModelInferResponse:
        start = time.perf_counter()
        if request.parameters:
            deadline = _earlier(deadline, request)
            if (read_number(request.parameters, "priority") or 0) > 1:
                caller = replace(caller, priority="low")
        engine = await self._models.get(request.model_name, version_from_text(request.model_version))
        note_model(engine.model)
        spec = engine.model.bundle.spec
        wanted = wanted_from_request(request, spec, self._regions)
        inputs = inputs_from_request(request)
        if PICTURES in inputs:
            outputs, stages_ms = await self._answer_pictures(engine, inputs, deadline, caller)
        else:
            outputs, stages_ms = await self._answer_canvases(engine, inputs, deadline, caller)
        check_deadline(deadline)  # the request's own timeout, of which gRPC knows nothing
        answered = time.perf_counter()
        response = pb.ModelInferResponse(
            model_name=engine.model.name, model_version=str(engine.model.version), id=request.id
        )
        for one in wanted:
            add_output(response, one, join_images(outputs, one.name), spec, self._regions)
        if request.parameters and read_flag(request.parameters, TIMINGS):
            end = time.perf_counter()
            whole_ms = {"encode": (end - answered) * 1e3, "total": (end - start) * 1e3}
            for stage, took_ms in (stages_ms | whole_ms).items():
                response.parameters[f"{stage}_ms"].double_param = took_ms
        return response

    async def _answer_pictures(
        self, engine: Engine, inputs: dict[str, Input], deadline: float | None, caller: Caller
    ) -> _Answered:
        given = inputs[PICTURES]
        others = sorted(set(inputs) - {PICTURES})
        if others:
            raise TensorError(f"input {PICTURES} stands alone, got {', '.join(others)[:100]} beside it")
        await on_loop()
        given.check(BYTES, (-1,), (-1, 1))
        self._check_images(given)
        pictures = read_elements(given, self._regions, self._limits.max_bytes)
        outputs, timings = await engine.answer(pictures, _keep, deadline, caller)
        return tuple(outputs), {
            "decode": timings.decode_ms,
            "resize": timings.resize_ms,
            "queue": timings.queue_ms,
            "compute": timings.compute_ms,
        }

    async def _answer_canvases(
        self, engine: Engine, inputs: dict[str, Input], deadline: float | None, caller: Caller
    ) -> _Answered:
        specs = engine.model.bundle.manifest.specs
        names = specs[0].input_names
        unknown = sorted(set(inputs) - set(names))
        if unknown or "image" not in inputs:
            given = ", ".join(unknown)[:100] or "no image"
            raise TensorError(f"the model takes {', '.join(names)}, or {PICTURES} alone; got {given}")
        image = inputs["image"]
        image.check(DATATYPES["uint8"], *engine.batch_shapes)
        self._check_images(image)
        batch, height, width, _ = image.shape
        valid = inputs.get("valid_size")
        if valid is not None:
            valid.check(DATATYPES["int32"], (batch, 2))
        canvases = read_array(image, "uint8", self._regions)
        if valid is None:
            geometries = [_geometry((height, width), (height, width))] * batch
        else:
            sizes = read_array(valid, "int32", self._regions)
            geometries = _geometries(sizes, (height, width))
        computed = await engine.run(list(canvases), geometries, deadline, caller)
        return computed.outputs, {"queue": computed.queue_ms, "compute": computed.compute_ms}

    def _check_images(self, given: Input) -> None:
        if given.shape[0] > self._limits.max_images:
            raise UsageError(
                f"the request holds {given.shape[0]} images, more than the limit of {self._limits.max_images}; send "
                "several requests",
                "inputs",
            )


def _has_parameters(request: pb.ModelInferRequest) -> bool:
    for tensors in (request.inputs, request.outputs):
        for tensor in tensors:
            if tensor.parameters:
                return True
    return False


def version_from_text(text: str) -> int:
    """A version, 0 for the newest, which an empty text stands for. Raises UsageError for anything else."""
    if not text:
        return 0
    if not (text.isascii() and text.isdecimal() and len(text) <= 18 and int(text) > 0):
        raise UsageError(
            f"version {text[:40]!r} is not a number of 1 or more; leave it empty for the newest", "version"
        )
    return int(text)


def _earlier(deadline: float | None, request: pb.ModelInferRequest) -> float | None:
    """The call's deadline, or that of the request's own timeout where that is sooner."""
    timeout_us = read_number(request.parameters, "timeout")
    if not timeout_us:  # 0 is none
        return deadline
    own = time.monotonic() + timeout_us / 1e6
    return own if deadline is None else min(own, deadline)


def _geometries(sizes: NDArray[Any], canvas: tuple[int, int]) -> list[Geometry]:
    if (sizes < 1).any() or (sizes > np.array(canvas)).any():
        raise TensorError(
            f"valid_size is height and width of the real pixels, from 1, 1 to {canvas[0]}, {canvas[1]}; got "
            f"{sizes.tolist()}"
        )
    return [_geometry((int(height), int(width)), canvas) for height, width in sizes]


@lru_cache(1024)
def _geometry(valid: tuple[int, int], canvas: tuple[int, int]) -> Geometry:
    """Of a canvas whose real pixels are the whole picture, at their own size."""
    return Geometry(valid, valid, (0.0, 0.0, float(valid[1]), float(valid[0])), canvas)


def _keep(outputs: Outputs, index: int, geometry: Geometry) -> Outputs:
    del index, geometry  # the outputs of one image, as the graph gives them
    return outputs
