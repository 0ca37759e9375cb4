"""timm's, facebookresearch's and torchvision's layouts, by round trip: our weights renamed to theirs, here, by hand.

The names are facts of the published checkpoints: timm/models/vision_transformer.py,
facebookresearch/dinov2 models/vision_transformer.py, facebookresearch/detr models/{detr,transformer,backbone}.py,
torchvision/models/vision_transformer.py.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ferryman.errors import CheckpointError, UsageError
from ferryman.specs import PreprocessSpec
from ferryman_models.checkpoints.coco import COCO_LABELS
from ferryman_models.checkpoints.timm import load_timm
from ferryman_models.checkpoints.weights_file import load_weights_file
from ferryman_models.detr import DETR, DETRConfig
from ferryman_models.resnet import RESNETS
from ferryman_models.vit import ViT, ViTConfig

from .facebook import facebook_detr_state, fuse, rename
from .weights import randomize

# 384 channels and 6 heads are what `vit_small` and `dinov2_vits14` have; the rest may be small.
BASE = ViTConfig(image_size=(48, 48), patch=16, dim=384, depth=2, heads=6, hidden=64, classes=5)
TIMM = {
    "vit_small_patch16_224": BASE,
    "vit_small_patch16_224.mean": replace(BASE, pooling="mean", norm_pooled=True),
    "deit_small_distilled_patch16_224": replace(BASE, distilled=True, pooling="cls+distillation"),
    "deit3_small_patch16_224": replace(BASE, layer_scale=True, placed_prefix=False),
    "vit_small_patch14_reg4_dinov2": replace(
        BASE, image_size=(42, 42), patch=14, classes=0, layer_scale=True, registers=4, placed_prefix=False
    ),
    "vit_giant_patch14_dinov2": replace(
        BASE, image_size=(42, 42), patch=14, heads=24, classes=0, layer_scale=True, feed_forward="swiglu"
    ),
}


def timm_state(model: ViT) -> dict[str, Tensor]:
    state = fuse(model.state_dict(), ("query", "key", "value"), "qkv.KIND")
    state = fuse(state, ("gate", "up"), "fc1.KIND") if model.config.feed_forward == "swiglu" else state
    return rename(
        state,
        ("^cls$", "cls_token"),
        ("^distillation$", "dist_token"),
        ("^registers$", "reg_token"),
        ("^positions$", "pos_embed"),
        ("^patches", "patch_embed.proj"),
        ("^head_distillation", "head_dist"),
        ("norm_attention", "norm1"),
        ("norm_feed_forward", "norm2"),
        (r"attention\.out", "attn.proj"),
        (r"\.attention\.", ".attn."),
        (r"feed_forward\.up", "mlp.fc1"),
        (r"feed_forward\.down", "mlp.fc2"),
        (r"feed_forward\.fc1", "mlp.fc1"),
        ("scale_attention", "ls1.gamma"),
        ("scale_feed_forward", "ls2.gamma"),
        ("^norm", "fc_norm" if model.config.norm_pooled else "norm"),
    )


def assert_same(found: nn.Module, model: nn.Module) -> None:
    expected = model.state_dict()
    actual = found.state_dict()
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert actual[name].equal(tensor), name


def make(model: nn.Module) -> Any:
    randomize(model, seed=4)
    return model.eval()


@pytest.mark.parametrize("name", TIMM)
@torch.no_grad()
def test_timm(name: str, tmp_path: Path) -> None:
    model: ViT = make(ViT(TIMM[name]))
    config = model.config
    architecture = name.removesuffix(".mean")
    document = {
        "architecture": architecture,
        "num_classes": config.classes,
        "global_pool": "avg" if config.pooling == "mean" else "token",
        "pretrained_cfg": {
            "input_size": [3, *config.image_size],
            "interpolation": "bicubic",
            "crop_pct": 0.9,
            "crop_mode": "center",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(document))
    save_file(timm_state(model), tmp_path / "model.safetensors")

    checkpoint = load_timm(tmp_path, name)

    assert isinstance(checkpoint.module, ViT)
    assert_same(checkpoint.module, model)
    # What can't be seen in the tensors: every answer would be another one.
    found = checkpoint.module.config
    assert (found.heads, found.pooling) == (config.heads, config.pooling)
    image = torch.randn(2, 3, *config.image_size, generator=torch.Generator().manual_seed(5))
    assert checkpoint.module.forward_features(image).equal(model.forward_features(image))
    if config.classes:
        assert checkpoint.module(image).equal(model(image))
    side = config.image_size[0]
    assert checkpoint.spec.preprocess == PreprocessSpec(
        size=(side, side),
        fit="crop",
        shortest_edge=int(side / 0.9),
        crop_rounding="even",
        interpolation="bicubic",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"architecture": "swin_tiny_patch4_window7_224"}, "is not known; known are vit_", id="swin"),
        pytest.param({"global_pool": "map"}, "global_pool", id="attention-pooling"),
        pytest.param(
            {"model_args": {"act_layer": "quick_gelu"}}, "act_layer, which can't be followed", id="activation"
        ),
        pytest.param({"label_names": ["a"]}, "names 1 classes, the head has 5", id="labels"),
    ],
)
def test_timm_refuses_what_it_can_not_follow(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    document = {"architecture": "vit_small_patch16_224", "pretrained_cfg": {"input_size": [3, 48, 48]}} | changes
    (tmp_path / "config.json").write_text(json.dumps(document))
    save_file(timm_state(make(ViT(BASE))), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_timm(tmp_path, "x")


@pytest.mark.parametrize("registers", [0, 4])
@torch.no_grad()
def test_dinov2(registers: int, tmp_path: Path) -> None:
    config = replace(BASE, patch=14, image_size=(518, 518), classes=0, layer_scale=True, registers=registers)
    model: ViT = make(ViT(config))
    state = rename(timm_state(model), ("^reg_token$", "register_tokens")) | {"mask_token": torch.zeros(1, 384)}
    path = tmp_path / "dinov2.pth"
    torch.save(state, path)

    checkpoint = load_weights_file(path, "dinov2_vits14_reg" if registers else "dinov2_vits14", "x")

    assert isinstance(checkpoint.module, ViT)
    assert_same(checkpoint.module, model)
    assert checkpoint.notes == ("the mask token is left out: it is for pretraining",)
    assert checkpoint.module.config.interpolation == ("antialias" if registers else "offset")
    assert checkpoint.spec.task == "embedding"
    assert checkpoint.spec.outputs[1].shape == ("batch", 16, 16, 384)
    with pytest.raises(CheckpointError, match="registers"):
        load_weights_file(path, "dinov2_vits14" if registers else "dinov2_vits14_reg", "x")


def test_detr(tmp_path: Path) -> None:
    config = DETRConfig(classes=91, backbone=RESNETS["resnet50"], dim=32, hidden=48, decoder_layers=2, queries=7)
    model: DETR = make(DETR(config))
    state = facebook_detr_state(model)
    path = tmp_path / "detr-r50.pth"
    torch.save({"model": state}, path)

    checkpoint = load_weights_file(path, "detr_resnet50", "x")

    assert_same(checkpoint.module, model)
    assert checkpoint.spec.labels == COCO_LABELS
    with pytest.raises(CheckpointError, match=r"backbone\.stages\.2\.6\.\S+ is missing"):
        load_weights_file(path, "detr_resnet101", "x")
    with pytest.raises(CheckpointError, match="no ViT's weights"):
        load_weights_file(path, "dinov2_vits14", "x")


@torch.no_grad()
def test_torchvision(tmp_path: Path) -> None:
    model: ViT = make(ViT(replace(BASE, image_size=(224, 224), heads=12)))
    state = fuse(model.state_dict(), ("query", "key", "value"), "in_proj_KIND")
    state = rename(
        state,
        ("^cls$", "class_token"),
        ("^positions$", "encoder.pos_embedding"),
        ("^patches", "conv_proj"),
        (r"^blocks\.", "encoder.layers.encoder_layer_"),
        ("^norm", "encoder.ln"),
        ("^head", "heads.head"),
        ("norm_attention", "ln_1"),
        ("norm_feed_forward", "ln_2"),
        (r"\.attention\.", ".self_attention."),
        (r"self_attention\.out", "self_attention.out_proj"),
        (r"feed_forward\.up", "mlp.0"),
        (r"feed_forward\.down", "mlp.3"),
    )
    path = tmp_path / "vit.pth"
    torch.save(state, path)

    checkpoint = load_weights_file(path, "vit_b_16", "x", labels=tuple("abcde"))

    assert_same(checkpoint.module, model)
    assert checkpoint.spec.labels == tuple("abcde")
    with pytest.raises(CheckpointError, match="there are 2 labels, the head has 5 classes"):
        load_weights_file(path, "vit_b_16", "x", labels=("a", "b"))
    with pytest.raises(UsageError, match="--arch vit_x is not known; known are dinov2_vits14"):
        load_weights_file(path, "vit_x", "x")


def test_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "empty.pth"
    path.touch()
    with pytest.raises(CheckpointError, match=r"empty\.pth can't be read as PyTorch weights: it is empty or cut short"):
        load_weights_file(path, "detr_resnet50", "x")
