"""Every published file loads: one with its names and shapes at real size, and zeros that take no room."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ferryman_models.checkpoints.base import Checkpoint
from ferryman_models.checkpoints.google_npz import load_google_npz
from ferryman_models.checkpoints.huggingface import load_huggingface
from ferryman_models.checkpoints.timm import load_timm
from ferryman_models.checkpoints.weights_file import load_weights_file
from ferryman_models.detr import DETR, DETRConfig
from ferryman_models.detr_masks import DETRForMasks
from ferryman_models.resnet import ResNetConfig
from ferryman_models.vit import ViT, ViTConfig

from .published import PUBLISHED, Shapes

# Written out, not taken from our presets: a slip there would hide the same slip here.
VIT_B = ViTConfig(image_size=(224, 224), patch=16, dim=768, depth=12, heads=12, hidden=3072, classes=1000)
DINOV2_S = ViTConfig(
    image_size=(518, 518), patch=14, dim=384, depth=12, heads=6, hidden=1536, classes=0, layer_scale=True
)
DINOV2_B = replace(DINOV2_S, dim=768, heads=12, hidden=3072)
DINOV2_G = replace(DINOV2_S, dim=1536, depth=40, heads=24, hidden=4096, feed_forward="swiglu")
DETR_R50 = DETRConfig(
    classes=91,
    backbone=ResNetConfig("bottleneck", (3, 4, 6, 3)),
    dim=256,
    heads=8,
    hidden=2048,
    encoder_layers=6,
    decoder_layers=6,
    queries=100,
)

TIMM: dict[str, ViTConfig] = {
    "vit_base_patch16_224.augreg_in21k_ft_in1k": VIT_B,
    "deit_base_distilled_patch16_224.fb_in1k": replace(VIT_B, distilled=True, pooling="cls+distillation"),
    "deit3_small_patch16_224.fb_in1k": replace(
        VIT_B, dim=384, heads=6, hidden=1536, layer_scale=True, placed_prefix=False
    ),
    "vit_small_patch14_dinov2.lvd142m": DINOV2_S,
    "vit_small_patch14_reg4_dinov2.lvd142m": replace(DINOV2_S, registers=4, placed_prefix=False),
    "vit_giant_patch14_dinov2.lvd142m": DINOV2_G,
}
WEIGHTS_FILES: dict[str, tuple[str, ViTConfig | DETRConfig]] = {
    "dinov2_vits14_pretrain.pth": ("dinov2_vits14", replace(DINOV2_S, pooling="cls+mean", interpolation="offset")),
    "dinov2_vitb14_reg4_pretrain.pth": (
        "dinov2_vitb14_reg",
        replace(DINOV2_B, pooling="cls+mean", registers=4, interpolation="antialias"),
    ),
    "dinov2_vitg14_pretrain.pth": ("dinov2_vitg14", replace(DINOV2_G, pooling="cls+mean", interpolation="offset")),
    "detr-r50-e632da11.pth": ("detr_resnet50", DETR_R50),
    "detr-r50-dc5-f0fb7ef5.pth": (
        "detr_resnet50_dc5",
        replace(DETR_R50, backbone=ResNetConfig("bottleneck", (3, 4, 6, 3), dilate_last=True)),
    ),
    "detr-r101-2c7b67e5.pth": (
        "detr_resnet101",
        replace(DETR_R50, backbone=ResNetConfig("bottleneck", (3, 4, 23, 3))),
    ),
    "detr-r50-panoptic-00ce5173.pth": ("detr_resnet50_panoptic", replace(DETR_R50, classes=250)),
    "vit_b_16-c867db91.pth": ("vit_b_16", VIT_B),
}
# Facts of the published config.json that are not transformers' defaults, and of preprocessor_config.json.
HUGGINGFACE: dict[str, tuple[dict[str, Any], dict[str, Any], ViTConfig | DETRConfig]] = {
    "google/vit-base-patch16-224": (
        {"architectures": ["ViTForImageClassification"], "model_type": "vit"},
        {"feature_extractor_type": "ViTFeatureExtractor", "size": 224, "resample": 2},
        replace(VIT_B, epsilon=1e-12),
    ),
    "facebook/dinov2-small": (
        {
            "architectures": ["Dinov2Model"],
            "model_type": "dinov2",
            "hidden_size": 384,
            "num_attention_heads": 6,
            "image_size": 518,
        },
        {
            "image_processor_type": "BitImageProcessor",
            "size": {"shortest_edge": 256},
            "crop_size": {"height": 224, "width": 224},
        },
        replace(DINOV2_S, pooling="cls+mean"),
    ),
    "facebook/detr-resnet-50": (
        {"architectures": ["DetrForObjectDetection"], "model_type": "detr", "backbone": "resnet50"},
        {"feature_extractor_type": "DetrFeatureExtractor", "size": 800, "max_size": 1333},
        DETR_R50,
    ),
}
GOOGLE: dict[str, ViTConfig] = {
    # Its head is zero, so that it answers nothing but an embedding.
    "imagenet21k/ViT-B_16.npz": replace(VIT_B, classes=0, feed_forward="gelu-tanh"),
    "imagenet21k+imagenet2012/ViT-B_16-224.npz": replace(VIT_B, feed_forward="gelu-tanh"),
}
# What some files hold and no answer depends on: the loader says so.
LEFT_OUT = r"mask_token$|^pre_logits/|^head/"


def save_zeros(shapes: Shapes, path: Path) -> Path:
    """Every tensor is one zero, spread over its shape: of a model of 4.5 GB, a file of some kilobytes."""
    zero = torch.zeros(1)
    torch.save({name: zero.expand(shape) for name, shape in shapes.items()}, path)
    return path


def assert_loaded(checkpoint: Checkpoint, config: ViTConfig | DETRConfig, shapes: Shapes) -> None:
    """shapes: of the file, all of which must be in the model but for what answers nothing."""
    module = checkpoint.module
    assert isinstance(module, ViT | DETR | DETRForMasks)
    assert module.config == config
    tensors = module.state_dict().values()
    # A tensor without memory is one that the file did not fill.
    assert not any(tensor.is_meta for tensor in tensors)
    left_out = [name for name in shapes if re.search(LEFT_OUT, name) and checkpoint.notes]
    assert bool(left_out) == bool(checkpoint.notes)
    kept = sum(math.prod(shape) for name, shape in shapes.items() if name not in left_out)
    assert sum(tensor.numel() for tensor in tensors) == kept


@pytest.mark.parametrize("name", PUBLISHED)
def test_shapes_add_up_to_what_others_count(name: str) -> None:
    published = PUBLISHED[name]
    assert published.counts
    for count in published.counts:
        counted = [shape for key, shape in published.shapes.items() if not re.search(count.uncounted, key)]
        assert abs(sum(map(math.prod, counted)) - count.numbers) <= count.within, count.source


def test_every_published_file_is_loaded() -> None:
    head = "dinov2_vits14_linear_head.pth"
    assert {*TIMM, *WEIGHTS_FILES, *HUGGINGFACE, *GOOGLE, head} == PUBLISHED.keys()


@pytest.mark.parametrize("name", TIMM)
def test_timm(name: str, tmp_path: Path) -> None:
    side = TIMM[name].image_size[0]
    document = {
        "architecture": name.partition(".")[0],
        "num_classes": TIMM[name].classes,
        "global_pool": "token",
        "pretrained_cfg": {"input_size": [3, side, side]},
    }
    (tmp_path / "config.json").write_text(json.dumps(document))
    save_zeros(PUBLISHED[name].shapes, tmp_path / "pytorch_model.bin")
    assert_loaded(load_timm(tmp_path, name), replace(TIMM[name], interpolation="antialias"), PUBLISHED[name].shapes)


@pytest.mark.parametrize("name", WEIGHTS_FILES)
def test_weights_file(name: str, tmp_path: Path) -> None:
    arch, config = WEIGHTS_FILES[name]
    path = save_zeros(PUBLISHED[name].shapes, tmp_path / name)
    assert_loaded(load_weights_file(path, arch, name), config, PUBLISHED[name].shapes)


def test_torchvision_renamed_its_linear_layers_since(tmp_path: Path) -> None:
    shapes = PUBLISHED["vit_b_16-c867db91.pth"].shapes
    numbered = {n.replace("linear_1", "0").replace("linear_2", "3"): shape for n, shape in shapes.items()}
    path = save_zeros(numbered, tmp_path / "saved_today.pth")
    assert_loaded(load_weights_file(path, "vit_b_16", "x"), VIT_B, numbered)


def test_dinov2_with_its_linear_head(tmp_path: Path) -> None:
    backbone, head = (PUBLISHED[f"dinov2_vits14_{part}.pth"].shapes for part in ("pretrain", "linear_head"))
    paths = save_zeros(backbone, tmp_path / "backbone.pth"), save_zeros(head, tmp_path / "head.pth")
    checkpoint = load_weights_file(paths[0], "dinov2_vits14", "x", head=paths[1])
    config = replace(DINOV2_S, classes=1000, pooling="cls+mean", interpolation="offset")
    assert_loaded(checkpoint, config, backbone | head)


@pytest.mark.parametrize("name", HUGGINGFACE)
def test_huggingface(name: str, tmp_path: Path) -> None:
    document, processor, config = HUGGINGFACE[name]
    (tmp_path / "config.json").write_text(json.dumps(document))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    save_zeros(PUBLISHED[name].shapes, tmp_path / "pytorch_model.bin")
    assert_loaded(load_huggingface(tmp_path, name), config, PUBLISHED[name].shapes)


@pytest.mark.parametrize("name", GOOGLE)
def test_google(name: str, tmp_path: Path) -> None:
    path = tmp_path / "ViT-B_16.npz"
    # In half precision: NumPy would write out zeros that are spread.
    np.savez_compressed(
        path, allow_pickle=False, **{key: np.zeros(shape, np.float16) for key, shape in PUBLISHED[name].shapes.items()}
    )
    assert_loaded(load_google_npz(path, name), GOOGLE[name], PUBLISHED[name].shapes)
