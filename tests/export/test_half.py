"""fp16 and bf16 graphs: what they are, and that their emulation errs as they do."""

from collections.abc import Set
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from ferryman.bundle import Bundle
from ferryman.golden import GoldenSamples, Tensors
from ferryman.manifest import Tolerance
from ferryman.parity import check_parity
from ferryman.specs import ModelSpec
from ferryman_export.calibration import Pictures
from ferryman_export.graph_edit import GraphEditor
from ferryman_export.half import HalfGraph, HalfPrecision, open_session
from ferryman_export.islands import IslandReport, Verdict, rank_blocks, search_islands
from ferryman_export.onnx import check_graph
from ferryman_export.pipeline import ExportRequest, export
from ferryman_export.quantize import distance

PRECISIONS: tuple[HalfPrecision, ...] = ("fp16", "bf16")
TORCH = {"fp16": torch.float16, "bf16": torch.bfloat16}
TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
TOLERANCE = Tolerance(
    max_abs={},
    top1_agreement=0.995,
    matched_detections=0.995,
    score_threshold=0.3,
    min_iou=0.95,
    reason="what a user sees must not change",
)


@pytest.fixture(scope="module")
def bundles(checkpoints: dict[str, Path], pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    repository = tmp_path_factory.mktemp("half")
    return [export(ExportRequest(str(path), repository, samples=pictures)) for path in checkpoints.values()]


def as_pictures(golden: GoldenSamples) -> Pictures:
    return Pictures(golden.names, golden.inputs)


def answer(session: onnxruntime.InferenceSession, inputs: Tensors, names: tuple[str, ...]) -> Tensors:
    return dict(zip(names, cast("list[NDArray[np.float32]]", session.run(list(names), dict(inputs))), strict=True))


def judge(half: HalfGraph, islands: Set[str], golden: GoldenSamples, spec: ModelSpec) -> Verdict:
    session = open_session(half.emulate(islands))
    names = spec.output_names
    report = check_parity(
        lambda inputs: answer(session, inputs, names), golden, spec, TOLERANCE, half.precision, "", (1,)
    )
    answers = [answer(session, golden.batch([index]), names) for index in range(len(golden))]
    references = [{name: golden.outputs[name][index : index + 1] for name in names} for index in range(len(golden))]
    return Verdict(error=distance(answers, references), passed=report.passed, why="; ".join(report.failures[:1]))


def weight_bytes(model: onnx.ModelProto) -> int:
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_typed_graph(bundles: list[Bundle], precision: HalfPrecision, tmp_path: Path) -> None:
    """Valid to ONNX's checker with types inferred in full; products in the low precision; the interface unchanged."""
    for bundle in bundles:
        half = HalfGraph(bundle.file("model.onnx"), precision)
        half.observe(as_pictures(bundle.golden()))
        path = tmp_path / f"{bundle.name}.onnx"
        onnx.save(half.convert(), path)
        check_graph(path, bundle.spec)
        typed = GraphEditor(onnx.load(path))
        products = [
            node
            for node in typed.nodes
            if node.op_type in ("MatMul", "Gemm", "Conv") and typed.is_constant(node.input[1])
        ]
        assert len(products) == sum(half.costs().values()) > 4
        weights = {tensor.name: tensor.data_type for tensor in typed.model.graph.initializer}
        assert {weights[node.input[1]] for node in products} == {TYPES[precision]}
        assert weight_bytes(typed.model) < 0.55 * weight_bytes(onnx.load(bundle.file("model.onnx")))

        island = next(name for name, cost in half.costs().items() if cost)
        kept = GraphEditor(half.convert({island}))
        onnx.checker.check_model(kept.model, full_check=True)
        constants = {tensor.name: tensor.data_type for tensor in kept.model.graph.initializer}
        for node in kept.nodes:
            if node.output[0] in half.blocks[island] and node.input[1:]:
                assert constants.get(node.input[1], TensorProto.FLOAT) == TensorProto.FLOAT


def test_masks_too_large_for_fp16_stay_in_fp32(bundles: list[Bundle]) -> None:
    """DETR's padding mask holds half of fp32's largest number: fp16 can't hold it, bf16 can."""
    detector = next(bundle for bundle in bundles if bundle.spec.task == "detection")
    pinned: dict[str, set[str]] = {}
    for precision in PRECISIONS:
        half = HalfGraph(detector.file("model.onnx"), precision)
        half.observe(as_pictures(detector.golden()))
        nodes = {str(node.name): node.op_type for node in onnx.load(detector.file("model.onnx")).graph.node}
        pinned[precision] = {nodes[name] for name in half.pinned}
    assert {"Where", "Softmax"} <= pinned["fp16"]
    assert not pinned["fp16"] & {"MatMul", "Conv", "LayerNormalization"}
    assert pinned["bf16"] == set()


def save_small(path: Path, scale: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """x -> relu(x @ weights + bias) * scale / scale, and its weights and bias."""
    random = np.random.default_rng(3)
    weights = random.standard_normal((4, 5)).astype(np.float32)
    bias = random.standard_normal(5).astype(np.float32)
    constants = {"weights": weights, "bias": bias, "scale": np.array(scale, np.float32)}
    steps = [
        ("MatMul", "x", "weights"),
        ("Add", "a", "bias"),
        ("Relu", "b"),
        ("Mul", "c", "scale"),
        ("Div", "d", "scale"),
    ]
    nodes = [
        helper.make_node(kind, list(inputs), [output], name=output)
        for (kind, *inputs), output in zip(steps, "abcdy", strict=True)
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 5])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return weights, bias


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("scale", [3.0, 40_000.0], ids=["in range", "overflowing"])
def test_the_emulation_is_what_pytorch_computes(precision: HalfPrecision, scale: float, tmp_path: Path) -> None:
    weights, bias = save_small(tmp_path / "small.onnx", scale)
    emulated = HalfGraph(tmp_path / "small.onnx", precision).emulate()
    x = np.random.default_rng(4).standard_normal((64, 4)).astype(np.float32)
    low = TORCH[precision]
    hidden = torch.relu(
        torch.from_numpy(x).to(low) @ torch.from_numpy(weights).to(low) + torch.from_numpy(bias).to(low)
    )
    expected = (hidden * torch.tensor(scale).to(low) / torch.tensor(scale).to(low)).float().numpy()
    assert np.isinf(expected).any() == (precision == "fp16" and scale > 3)
    (found,) = open_session(emulated).run(None, {"x": x})
    np.testing.assert_array_equal(found, expected)
    # ONNX Runtime's optimisations leave the pairs of Cast, which round.
    optimised = onnxruntime.InferenceSession(emulated.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(optimised.run(None, {"x": x})[0], expected)


class Tower(nn.Module):
    """Twelve linear layers, each with a norm behind it; one of them multiplies by a million."""

    def __init__(self, loud: int) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(12))
        self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in range(12))
        with torch.no_grad():
            self.layers[loud].get_parameter("weight").mul_(1e6)

    def forward(self, x: Tensor) -> Tensor:
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = norm(layer(x))
        return x


def test_the_search_finds_a_layer_that_overflows(tmp_path: Path) -> None:
    model, path = Tower(loud=7).eval(), tmp_path / "tower.onnx"
    x = torch.randn(8, 16, generator=torch.Generator().manual_seed(6))
    batch = ({0: torch.export.Dim("batch")},)
    program = torch.onnx.export(model, (x,), dynamo=True, verbose=False, opset_version=18, dynamic_shapes=batch)
    assert program is not None
    program.save(path)
    (name,), (output,) = (
        [one.name for one in side] for side in (program.model.graph.inputs, program.model.graph.outputs)
    )
    inputs = {str(name): x.numpy()}
    half = HalfGraph(path, "fp16")
    half.observe(Pictures(tuple("abcdefgh"), inputs))
    with torch.inference_mode():
        expected = model(x).numpy()

    def measure(islands: Set[str]) -> float:
        (found,) = open_session(half.emulate(islands)).run(None, inputs)
        return distance([{str(output): np.asarray(found)}], [{str(output): expected}])

    report = search_islands(
        lambda islands: Verdict(error=measure(islands), passed=measure(islands) < 0.02),
        lambda: rank_blocks(list(half.blocks), measure),
        half.costs(),
        allowed=1,
        what="the tower",
    )
    assert report.islands == ("layers.7",)
    assert report.blocks[0].error > 1e6 > report.blocks[1].error
    assert IslandReport.model_validate_json(report.model_dump_json()) == report
    assert [(point.islands, point.passed) for point in report.curve] == [(0, False), (1, True)]


@pytest.mark.nightly
@pytest.mark.slow
def test_detr_digits_in_fp16(tmp_path: Path) -> None:
    bundle = export(ExportRequest("detr-digits", tmp_path))
    golden = bundle.golden()
    half = HalfGraph(bundle.file("model.onnx"), "fp16")
    half.observe(as_pictures(golden))
    cost = half.costs()
    report = search_islands(
        lambda islands: judge(half, islands, golden, bundle.spec),
        lambda: rank_blocks(list(cost), lambda islands: judge(half, islands, golden, bundle.spec).error),
        cost,
        sum(cost.values()) // 10,
        "detr-digits in fp16",
    )
    assert report.curve[-1].passed
    assert 1e-5 < report.curve[-1].error < 0.02  # rounded, and no more than that
    assert judge(half, frozenset(report.islands), golden, bundle.spec).passed
