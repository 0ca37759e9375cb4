"""`python -m ferryman.bench.peers.plain KIND BUNDLE TARGET THREADS PORT`: a model served by gRPC and little else.

KIND is `aio`, on gRPC's event loop, or `threads`, on its thread pool. No queue but a thread's or a lock's, no limits,
no deadlines, no checks, nothing counted: what a first version looks like.
"""

import asyncio
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc.aio
import numpy as np

from ferryman.bundle import Bundle
from ferryman.inference import grpc_service_pb2 as pb
from ferryman.inference import grpc_service_pb2_grpc
from ferryman.runtimes import open_sessions
from ferryman.runtimes.base import Session, Settings
from ferryman.server.guard import Context
from ferryman.server.inference.tensors import DATATYPES
from ferryman.specs import DType

_CALLS = 16  # that threads take at a time
_OPTIONS = [("grpc.max_receive_message_length", -1)]


class AioHandler(grpc_service_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(self, session: Session) -> None:
        self._session = session
        self._thread = ThreadPoolExecutor(1)

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        return await asyncio.get_running_loop().run_in_executor(self._thread, answer, self._session, request)


class ThreadsHandler(grpc_service_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(self, session: Session) -> None:
        self._session = session
        self._lock = threading.Lock()

    def ModelInfer(self, request: pb.ModelInferRequest, context: grpc.ServicerContext) -> pb.ModelInferResponse:
        with self._lock:
            return answer(self._session, request)


def answer(session: Session, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
    spec = session.spec
    kinds: dict[str, DType] = {tensor.name: tensor.dtype for tensor in (*spec.inputs, *spec.outputs)}
    inputs = {
        tensor.name: np.frombuffer(data, kinds[tensor.name]).reshape(tuple(tensor.shape))
        for tensor, data in zip(request.inputs, request.raw_input_contents, strict=True)
    }
    response = pb.ModelInferResponse(model_name=request.model_name, id=request.id)
    for name, array in session.run(inputs).items():
        response.outputs.add(name=name, datatype=DATATYPES[kinds[name]], shape=array.shape)
        response.raw_output_contents.append(array.tobytes())
    return response


async def _serve_aio(session: Session, address: str) -> None:
    server = grpc.aio.server(options=_OPTIONS)
    grpc_service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(AioHandler(session), server)
    server.add_insecure_port(address)
    await server.start()
    await server.wait_for_termination()


def _serve_threads(session: Session, address: str) -> None:
    server = grpc.server(ThreadPoolExecutor(_CALLS), options=_OPTIONS)
    grpc_service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(ThreadsHandler(session), server)
    server.add_insecure_port(address)
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    kind, folder, target, threads, port = sys.argv[1:]
    session, address = open_sessions(Bundle.open(Path(folder)), target, Settings(int(threads)))[0], f"127.0.0.1:{port}"
    if kind == "aio":
        asyncio.run(_serve_aio(session, address))
    else:
        _serve_threads(session, address)
