"""Pixels that our preprocessing gives for a saved `preprocessor_config.json`, against transformers' own processor.

Its processors on Pillow: those on torchvision ("fast") resize with torch's kernels, which differ from Pillow's by up to
a few levels of 255 at edges, since they round the weights otherwise. Ours is Pillow's in training, export and serving.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ferryman.preprocess import fit_image
from ferryman_models.checkpoints.processors import load_processor

# One level of 255, in units of the pixel values before normalisation.
LEVEL = 1 / 255
SIZES = [(64, 48), (48, 64), (97, 301), (300, 90), (224, 224), (31, 33)]

PROCESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit.ViTImageProcessorPil", {"size": {"height": 56, "width": 48}}),
    "vit, defaults": ("vit.ViTImageProcessorPil", {}),
    "vit, lanczos": ("vit.ViTImageProcessorPil", {"size": {"height": 40, "width": 40}, "resample": 1}),
    "vit, nearest": ("vit.ViTImageProcessorPil", {"size": {"height": 40, "width": 40}, "resample": 0}),
    "vit, not normalised": ("vit.ViTImageProcessorPil", {"do_normalize": False}),
    "vit, not rescaled": ("vit.ViTImageProcessorPil", {"do_rescale": False, "image_mean": [127.0] * 3}),
    "deit": ("deit.DeiTImageProcessorPil", {}),
    "deit, small": ("deit.DeiTImageProcessorPil", {"size": {"height": 70, "width": 70}, "crop_size": 63}),
    "bit": ("bit.BitImageProcessorPil", {}),
    "bit, DINOv2's": (
        "bit.BitImageProcessorPil",
        {
            "size": {"shortest_edge": 256},
            "crop_size": {"height": 224, "width": 224},
            "image_mean": [0.485, 0.456, 0.406],
            "image_std": [0.229, 0.224, 0.225],
        },
    ),
}


def make(name: str, settings: dict[str, Any]) -> Any:
    family, _, class_name = name.partition(".")
    module = import_module(f"transformers.models.{family}.image_processing_pil_{family}")
    return getattr(module, class_name)(**settings)


def noise(width: int, height: int) -> Image.Image:
    random = np.random.default_rng(width)
    return Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(("name", "settings"), PROCESSORS.values(), ids=PROCESSORS)
def test_pixels_equal_the_processors(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    processor = make(name, settings)
    processor.save_pretrained(tmp_path)
    spec = load_processor(tmp_path)
    for width, height in SIZES:
        image = noise(width, height)
        expected = processor(image, return_tensors="np")["pixel_values"][0]
        canvas, _ = fit_image(image, spec)
        ours = ((canvas / 255 - np.array(spec.mean)) / np.array(spec.std)).transpose(2, 0, 1)
        assert ours.shape == expected.shape
        # In units of the pixels themselves, whatever they are divided by.
        error = np.abs(ours - expected) * np.array(spec.std)[:, None, None]
        assert error.max() <= LEVEL * 1.001, (width, height)


def test_a_detectors_pixels_equal_the_processors(tmp_path: Path) -> None:
    """On a picture that fills the canvas; on others the padding is ours: to the canvas, not to the batch's largest."""
    processor = make("detr.DetrImageProcessorPil", {"size": {"height": 60, "width": 80}})
    processor.save_pretrained(tmp_path)
    spec = load_processor(tmp_path)
    for scale in (1, 2, 3):
        image = noise(80 * scale, 60 * scale)
        expected = processor(image, return_tensors="np")["pixel_values"][0]
        canvas, geometry = fit_image(image, spec)
        assert geometry.valid_size == (60, 80)
        ours = ((canvas / 255 - np.array(spec.mean)) / np.array(spec.std)).transpose(2, 0, 1)
        assert (np.abs(ours - expected) * np.array(spec.std)[:, None, None]).max() <= LEVEL * 1.001
