"""Asks a server without pause until it is told to stop: load.py ADDRESS, in a process of its own.

Reads the questions from stdin, pickled: see `Question`. Prints "asking" once each has been answered, and stops when
stdin ends, or when the server has gone; then it prints what came back as JSON, see `LoadProcess`.
"""

import asyncio
import json
import pickle
import sys
from collections import Counter
from typing import Any

import grpc
import grpc.aio
import numpy as np

from ferryman.inference import grpc_service_pb2, grpc_service_pb2_grpc
from ferryman.v1 import vision_pb2, vision_pb2_grpc


async def ask_tensor(stub: Any, model: str, canvas: Any) -> tuple[str, Any]:
    """The version that answered, and its probabilities."""
    request = grpc_service_pb2.ModelInferRequest(
        model_name=model,
        inputs=[
            grpc_service_pb2.ModelInferRequest.InferInputTensor(name="image", datatype="UINT8", shape=canvas.shape)
        ],
        outputs=[grpc_service_pb2.ModelInferRequest.InferRequestedOutputTensor(name="probabilities")],
        raw_input_contents=[canvas.tobytes()],
    )
    answer = await stub.ModelInfer(request, timeout=60)
    return answer.model_version, np.frombuffer(answer.raw_output_contents[0], np.float32)


async def ask_picture(stub: Any, model: str, picture: bytes) -> tuple[str, Any]:
    """The version that answered, and its probabilities, in the order of the classes."""
    request = vision_pb2.ClassifyRequest(model=vision_pb2.ModelRef(name=model), images=[picture], top_k=4)
    answer = await stub.Classify(request, timeout=60)
    classes = sorted(answer.results[0].predictions, key=lambda one: one.class_id)
    return str(answer.answerer.model.version), np.array([one.score for one in classes], np.float32)


# Of one that stops, before and after its end: the request was refused, or never sent.
GONE = ("the server is stopping", "failed to connect")


class Asker:
    def __init__(self) -> None:
        self.told = asyncio.Event()
        self.answers = Counter[tuple[str, str]]()  # by model and version
        self.errors = Counter[str]()
        self.wrong = self.backwards = self.gone = 0

    async def ask_on(self, channel: grpc.aio.Channel, question: dict[str, Any], first: asyncio.Event) -> None:
        kinds: dict[str, Any] = {
            "tensor": (ask_tensor, grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel)),
            "picture": (ask_picture, vision_pb2_grpc.VisionServiceStub(channel)),
        }
        ask, stub = kinds[question["kind"]]
        last = "0"
        while not self.told.is_set():
            try:
                version, found = await ask(stub, question["model"], question["data"])
            except grpc.aio.AioRpcError as error:
                if (error.details() or "").startswith(GONE):
                    self.gone += 1
                    return
                self.errors[f"{error.code().name}: {error.details()}"] += 1
                await asyncio.sleep(0.01)
                continue
            finally:
                first.set()
            self.answers[question["model"], version] += 1
            self.wrong += not np.allclose(found, question["probabilities"], rtol=0, atol=1e-4)
            self.backwards += int(version) < int(last)
            last = version


async def main() -> None:
    questions: list[dict[str, Any]] = pickle.load(sys.stdin.buffer)
    asker = Asker()
    async with grpc.aio.insecure_channel(sys.argv[1]) as channel:
        await channel.channel_ready()
        firsts = [asyncio.Event() for _ in questions]
        tasks = [asyncio.create_task(asker.ask_on(channel, *pair)) for pair in zip(questions, firsts, strict=True)]
        await asyncio.gather(*(first.wait() for first in firsts))
        sys.stdout.write("asking\n")
        sys.stdout.flush()
        ended = asyncio.get_running_loop().run_in_executor(None, sys.stdin.buffer.read)
        ended.add_done_callback(lambda _: asker.told.set())
        await asyncio.gather(*tasks)
    answers = [[model, version, count] for (model, version), count in sorted(asker.answers.items())]
    report = {"answers": answers, "errors": asker.errors, "wrong": asker.wrong, "backwards": asker.backwards}
    sys.stdout.write(json.dumps(report | {"gone": asker.gone}) + "\n")


if __name__ == "__main__":
    asyncio.run(main())
