"""`--bisect` finds the module at which the graph and PyTorch part."""

import re
from pathlib import Path
from typing import cast

import onnx
import pytest
import torch
from torch import Tensor, nn

from ferryman.errors import ParityError
from ferryman.golden import GoldenSamples
from ferryman.parity import TOLERANCES
from ferryman.specs import ModelSpec, PreprocessSpec, classification_spec
from ferryman_export.bisect import bisect
from ferryman_export.onnx import export_onnx
from ferryman_export.pipeline import ExportRequest, export, prepare
from ferryman_export.sources import open_source
from ferryman_export.wrappers import ClassificationExport, ExportModule
from ferryman_models.vit import ViT

Exported = tuple[Path, ExportModule, GoldenSamples]


@pytest.fixture(scope="module")
def exported(
    checkpoints: dict[str, Path], pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Exported]:
    """Graph, module and golden samples of each tiny model."""
    folder = tmp_path_factory.mktemp("graphs")
    result: dict[str, Exported] = {}
    for kind, source in checkpoints.items():
        checkpoint = open_source(str(source))
        request = ExportRequest(str(source), folder, samples=pictures)
        crossing = prepare(checkpoint, checkpoint.spec, request, TOLERANCES["fp32"], lambda stage, done, total: None)
        assert crossing.module is not None
        path = folder / f"{kind}.onnx"
        export_onnx(crossing.module, crossing.golden.batch([0, 1]), path, {})
        result[kind] = path, crossing.module, crossing.golden
    return result


def change_weight(path: Path, module: str, where: Path) -> str:
    """Adds 0.5 to one value of the weight that the module's first node reads; returns the node's name."""
    model = onnx.load(path)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        scopes = next((entry.value for entry in node.metadata_props if entry.key.endswith("name_scopes")), "")
        if f"'{module}'" in scopes:
            (weight,) = [weights[name] for name in node.input if name in weights][:1]
            array = onnx.numpy_helper.to_array(weight).copy()
            array.flat[array.size // 2] += 0.5
            weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
            onnx.save(model, where)
            return node.name
    raise AssertionError(f"no node of {module}")


@pytest.mark.parametrize(
    ("kind", "module", "class_name"),
    [
        ("vit", "model.patches", "Conv2d"),
        ("vit", "model.blocks.1.feed_forward.down", "Linear"),
        ("vit", "model.blocks.0.attention.key", "Linear"),
        ("vit", "model.head", "Linear"),
        ("detr", "model.encoder.0.up", "Linear"),
        ("detr", "model.decoder.1.cross_attention.value", "Linear"),
        ("detr", "model.box_head.layers.1", "Linear"),
    ],
)
def test_a_changed_weight_is_found(
    kind: str, module: str, class_name: str, exported: dict[str, Exported], tmp_path: Path
) -> None:
    path, reference, golden = exported[kind]
    change_weight(path, module, tmp_path / "changed.onnx")
    found = bisect(tmp_path / "changed.onnx", reference, golden)
    assert found.first is not None, found.describe()
    assert (found.first.module, found.first.kind) == (module, class_name)
    assert found.describe().startswith(f"the first module that diverges is {module} ({class_name}): output, shape (")
    assert re.search(r"max abs error 0\.\d+ where .*, ONNX node node_\w+ \((Add|Conv|Gemm)\)", found.describe())


@pytest.mark.parametrize("kind", ["vit", "detr"])
def test_nothing_diverges(kind: str, exported: dict[str, Exported]) -> None:
    found = bisect(*exported[kind])
    assert found.first is None
    assert re.match(r"no module diverges \(.* \d\d+ tensors compared\)", found.describe())
    assert found.compared > {"vit": 40, "detr": 100}[kind]


class Scaled(nn.Module):
    """A convolution, its batch norm, and a scale that goes wrong in the graph alone, between two parts."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.wrong = wrong
        self.conv, self.norm, self.head = nn.Conv2d(3, 6, 4, stride=4), nn.BatchNorm2d(6), nn.Linear(6, 3)
        nn.init.uniform_(self.norm.weight, 2, 3)
        nn.init.uniform_(self.norm.running_mean)  # pyright: ignore[reportArgumentType]

    def forward(self, image: Tensor) -> Tensor:
        """image: (batch, 3, height, width). Returns (batch, 3)."""
        x = self.norm(self.conv(image)).relu().mean(dim=(2, 3))
        return self.head(x * 1.1 if self.wrong and torch.compiler.is_exporting() else x)


@pytest.mark.parametrize("wrong", [False, True], ids=["right", "wrong between two parts"])
def test_melted_batch_norms_are_no_fault(wrong: bool, exported: dict[str, Exported], tmp_path: Path) -> None:
    """And a mistake in a module's own code is not laid on the part that comes after it."""
    torch.manual_seed(5)
    module = ClassificationExport(
        Scaled(wrong), classification_spec(PreprocessSpec(size=(32, 32), fit="stretch"), ("a", "b", "c"))
    )
    golden = exported["vit"][2]
    graph = export_onnx(module, golden.batch([0, 1]), tmp_path / "model.onnx", {})
    assert all(node.op_type != "BatchNormalization" for node in graph.graph.node)
    found = bisect(tmp_path / "model.onnx", module, golden)
    if wrong:
        assert found.first is not None
        assert (found.first.module, found.first.part) == ("model", "head")
        assert "model (Scaled): what it gives to its head, shape (1, 6)" in found.describe()
    else:
        assert found.first is None, found.describe()


class Deep(nn.Module):
    """Layers that each keep the length of their inputs, and whose graph makes each a little too large."""

    def __init__(self, excess: float) -> None:
        super().__init__()
        self.excess = excess
        self.layers = nn.ModuleList(nn.utils.parametrizations.orthogonal(nn.Linear(48, 48)) for _ in range(24))
        for layer in self.layers:
            nn.utils.parametrize.remove_parametrizations(layer, "weight")
        self.head = nn.Linear(48, 3)

    def forward(self, image: Tensor) -> Tensor:
        """image: (batch, 3, height, width). Returns (batch, 3)."""
        x = nn.functional.adaptive_avg_pool2d(image, 4).flatten(1)
        for layer in self.layers:
            x = layer(x) * (1 + self.excess) if torch.compiler.is_exporting() else layer(x)
        return self.head(x)


@pytest.mark.parametrize("excess", [2e-5, 2e-3], ids=["drift", "the first is wrong"])
def test_errors_that_add_up_are_no_single_modules(excess: float, exported: dict[str, Exported], tmp_path: Path) -> None:
    torch.manual_seed(5)
    module = ClassificationExport(
        Deep(excess), classification_spec(PreprocessSpec(size=(32, 32), fit="stretch"), ("a", "b", "c"))
    )
    golden = exported["vit"][2]
    export_onnx(module, golden.batch([0, 1]), tmp_path / "model.onnx", {})
    found = bisect(tmp_path / "model.onnx", module, golden)
    if excess > 1e-4:
        assert found.first is not None
        assert (found.first.module, found.first.part) == ("model", "layers.1")
        return
    assert found.first is None, found.describe()
    assert found.drift is not None
    assert found.largest is not None
    number = re.fullmatch(r"layers\.(\d+)", found.drift.part)
    assert number is not None, found.describe()
    assert 4 <= int(number[1]) <= 8  # as many excesses as make 1e-4, some more for the biases
    assert found.largest.relative > 3 * found.drift.relative
    message = found.describe()
    assert message.startswith("no single module is to blame, the error accumulates (ONNX Runtime without")
    assert "what that is made from differs by" in message


class WrongBlock(ClassificationExport):
    """Its second block's feed-forward part is wrong once exported."""

    def __init__(self, model: nn.Module, spec: ModelSpec) -> None:
        super().__init__(model, spec)
        cast("ViT", self.model).blocks[1].get_submodule("feed_forward").register_forward_hook(wrong_when_exported)


def wrong_when_exported(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
    return output * 2 if torch.compiler.is_exporting() else output


@pytest.mark.parametrize("wanted", [False, True], ids=["hint", "bisected"])
def test_failed_export(wanted: bool, checkpoints: dict[str, Path], pictures: Path, tmp_path: Path) -> None:
    found: list[str] = []
    request = ExportRequest(
        str(checkpoints["vit"]),
        tmp_path / "r",
        samples=pictures,
        module=WrongBlock,
        bisect=found.append if wanted else None,
    )
    with pytest.raises(ParityError, match="is out of tolerance: output probabilities") as caught:
        export(request)
    message = str(caught.value)
    assert "\n" not in message
    if wanted:
        assert "the first module that diverges is model.blocks.1.feed_forward (FeedForward): output" in message
    else:
        assert message.endswith("; --bisect names the first module that diverges")
    assert not (tmp_path / "r").exists()


def test_a_graph_without_names(exported: dict[str, Exported], tmp_path: Path) -> None:
    path, module, golden = exported["vit"]
    model = onnx.load(path)
    for node in model.graph.node:
        del node.metadata_props[:]
    onnx.save(model, tmp_path / "model.onnx")
    found = bisect(tmp_path / "model.onnx", module, golden)
    assert "no module could be compared" in found.describe()


def test_weights_beside_the_graph(exported: dict[str, Exported], tmp_path: Path) -> None:
    """As the exporter stores those of a large model."""
    path, module, golden = exported["vit"]
    onnx.save(
        onnx.load(path),
        tmp_path / "model.onnx",
        save_as_external_data=True,
        location="model.onnx.data",
        size_threshold=256,
    )
    assert bisect(tmp_path / "model.onnx", module, golden).first is None
    assert sorted(child.name for child in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
