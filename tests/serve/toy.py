"""Toy bundles that keep the graph contract, made without torch: tiny ONNX graphs, their reference in numpy.

toy-classifier: probabilities of 4 colours, from the mean colour
toy-detector:   3 boxes inside the valid area, from its mean colour
toy-embedder:   the mean colour as `cls`, and the mean colours of a grid as `patches`
"""

import io
import json
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from ferryman.bundle import Bundle, new_version, seal
from ferryman.certificates import certify
from ferryman.golden import FILE_NAME as GOLDEN
from ferryman.golden import GoldenSamples, Tensors, load_golden, save_golden
from ferryman.manifest import FILE_NAME as MANIFEST
from ferryman.manifest import SCHEMA_VERSION, SourceFacts, Tolerance, VariantFacts
from ferryman.parity import TOLERANCES, ParityReport, ParityReports
from ferryman.preprocess import preprocess_image, stack_inputs
from ferryman.proof import prove_session, read_reports
from ferryman.runtimes import RUNTIMES, why_not
from ferryman.runtimes.base import Settings
from ferryman.specs import ModelSpec, PreprocessSpec, Target, TensorSpec, classification_spec, detection_spec

TARGET = Target.parse("onnxruntime-cpu-fp32")
LABELS = ("red", "green", "blue", "dark")
SIDE = 32
QUERIES = 3
GRID = 4
DIGEST = "ab" * 32
_WEIGHTS = np.array([[6, -3, -3, -2], [-3, 6, -3, -2], [-3, -3, 6, -2]], dtype=np.float32)
_BIAS = np.array([0, 0, 0, 1], dtype=np.float32)
_SHAPE = (SIDE, SIDE)
# (3, QUERIES*classes) and (3, QUERIES*4): any fixed numbers will do, of a size that softmax and sigmoid can tell apart
_LOGITS = np.random.default_rng(1).normal(size=(3, QUERIES * (len(LABELS) + 1))).astype(np.float32) * 4
_BOXES = np.random.default_rng(2).normal(size=(3, QUERIES * 4)).astype(np.float32) * 2
# Every box starts in the first half and ends in the second: x1, y1 = s/2 and x2, y2 = s/2 + 1/2.
_BOX_OFFSET = np.array([0, 0, 0.5, 0.5], dtype=np.float32)

SPECS: dict[str, ModelSpec] = {
    "toy-classifier": classification_spec(PreprocessSpec(size=_SHAPE, fit="stretch"), LABELS),
    "toy-detector": detection_spec(PreprocessSpec(size=_SHAPE, fit="pad"), LABELS, QUERIES),
    "toy-embedder": ModelSpec(
        task="embedding",
        preprocess=PreprocessSpec(size=_SHAPE, fit="crop", shortest_edge=SIDE),
        labels=(),
        inputs=(TensorSpec(name="image", dtype="uint8", shape=("batch", *_SHAPE, 3)),),
        outputs=(
            TensorSpec(name="cls", dtype="float32", shape=("batch", 3)),
            TensorSpec(name="patches", dtype="float32", shape=("batch", GRID, GRID, 3)),
        ),
    ),
}


def make_picture(
    colour: tuple[int, int, int], width: int = 48, height: int = 40, kind: str = "PNG", seed: int = 0
) -> bytes:
    """An encoded picture: a colour with a little noise of its own."""
    noise = np.random.default_rng(seed).integers(-20, 21, size=(height, width, 3))
    pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def make_pictures(count: int) -> list[bytes]:
    """Different pictures of different sizes."""
    random = np.random.default_rng(count)
    return [
        make_picture((int(red), int(green), int(blue)), width=int(width), height=int(height), seed=index)
        for index, (red, green, blue, width, height) in enumerate(
            zip(*random.integers(0, 256, (3, count)), *random.integers(1, 70, (2, count)), strict=True)
        )
    ]


def make_toy_repository(folder: Path, names: Sequence[str] = tuple(SPECS)) -> Path:
    """A model repository with one more version of each named toy; returns `folder`."""
    for name in names:
        add_toy_bundle(folder, name)
    return folder


def add_toy_bundle(
    repository: Path, name: str, samples: int = 6, targets: Sequence[Target] = (TARGET,), slow: Target | None = None
) -> Bundle:
    """One more version of a toy: graphs, golden samples, reports, manifest and certificates, as an export leaves them.

    targets: all read the same ONNX file; those that can't run here are neither proved nor certified
    slow: one of them that reads a file of its own, which takes a thousand times as long to the same answers
    """
    spec = SPECS[name]
    fitted = [preprocess_image(data, spec.preprocess) for data in make_pictures(samples)]
    inputs = stack_inputs([canvas for canvas, _ in fitted], [geometry for _, geometry in fitted], spec.input_names)
    golden = GoldenSamples(tuple(f"picture-{i}" for i in range(samples)), inputs, toy_reference(name, inputs))
    tolerances = {target.precision: choose_tolerance(target) for target in targets}
    able = [target for target in targets if why_not(target) is None]
    with new_version(repository, name) as new:
        staging = new.folder
        onnx.save(toy_graph(name), staging / "model.onnx")
        files = dict.fromkeys(targets, "model.onnx")
        if slow is not None:
            files[slow] = f"variants/{slow}/model.onnx"
            (staging / files[slow]).parent.mkdir(parents=True)
            onnx.save(slow_down(toy_graph(name)), staging / files[slow])
        save_golden(staging / GOLDEN, golden)
        reports: list[ParityReport] = []
        for target in able:
            runtime = RUNTIMES[target.runtime]
            with runtime.load(staging / files[target], target, spec, Settings(threads=1)) as session:
                reports.append(prove_session(session, golden, target, tolerances[target.precision], runtime.version()))
            reports[-1].raise_for_failures()
        (staging / "parity.json").write_text(ParityReports(reports=tuple(reports)).model_dump_json(), encoding="utf-8")
        size = spec.preprocess.size
        facts: dict[str, object] = {
            "schema_version": SCHEMA_VERSION,
            "name": name,
            "created": "2025-01-01T00:00:00+00:00",
            "source": SourceFacts(source=name, architecture="toy", sha256=DIGEST),
            "specs": (spec,),
            "variants": tuple(
                VariantFacts(target=target, size=size, path=file, operators={}) for target, file in files.items()
            ),
            "tolerances": tolerances,
            "tools": {"onnx": onnx.__version__},
        }
        seal(staging, facts)
    bundle = Bundle.open(repository / name)
    for report in reports:
        certify(bundle, [report])
    return bundle


def choose_tolerance(target: Target) -> Tolerance:
    """fp32's, and for the others one that roundings of 8 bits pass."""
    exact = TOLERANCES["fp32"]
    if target.precision == "fp32":
        return exact
    return exact.model_copy(update={"max_abs": dict.fromkeys(exact.max_abs, 0.1), "min_iou": 0.5, "reason": "toy"})


def slow_down(graph: onnx.ModelProto) -> onnx.ModelProto:
    """The same answers from a classifier, after long sums that count for nothing."""
    side, layers = 1024, 24
    make = helper.make_node
    nodes = [make("MatMul", ["scaled", "widen"], ["wide-0"])]
    nodes += [make("MatMul", [f"wide-{index}", "mix"], [f"wide-{index + 1}"]) for index in range(layers)]
    nodes += [
        make("ReduceMean", [f"wide-{layers}"], ["wide"], keepdims=1),
        make("Mul", ["wide", "nothing"], ["added"]),
        make("Add", ["product-alone", "added"], ["product"]),
    ]
    (product,) = (node for node in graph.graph.node if "product" in node.output)
    product.output[0] = "product-alone"
    place = list(graph.graph.node).index(product) + 1
    for index, node in enumerate(nodes):
        graph.graph.node.insert(place + index, node)
    random = np.random.default_rng(3)
    constants = {
        "widen": random.normal(size=(3, side)),
        "mix": random.normal(size=(side, side)) / np.sqrt(side),  # keeps the sums of one size
        "nothing": np.zeros(()),
    }
    graph.graph.initializer.extend(
        numpy_helper.from_array(array.astype(np.float32), key) for key, array in constants.items()
    )
    onnx.checker.check_model(graph, full_check=True)
    return graph


def toy_reference(name: str, inputs: Tensors) -> Tensors:
    """What the graphs compute, in numpy and one image at a time."""
    one = {"toy-classifier": _classify, "toy-detector": _detect, "toy-embedder": _embed}[name]
    count = len(inputs["image"])
    rows = [one(**{key: array[index] for key, array in inputs.items()}) for index in range(count)]
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


def _softmax(values: NDArray[np.float32]) -> NDArray[np.float32]:
    powers = np.exp(values - values.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def _classify(image: NDArray[Any]) -> dict[str, Any]:
    logits = (image.astype(np.float32).mean(axis=(0, 1)) / 255) @ _WEIGHTS + _BIAS
    return {"logits": logits, "probabilities": _softmax(logits)}


def _detect(image: NDArray[Any], valid_size: NDArray[Any]) -> dict[str, Any]:
    height, width = (int(side) for side in valid_size)
    mean = image[:height, :width].astype(np.float32).mean(axis=(0, 1)) / 255
    logits = (mean @ _LOGITS).reshape(QUERIES, len(LABELS) + 1)
    boxes = (1 / (1 + np.exp(-(mean @ _BOXES)))).reshape(QUERIES, 4) / 2 + _BOX_OFFSET
    known = _softmax(logits)[:, :-1]
    return {"logits": logits, "boxes": boxes, "scores": known.max(axis=-1), "labels": known.argmax(axis=-1)}


def _embed(image: NDArray[Any]) -> dict[str, Any]:
    pixels = image.astype(np.float32) / 255
    cell = SIDE // GRID
    patches = pixels.reshape(GRID, cell, GRID, cell, 3).mean(axis=(1, 3))
    return {"cls": pixels.mean(axis=(0, 1)), "patches": patches}


def toy_graph(name: str) -> onnx.ModelProto:
    """The ONNX graph of a toy."""
    spec = SPECS[name]
    nodes, constants = {"toy-classifier": _classifier, "toy-detector": _detector, "toy-embedder": _embedder}[name]()
    graph = helper.make_graph(
        nodes,
        name,
        [_value(tensor) for tensor in spec.inputs],
        [_value(tensor) for tensor in spec.outputs],
        [numpy_helper.from_array(array, key) for key, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def _value(tensor: TensorSpec) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(tensor.name, TensorProto.DataType.Value(_ONNX[tensor.dtype]), tensor.shape)


_ONNX = {"uint8": "UINT8", "int32": "INT32", "int64": "INT64", "float32": "FLOAT"}
Graph = tuple[list[onnx.NodeProto], dict[str, NDArray[Any]]]
_FLOAT: dict[str, Any] = {"to": TensorProto.FLOAT}


def _numbers(*values: int) -> NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


def _classifier() -> Graph:
    make = helper.make_node
    nodes = [
        make("Cast", ["image"], ["pixels"], **_FLOAT),
        make("ReduceMean", ["pixels", "sides"], ["mean"], keepdims=0),
        make("Div", ["mean", "255"], ["scaled"]),
        make("MatMul", ["scaled", "weights"], ["product"]),
        make("Add", ["product", "bias"], ["logits"]),
        make("Softmax", ["logits"], ["probabilities"], axis=-1),
    ]
    constants = {"sides": _numbers(1, 2), "255": np.float32(255), "weights": _WEIGHTS, "bias": _BIAS}
    return nodes, {key: np.asarray(value) for key, value in constants.items()}


def _detector() -> Graph:
    make = helper.make_node
    nodes = [
        make("Cast", ["image"], ["pixels"], **_FLOAT),
        # The padding is black, so the sum over the canvas is the sum over the valid area.
        make("ReduceSum", ["pixels", "sides"], ["sum"], keepdims=0),
        make("Cast", ["valid_size"], ["valid"], **_FLOAT),
        make("ReduceProd", ["valid", "last"], ["area"], keepdims=1),
        make("Div", ["sum", "area"], ["mean"]),
        make("Div", ["mean", "255"], ["scaled"]),
        make("MatMul", ["scaled", "to_logits"], ["flat_logits"]),
        make("Reshape", ["flat_logits", "logits_shape"], ["logits"]),
        make("Softmax", ["logits"], ["all_probabilities"], axis=-1),
        make("Slice", ["all_probabilities", "zero", "classes", "last"], ["known"]),
        make("ReduceMax", ["known", "last"], ["scores"], keepdims=0),
        make("ArgMax", ["known"], ["labels"], axis=-1, keepdims=0),
        make("MatMul", ["scaled", "to_boxes"], ["flat_boxes"]),
        make("Reshape", ["flat_boxes", "boxes_shape"], ["raw_boxes"]),
        make("Sigmoid", ["raw_boxes"], ["unit_boxes"]),
        make("Div", ["unit_boxes", "2"], ["half_boxes"]),
        make("Add", ["half_boxes", "box_offset"], ["boxes"]),
    ]
    constants = {
        "sides": _numbers(1, 2),
        "last": _numbers(-1),
        "zero": _numbers(0),
        "classes": _numbers(len(LABELS)),
        "255": np.float32(255),
        "2": np.float32(2),
        "to_logits": _LOGITS,
        "logits_shape": _numbers(-1, QUERIES, len(LABELS) + 1),
        "to_boxes": _BOXES,
        "boxes_shape": _numbers(-1, QUERIES, 4),
        "box_offset": _BOX_OFFSET,
    }
    return nodes, {key: np.asarray(value) for key, value in constants.items()}


def _embedder() -> Graph:
    make = helper.make_node
    nodes = [
        make("Cast", ["image"], ["pixels"], **_FLOAT),
        make("Div", ["pixels", "255"], ["scaled"]),
        make("ReduceMean", ["scaled", "sides"], ["cls"], keepdims=0),
        # (batch, height, width, 3) -> (batch, rows, cell, columns, cell, 3)
        make("Reshape", ["scaled", "cells_shape"], ["cells"]),
        make("ReduceMean", ["cells", "cell_axes"], ["patches"], keepdims=0),
    ]
    cell = SIDE // GRID
    constants = {
        "255": np.float32(255),
        "sides": _numbers(1, 2),
        "cells_shape": _numbers(-1, GRID, cell, GRID, cell, 3),
        "cell_axes": _numbers(2, 4),
    }
    return nodes, {key: np.asarray(value) for key, value in constants.items()}


def reseal(folder: Path, **changes: object) -> None:
    """Digests of what is in the bundle's folder now; `changes` are to the manifest's other fields."""
    facts = json.loads((folder / MANIFEST).read_bytes())
    del facts["files"]
    seal(folder, facts | changes)


def recertify(folder: Path) -> None:
    """Certificates of what is in the bundle's folder now, as though it had been proved."""
    bundle = Bundle.open(folder)
    for target in bundle.targets:
        certify(bundle, read_reports(bundle, target))


def list_tree(folder: Path) -> list[str]:
    """Everything below a folder, hidden files too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def change_golden(folder: Path, change: Callable[[GoldenSamples], GoldenSamples]) -> None:
    """Other golden samples in the bundle's folder, sealed with right digests."""
    spec = Bundle.open(folder).spec
    save_golden(folder / GOLDEN, change(load_golden(folder / GOLDEN, spec)))
    reseal(folder)


def shift_boxes(golden: GoldenSamples) -> GoldenSamples:
    """A detector's samples that it answers a little otherwise."""
    outputs = {name: array.copy() for name, array in golden.outputs.items()}
    outputs["boxes"][2] += np.float32(0.02)
    return GoldenSamples(golden.names, golden.inputs, outputs)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def make_png(width: int, height: int, *chunks: bytes) -> bytes:
    """A PNG file that claims to be that large."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + b"".join(chunks) + png_chunk(b"IEND", b"")


def make_bomb(width: int, height: int) -> bytes:
    """A PNG file of a few hundred bytes that would fill the memory."""
    return make_png(width, height, png_chunk(b"IDAT", zlib.compress(bytes(1000))))
