"""Whole crossings of what engineers have: from a saved folder to a bundle's answers, from the pictures' bytes.

The reference is transformers with its own processor, the model in fp32 and eager mode.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from ferryman.bundle import Bundle
from ferryman.predictor import Predictor
from ferryman_models.checkpoints.weights_file import ARCHITECTURES

from ..models.test_huggingface import DETR_FACTS
from ..models.weights import (
    RESNET18,
    HFResNetConfig,
    calibrate_norms,
    dilate_last_stage,
    randomize,
    rename_backbone_as_timm,
)
from ..serve.commands.outcome import Cli

# Of probabilities, boxes as shares of the picture, and embeddings of size 1: the limit of fp32 parity.
LIMIT = 1e-4
SMALL: dict[str, Any] = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
CLASSES = SMALL | {"num_labels": 7}
BIT = {"size": {"shortest_edge": 48}, "crop_size": {"height": 42, "width": 42}}
CANVAS = (64, 96)
PADDED = {"size": {"max_height": CANVAS[0], "max_width": CANVAS[1]}}


def square(side: int) -> dict[str, Any]:
    return {"size": {"height": side, "width": side}}


@dataclass(frozen=True)
class Source:
    """model, facts: a class of transformers and its configuration; processor, options: likewise
    timm: the ResNet's tensors have timm's names, and its last stage is dilated
    """

    model: str
    facts: dict[str, Any]
    processor: str
    options: dict[str, Any]
    timm: bool = False

    def save(self, folder: Path) -> tuple[Any, Any]:
        """The model and its processor, which are saved in `folder`."""
        model_class = getattr(transformers, self.model)
        model = model_class(model_class.config_class(**self.facts, attn_implementation="eager")).eval()
        randomize(model, seed=3)
        family = self.processor.lower()
        module = import_module(f"transformers.models.{family}.image_processing_pil_{family}")
        processor = getattr(module, f"{self.processor}ImageProcessorPil")(**self.options)
        if self.processor == "Detr":
            backbone = model.model.backbone.model
            if self.timm:
                dilate_last_stage(backbone)
            calibrate_norms(backbone, seed=3)
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        if self.timm:
            rename_backbone_as_timm(folder, dilation=True)
        return model, processor


def resnet(**facts: Any) -> dict[str, Any]:
    return {"backbone_config": HFResNetConfig(**facts)}


# DetrForSegmentation is in test_segmentation.py; SwiGLU, sizes that positions are resampled to and further widths are
# compared with transformers in tests/models, where nothing is exported.
FOLDERS: dict[str, Source] = {
    "vit, patch 16, wide, no QKV bias": Source(
        "ViTForImageClassification",
        CLASSES | {"image_size": [32, 96], "patch_size": 16, "qkv_bias": False},
        "ViT",
        {"size": {"height": 32, "width": 96}},
    ),
    "vit, encoder, patch 8": Source("ViTModel", SMALL | {"image_size": 32, "patch_size": 8}, "ViT", square(32)),
    "deit, patch 32, odd grid": Source(
        "DeiTForImageClassification",
        CLASSES | {"image_size": 96, "patch_size": 32},
        "DeiT",
        square(104) | {"crop_size": {"height": 96, "width": 96}},
    ),
    "dinov2, patch 14, odd grid, mean pooling": Source(
        "Dinov2ForImageClassification", CLASSES | {"image_size": 98, "patch_size": 14}, "Bit", BIT
    ),
    "dinov2, encoder": Source("Dinov2Model", SMALL | {"image_size": 42, "patch_size": 14}, "Bit", BIT),
    "registers": Source(
        "Dinov2WithRegistersForImageClassification", CLASSES | {"image_size": 98, "patch_size": 14}, "Bit", BIT
    ),
    "registers, encoder, patch 8": Source(
        "Dinov2WithRegistersModel",
        SMALL | {"image_size": 32, "patch_size": 8, "num_register_tokens": 3},
        "ViT",
        square(32),
    ),
    "detr": Source(
        "DetrForObjectDetection",
        DETR_FACTS | resnet(embedding_size=8, hidden_sizes=[32, 32], depths=[1, 1], out_features=["stage2"]),
        "Detr",
        PADDED,
    ),
    "detr, timm's names, dilated": Source(
        "DetrForObjectDetection", DETR_FACTS | resnet(**RESNET18, out_features=["stage4"]), "Detr", PADDED, timm=True
    ),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.nightly if "dilated" in name else ()) for name in FOLDERS],
)
@torch.no_grad()
def test_a_folder_answers_as_in_transformers(name: str, cli: Cli, pictures: Path, tmp_path: Path) -> None:
    """Through the command line, from the folder to the bundle and from the pictures' files to what is printed."""
    source = FOLDERS[name]
    model, processor = source.save(tmp_path / "source")
    exported = cli("export", tmp_path / "source", "-o", tmp_path / "r", "--samples", pictures, "--json")
    assert exported.status == 0, exported.stderr
    assert exported.document["seconds"] > 0
    assert exported.document["peak_memory_bytes"] > 1e8  # PyTorch alone is more
    bundle = Bundle.open(exported.document["bundle"])
    assert bundle.manifest.source.architecture == source.model
    files = sorted(pictures.iterdir())
    compare = {"classification": compare_classes, "embedding": compare_vectors, "detection": compare_boxes}
    compare[bundle.spec.task](cli, bundle.path, model, processor, files)


def compare_classes(cli: Cli, bundle: Path, model: Any, processor: Any, files: list[Path]) -> None:
    answers = cli("classify", *files, "--bundle", bundle, "--top-k", 7, "--json").document
    for path, answer in zip(files, answers, strict=True):
        scores = model(**processor(Image.open(path), return_tensors="pt")).logits[0].softmax(-1).tolist()
        expected = {model.config.id2label[index]: score for index, score in enumerate(scores)}
        found = {prediction["label"]: prediction["score"] for prediction in answer["predictions"]}
        assert found == pytest.approx(expected, abs=LIMIT)
        assert answer["predictions"][0]["label"] == max(expected, key=lambda label: expected[label])


def compare_vectors(cli: Cli, bundle: Path, model: Any, processor: Any, files: list[Path]) -> None:
    archive = bundle.parent / "out.npz"
    cli("embed", *files, "--bundle", bundle, "-o", archive)
    with np.load(archive) as arrays:
        for path, cls, patches in zip(files, arrays["cls"], arrays["patches"], strict=True):
            tokens = model(**processor(Image.open(path), return_tensors="pt")).last_hidden_state[0].numpy()
            limit = LIMIT * np.abs(tokens).max()
            np.testing.assert_allclose(cls, tokens[0], atol=limit)
            rows, columns, dim = patches.shape
            np.testing.assert_allclose(patches.reshape(-1, dim), tokens[-rows * columns :], atol=limit)


def compare_boxes(cli: Cli, bundle: Path, model: Any, processor: Any, files: list[Path]) -> None:
    answers = cli("detect", *files, "--bundle", bundle, "--score", 0, "--json").document
    padded = 0
    for path, answer in zip(files, answers, strict=True):
        image = Image.open(path).convert("RGB")
        scale = min(CANVAS[0] / image.height, CANVAS[1] / image.width)
        if image.width * scale % 1 or image.height * scale % 1:
            continue  # transformers rounds a side down, we to the nearest
        padded += image.height * CANVAS[1] != image.width * CANVAS[0]
        pad_size = {"height": CANVAS[0], "width": CANVAS[1]}
        output = model(**processor(image, pad_size=pad_size, return_tensors="pt"))
        (wanted,) = processor.post_process_object_detection(output, 0.0, [(image.height, image.width)])
        order = wanted["scores"].argsort(descending=True, stable=True)
        found = answer["detections"]
        np.testing.assert_allclose([one["score"] for one in found], wanted["scores"][order], atol=LIMIT)
        labels = [model.config.id2label[index] for index in wanted["labels"][order].tolist()]
        assert [one["label"] for one in found] == labels
        boxes = wanted["boxes"][order].clamp(min=0)
        boxes = torch.minimum(boxes, torch.tensor([image.width, image.height] * 2)).numpy()
        # Printed to a hundredth of a pixel.
        np.testing.assert_allclose([one["box"] for one in found], boxes, atol=LIMIT * max(image.size) + 0.005)
    assert padded


def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "ferryman", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_an_encoder_from_the_command_line(pictures: Path, tmp_path: Path) -> None:
    """Exported with the pictures that Ferryman brings, asked about others, drawn, and its vectors written."""
    FOLDERS["dinov2, encoder"].save(tmp_path / "source")
    result = run("export", tmp_path / "source", "-o", tmp_path / "r")
    assert result.returncode == 0, result.stderr
    assert "written in" in result.stdout
    files = sorted(pictures.iterdir())[:2]
    archive, drawn = tmp_path / "out.npz", tmp_path / "drawn"
    bundle = tmp_path / "r" / "source"
    result = run("embed", *files, "--bundle", bundle, "-o", archive, "--draw", drawn, "--json")
    assert result.returncode == 0, result.stderr
    documents = json.loads(result.stdout)
    with np.load(archive) as arrays:
        assert arrays["images"].tolist() == [str(path) for path in files]
        assert arrays["patches"].shape == (2, 3, 3, 48)
        np.testing.assert_allclose(arrays["cls"], [document["cls"] for document in documents], atol=1e-6)
        with Predictor.open(bundle) as predictor:
            (embedding,), _ = predictor.embed([files[0].read_bytes()])
        np.testing.assert_allclose(arrays["patches"][0], embedding.patches, atol=1e-6)
    assert all((drawn / f"{path.stem}.png").read_bytes().startswith(b"\x89PNG") for path in files)


def test_a_bare_weights_file_needs_its_architecture(tmp_path: Path) -> None:
    weights, labels = tmp_path / "w.pth", tmp_path / "labels.txt"
    torch.save({"weight": torch.zeros(2)}, weights)
    labels.write_text("a\nb\n")
    result = run("export", weights, "-o", tmp_path / "r")
    assert result.returncode == 2
    assert all(name in result.stderr for name in ARCHITECTURES)
    result = run("export", weights, "-o", tmp_path / "r", "--arch", "detr_resnet50", "--labels", labels)
    assert result.returncode == 1
    assert "no DETR's weights" in result.stderr
    result = run("export", "vit-digits", "-o", tmp_path / "r", "--labels", labels)
    assert result.returncode == 2
    assert "--labels belongs to a bare weights file, got vit-digits" in result.stderr
    assert not (tmp_path / "r").exists()
