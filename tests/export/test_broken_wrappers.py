"""A wrapper with a mistake in it fails the export: with exit status 3, a message that points at it, and no bundle."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ferryman.errors import ParityError
from ferryman.specs import ModelSpec
from ferryman_export.pipeline import ExportRequest, export
from ferryman_export.wrappers import ClassificationExport, DetectionExport, ExportModule

Wrap = Callable[[nn.Module, ModelSpec], ExportModule]


def wrong_mean(model: nn.Module, spec: ModelSpec) -> ExportModule:
    module = DetectionExport(model, spec)
    module.mean = torch.full_like(module.mean, 0.5 * 255)
    return module


def swapped_channels(model: nn.Module, spec: ModelSpec) -> ExportModule:
    class Swapped(ClassificationExport):
        def normalize(self, image: Tensor, valid_size: Tensor | None = None) -> Tensor:
            return super().normalize(image.flip(-1), valid_size)

    return Swapped(model, spec)


class WrongOnlyInForward(ClassificationExport):
    """Its `normalize` is right and not used."""

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model(self.normalize(image) * 1.5)
        return logits, logits.softmax(dim=-1)


class SwappedBoxes(DetectionExport):
    def to_corners(self, boxes_cxcywh: Tensor) -> Tensor:
        return super().to_corners(boxes_cxcywh)[..., [1, 0, 3, 2]]


class CentreBoxes(DetectionExport):
    def to_corners(self, boxes_cxcywh: Tensor) -> Tensor:
        return boxes_cxcywh


class DroppedMask(DetectionExport):
    def prepare(self, image: Tensor, valid_size: Tensor) -> tuple[Tensor, Tensor]:
        return self.normalize(image), torch.ones_like(image[..., 0], dtype=torch.bool)


class PaddingNotZeroed(DetectionExport):
    def prepare(self, image: Tensor, valid_size: Tensor) -> tuple[Tensor, Tensor]:
        return self.normalize(image), super().prepare(image, valid_size)[1]


class NeighboursMatter(ClassificationExport):
    """Batch norm that was left in training mode looks like this."""

    def normalize(self, image: Tensor, valid_size: Tensor | None = None) -> Tensor:
        normalised = super().normalize(image, valid_size)
        return normalised - 1e-2 * (normalised.mean(dim=0, keepdim=True) - normalised)


class NeighboursMatterInForward(ClassificationExport):
    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model(self.normalize(image))
        logits = logits + 0.1 * (logits - logits.mean(dim=0, keepdim=True))
        return logits, logits.softmax(dim=-1)


class NoObjectLeaks(DetectionExport):
    def forward(self, image: Tensor, valid_size: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        logits, boxes, _, _ = super().forward(image, valid_size)
        scores, labels = logits.softmax(dim=-1).max(dim=-1)
        return logits, boxes, scores, labels


class NotANumber(ClassificationExport):
    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model(self.normalize(image))
        return logits, (logits - logits.max() - 1).log()


class WrongInTheGraph(ClassificationExport):
    """Right in PyTorch and wrong once exported, as an operator that a converter gets wrong."""

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model(self.normalize(image))
        if torch.compiler.is_exporting():
            logits = logits * 1.1
        return logits, logits.softmax(dim=-1)


CASES: dict[str, tuple[str, Wrap, str]] = {
    "wrong mean": ("detr", wrong_mean, r"normalises the image otherwise.*mean \(0\.485"),
    "swapped channels": ("vit", swapped_channels, r"normalises the image otherwise"),
    "wrong scale behind normalize": (
        "vit",
        WrongOnlyInForward,
        r"logits differ on most samples.*mean, deviation",
    ),
    "swapped box order": (
        "detr",
        SwappedBoxes,
        r"output boxes, sample .*columns are swapped: y1, x1, y2, x2",
    ),
    "boxes as centre and size": ("detr", CentreBoxes, r"output boxes, sample .*boxes are centre and size"),
    "mask dropped": ("detr", DroppedMask, r"padded ones are wrong: the padding mask is dropped or wrong"),
    "padding not zeroed": (
        "detr",
        PaddingNotZeroed,
        r"padded ones are wrong: the padding mask is dropped or wrong",
    ),
    "neighbours matter before the model": ("vit", NeighboursMatter, r"normalises the image otherwise"),
    "neighbours matter": (
        "vit",
        NeighboursMatterInForward,
        r"batch 2, slot \d.*depends on its neighbours|batch 5, slot \d.*depends on its neighbours",
    ),
    "no object leaks": ("detr", NoObjectLeaks, r"output labels names classes outside 0..4.*no object. included"),
    "wrong in the graph alone": (
        "vit",
        WrongInTheGraph,
        r"onnxruntime-cpu-fp32 at 32x32 is out of tolerance: output probabilities",
    ),
    "NaN": ("vit", NotANumber, r"output probabilities holds \d+ NaN"),
}


@pytest.mark.parametrize(("kind", "wrap", "message"), CASES.values(), ids=CASES.keys())
def test_fails_and_points_at_the_mistake(
    kind: str, wrap: Wrap, message: str, checkpoints: dict[str, Path], pictures: Path, tmp_path: Path
) -> None:
    request = ExportRequest(str(checkpoints[kind]), tmp_path / "repository", samples=pictures, module=wrap)
    with pytest.raises(ParityError, match=message) as caught:
        export(request)
    assert caught.value.exit_status == 3
    assert not list((tmp_path / "repository").rglob("*"))
    assert "\n" not in str(caught.value)


def test_a_dropped_mask_is_named_where_every_picture_is_wide(
    checkpoints: dict[str, Path], pictures: Path, tmp_path: Path
) -> None:
    """One sample without padding tells this mistake from others, and comes from the export itself."""
    (tmp_path / "wide").mkdir()
    shutil.copy(pictures / "40x90.png", tmp_path / "wide")
    request = ExportRequest(str(checkpoints["detr"]), tmp_path / "r", samples=tmp_path / "wide", module=DroppedMask)
    with pytest.raises(ParityError, match="padded ones are wrong: the padding mask is dropped"):
        export(request)
