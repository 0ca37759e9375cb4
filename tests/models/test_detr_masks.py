"""DETR's mask head, from folders of `save_pretrained` and from facebookresearch's layout."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from ferryman.errors import CheckpointError
from ferryman_models.checkpoints.coco import PANOPTIC_LABELS
from ferryman_models.checkpoints.huggingface import load_huggingface
from ferryman_models.checkpoints.weights_file import load_weights_file
from ferryman_models.detr import DETRConfig
from ferryman_models.detr_masks import AttentionMap, DETRForMasks, MaskHead, mask_grid
from ferryman_models.resnet import RESNETS, ResNetConfig

from .facebook import facebook_panoptic_state
from .weights import (
    RESNET18,
    HFDetrConfig,
    HFResNetConfig,
    calibrate_norms,
    max_error,
    pad_images,
    randomize,
    rename_backbone_as_timm,
)

# Relative to the output's scale; both sides add in fp32.
TOLERANCE = 2e-5
DETR: dict[str, Any] = {
    "use_timm_backbone": False,
    "use_pretrained_backbone": False,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 8,
    "decoder_attention_heads": 8,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "num_queries": 7,
    "num_labels": 5,
}
# Facts of the backbone, and what differs from DETR above.
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "bottleneck": (
        {"embedding_size": 8, "hidden_sizes": [32, 48, 64, 64], "depths": [1, 2, 1, 1], "layer_type": "bottleneck"},
        {},
    ),
    "basic-three-stages": (
        {"embedding_size": 16, "hidden_sizes": [16, 24, 32], "depths": [1, 1, 2], "layer_type": "basic"},
        {"d_model": 64, "encoder_attention_heads": 16, "decoder_attention_heads": 16, "num_labels": 250},
    ),
}
# Two canvases, one of them no multiple of any stride; pictures with and without padding.
PICTURES: dict[str, tuple[tuple[int, int], list[tuple[int, int]]]] = {
    "alone": ((96, 64), [(96, 64)]),
    "padded": ((75, 101), [(75, 50), (30, 101), (75, 101)]),
}


def build_hf(backbone: dict[str, Any], facts: dict[str, Any]) -> Any:
    stages = [f"stage{number + 1}" for number in range(len(backbone["depths"]))]
    backbone_config = HFResNetConfig(**backbone | {"out_features": stages})
    config = HFDetrConfig(**DETR | facts | {"backbone_config": backbone_config}, attn_implementation="eager")
    model: Any = transformers.DetrForSegmentation(config)
    randomize(model, seed=1)
    calibrate_norms(model.detr.model.backbone.model, seed=1)
    return model.eval()


def save(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    document = {"image_processor_type": "DetrImageProcessor", "size": {"height": 75, "width": 101}}
    (folder / "preprocessor_config.json").write_text(json.dumps(document))
    return folder


def assert_equal(module: Any, reference: Any, canvas: tuple[int, int], sizes: list[tuple[int, int]]) -> None:
    image, valid = pad_images(sizes, canvas, seed=3)
    expected, found = reference(image, valid.long()), module(image, valid)
    assert found.masks.shape == (len(sizes), reference.config.num_queries, *mask_grid(canvas))
    assert expected.pred_masks.std() > 0.1
    assert max_error(found.logits[-1], expected.logits) <= TOLERANCE * expected.logits.abs().max()
    assert max_error(found.boxes_cxcywh[-1], expected.pred_boxes) <= TOLERANCE
    assert max_error(found.masks, expected.pred_masks) <= TOLERANCE * expected.pred_masks.abs().max()


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_equals_transformers(name: str, tmp_path: Path) -> None:
    reference = build_hf(*MODELS[name])
    checkpoint = load_huggingface(save(reference, tmp_path), name)
    assert isinstance(checkpoint.module, DETRForMasks)
    for canvas, sizes in PICTURES.values():
        assert_equal(checkpoint.module, reference, canvas, sizes)
    spec = checkpoint.spec
    assert (spec.task, spec.outputs[-1].shape) == ("segmentation", ("batch", 7, 19, 26))
    # 250 classes are COCO's panoptic ones, whose numbers say what is stuff; of five nothing is known.
    if reference.config.num_labels == 250:
        assert (spec.stuff[0], spec.stuff[-1], checkpoint.notes) == (91, 249, ())
    else:
        assert spec.stuff == ()
        assert "does not say which classes are stuff" in checkpoint.notes[0]


@torch.no_grad()
def test_timm_names_in_the_backbone(tmp_path: Path) -> None:
    """What `facebook/detr-resnet-50-panoptic` holds: timm's names, and a backbone named in the configuration."""
    reference = build_hf(RESNET18, {})
    folder = save(reference, tmp_path)
    rename_backbone_as_timm(folder)
    assert "detr.model.backbone.conv_encoder.model.layer1.0.conv1.weight" in load_file(folder / "model.safetensors")

    module = load_huggingface(folder, "timm").module

    assert_equal(module, reference, *PICTURES["padded"])


def test_wrong_folders_are_named(tmp_path: Path) -> None:
    folder = save(build_hf(*MODELS["bottleneck"]), tmp_path)
    state = load_file(folder / "model.safetensors")
    del state["mask_head.lay3.weight"]
    state["mask_head.lay9.bias"] = torch.zeros(3)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"mask_head\.convs\.2\.weight is missing; mask_head\.convs\.8\.bias is"):
        load_huggingface(folder, "x")
    document = json.loads((folder / "config.json").read_text())
    document["backbone_config"]["out_features"] = ["stage2"]
    (folder / "config.json").write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match="DETR needs its last stage, or all for masks"):
        load_huggingface(folder, "x")


def test_facebook_layout(tmp_path: Path) -> None:
    config = DETRConfig(classes=250, backbone=RESNETS["resnet50"], dim=32, hidden=48, decoder_layers=2, queries=7)
    model = DETRForMasks(config)
    randomize(model, seed=4)
    model.eval()
    state = facebook_panoptic_state(model)
    # Of `detr-r50-panoptic-00ce5173.pth`: models/segmentation.py, models/detr.py and models/backbone.py name these.
    assert {
        "detr.transformer.encoder.layers.0.self_attn.in_proj_weight",
        "detr.transformer.decoder.norm.weight",
        "detr.class_embed.weight",
        "detr.query_embed.weight",
        "detr.backbone.0.body.layer4.2.bn3.running_var",
        "bbox_attention.q_linear.weight",
        "bbox_attention.k_linear.bias",
        "mask_head.lay1.weight",
        "mask_head.gn5.bias",
        "mask_head.adapter3.weight",
        "mask_head.out_lay.bias",
    } <= state.keys()
    path = tmp_path / "detr-r50-panoptic.pth"
    torch.save({"model": state}, path)

    checkpoint = load_weights_file(path, "detr_resnet50_panoptic", "x")

    expected, found = model.state_dict(), checkpoint.module.state_dict()
    assert found.keys() == expected.keys()
    assert all(found[name].equal(tensor) for name, tensor in expected.items())
    spec = checkpoint.spec
    assert (spec.labels, len(spec.labels), spec.outputs[-1].shape[2:]) == (PANOPTIC_LABELS, 250, (200, 267))
    assert [spec.labels[index] for index in (1, 90, 92, 187, 200)] == [
        "person",
        "toothbrush",
        "banner",
        "sky-other-merged",
        "rug-merged",
    ]
    assert (spec.stuff[0], spec.stuff[-1]) == (91, 249)
    dilated = load_weights_file(path, "detr_resnet50_dc5_panoptic", "x").module
    assert isinstance(dilated, DETRForMasks)
    assert dilated.config.backbone == replace(RESNETS["resnet50"], dilate_last=True)
    with pytest.raises(CheckpointError, match=r"detr\.backbone\.stages\.2\.6\.\S+ is missing"):
        load_weights_file(path, "detr_resnet101_panoptic", "x")
    with pytest.raises(CheckpointError, match=r"mask_head\S+ is unknown|no DETR's weights"):
        load_weights_file(path, "detr_resnet50", "x")


def test_attention_map_is_a_distribution_over_real_cells() -> None:
    maps = AttentionMap(16, 4)
    valid = torch.ones(2, 3, 5, dtype=torch.bool)
    valid[1, 2:] = valid[1, :, 3:] = False
    weights = maps(torch.randn(2, 6, 16), torch.randn(2, 15, 16), valid)
    assert weights.shape == (2, 6, 4, 3, 5)
    assert torch.allclose(weights.sum(dim=(2, 3, 4)), torch.ones(2, 6))
    assert weights[1][:, :, ~valid[1]].abs().max() == 0


@pytest.mark.parametrize(
    ("build", "message"),
    [
        pytest.param(lambda: MaskHead(8, 2, (8, 8, 8)), "16 or more, got 8", id="narrow"),
        pytest.param(lambda: MaskHead(32, 4, (8, 8, 8)), "divisible", id="groups"),
        pytest.param(
            lambda: DETRForMasks(DETRConfig(3, ResNetConfig("basic", (1, 1), (8, 8)), dim=32)), "three stages", id="two"
        ),
    ],
)
def test_head_that_can_not_be_built(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
