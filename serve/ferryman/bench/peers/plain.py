"""`python -m ferryman.bench.peers.plain BUNDLE TARGET THREADS PORT`: what serves a model with grpc.aio and little else.

No queue but a thread's, no limits, no deadlines, no checks, nothing counted: what a first version looks like.
"""

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc.aio
import numpy as np

from ferryman.bundle import Bundle
from ferryman.inference import grpc_service_pb2 as pb
from ferryman.inference import grpc_service_pb2_grpc
from ferryman.runtimes import open_sessions
from ferryman.runtimes.base import Session, Settings
from ferryman.server.inference.tensors import DATATYPES
from ferryman.server.interceptors import Context
from ferryman.specs import DType


class Handler(grpc_service_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(self, session: Session) -> None:
        self._session = session
        self._thread = ThreadPoolExecutor(1)

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._answer, request)

    def _answer(self, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        spec = self._session.spec
        kinds: dict[str, DType] = {tensor.name: tensor.dtype for tensor in (*spec.inputs, *spec.outputs)}
        inputs = {
            tensor.name: np.frombuffer(data, kinds[tensor.name]).reshape(tuple(tensor.shape))
            for tensor, data in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        response = pb.ModelInferResponse(model_name=request.model_name, id=request.id)
        for name, array in self._session.run(inputs).items():
            response.outputs.add(name=name, datatype=DATATYPES[kinds[name]], shape=array.shape)
            response.raw_output_contents.append(array.tobytes())
        return response


async def _serve(bundle: Path, target: str, threads: int, port: int) -> None:
    session = open_sessions(Bundle.open(bundle), target, Settings(threads))[0]
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    grpc_service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Handler(session), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    folder, target, threads, port = sys.argv[1:]
    asyncio.run(_serve(Path(folder), target, int(threads), int(port)))
