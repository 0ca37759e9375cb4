"""What is measured: models of transformers with random weights, and pictures of noise."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ferryman.files import write_text
from ferryman_models.checkpoints.processors import FILE_NAME as PROCESSOR

_GRAIN = 16  # pixels of a picture's smallest detail: nearer to a photograph than noise in every pixel


@dataclass(frozen=True)
class BenchModel:
    """build: the model of transformers, in eval mode; processor: what its pictures go through, by transformers' names

    size: (height, width) of the canvas that the processor gives
    spare_mb: what a session may take over twice its weights; load_int8_s: how long it may load in int8, None for ever
    """

    build: Callable[[], Any]
    processor: dict[str, Any]
    size: tuple[int, int]
    spare_mb: int = 150
    load_int8_s: float | None = None


def build_seeded(model_class: str, config: Callable[[Any], Any]) -> Any:
    """A model of transformers with its own initial weights, the same every time, and its default attention.

    config: its configuration, from the module `transformers`
    """
    import transformers

    torch.manual_seed(0)
    return getattr(transformers, model_class)(config(transformers)).eval()


def _build_vit() -> Any:
    return build_seeded("ViTForImageClassification", lambda hf: hf.ViTConfig(num_labels=1000))


def _build_dinov2() -> Any:
    sizes = {"hidden_size": 384, "num_attention_heads": 6, "patch_size": 14, "image_size": 224, "num_labels": 1000}
    return build_seeded("Dinov2ForImageClassification", lambda hf: hf.Dinov2Config(**sizes))


def _build_detr() -> Any:
    def config(hf: Any) -> Any:
        resnet50 = hf.ResNetConfig(out_features=["stage4"])
        return hf.DetrConfig(use_timm_backbone=False, backbone_config=resnet50, num_labels=91)

    return build_seeded("DetrForObjectDetection", config)


def detr_processor(height: int, width: int) -> dict[str, Any]:
    return {"image_processor_type": "DetrImageProcessor", "size": {"max_height": height, "max_width": width}}


_SQUARE = {"height": 224, "width": 224}
_VIT = {"image_processor_type": "ViTImageProcessor", "size": _SQUARE}
_DINOV2 = {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 256}, "crop_size": _SQUARE}
MODELS = {
    "vit-base": BenchModel(_build_vit, _VIT, (224, 224), load_int8_s=0.6),
    "dinov2-small": BenchModel(_build_dinov2, _DINOV2, (224, 224)),
    "detr-r50-480x640": BenchModel(_build_detr, detr_processor(480, 640), (480, 640)),
    "detr-r50-800x1066": BenchModel(_build_detr, detr_processor(800, 1066), (800, 1066), spare_mb=400),
}


def save_checkpoint(model: Any, processor: dict[str, Any], folder: Path) -> None:
    """As a checkpoint in Hugging Face's layout."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # there is one already
    model.save_pretrained(folder)
    write_text(folder / PROCESSOR, json.dumps(processor))


def random_pictures(count: int, size: tuple[int, int], seed: int) -> NDArray[np.uint8]:
    """(count, height, width, 3) uint8: coloured noise, smooth below `_GRAIN` pixels."""
    random = np.random.default_rng(seed)
    height, width = size
    coarse = random.integers(0, 256, (count, height // _GRAIN + 2, width // _GRAIN + 2, 3), dtype=np.uint8)
    fine = [Image.fromarray(one).resize((width, height), Image.Resampling.BICUBIC) for one in coarse]
    return np.stack([np.asarray(one) for one in fine])


def save_pictures(folder: Path, pictures: NDArray[np.uint8]) -> Path:
    """A folder of PNG files, to calibrate with."""
    folder.mkdir()
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{number:04}.png", compress_level=1)
    return folder
