"""ModelInfer of a server in this process, asked with the generated stub: the right answers, as they were asked for."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ferryman.attest import Attestation
from ferryman.bundle import Bundle
from ferryman.convert import message_from_classification, message_from_detections, message_from_embedding
from ferryman.inference import grpc_service_pb2 as pb
from ferryman.predictor import fit_images
from ferryman.preprocess import stack_inputs
from ferryman.results import classification_from_outputs, detections_from_outputs, embedding_from_outputs
from ferryman.runtimes.base import Arrays, Session, Settings
from ferryman.server.app import ServerConfig, VisionServer
from ferryman.server.inference.shared_memory import Regions, SharedMemory
from ferryman.server.inference.tensors import Input, read_array
from ferryman.server.loading import LoadedModel, load_model
from ferryman.v1 import vision_pb2

from ...toy import LABELS, QUERIES, SIDE, SPECS, make_pictures, toy_reference
from ..gate import Gate
from ..inside import Caller, calling, running, until
from .asking import arrays_of, as_parameters, infer, infer_pictures, prefixed, status_of, tensor

RANDOM = np.random.default_rng(7)
CANVASES = RANDOM.integers(0, 256, (3, SIDE, SIDE, 3), dtype=np.uint8)


@pytest.fixture
async def caller(toy_repository: Path) -> AsyncIterator[Caller]:
    async with running(toy_repository) as server, calling(server.address) as caller:
        yield caller


async def test_pictures_get_the_answers_of_the_typed_service(caller: Caller) -> None:
    """Bit for bit: what the typed service makes of the graph's outputs, made here of the answer's tensors."""
    for picture in make_pictures(12):
        fields: dict[str, Any] = {"images": [picture]}
        for name, spec in SPECS.items():
            [geometry] = fit_images([picture], [spec.preprocess]).geometries
            outputs = arrays_of(await caller.inference.ModelInfer(infer_pictures(name, [picture])))
            assert tuple(outputs) == spec.output_names
            model = vision_pb2.ModelRef(name=name)
            if spec.task == "classification":
                typed = await caller.vision.Classify(vision_pb2.ClassifyRequest(model=model, top_k=4, **fields))
                found = message_from_classification(classification_from_outputs(outputs, 0, geometry, spec, 4))
            elif spec.task == "detection":
                typed = await caller.vision.Detect(vision_pb2.DetectRequest(model=model, score_threshold=0, **fields))
                found = message_from_detections(detections_from_outputs(outputs, 0, geometry, spec, 0))
            else:
                typed = await caller.vision.Embed(vision_pb2.EmbedRequest(model=model, **fields))
                found = message_from_embedding(embedding_from_outputs(outputs, 0, geometry))
            assert found == typed.results[0]


async def test_how_long_it_took_is_told_to_who_asks(caller: Caller) -> None:
    """The stages that a request has, which are no longer than the whole; nothing without the parameter."""
    size = SPECS["toy-classifier"].preprocess.size
    canvas = {"image": np.zeros((2, *size, 3), np.uint8)}
    wanted = as_parameters({"timings": True})
    asked = {
        "pictures": (infer_pictures("toy-classifier", make_pictures(2), parameters=wanted), ["decode", "resize"]),
        "canvases": (infer("toy-classifier", canvas, parameters=wanted), []),
    }
    for request, first in asked.values():
        response = await caller.inference.ModelInfer(request)
        told = {name: one.double_param for name, one in response.parameters.items()}
        assert sorted(told) == sorted(f"{name}_ms" for name in (*first, "queue", "compute", "encode", "total"))
        total = told.pop("total_ms")
        assert min(told[name] for name in told if name != "queue_ms") > 0
        assert sum(told.values()) <= total
    for parameters in ({}, {"timings": False}):
        request = infer("toy-classifier", canvas, parameters=as_parameters(parameters))
        assert not (await caller.inference.ModelInfer(request)).parameters
    request = infer("toy-classifier", canvas, parameters=as_parameters({"timings": "yes"}))
    assert (await status_of(caller.inference.ModelInfer(request)))[0] == "INVALID_ARGUMENT"


async def test_canvases_raw_and_typed_are_answered_as_pictures_are(caller: Caller) -> None:
    pictures = make_pictures(1)
    fitted = fit_images(pictures, [SPECS["toy-detector"].preprocess])
    image = np.stack(fitted.canvases)
    valid = np.array([geometry.valid_size for geometry in fitted.geometries], np.int32)
    assert valid.tolist() != [[SIDE, SIDE]]
    expected = arrays_of(await caller.inference.ModelInfer(infer_pictures("toy-detector", pictures)))
    raw = await caller.inference.ModelInfer(infer("toy-detector", {"valid_size": valid, "image": image}, id="a ⚓"))
    assert (raw.id, raw.model_name, raw.model_version) == ("a ⚓", "toy-detector", "1")
    typed = await caller.inference.ModelInfer(
        pb.ModelInferRequest(
            model_name="toy-detector",
            model_version="1",
            inputs=[
                tensor("image", "UINT8", image.shape, pb.InferTensorContents(uint_contents=image.ravel().tolist())),
                tensor("valid_size", "INT32", (1, 2), pb.InferTensorContents(int_contents=valid.ravel().tolist())),
            ],
        )
    )
    column = tensor("image_bytes", "BYTES", (1, 1), pb.InferTensorContents(bytes_contents=pictures))
    encoded = await caller.inference.ModelInfer(pb.ModelInferRequest(model_name="toy-detector", inputs=[column]))
    for response in (raw, typed, encoded):
        found = arrays_of(response)
        assert {name: array.tolist() for name, array in found.items()} == {
            name: array.tolist() for name, array in expected.items()
        }


def test_pixels_are_not_copied_on_their_way() -> None:
    data = CANVASES[:1].tobytes()
    array = read_array(Input("image", "UINT8", (1, SIDE, SIDE, 3), data), "uint8", Regions(SharedMemory(0), str))
    geometries = fit_images(make_pictures(1), [SPECS["toy-classifier"].preprocess]).geometries
    inputs = stack_inputs(list(array), geometries, ("image",))
    assert np.shares_memory(inputs["image"], np.frombuffer(data, np.uint8))


async def test_without_valid_size_the_whole_canvas_is_valid(caller: Caller) -> None:
    whole = np.full((3, 2), SIDE, np.int32)
    given = await caller.inference.ModelInfer(infer("toy-detector", {"image": CANVASES, "valid_size": whole}))
    assert arrays_of(given)["boxes"].shape == (3, QUERIES, 4)
    assert await caller.inference.ModelInfer(infer("toy-detector", {"image": CANVASES})) == given


async def test_only_the_outputs_that_are_asked_for(caller: Caller) -> None:
    response = await caller.inference.ModelInfer(infer("toy-detector", {"image": CANVASES}, ["labels", "scores"]))
    assert [(output.name, output.datatype, tuple(output.shape)) for output in response.outputs] == [
        ("labels", "INT64", (3, QUERIES)),
        ("scores", "FP32", (3, QUERIES)),
    ]
    everything = arrays_of(await caller.inference.ModelInfer(infer("toy-detector", {"image": CANVASES})))
    for name, array in arrays_of(response).items():
        np.testing.assert_array_equal(array, everything[name])


async def test_the_best_classes(caller: Caller) -> None:
    request = infer("toy-classifier", {"image": CANVASES}, ["probabilities", "logits"])
    everything = arrays_of(await caller.inference.ModelInfer(request))
    for count, shown in ((1, 1), (3, 3), (99, len(LABELS))):
        request.outputs[0].parameters["classification"].int64_param = count
        response = await caller.inference.ModelInfer(request)
        first, second = response.outputs
        assert (first.datatype, tuple(first.shape), second.datatype) == ("BYTES", (3, shown), "FP32")
        expected = [
            f"{row[index]:f}:{index}:{LABELS[index]}".encode()
            for row in everything["probabilities"]
            for index in sorted(range(len(LABELS)), key=lambda index, row=row: -row[index])[:shown]
        ]
        assert response.raw_output_contents[0] == prefixed(expected)


class ReferenceSession(Session):
    """The detector in numpy, at any size."""

    def _run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        return dict(toy_reference("toy-detector", dict(inputs)))

    def attest(self, inputs: Arrays) -> Attestation:
        raise NotImplementedError

    def _close(self) -> None:
        pass


def add_wide_size(folder: Path) -> LoadedModel:
    """A detector that takes canvases of 16x48 as well."""
    model = load_model(folder, settings=Settings(threads=1))
    spec = model.bundle.spec
    wide = spec.model_copy(
        update={
            "preprocess": spec.preprocess.model_copy(update={"size": (16, 48)}),
            "inputs": (spec.inputs[0].model_copy(update={"shape": ("batch", 16, 48, 3)}), *spec.inputs[1:]),
        }
    )
    manifest = model.bundle.manifest.model_copy(update={"specs": (spec, wide)})
    bundle = Bundle(model.bundle.path, manifest, model.bundle.digest)
    return replace(
        model, bundle=bundle, sessions=(*model.sessions, ReferenceSession(wide)), costs=(*model.costs, *model.costs)
    )


@asynccontextmanager
async def serving(repository: Path, name: str, load: Callable[[Path], LoadedModel]) -> AsyncGenerator[Caller]:
    server = VisionServer(ServerConfig(repository=repository, address="127.0.0.1:0", models=(name,)), load)
    try:
        await server.start()
        async with calling(server.address) as caller:
            yield caller
    finally:
        await server.stop()


async def test_the_shape_chooses_the_size(toy_repository: Path) -> None:
    async with serving(toy_repository, "toy-detector", add_wide_size) as caller:
        described = await caller.inference.ModelMetadata(pb.ModelMetadataRequest(name="toy-detector"))
        assert [list(one.shape) for one in described.inputs] == [[-1, -1, -1, 3]]
        for size in ((SIDE, SIDE), (16, 48)):
            inputs = {
                "image": RANDOM.integers(0, 256, (2, *size, 3), dtype=np.uint8),
                "valid_size": np.array([size, size], np.int32),
            }
            found = arrays_of(await caller.inference.ModelInfer(infer("toy-detector", {"image": inputs["image"]})))
            for name, expected in toy_reference("toy-detector", inputs).items():
                np.testing.assert_allclose(found[name], expected, atol=1e-5)
        wrong = infer("toy-detector", {"image": np.zeros((1, 48, 16, 3), np.uint8)})
        assert await status_of(caller.inference.ModelInfer(wrong)) == (
            "INVALID_ARGUMENT",
            "input image must be UINT8 [batch, 32, 32, 3] or [batch, 16, 48, 3], got UINT8 [1, 48, 16, 3]",
        )


async def test_a_request_of_many_images_is_split(toy_repository: Path) -> None:
    gate = Gate(is_open=True)
    async with running(toy_repository, gate, max_batch=4) as server, calling(server.address) as caller:
        images = RANDOM.integers(0, 256, (10, SIDE, SIDE, 3), dtype=np.uint8)
        found = arrays_of(await caller.inference.ModelInfer(infer("toy-classifier", {"image": images})))
        assert gate.batches == [4, 4, 2]
        for index, image in enumerate(images):
            alone = arrays_of(await caller.inference.ModelInfer(infer("toy-classifier", {"image": image[np.newaxis]})))
            np.testing.assert_allclose(found["logits"][index], alone["logits"][0], atol=1e-6)


async def test_a_timeout_of_the_request_s_own(toy_repository: Path) -> None:
    gate = Gate()
    async with running(toy_repository, gate) as server, calling(server.address) as caller:
        ask = partial(infer, "toy-classifier", {"image": CANVASES[:1]})
        first = asyncio.ensure_future(caller.inference.ModelInfer(ask()))
        await gate.wait_for_batches(1)
        engine = await server.models.get("toy-classifier")
        # In microseconds; 0 is none, and the sooner of the two counts.
        late = caller.inference.ModelInfer(
            ask(parameters=as_parameters({"timeout": 200_000, "priority": 1})), timeout=240
        )
        late = asyncio.ensure_future(late)
        patient = asyncio.ensure_future(caller.inference.ModelInfer(ask(parameters=as_parameters({"timeout": 0}))))
        await until(lambda: engine.images_inside == 3)
        await asyncio.sleep(0.25)
        gate.open()
        await first
        assert await status_of(late) == ("DEADLINE_EXCEEDED", "the request's time ran out before it was answered")
        await patient
        assert gate.batches == [1, 1]


class NanSession(ReferenceSession):
    def _run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        return super()._run(inputs) | {"scores": np.full((len(inputs["image"]), QUERIES), np.nan, np.float32)}


async def test_answers_of_nan_are_errors(toy_repository: Path) -> None:
    def load(folder: Path) -> LoadedModel:
        model = load_model(folder, settings=Settings(threads=1))
        return replace(model, sessions=(NanSession(model.bundle.spec),))

    async with serving(toy_repository, "toy-detector", load) as caller:
        code, message = await status_of(caller.inference.ModelInfer(infer("toy-detector", {"image": CANVASES})))
        assert (code, "scores for this image are NaN" in message) == ("INTERNAL", True)
