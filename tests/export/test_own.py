"""Models of the user's own: exported from Python and proved, or refused with what is wrong with them."""

import hashlib
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import ferryman_export
from ferryman.errors import ImageError, UsageError
from ferryman.predictor import Predictor
from ferryman.specs import ModelSpec, PreprocessSpec, classification_spec, detection_spec, embedding_spec
from ferryman_export.own import digest_state
from ferryman_export.sources import open_source

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
STRETCH = PreprocessSpec(size=(32, 48), fit="stretch", mean=MEAN, std=STD)
PAD = PreprocessSpec(size=(32, 48), fit="pad", mean=MEAN, std=STD, pad_value=(9, 99, 199))


class Classifier(nn.Module):
    """Three classes; a convolution with a batch norm and dropout, as users have them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 8, stride=8), nn.BatchNorm2d(8)
        self.dropout, self.head = nn.Dropout(0.5), nn.Linear(8, 3)

    def forward(self, image: Tensor) -> Tensor:
        """image: (batch, 3, height, width). Returns (batch, 3)."""
        return 8 * self.head(self.dropout(self.norm(self.conv(image)).relu().mean(dim=(2, 3))))


class Detector(nn.Module):
    """Each cell of a coarse grid is a query; the padding is left out of what they share."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.classes, self.boxes = nn.Conv2d(3, 16, 16, stride=16), nn.Linear(16, 5), nn.Linear(16, 4)

    def forward(self, image: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Both (batch, ..., height, width). Returns logits (batch, 6, 5) and boxes (batch, 6, 4)."""
        weight = valid.to(image.dtype)[:, None]
        mean = (image * weight).sum(dim=(2, 3), keepdim=True) / weight.sum(dim=(2, 3), keepdim=True)
        # (batch, 16, 2, 3) -> (batch, 6, 16)
        cells = self.conv(image - mean).flatten(2).transpose(1, 2)
        return 4 * self.classes(cells), self.boxes(cells).sigmoid()


class ImageDetector(Detector):
    """The same without a mask."""

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """See `Detector`."""
        return super().forward(image, torch.ones_like(image[:, 0], dtype=torch.bool))


class Encoder(nn.Module):
    """A patch map and its mean."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 8, stride=8)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """image: (batch, 3, height, width). Returns (batch, 6) and (batch, rows, columns, 6)."""
        patches = self.conv(image).permute(0, 2, 3, 1)
        return patches.mean(dim=(1, 2)), patches


CLASSES, OBJECTS = ("cat", "dog", "cow"), tuple("abcd")
GOOD: dict[str, tuple[Callable[[], nn.Module], ModelSpec]] = {
    "classifier": (Classifier, classification_spec(STRETCH, CLASSES)),
    "detector": (Detector, detection_spec(PAD, OBJECTS, 6)),
    "detector without a mask": (ImageDetector, detection_spec(PAD, OBJECTS, 6)),
    "encoder": (Encoder, embedding_spec(STRETCH, 6, (4, 6))),
}


def make(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(6)
    return build().eval()


@pytest.mark.parametrize(("build", "spec"), GOOD.values(), ids=GOOD.keys())
def test_exports(build: Callable[[], nn.Module], spec: ModelSpec, pictures: Path, tmp_path: Path) -> None:
    module = make(build)
    bundle = ferryman_export.export(module, spec, pictures, tmp_path)
    assert bundle.name == build.__name__  # pyright: ignore[reportAttributeAccessIssue]
    source = bundle.manifest.source
    assert (source.source, source.architecture, source.sha256) == (bundle.name, bundle.name, digest_state(module))
    assert bundle.spec == spec
    # Against PyTorch once more, from a picture, with arithmetic of its own.
    with Image.open(pictures / "64x96.png") as opened, Predictor(bundle) as predictor:
        canvas = np.asarray(opened.resize((48, 32), Image.Resampling.BILINEAR))
        inputs = {"image": canvas[None], "valid_size": np.array([[32, 48]], dtype=np.int32)}
        answer = predictor.sessions[0].run({name: inputs[name] for name in spec.input_names})
    image = torch.from_numpy((canvas / 255 - MEAN) / STD).permute(2, 0, 1)[None].float()
    with torch.inference_mode():
        valid = (torch.ones(1, 32, 48, dtype=torch.bool),) if build is Detector else ()
        output = module(image, *valid)
    first = output if isinstance(output, Tensor) else output[0]
    np.testing.assert_allclose(answer[spec.output_names[0]], first.numpy(), atol=1e-4)


class Pointer(nn.Module):
    """Two queries, whatever the image: one box at its left half, one over the whole."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("boxes", torch.tensor([[0.25, 0.5, 0.5, 1.0], [0.5, 0.5, 1.0, 1.0]]))
        self.boxes: Tensor

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """image: (batch, 3, height, width). Returns (batch, 2, 5) and (batch, 2, 4)."""
        level = image.mean(dim=(1, 2, 3))[:, None, None]
        return (5 + level + torch.arange(5)).expand(-1, 2, -1), self.boxes + level * 0


def test_boxes_of_a_detector_without_a_mask_are_of_the_valid_area(pictures: Path, tmp_path: Path) -> None:
    """A square picture on the 32x48 canvas fills two thirds of its width: the left half is three quarters of it."""
    bundle = ferryman_export.export(Pointer().eval(), detection_spec(PAD, OBJECTS, 2), pictures, tmp_path)
    with Predictor(bundle) as predictor:
        canvas = np.full((1, 32, 48, 3), 100, dtype=np.uint8)
        answer = predictor.sessions[0].run({"image": canvas, "valid_size": np.array([[32, 32]], dtype=np.int32)})
    np.testing.assert_allclose(answer["boxes"][0], [[0, 0, 0.75, 1], [0, 0, 1, 1]], atol=1e-6)


def test_pictures_and_a_module_of_ferrymans(checkpoints: dict[str, Path], pictures: Path, tmp_path: Path) -> None:
    """Opened pictures of several modes and paths, mixed; DETR returns a DetrOutput."""
    checkpoint = open_source(str(checkpoints["detr"]))
    grey = Image.open(pictures / "50x50.png").convert("LA")
    samples = [grey, pictures / "40x90.png", str(pictures / "90x40.png"), Image.open(pictures / "64x96.png")]
    bundle = ferryman_export.export(checkpoint.module, checkpoint.spec, samples, tmp_path / "r", name="mine")
    assert (bundle.name, bundle.manifest.source.architecture) == ("mine", "DETR")


def test_digest_is_as_documented() -> None:
    module = nn.Linear(2, 1)
    expected = hashlib.sha256()
    for name, shape, tensor in (("bias", "(1,)", module.bias), ("weight", "(1, 2)", module.weight)):
        expected.update(f"{name}\0float32\0{shape}\0".encode())
        expected.update(struct.pack(f"={tensor.numel()}f", *tensor.flatten().tolist()))
    assert digest_state(module) == expected.hexdigest()
    before = digest_state(module)
    with torch.no_grad():
        module.bias.add_(1)
    assert digest_state(module) != before


class Returns(nn.Module):
    """Returns what a function of the image makes."""

    def __init__(self, answer: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, image: Tensor) -> object:
        """image: (batch, 3, height, width)."""
        return self.answer(image)


def logits(image: Tensor, classes: int = 3) -> Tensor:
    return image.mean(dim=(1, 2, 3))[:, None].expand(-1, classes)


def queries(image: Tensor, last: int, value: float = 0.5) -> Tensor:
    return torch.full((len(image), 6, last), value)


BAD: dict[str, tuple[str, Callable[[Tensor], object], str]] = {
    "a dict": ("classification", lambda x: {"logits": logits(x)}, r"returns a dict; for classification it must return"),
    "probabilities as well": ("classification", lambda x: (logits(x), logits(x)), "returns a tuple of a tensor"),
    "a map": ("classification", lambda x: x, r"a tensor float32 \(2, 3, 32, 48\)"),
    "NaN": ("classification", lambda x: logits(x) * float("nan"), "returns NaN or infinite"),
    "half": ("classification", lambda x: logits(x).half(), r"float16 \(2, 3\), expected float32"),
    "other labels": ("classification", lambda x: logits(x, 4), "logits of 4 classes, there are 3 labels"),
    "a fixed batch": ("classification", lambda x: logits(x)[:1], r"a batch of 2 with \(1, 3\) and of 1"),
    "random": ("classification", lambda x: F.dropout(logits(x) + 1), "differently when asked the same twice"),
    "an error": ("classification", lambda x: x @ x, r"fails on float32 \(2, 3, 32, 48\): RuntimeError"),
    "logits alone": ("detection", lambda x: queries(x, 5), "for detection it must return a DetrOutput, or"),
    "no object missing": ("detection", lambda x: (queries(x, 4), queries(x, 4)), '"no object" last'),
    "pixels": ("detection", lambda x: (queries(x, 5), queries(x, 4, 31.0)), "boxes with values up to 31; .*not pixels"),
    "no patches": ("embedding", lambda x: (logits(x), logits(x)), r"must return a tuple of cls"),
    "other sizes": ("embedding", lambda x: (logits(x), x.permute(0, 2, 3, 1)[..., :2]), "cls has 3 values and patches"),
}
SPECS = {"classification": GOOD["classifier"][1], "detection": GOOD["detector"][1], "embedding": GOOD["encoder"][1]}


@pytest.mark.parametrize(("task", "answer", "message"), BAD.values(), ids=BAD.keys())
def test_what_it_returns_is_checked(
    task: str, answer: Callable[[Tensor], object], message: str, pictures: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        ferryman_export.export(Returns(answer).eval(), SPECS[task], pictures, tmp_path / "r")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "r").exists()


def test_bad_arguments(pictures: Path, tmp_path: Path) -> None:
    module, spec = make(Classifier), SPECS["classification"]
    module.get_submodule("dropout").train()
    with pytest.raises(UsageError, match=r"training mode \(first dropout\): call its eval"):
        ferryman_export.export(module, spec, pictures, tmp_path / "r")
    with pytest.raises(UsageError, match=r"conv.weight is float64 on cpu, expected float32"):
        ferryman_export.export(make(Classifier).double(), spec, pictures, tmp_path / "r")
    with pytest.raises(UsageError, match=r"cls \('batch', 6\).*its spec says cls \('batch', 7\)"):
        ferryman_export.export(make(Encoder), embedding_spec(STRETCH, 7, (4, 6)), pictures, tmp_path / "r")
    with pytest.raises(UsageError, match="no picture to compare on"):
        ferryman_export.export(make(Classifier), spec, [], tmp_path / "r")
    with pytest.raises(ImageError, match="picture 0 is of mode CMYK; convert it"):
        ferryman_export.export(make(Classifier), spec, [Image.new("CMYK", (9, 9))], tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_the_package_itself_is_cheap() -> None:
    program = "import sys, ferryman_export; assert 'torch' not in sys.modules; ferryman_export.export; import torch"
    subprocess.run([sys.executable, "-c", program], check=True)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = ferryman_export.nothing  # pyright: ignore[reportAttributeAccessIssue, reportUnknownVariableType]
