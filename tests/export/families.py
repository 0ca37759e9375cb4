"""Small models of transformers with random weights that answer decidedly, and the processors that feed them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor, nn

# Configurations and processors of transformers take more than their annotated parameters.
hf: Any = transformers
CANVAS = (64, 96)
SQUARE = {"height": 64, "width": 64}
PADDED = {"max_height": CANVAS[0], "max_width": CANVAS[1]}


@dataclass(frozen=True)
class Family:
    """model: a class of transformers; facts: of its configuration; default: tried in every test run

    processor, options: a class of transformers' processors and what it is built with
    post: the class whose `post_process_object_detection` is the reference, by default the processor
    tolerance: of scores, and of boxes as a share of the picture
    seed: of the weights
    """

    model: str
    facts: Callable[[], dict[str, Any]]
    processor: str
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    post: str | None = None
    tolerance: float = 1e-5
    default: bool = False
    seed: int = 1

    def build(self) -> Any:
        """The model in eval mode; the same weights every time."""
        model_class = getattr(hf, self.model)
        torch.manual_seed(0)
        model = model_class(model_class.config_class(**self.facts(), attn_implementation="eager")).eval()
        randomize(model, seed=self.seed)
        return model

    def build_processor(self) -> Any:
        return getattr(hf, f"{self.processor}ImageProcessor")(**self.options)

    @property
    def takes_mask(self) -> bool:
        return self.options.get("size") == PADDED and self.processor != "Yolos"


@torch.no_grad()
def randomize(model: nn.Module, seed: int) -> None:
    """Random weights that keep activations near one, and batch norms that know them.

    The usual initial values make all queries answer nearly the same, so that rounding decides which one is first.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.named_parameters():
        if tensor.numel() == 1 or name.endswith((".up", ".reg_scale")):  # D-FINE's constants
            continue
        if "norm" in name and name.endswith("weight") and tensor.ndim == 1:
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif tensor.ndim == 1:
            tensor.normal_(0, 0.3, generator=generator)
        elif "query_position" in name:  # nothing else tells queries apart
            tensor.normal_(0, 1, generator=generator)
        else:
            tensor.normal_(0, tensor[0].numel() ** -0.5, generator=generator)

    def measure(norm: nn.Module, inputs: tuple[Tensor]) -> None:
        variance, mean = torch.var_mean(inputs[0], dim=(0, 2, 3))
        norm.get_buffer("running_mean").copy_(mean)
        norm.get_buffer("running_var").copy_(variance + 1e-3)

    norms = [module for module in model.modules() if "BatchNorm2d" in type(module).__name__]
    hooks = [norm.register_forward_pre_hook(measure) for norm in norms]
    model(pixel_values=torch.randn(2, 3, 64, 64, generator=generator))
    for hook in hooks:
        hook.remove()


def _vit(**facts: Any) -> Callable[[], dict[str, Any]]:
    small = {"image_size": 64, "patch_size": 16, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    return lambda: small | {"intermediate_size": 64, "num_labels": 7} | facts


def _plain(**facts: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {"num_labels": 7} | facts


def _swin(side: int) -> Callable[[], dict[str, Any]]:
    return _plain(image_size=side, patch_size=4, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4)


def _pyramid(**facts: Any) -> Callable[[], dict[str, Any]]:
    return _plain(**{"hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 1, 1]} | facts)


def _multimodal() -> dict[str, Any]:
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 32}
    text |= {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    return {"vision_config": _vit()(), "text_config": text, "num_labels": 7}


def _detr(levels: int = 1, width: str = "d_model", **facts: Any) -> Callable[[], dict[str, Any]]:
    def make() -> dict[str, Any]:
        backbone = hf.ResNetConfig(
            embedding_size=8,
            hidden_sizes=[16, 24, 32],
            depths=[1, 1, 1],
            layer_type="basic",
            out_features=[f"stage{number}" for number in range(4 - levels, 4)],
        )
        sizes = {"encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
        sizes |= {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "num_queries": 9, "num_labels": 5, width: 32}
        return sizes | {"use_timm_backbone": False, "backbone_config": backbone} | facts

    return make


def _rt_detr(backbone: str, **facts: Any) -> Callable[[], dict[str, Any]]:
    resnet = {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1] * 4, "layer_type": "basic"}
    hgnet = {"stem_channels": [3, 8, 8], "stage_in_channels": [8, 16, 16, 24], "stage_mid_channels": [8, 8, 16, 16]}
    hgnet |= {"stage_out_channels": [16, 16, 24, 32], "stage_num_blocks": [1] * 4, "stage_numb_of_layers": [1] * 4}
    hgnet |= {"hidden_sizes": [16, 16, 24, 32], "depths": [1] * 4, "embedding_size": 8}
    sizes = {"encoder_hidden_dim": 32, "encoder_in_channels": [16, 24, 32], "encoder_ffn_dim": 32, "d_model": 32}
    sizes |= {"decoder_in_channels": [32] * 3, "decoder_ffn_dim": 32, "num_queries": 9, "num_denoising": 0}
    sizes |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_labels": 5, "hidden_expansion": 0.5}
    stages = {"out_features": ["stage2", "stage3", "stage4"]}

    def make() -> dict[str, Any]:
        config = getattr(hf, backbone)(**(resnet if backbone == "RTDetrResNetConfig" else hgnet) | stages)
        return sizes | {"decoder_layers": 2, "backbone_config": config} | facts

    return make


def _deimv2_dinov3() -> dict[str, Any]:
    """Of the larger models: a DINOv3, beside whose patches a few convolutions look at the details."""
    vit = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    vit |= {"image_size": 64, "num_register_tokens": 2, "use_gated_mlp": True, "out_indices": [1, 2, 3]}
    facts = {"encoder_in_channels": [32] * 3, "encoder_has_trailing_conv": False, "hidden_expansion": 1.0}
    config = hf.DINOv3ViTConfig(**vit | {"apply_layernorm": False})
    return _rt_detr("HGNetV2Config", **facts | {"backbone_config": config})()


def _lw_detr(backbone: str, **facts: Any) -> Callable[[], dict[str, Any]]:
    def make() -> dict[str, Any]:
        vit = {key: value for key, value in _vit()().items() if key not in ("intermediate_size", "num_labels")}
        config = getattr(hf, backbone)(**vit | {"out_indices": [1, 2]} | facts)
        heads = {"decoder_self_attention_heads": 4, "decoder_cross_attention_heads": 4, "decoder_n_points": 2}
        sizes = {"d_model": 32, "decoder_ffn_dim": 32, "decoder_layers": 2, "num_queries": 9, "group_detr": 2}
        return heads | sizes | {"backbone_config": config, "projector_scale_factors": [1.0], "num_labels": 5}

    return make


_SQUARE = {"size": SQUARE}
_CROPPED = {"size": {"shortest_edge": 72}, "crop_size": SQUARE}
CLASSIFIERS = {
    "swin": Family("SwinForImageClassification", _swin(64), "ViT", _SQUARE, default=True),
    "swin-pads-windows": Family("SwinForImageClassification", _swin(56), "ViT", {"size": {"height": 56, "width": 56}}),
    "swinv2": Family("Swinv2ForImageClassification", _swin(64), "ViT", _SQUARE),
    "donut-swin": Family("DonutSwinForImageClassification", _swin(64), "ViT", _SQUARE),
    "beit": Family(
        "BeitForImageClassification", _vit(use_relative_position_bias=True, out_indices=[1, 2]), "Beit", _SQUARE
    ),
    "beit-absolute": Family(
        "BeitForImageClassification",
        _vit(
            use_shared_relative_position_bias=True,
            use_absolute_position_embeddings=True,
            use_mean_pooling=False,
            out_indices=[1, 2],
        ),
        "Beit",
        _SQUARE,
    ),
    "data2vec-vision": Family("Data2VecVisionForImageClassification", _vit(out_indices=[1, 2]), "Beit", _SQUARE),
    "vit-msn": Family("ViTMSNForImageClassification", _vit(), "ViT", _SQUARE),
    "ijepa": Family("IJepaForImageClassification", _vit(), "ViT", _SQUARE),
    "convnext": Family(
        "ConvNextForImageClassification",
        _plain(num_stages=2, hidden_sizes=[16, 32], depths=[1, 2]),
        "ConvNext",
        {"size": {"shortest_edge": 64}},
        default=True,
    ),
    "convnextv2": Family(
        "ConvNextV2ForImageClassification",
        _plain(num_stages=2, hidden_sizes=[16, 32], depths=[1, 2]),
        "ConvNext",
        {"size": {"shortest_edge": 64}},
    ),
    "resnet": Family(
        "ResNetForImageClassification",
        _plain(embedding_size=8, hidden_sizes=[16, 32], depths=[1, 2]),
        "ConvNext",
        {"size": {"shortest_edge": 64}},
    ),
    "regnet": Family(
        "RegNetForImageClassification",
        _pyramid(embedding_size=8, groups_width=8),
        "ConvNext",
        {"size": {"shortest_edge": 64}},
    ),
    "mobilevit": Family(
        "MobileViTForImageClassification",
        _plain(image_size=64, hidden_sizes=[16, 24, 32], neck_hidden_sizes=[8, 8, 16, 16, 24, 24, 32]),
        "MobileViT",
        _CROPPED,
    ),
    "mobilevitv2": Family(
        "MobileViTV2ForImageClassification", _plain(image_size=64, width_multiplier=0.25), "MobileViT", _CROPPED
    ),
    "mobilenet-v1": Family("MobileNetV1ForImageClassification", _plain(depth_multiplier=0.25), "MobileNetV1", _CROPPED),
    # Blocks that end without an activation multiply the rounding of random weights.
    "mobilenet-v2": Family(
        "MobileNetV2ForImageClassification", _plain(depth_multiplier=0.25), "MobileNetV2", _CROPPED, tolerance=1e-4
    ),
    "efficientnet": Family(
        "EfficientNetForImageClassification",
        _plain(image_size=64, width_coefficient=0.25, depth_coefficient=0.25, hidden_dim=320),
        "EfficientNet",
        _SQUARE,
    ),
    "pvt": Family(
        "PvtForImageClassification", _pyramid(image_size=64, num_attention_heads=[1, 1, 2, 2]), "Pvt", _SQUARE
    ),
    "pvt-v2": Family(
        "PvtV2ForImageClassification", _pyramid(image_size=64, num_attention_heads=[1, 1, 2, 2]), "Pvt", _SQUARE
    ),
    "segformer": Family(
        "SegformerForImageClassification", _pyramid(num_attention_heads=[1, 1, 2, 2]), "Segformer", _SQUARE
    ),
    "poolformer": Family(
        "PoolFormerForImageClassification",
        _pyramid(),
        "PoolFormer",
        {"size": {"shortest_edge": 64}, "crop_size": SQUARE},
    ),
    "focalnet": Family(
        "FocalNetForImageClassification",
        _plain(image_size=64, embed_dim=16, depths=[1, 1], focal_levels=[2, 2], focal_windows=[3, 3]),
        "Bit",
        _CROPPED,
    ),
    "hiera": Family(
        "HieraForImageClassification",
        _plain(image_size=[64, 64], embed_dim=16, depths=[1] * 4, num_heads=[1, 1, 2, 4], masked_unit_size=[8, 8]),
        "Bit",
        _CROPPED,
    ),
    "levit": Family(
        "LevitForImageClassification",
        _plain(
            image_size=64,
            hidden_sizes=[32, 48, 64],
            depths=[1] * 3,
            num_attention_heads=[2, 3, 4],
            key_dim=[8] * 3,
        ),
        "Levit",
        {"size": {"shortest_edge": 64}, "crop_size": SQUARE},
    ),
    "cvt": Family(
        "CvtForImageClassification",
        _plain(embed_dim=[16, 24, 32], num_heads=[1, 2, 4], depth=[1, 2, 3]),
        "ConvNext",
        {"size": {"shortest_edge": 64}},
    ),
    "swiftformer": Family(
        "SwiftFormerForImageClassification",
        _plain(image_size=64, depths=[1] * 4, embed_dims=[16, 16, 32, 32]),
        "ViT",
        _SQUARE,
    ),
    "siglip": Family("SiglipForImageClassification", _multimodal, "Siglip", _SQUARE),
    "clip": Family("CLIPForImageClassification", _multimodal, "CLIP", _CROPPED),
}

_CONDITIONAL: dict[str, Any] = {"processor": "ConditionalDetr", "options": {"size": PADDED}}
_DEFORMABLE: dict[str, Any] = {"processor": "DeformableDetr", "options": {"size": PADDED}}
_RT_DETR: dict[str, Any] = {"processor": "RTDetr", "options": _SQUARE}
DETECTORS = {
    "yolos": Family(
        "YolosForObjectDetection",
        _vit(image_size=list(CANVAS), num_detection_tokens=9, num_labels=5),
        "Yolos",
        {"size": PADDED},
        default=True,
    ),
    "table-transformer": Family("TableTransformerForObjectDetection", _detr(), "Detr", {"size": PADDED}),
    "conditional-detr": Family("ConditionalDetrForObjectDetection", _detr(), **_CONDITIONAL),
    "dab-detr": Family("DabDetrForObjectDetection", _detr(width="hidden_size"), **_CONDITIONAL),
    "deformable-detr": Family("DeformableDetrForObjectDetection", _detr(3, num_feature_levels=4), **_DEFORMABLE),
    "deformable-detr-two-stage": Family(
        "DeformableDetrForObjectDetection",
        _detr(3, num_feature_levels=4, two_stage=True, with_box_refine=True, two_stage_num_proposals=9),
        **_DEFORMABLE,
    ),
    "lw-detr": Family(
        "LwDetrForObjectDetection",
        _lw_detr("LwDetrViTConfig", pretrain_image_size=64, window_block_indices=[0], num_windows=4),
        **_DEFORMABLE,
    ),
    "rt-detr": Family("RTDetrForObjectDetection", _rt_detr("RTDetrResNetConfig", decoder_layers=1), **_RT_DETR),
    "rt-detr-v2": Family("RTDetrV2ForObjectDetection", _rt_detr("RTDetrResNetConfig"), **_RT_DETR),
    # Their boxes are weighted by powers of distances, which multiplies the rounding of random weights.
    "d-fine": Family("DFineForObjectDetection", _rt_detr("HGNetV2Config"), **_RT_DETR, tolerance=1e-4),
    # With the first seed PyTorch's own fp32 is 9e-5 from its fp64, with the second 2e-5.
    "deimv2": Family("Deimv2ForObjectDetection", _rt_detr("HGNetV2Config"), **_RT_DETR, tolerance=1e-4, seed=2),
    "deimv2-dinov3": Family("Deimv2ForObjectDetection", _deimv2_dinov3, **_RT_DETR, tolerance=1e-4),
    # Its own processor needs torchvision; resized alike by DETR's, and RT-DETR's answers are read as it reads its own.
    "rf-detr": Family(
        "RfDetrForObjectDetection", _lw_detr("RfDetrDinov2Config", num_windows=2), "Detr", _SQUARE, post="RTDetr"
    ),
}
