"""What is wrong with a folder that transformers would load with a warning, and processors pixel by pixel."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ferryman.errors import CheckpointError, MissingExtraError
from ferryman.preprocess import fit_image
from ferryman_models.checkpoints.huggingface import load_huggingface
from ferryman_models.checkpoints.processors import load_processor
from ferryman_models.checkpoints.transformers_models import TransformersClassifier

from ..export.families import CANVAS, CLASSIFIERS, DETECTORS, Family, hf


def save(family: Family, folder: Path) -> Path:
    family.build().save_pretrained(folder)
    family.build_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def convnext(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(CLASSIFIERS["convnext"], tmp_path_factory.mktemp("convnext"))


@pytest.fixture
def folder(convnext: Path, tmp_path: Path) -> Path:
    for path in convnext.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def edit(folder: Path, **changes: Any) -> None:
    document = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(document))


@torch.no_grad()
def test_code_beside_the_weights_is_not_followed(folder: Path) -> None:
    (folder / "mine.py").write_text("raise SystemExit('this must never run')")
    edit(folder, auto_map={"AutoModelForImageClassification": "mine.Mine", "AutoConfig": "mine.Config"})
    checkpoint = load_huggingface(folder, "convnext")
    assert checkpoint.architecture == "ConvNextForImageClassification"
    assert isinstance(checkpoint.module, TransformersClassifier)
    image = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(checkpoint.module(image), CLASSIFIERS["convnext"].build()(image).logits)


def test_half_precision_becomes_fp32(tmp_path: Path) -> None:
    family = CLASSIFIERS["convnext"]
    family.build().half().save_pretrained(tmp_path)
    family.build_processor().save_pretrained(tmp_path)
    module = load_huggingface(tmp_path, "half").module
    assert {tensor.dtype for tensor in module.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param(
            {"depths": [2, 2]}, r"not those of its configuration: \S+stages\.0\.layers\.1\S* is missing", id="missing"
        ),
        pytest.param({"depths": [1, 1]}, r"\S+stages\.1\.layers\.1\S* is unknown", id="unknown"),
        pytest.param({"hidden_sizes": [16, 48]}, r"has shape \(32\S*.*\), expected \(48", id="misshapen"),
        pytest.param({"id2label": {"0": "a", "1": "b"}}, r"classifier\S+ has shape \(7", id="labels"),
        pytest.param({"id2label": {str(n): "a" for n in range(1, 8)}}, "id2label names 7 classes", id="label-numbers"),
        pytest.param({"model_type": "vit"}, "model_type 'vit' is not that of ConvNextForImageC", id="model-type"),
        pytest.param({"quantization_config": {"bits": 4}}, "the weights are quantised", id="quantised"),
        pytest.param({"hidden_act": "mine"}, "transformers can't build the model", id="activation"),
        pytest.param({"depths": "many"}, "transformers can't read it", id="type"),
        pytest.param({"architectures": ["Mine"]}, r"'Mine' is not known; .*\*ForImageClassification", id="class"),
        pytest.param(
            {"architectures": ["ConvNextBackbone"]}, "'ConvNextBackbone' is not known", id="class-of-another-task"
        ),
        pytest.param({"architectures": ["ImageGPTForImageClassification"]}, "clusters of colours", id="no-picture"),
    ],
)
def test_wrong_configuration_is_named(folder: Path, changes: dict[str, Any], message: str) -> None:
    edit(folder, **changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_huggingface(folder, "convnext")
    assert "\n" not in str(caught.value)


class Runs:
    """A pickle that would call print."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("this must never be printed",))


def test_pickle_that_runs_code_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"a": Runs()}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"is refused, it asks to run \S*print"):
        load_huggingface(folder, "convnext")
    assert not capsys.readouterr().out


def test_canvas_that_the_model_can_not_take(folder: Path, tmp_path: Path) -> None:
    save(CLASSIFIERS["beit"], tmp_path / "beit")
    edit(tmp_path / "beit", image_size=64)
    (tmp_path / "beit" / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "BeitImageProcessor", "size": {"height": 8, "width": 8}})
    )
    with pytest.raises(CheckpointError, match="the model can't answer a canvas of 8x8"):
        load_huggingface(tmp_path / "beit", "beit")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param(
            {"backbone_config": {"model_type": "timm_backbone", "backbone": "resnet50"}}, "pip install timm", id="timm"
        ),
        pytest.param(
            {"backbone_config": None, "backbone": "me/mine", "use_timm_backbone": False}, "is only named", id="hub"
        ),
    ],
)
def test_backbones_that_are_not_here(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    save(DETECTORS["conditional-detr"], tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_huggingface(tmp_path, "detr")


def test_missing_extra_names_the_command(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"ConvNextForImage.*pip install 'ferryman\[transformers\]'"):
        load_huggingface(folder, "convnext")


SIZE = {"height": 48, "width": 64}
# A processor of transformers and what it is built with; the model's own pictures are in `families`.
PROCESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("ViT", {"size": SIZE}),
    "beit": ("Beit", {"size": SIZE}),
    "beit-crops": ("Beit", {"size": SIZE, "do_center_crop": True, "crop_size": {"height": 40, "width": 32}}),
    "convnext": ("ConvNext", {"size": {"shortest_edge": 64}}),
    "convnext-crop-pct": ("ConvNext", {"size": {"shortest_edge": 64}, "crop_pct": 0.95}),
    "convnext-384": ("ConvNext", {"size": {"shortest_edge": 384}}),
    "poolformer": ("PoolFormer", {"size": {"shortest_edge": 64}, "crop_size": SIZE | {"height": 64}}),
    "levit": ("Levit", {"size": {"shortest_edge": 64}, "crop_size": SIZE}),
    "efficientnet": ("EfficientNet", {"size": SIZE}),
    "efficientnet-top": ("EfficientNet", {"size": SIZE, "include_top": False, "resample": 0}),
    "mobilevit": ("MobileViT", {"size": {"shortest_edge": 72}, "crop_size": SIZE}),
    "mobilenet-v1": ("MobileNetV1", {"size": {"shortest_edge": 72}, "crop_size": SIZE}),
    "mobilenet-v2": ("MobileNetV2", {"size": {"shortest_edge": 72}, "crop_size": SIZE}),
    "segformer": ("Segformer", {"size": SIZE}),
    "pvt": ("Pvt", {"size": SIZE}),
    "siglip": ("Siglip", {"size": SIZE}),
    "clip": ("CLIP", {"size": {"shortest_edge": 72}, "crop_size": SIZE}),
    "rt-detr": ("RTDetr", {"size": SIZE}),
    "rt-detr-normalised": ("RTDetr", {"size": SIZE, "do_normalize": True}),
    "detr-stretched": ("Detr", {"size": SIZE}),
    "yolos": ("Yolos", {"size": {"max_height": CANVAS[0], "max_width": CANVAS[1]}}),
    "conditional-detr": ("ConditionalDetr", {"size": {"max_height": CANVAS[0], "max_width": CANVAS[1]}}),
    "deformable-detr": ("DeformableDetr", {"size": {"max_height": CANVAS[0], "max_width": CANVAS[1]}}),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_equal_transformers(name: str, tmp_path: Path) -> None:
    kind, options = PROCESSORS[name]
    processor = getattr(hf, f"{kind}ImageProcessor")(**options)
    processor.save_pretrained(tmp_path)
    spec = load_processor(tmp_path)
    random = np.random.default_rng(1)
    for height, width in ((128, 192), (96, 72), (200, 300)):
        noise = Image.fromarray(random.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8))
        image = noise.resize((width, height), Image.Resampling.BICUBIC)
        canvas, geometry = fit_image(image, spec)
        found = (canvas / 255 - spec.mean) / spec.std
        rows, columns = geometry.valid_size
        expected = processor(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)[:rows, :columns]
        if kind == "MobileViT":
            expected = expected[..., ::-1]  # the module turns the channels, not the canvas
        # Of pixel values in [0, 1]; transformers rounds to whole levels after each step, as we do.
        assert np.abs((found[:rows, :columns] - expected) * spec.std).max() <= 1 / 255 + 1e-6


@pytest.mark.parametrize(
    ("document", "message"),
    [
        pytest.param(
            {"image_processor_type": "EfficientNetImageProcessor", "rescale_offset": True},
            "rescale_offset",
            id="offset",
        ),
        pytest.param(
            {"image_processor_type": "ConvNextImageProcessor", "size": SIZE}, "no shortest_edge", id="convnext"
        ),
        pytest.param(
            {"image_processor_type": "RTDetrImageProcessor", "pad_size": SIZE, "do_pad": True},
            "stretched to .* and then padded",
            id="stretched-and-padded",
        ),
    ],
)
def test_processors_that_can_not_be_followed(document: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=message):
        load_processor(tmp_path)
