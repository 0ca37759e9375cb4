"""A server's model as a contender: through typed calls, or through ModelInfer with pictures or tensors."""

import asyncio
import struct
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache, partial
from typing import Any

from ferryman.bench.alone import SessionCost
from ferryman.bench.flow import AsyncRequest
from ferryman.bench.harness import Request
from ferryman.bench.nearby import is_nearby
from ferryman.bench.pictures import choose_next
from ferryman.bench.record import Proven
from ferryman.bench.tools import ServedJob
from ferryman.client.attempts import attempts
from ferryman.client.calls import Call, Stubs
from ferryman.commands.bench.contenders import When, choose_ask, list_stages
from ferryman.commands.bench.tensors import make_tensors
from ferryman.commands.predict import Asker, Remote
from ferryman.inference import grpc_service_pb2 as pb
from ferryman.inference import grpc_service_pb2_grpc
from ferryman.runtimes.base import Arrays
from ferryman.specs import ModelSpec

SERVER = "the server"
_DATATYPES = {"uint8": "UINT8", "int32": "INT32"}


class ServedContender:
    """Asked by typed calls. What it answers with is proved by its own certificate."""

    name = SERVER

    def __init__(self, answers: Remote, asker: Asker, proven: Proven) -> None:
        self.model, self._answers, self._asker, self._proven = answers.name, answers, asker, proven
        self.nearby = asker.address is not None and is_nearby(asker.address)

    def request(self, images: Sequence[bytes], count: int = 1) -> Request:
        ask = choose_ask(self._answers, images[0])

        def request(number: int) -> Mapping[str, float]:
            start = time.perf_counter()
            timings = ask(choose_next(images, number, count))
            return _add_transfer(list_stages(timings), timings.total_ms, start)

        return request

    @asynccontextmanager
    async def connect(self, images: Sequence[bytes], count: int, clients: int) -> AsyncGenerator[AsyncRequest, None]:
        """One connection, on which any number of requests are under way."""
        del clients
        task, name = self._answers.facts().task, self._answers.name
        version = self._answers.version
        async with self._asker.connect_async() as client:

            async def request(number: int) -> Mapping[str, float]:
                start, data = time.perf_counter(), choose_next(images, number, count)
                match task:
                    case "classification":
                        answer = await client.classify(data, model=name, version=version)
                    case "embedding":
                        answer = await client.embed(data, model=name, version=version)
                    case "detection":
                        answer = await client.detect(data, model=name, version=version)
                    case _:
                        answer = await client.segment(data, model=name, version=version)
                return _add_transfer(list_stages(answer.timings), answer.timings.total_ms, start)

            yield request

    def check(self, when: When) -> None:
        del when

    def measure_cost(self) -> SessionCost | None: ...

    def prove(self) -> Proven:
        return self._proven


class InferContender(ServedContender):
    """Asked by ModelInfer, with encoded pictures or, where a spec says which, ready tensors."""

    def __init__(self, answers: Remote, asker: Asker, proven: Proven, spec: ModelSpec | None = None) -> None:
        super().__init__(answers, asker, proven)
        self.name = f"{SERVER}, {'ModelInfer' if spec is None else 'tensors'}"
        self._spec = spec

    @property
    def job(self) -> ServedJob | None:
        """What another program is to be asked; None for pictures, which none knows."""
        if self._spec is None or self._asker.address is None:
            return None
        return ServedJob(self._asker.address, self._answers.name, self._answers.version)

    def request(self, images: Sequence[bytes], count: int = 1) -> Request:
        make = self._prepare(images, count)

        def request(number: int) -> Mapping[str, float]:
            start = time.perf_counter()
            return _read_stages(self._answers.client.run(_call(make(number))), start)

        return request

    @asynccontextmanager
    async def connect(self, images: Sequence[bytes], count: int, clients: int) -> AsyncGenerator[AsyncRequest, None]:
        del clients
        make = await asyncio.to_thread(self._prepare, images, count)
        async with self._asker.connect_async() as client:

            async def request(number: int) -> Mapping[str, float]:
                start = time.perf_counter()
                return _read_stages(await client.run(_call(make(number))), start)

            yield request

    def _prepare(self, images: Sequence[bytes], count: int) -> Callable[[int], pb.ModelInferRequest]:
        """What makes a request's message, by its number."""
        if self._spec is None:
            return lambda number: self._ask_pictures(choose_next(images, number, count))
        tensors = make_tensors(images, count, self._spec)
        return lambda number: self._ask_tensors(tensors(number))

    def _ask_pictures(self, images: Sequence[bytes]) -> pb.ModelInferRequest:
        request = self._open()
        request.inputs.add(name="image_bytes", datatype="BYTES", shape=[len(images)])
        request.raw_input_contents.append(b"".join(struct.pack("<I", len(data)) + data for data in images))
        return request

    def _ask_tensors(self, inputs: Arrays) -> pb.ModelInferRequest:
        request = self._open()
        for name, array in inputs.items():
            request.inputs.add(name=name, datatype=_DATATYPES[array.dtype.name], shape=array.shape)
            request.raw_input_contents.append(array.tobytes())
        return request

    def _open(self) -> pb.ModelInferRequest:
        version = str(self._answers.version or "")
        request = pb.ModelInferRequest(model_name=self._answers.name, model_version=version)
        request.parameters["timings"].bool_param = True
        return request


def _call(request: pb.ModelInferRequest) -> Call[Any]:
    return Call(_choose_infer, request, partial(attempts, request=request, parse=_keep))


@lru_cache(maxsize=2)
def _choose_infer(stubs: Stubs) -> Any:
    return grpc_service_pb2_grpc.GRPCInferenceServiceStub(stubs.channel).ModelInfer


def _keep(response: Any) -> Any:
    return response


def _read_stages(response: Any, start: float) -> Mapping[str, float]:
    """None of a server that does not know the parameter."""
    told = {name.removesuffix("_ms"): one.double_param for name, one in response.parameters.items()}
    total_ms = told.pop("total", None)
    return {} if total_ms is None else _add_transfer(told, total_ms, start)


def _add_transfer(stages: dict[str, float], total_ms: float, start: float) -> Mapping[str, float]:
    """What the caller waited since `start` beyond the server's own total: both ends' messages, the network, gRPC."""
    return stages | {"transfer": (time.perf_counter() - start) * 1e3 - total_ms}
