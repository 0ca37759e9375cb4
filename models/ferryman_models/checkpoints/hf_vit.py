"""ViT, DeiT and DINOv2 as `transformers` saves them."""

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from ferryman_models.checkpoints.hf_config import HFConfig, Positive
from ferryman_models.checkpoints.renames import Renames
from ferryman_models.vit import ViTConfig


class ViTFacts(HFConfig):
    hidden_size: Positive = 768
    num_hidden_layers: Positive = 12
    num_attention_heads: Positive = 12
    intermediate_size: Positive = 3072
    hidden_act: Literal["gelu"] = "gelu"
    image_size: Positive | tuple[Positive, Positive] = 224
    patch_size: Positive = 16
    layer_norm_eps: Annotated[float, Field(gt=0)] = 1e-12
    qkv_bias: bool = True


class DINOv2Facts(HFConfig):
    hidden_size: Positive = 768
    num_hidden_layers: Positive = 12
    num_attention_heads: Positive = 12
    mlp_ratio: Annotated[float, Field(gt=0)] = 4
    hidden_act: Literal["gelu"] = "gelu"
    image_size: Positive | tuple[Positive, Positive] = 224
    patch_size: Positive = 14
    layer_norm_eps: Annotated[float, Field(gt=0)] = 1e-6
    qkv_bias: bool = True
    use_swiglu_ffn: bool = False


class RegistersFacts(DINOv2Facts):
    patch_size: Positive = 16
    num_register_tokens: Annotated[int, Field(ge=0)] = 4


RENAMES: Renames = (
    (r"^(vit|deit|dinov2|dinov2_with_registers)\.", ""),
    (r"^embeddings\.cls_token$", "cls"),
    (r"^embeddings\.distillation_token$", "distillation"),
    (r"^embeddings\.register_tokens$", "registers"),
    (r"^embeddings\.position_embeddings$", "positions"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patches."),
    (r"^(encoder\.layer|encoder\.layers|layer|layers)\.(\d+)\.", r"blocks.\2."),
    (r"\.attention\.attention\.(query|key|value)\.", r".attention.\1."),
    (r"\.attention\.output\.dense\.", ".attention.out."),
    (r"\.attention\.q_proj\.", ".attention.query."),
    (r"\.attention\.k_proj\.", ".attention.key."),
    (r"\.attention\.v_proj\.", ".attention.value."),
    (r"\.attention\.o_proj\.", ".attention.out."),
    (r"\.(layernorm_before|norm1)\.", ".norm_attention."),
    (r"\.(layernorm_after|norm2)\.", ".norm_feed_forward."),
    (r"\.(intermediate\.dense|mlp\.fc1|mlp\.up_proj)\.", ".feed_forward.up."),
    (r"\.(output\.dense|mlp\.fc2|mlp\.weights_out|mlp\.down_proj)\.", ".feed_forward.down."),
    (r"\.mlp\.gate_proj\.", ".feed_forward.gate."),
    (r"\.layer_scale1\.lambda1$", ".scale_attention"),
    (r"\.layer_scale2\.lambda1$", ".scale_feed_forward"),
    (r"^layernorm\.", "norm."),
    (r"^classifier\.", "head."),
)
MASK_TOKEN = (r"^(\w+\.)?embeddings\.mask_token$", "the mask token is left out: it is for pretraining")
POOLER = (r"^((vit|deit)\.)?pooler\.", "the pooler is not used: an embedding is the class token itself")


def vit_config_from_hf(facts: ViTFacts, classes: int) -> ViTConfig:
    """Of a ViTForImageClassification, or with 0 classes of a ViTModel."""
    return ViTConfig(
        image_size=_sides(facts.image_size),
        patch=facts.patch_size,
        dim=facts.hidden_size,
        depth=facts.num_hidden_layers,
        heads=facts.num_attention_heads,
        hidden=facts.intermediate_size,
        classes=classes,
        epsilon=facts.layer_norm_eps,
        qkv_bias=facts.qkv_bias,
    )


def deit_config_from_hf(facts: ViTFacts, classes: int) -> ViTConfig:
    """Of a DeiTForImageClassification: its head sees the class token alone."""
    return replace(vit_config_from_hf(facts, classes), distilled=True)


def dinov2_config_from_hf(facts: DINOv2Facts, classes: int) -> ViTConfig:
    """Of Dinov2 and Dinov2WithRegisters; its linear head sees class token and mean patch."""
    hidden = int(facts.hidden_size * facts.mlp_ratio)
    if facts.use_swiglu_ffn:
        hidden = (int(hidden * 2 / 3) + 7) // 8 * 8  # as facebookresearch/dinov2's SwiGLUFFNFused
    registers = facts.num_register_tokens if isinstance(facts, RegistersFacts) else 0
    return ViTConfig(
        image_size=_sides(facts.image_size),
        patch=facts.patch_size,
        dim=facts.hidden_size,
        depth=facts.num_hidden_layers,
        heads=facts.num_attention_heads,
        hidden=hidden,
        classes=classes,
        pooling="cls+mean",
        epsilon=facts.layer_norm_eps,
        qkv_bias=facts.qkv_bias,
        layer_scale=True,
        feed_forward="swiglu" if facts.use_swiglu_ffn else "gelu",
        registers=registers,
        # transformers leaves out the offset of the original.
        interpolation="antialias" if isinstance(facts, RegistersFacts) else "plain",
    )


def _sides(size: int | tuple[int, int]) -> tuple[int, int]:
    return size if isinstance(size, tuple) else (size, size)
