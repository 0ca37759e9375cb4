"""Whole crossings of what engineers have: from a saved folder to a bundle's answers, from the pictures' bytes.

The reference is transformers with its own processor, the model in fp32 and eager mode.
"""

import io
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from ferryman.predictor import Predictor
from ferryman_export.pipeline import ExportRequest, export
from ferryman_models.checkpoints.weights_file import ARCHITECTURES

from ..models.test_huggingface import DETR_FACTS
from ..models.weights import randomize

# Of probabilities, boxes as shares of the picture, and embeddings of size 1: the limit of fp32 parity.
LIMIT = 1e-4
ENCODER: dict[str, Any] = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SQUARE = {"size": {"height": 32, "width": 32}}
BIT = {"size": {"shortest_edge": 48}, "crop_size": {"height": 42, "width": 42}}

# Class, its configuration, its processor and the processor's settings.
FOLDERS: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "vit": ("ViTForImageClassification", ENCODER | {"image_size": 32, "patch_size": 8, "num_labels": 7}, "vit", SQUARE),
    "dinov2": (
        "Dinov2ForImageClassification",
        ENCODER | {"image_size": 98, "patch_size": 14, "num_labels": 7},
        "bit",
        BIT,
    ),
    "dinov2, encoder": ("Dinov2Model", ENCODER | {"image_size": 42, "patch_size": 14}, "bit", BIT),
    "detr": ("DetrForObjectDetection", DETR_FACTS, "detr", {"size": {"height": 64, "width": 96}}),
}


def save_source(name: str, folder: Path) -> tuple[Any, Any]:
    """The model and its processor, saved in `folder`."""
    class_name, facts, family, settings = FOLDERS[name]
    model_class = getattr(transformers, class_name)
    if family == "detr":
        backbone: dict[str, Any] = {
            "embedding_size": 8,
            "hidden_sizes": [32, 32],
            "depths": [1, 1],
            "out_features": ["stage2"],
        }
        facts = facts | {"backbone_config": transformers.ResNetConfig(**backbone)}
    model = model_class(model_class.config_class(**facts, attn_implementation="eager")).eval()
    randomize(model, seed=3)
    module = import_module(f"transformers.models.{family}.image_processing_pil_{family}")
    titles = {"vit": "ViT", "bit": "Bit", "detr": "Detr"}
    processor = getattr(module, f"{titles[family]}ImageProcessorPil")(**settings)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor


def read(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("name", FOLDERS)
@torch.no_grad()
def test_a_folder_answers_as_in_transformers(name: str, pictures: Path, tmp_path: Path) -> None:
    model, processor = save_source(name, tmp_path / "source")
    bundle = export(ExportRequest(str(tmp_path / "source"), tmp_path / "r", samples=pictures))
    assert bundle.manifest.source.architecture == FOLDERS[name][0]
    with Predictor(bundle) as predictor:
        for data in read(pictures).values():
            image = Image.open(io.BytesIO(data)).convert("RGB")
            inputs = processor(image, return_tensors="pt")
            if name == "detr" and image.width * 2 != image.height * 3:
                continue  # transformers pads to the largest picture of a batch, which is this one
            output = model(**inputs)
            if bundle.spec.task == "classification":
                expected = output.logits[0].softmax(-1).numpy()
                (answer,), _ = predictor.classify([data], top_k=7)
                found = np.zeros(7)
                for prediction in answer.predictions:
                    found[prediction.class_id] = prediction.score
                np.testing.assert_allclose(found, expected, atol=LIMIT)
                assert answer.predictions[0].label == model.config.id2label[int(expected.argmax())]
            elif bundle.spec.task == "embedding":
                tokens = output.last_hidden_state[0].numpy()
                (embedding,), _ = predictor.embed([data])
                scale = np.abs(tokens).max()
                np.testing.assert_allclose(embedding.cls, tokens[0], atol=LIMIT * scale)
                np.testing.assert_allclose(embedding.patches.reshape(9, 48), tokens[1:], atol=LIMIT * scale)
            else:
                (wanted,) = processor.post_process_object_detection(output, 0.0, [(image.height, image.width)])
                (detections,), _ = predictor.detect([data], 0.0)
                order = wanted["scores"].argsort(descending=True, stable=True)
                found = detections.detections
                np.testing.assert_allclose([one.score for one in found], wanted["scores"][order], atol=LIMIT)
                assert [one.class_id for one in found] == wanted["labels"][order].tolist()
                boxes = wanted["boxes"][order].clamp(min=0)
                boxes = torch.minimum(boxes, torch.tensor([image.width, image.height] * 2)).numpy()
                sides = [image.width, image.height] * 2
                np.testing.assert_allclose([one.box_xyxy for one in found] / np.array(sides), boxes / sides, atol=LIMIT)


def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "ferryman", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_an_encoder_from_the_command_line(pictures: Path, tmp_path: Path) -> None:
    """Exported, asked about pictures, drawn, and its vectors written."""
    save_source("dinov2, encoder", tmp_path / "source")
    result = run("export", tmp_path / "source", "-o", tmp_path / "r", "--samples", pictures)
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
