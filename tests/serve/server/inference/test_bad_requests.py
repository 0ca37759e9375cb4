"""Every field of a request wrong in turn: the right status, one clear line, and a server that answers on."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from ferryman.inference import grpc_service_pb2 as pb

from ...toy import SIDE, make_bomb, make_picture
from ..inside import administering, calling, running, until
from .asking import arrays_of, as_parameters, infer, infer_pictures, prefixed, status_of, tensor

CANVAS = np.zeros((1, SIDE, SIDE, 3), np.uint8)
SIZE = CANVAS.size
PICTURE = make_picture((200, 10, 10))
BAD, MISSING = "INVALID_ARGUMENT", "NOT_FOUND"
Contents = pb.InferTensorContents


def classify(**fields: Any) -> pb.ModelInferRequest:
    """A right request, but for the fields that are given."""
    defaults: dict[str, Any] = {
        "model_name": "toy-classifier",
        "inputs": [tensor("image", "UINT8", CANVAS.shape)],
        "raw_input_contents": [bytes(SIZE)],
    }
    return pb.ModelInferRequest(**(defaults | fields))


def shaped(*shape: int, datatype: str = "UINT8", raw: bytes = bytes(SIZE)) -> pb.ModelInferRequest:
    return classify(inputs=[tensor("image", datatype, shape)], raw_input_contents=[raw])


def typed(contents: pb.InferTensorContents, *shape: int, datatype: str = "UINT8") -> pb.ModelInferRequest:
    return classify(inputs=[tensor("image", datatype, shape or CANVAS.shape, contents)], raw_input_contents=[])


def pictures(raw: bytes, *shape: int, datatype: str = "BYTES") -> pb.ModelInferRequest:
    return classify(inputs=[tensor("image_bytes", datatype, shape)], raw_input_contents=[raw])


def output(name: str, **parameters: Any) -> pb.ModelInferRequest.InferRequestedOutputTensor:
    return pb.ModelInferRequest.InferRequestedOutputTensor(name=name, parameters=as_parameters(parameters))


def detect(valid: Any, kind: Any = np.int32) -> pb.ModelInferRequest:
    return infer("toy-detector", {"image": CANVAS, "valid_size": np.array(valid, kind)})


REQUESTS = {
    # the model and the request
    "nothing at all": (pb.ModelInferRequest(), BAD, "names no model"),
    "an unknown model": (classify(model_name="vit"), MISSING, "there is no model 'vit'"),
    "a path": (classify(model_name="../../etc/passwd"), MISSING, "there is no model '../../etc/passwd'"),
    "an unknown version": (classify(model_version="7"), MISSING, "has no version 7; it has 1"),
    "version 0": (classify(model_version="0"), BAD, "version '0' is not a number of 1 or more"),
    "a negative version": (classify(model_version="-1"), BAD, "version '-1' is not"),
    "a version in letters": (classify(model_version="latest"), BAD, "version 'latest' is not"),
    "a version of other digits": (classify(model_version="١"), BAD, "is not a number of 1 or more"),
    "a huge version": (classify(model_version="9" * 5000), BAD, "is not a number of 1 or more"),
    "a timeout below 0": (classify(parameters=as_parameters({"timeout": -5})), BAD, "parameter timeout is -5"),
    "a timeout in words": (classify(parameters=as_parameters({"timeout": "5"})), BAD, "must be an int64_param"),
    "a priority in words": (classify(parameters=as_parameters({"priority": "high"})), BAD, "parameter priority must"),
    "a parameter of nothing": (
        classify(parameters={"timeout": pb.InferParameter()}), BAD, "must be an int64_param, got nothing"),
    # inputs: which there are
    "no input": (classify(inputs=[], raw_input_contents=[]), BAD, "takes image, or image_bytes alone; got no image"),
    "contents of no input": (classify(inputs=[]), BAD, "raw_input_contents has 1 entries for 0 inputs"),
    "an unknown input": (classify(inputs=[tensor("x" * 5000, "UINT8", CANVAS.shape)]), BAD, "image_bytes alone; got x"),
    "another task's input": (
        infer("toy-classifier", {"image": CANVAS, "valid_size": np.full((1, 2), 32, np.int32)}),
        BAD, "the model takes image, or image_bytes alone; got valid_size"),
    "an input twice": (
        classify(inputs=[tensor("image", "UINT8", CANVAS.shape)] * 2, raw_input_contents=[bytes(SIZE)] * 2),
        BAD, "input 'image' is there twice"),
    "pixels and pictures": (
        classify(inputs=[tensor("image", "UINT8", CANVAS.shape), tensor("image_bytes", "BYTES", [1])],
                 raw_input_contents=[bytes(SIZE), prefixed([PICTURE])]),
        BAD, "input image_bytes stands alone, got image beside it"),
    # inputs: their type and shape
    "another datatype": (shaped(1, 32, 32, 3, datatype="FP32"), BAD, "must be UINT8 [batch, 32, 32, 3], got FP32 [1"),
    "no datatype": (shaped(1, 32, 32, 3, datatype=""), BAD, "got no datatype [1, 32, 32, 3]"),
    "no shape": (shaped(), BAD, "got UINT8 []"),
    "no batch": (shaped(32, 32, 3), BAD, "got UINT8 [32, 32, 3]"),
    "another size": (shaped(1, 31, 32, 3), BAD, "got UINT8 [1, 31, 32, 3]"),
    "channels first": (shaped(1, 3, 32, 32), BAD, "got UINT8 [1, 3, 32, 32]"),
    "no image in the batch": (shaped(0, 32, 32, 3, raw=b""), BAD, "got UINT8 [0, 32, 32, 3]"),
    "a batch below 0": (shaped(-1, 32, 32, 3), BAD, "got UINT8 [-1, 32, 32, 3]"),
    "sizes below 0": (shaped(1, -32, -32, 3), BAD, "got UINT8 [1, -32, -32, 3]"),
    "more images than the limit": (shaped(6, 32, 32, 3), BAD, "holds 6 images, more than the limit of 5"),
    "a batch that overflows": (shaped(2**63 - 1, 32, 32, 3), BAD, "more than the limit of 5"),
    "sizes that overflow": (shaped(1, 2**62, 2**62, 3), BAD, f"got UINT8 [1, {2**62}, {2**62}, 3]"),
    "very many sizes": (shaped(*[1] * 5000), BAD, "got UINT8 [1, 1, 1, 1, 1, 1, 1, 1, ...]"),
    # inputs: their contents
    "too few bytes": (shaped(1, 32, 32, 3, raw=bytes(SIZE - 1)), BAD, f"takes {SIZE} bytes, got {SIZE - 1}"),
    "too many bytes": (shaped(1, 32, 32, 3, raw=bytes(SIZE + 1)), BAD, f"takes {SIZE} bytes, got {SIZE + 1}"),
    "a batch of more than there is": (shaped(2, 32, 32, 3), BAD, f"takes {2 * SIZE} bytes, got {SIZE}"),
    "no bytes": (shaped(1, 32, 32, 3, raw=b""), BAD, f"takes {SIZE} bytes, got 0"),
    "no contents": (classify(raw_input_contents=[]), BAD, f"takes {SIZE} values in uint_contents, got 0"),
    "contents twice": (classify(raw_input_contents=[bytes(SIZE)] * 2), BAD, "has 2 entries for 1 inputs"),
    "raw and typed": (
        classify(inputs=[tensor("image", "UINT8", CANVAS.shape, Contents(uint_contents=[0] * SIZE))]),
        BAD, "has contents of its own beside raw_input_contents"),
    "too few values": (typed(Contents(uint_contents=[0] * (SIZE - 1))), BAD, f"takes {SIZE} values in uint_contents"),
    "values in another field": (typed(Contents(int_contents=[0] * SIZE)), BAD, "must be in uint_contents, got int"),
    "values in two fields": (
        typed(Contents(uint_contents=[0] * SIZE, fp32_contents=[1.0])), BAD, "must be in uint_contents, got fp32"),
    "a value above 255": (typed(Contents(uint_contents=[0] * (SIZE - 1) + [256])), BAD, "values that UINT8 can't hold"),
    # valid_size
    "a valid size of nothing": (detect([[0, 32]]), BAD, "from 1, 1 to 32, 32; got [[0, 32]]"),
    "a valid size below 0": (detect([[-5, 32]]), BAD, "got [[-5, 32]]"),
    "a valid size beyond the canvas": (detect([[32, 33]]), BAD, "got [[32, 33]]"),
    "valid sizes of another batch": (detect([[32, 32]] * 2), BAD, "valid_size must be INT32 [1, 2], got INT32 [2, 2]"),
    "valid sizes of another type": (detect([[32, 32]], np.int64), BAD, "must be INT32 [1, 2], got INT64 [1, 2]"),
    # encoded pictures
    "pictures of another type": (pictures(prefixed([PICTURE]), 1, datatype="UINT8"), BAD, "must be BYTES [batch] or"),
    "pictures in a table": (pictures(prefixed([PICTURE] * 4), 2, 2), BAD, "must be BYTES [batch] or [batch, 1]"),
    "no picture": (pictures(b"", 0), BAD, "must be BYTES [batch] or [batch, 1], got BYTES [0]"),
    "too many pictures": (pictures(prefixed([b"x"] * 6), 6), BAD, "holds 6 images, more than the limit of 5"),
    "an overflow of pictures": (pictures(prefixed([PICTURE]), 2**63 - 1), BAD, "more than the limit of 5"),
    "pictures without contents": (pictures(b"", 1), BAD, "takes 1 elements, each after its length in 4 bytes; got 0"),
    "a part of a length": (pictures(b"\1\0", 1), BAD, "got 0 and 2 bytes more"),
    "a length beyond the end": (
        pictures(b"\xff\xff\xff\xff" + PICTURE, 1), BAD, f"says that it has 4294967295 bytes, and {len(PICTURE)} are"),
    "fewer pictures than shaped": (pictures(prefixed([PICTURE]), 2), BAD, "takes 2 elements"),
    "more pictures than shaped": (pictures(prefixed([PICTURE] * 2), 1), BAD, f"got 1 and {len(PICTURE) + 4} bytes"),
    "a picture without its length": (pictures(PICTURE, 1), BAD, "says that it has"),
    "an empty picture": (infer_pictures("toy-classifier", [b""]), BAD, "empty (0 bytes)"),
    "text": (infer_pictures("toy-classifier", [b"hello"]), BAD, "the 5 bytes are not a JPEG"),
    "a truncated picture": (infer_pictures("toy-classifier", [PICTURE, PICTURE[:-200]]), BAD, "image 2 of 2: the"),
    "a decompression bomb": (
        infer_pictures("toy-classifier", [make_bomb(60_000, 60_000)]), BAD, "the limit is 10,000; shrink it first"),
    "typed pictures in another field": (
        classify(inputs=[tensor("image_bytes", "BYTES", [1], Contents(uint_contents=[1]))], raw_input_contents=[]),
        BAD, "must be in bytes_contents, got uint_contents"),
    # outputs
    "an unknown output": (classify(outputs=[output("boxes")]), BAD, "no output 'boxes'; the model answers logits"),
    "an output twice": (classify(outputs=[output("logits")] * 2), BAD, "output logits is asked for twice"),
    "no class": (classify(outputs=[output("logits", classification=0)]), BAD, "can't be answered as 0 classes"),
    "classes in words": (
        classify(outputs=[output("logits", classification="3")]), BAD, "parameter classification must be an int"),
    "classes of boxes": (
        infer("toy-detector", {"image": CANVAS}), BAD, "output scores can't be answered as 3 classes"),
    # shared memory, which is off
    "an input in shared memory": (
        classify(inputs=[tensor("image", "UINT8", CANVAS.shape, shared_memory_region="r",
                                shared_memory_byte_size=SIZE)], raw_input_contents=[]),
        BAD, "there is no region 'r' of shared memory"),
    "shared memory of no size": (
        classify(inputs=[tensor("image", "UINT8", CANVAS.shape, shared_memory_region="r")], raw_input_contents=[]),
        BAD, "shared_memory_region without shared_memory_byte_size"),
    "an output in shared memory": (
        classify(outputs=[output("logits", shared_memory_region="r", shared_memory_byte_size=99)]),
        BAD, "there is no region 'r' of shared memory"),
    "a region that is a number": (
        classify(outputs=[output("logits", shared_memory_region=1)]), BAD, "must be an string_param"),
}  # fmt: skip
REQUESTS["classes of boxes"][0].outputs.append(output("scores", classification=3))


async def test_wrong_requests_get_the_right_status(toy_repository: Path) -> None:
    limits: dict[str, Any] = {"max_images_per_request": 5, "max_pixels": 10_000}
    async with running(toy_repository, **limits) as server, calling(server.address) as caller:
        for name, (request, code, message) in REQUESTS.items():
            found_code, found_message = await status_of(caller.inference.ModelInfer(request))
            assert (found_code, message in found_message) == (code, True), (name, found_code, found_message)
            assert "\n" not in found_message
            assert len(found_message) < 600
        # the same on one stream, which goes on
        requests = [request for request, _, _ in REQUESTS.values()]
        for index, request in enumerate([*requests, classify()]):
            request.id = str(index)
        stream = caller.inference.ModelStreamInfer(iter([*requests, classify(id="last")]))
        answers = {answer.infer_response.id: answer async for answer in stream}
        assert len(answers) == len(REQUESTS) + 1
        for index, (name, (_, _, message)) in enumerate(REQUESTS.items()):
            assert message in answers[str(index)].error_message, name
        assert answers["last"].error_message == ""
        assert list(arrays_of(answers["last"].infer_response)) == ["logits", "probabilities"]
        # and the server answers on
        assert arrays_of(await caller.inference.ModelInfer(classify()))["logits"].shape == (1, 4)
        await until(lambda: server.calls.count == 0)


OTHERS = {
    "metadata of an unknown model": ("ModelMetadata", pb.ModelMetadataRequest(name="vit"), MISSING, "no model 'vit'"),
    "configuration of no model": ("ModelConfig", pb.ModelConfigRequest(), BAD, "names no model"),
    "readiness of a wrong version": (
        "ModelReady", pb.ModelReadyRequest(name="toy-classifier", version="x"), BAD, "version 'x' is not a number"),
    "statistics of an unknown model": ("ModelStatistics", pb.ModelStatisticsRequest(name="vit"), MISSING, "'vit'"),
    "statistics of a version of nothing": (
        "ModelStatistics", pb.ModelStatisticsRequest(version="1"), BAD, "a version without a model's name"),
    "another repository": (
        "RepositoryIndex", pb.RepositoryIndexRequest(repository_name="r"), BAD, "one repository, and it has no name"),
    "registering shared memory": (
        "SystemSharedMemoryRegister",
        pb.SystemSharedMemoryRegisterRequest(name="r", key="/r", byte_size=10), "UNIMPLEMENTED", "memory is off"),
    "an unknown region": (
        "SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest(name="r"), BAD, "there is no region 'r'"),
    "registering CUDA memory": (
        "CudaSharedMemoryRegister", pb.CudaSharedMemoryRegisterRequest(name="r"), "UNIMPLEMENTED",
        "shared memory is off"),
    "traces": ("TraceSetting", pb.TraceSettingRequest(), "UNIMPLEMENTED", "no trace settings"),
    "the log": ("LogSettings", pb.LogSettingsRequest(), "UNIMPLEMENTED", "can't be set by clients"),
}  # fmt: skip


async def test_other_calls_that_are_wrong_or_off(toy_repository: Path) -> None:
    async with administering(toy_repository) as caller:
        for name, (method, request, code, message) in OTHERS.items():
            found_code, found_message = await status_of(getattr(caller.inference, method)(request))
            assert (found_code, message in found_message) == (code, True), (name, found_code, found_message)
        assert (await caller.inference.ServerReady(pb.ServerReadyRequest())).ready


async def test_bytes_that_are_no_message(toy_repository: Path) -> None:
    random = np.random.default_rng(3)
    unreadable = ("INVALID_ARGUMENT", "the request is no message of this method")
    async with running(toy_repository, max_message_bytes=65536) as server, calling(server.address) as caller:
        channel: Any = caller.channel
        ask = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        stream = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
        for size in (10, 1000, 60_000):
            data = b"\xff" + random.bytes(size)
            assert await status_of(ask(data)) == unreadable
            assert await status_of(stream(iter([data])).read()) == unreadable
        assert (await status_of(ask(bytes(70_000))))[0] == "RESOURCE_EXHAUSTED"
        assert arrays_of(await caller.inference.ModelInfer(classify()))["logits"].shape == (1, 4)


async def test_requests_with_a_few_other_bytes(toy_repository: Path) -> None:
    """Whatever they have become, they are answered or refused, and nothing is unexpected."""
    random = np.random.default_rng(5)
    whole = np.array([[32, 32]], np.int32)
    seeds = [
        classify(id="7", parameters=as_parameters({"timeout": 10**9}), outputs=[output("logits", classification=2)]),
        infer("toy-detector", {"image": CANVAS, "valid_size": whole}),
        infer_pictures("toy-embedder", [PICTURE]),
        typed(Contents(uint_contents=[1] * SIZE)),
    ]
    allowed = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "DEADLINE_EXCEEDED"}
    async with running(toy_repository) as server, calling(server.address) as caller:
        ask: Any = cast("Any", caller.channel).unary_unary("/inference.GRPCInferenceService/ModelInfer")
        seen: set[str] = set()
        for number in range(800):
            data = bytearray(seeds[number % len(seeds)].SerializeToString())
            # Most of a request is pixels: half of the changes go to its ends, where names and shapes are.
            for place in random.integers(0, len(data), 3) if number % 2 else random.integers(-60, 60, 3):
                data[place] = random.integers(256)
            call = ask(bytes(data))
            code = (await call.code()).name
            assert code in allowed, (code, await call.details(), data[:100])
            seen.add(code)
        assert {"OK", "INVALID_ARGUMENT"} <= seen


@pytest.mark.parametrize("name", ["ServerLive", "ModelInfer"])
async def test_a_server_that_stops_refuses(toy_repository: Path, name: str) -> None:
    async with running(toy_repository) as server, calling(server.address) as caller:
        await caller.inference.ServerLive(pb.ServerLiveRequest())
        server.calls.stopping.set()
        request = classify() if name == "ModelInfer" else pb.ServerLiveRequest()
        code, message = await status_of(getattr(caller.inference, name)(request))
        assert (code, "the server is stopping" in message) == ("UNAVAILABLE", True)
        server.calls.stopping.clear()
