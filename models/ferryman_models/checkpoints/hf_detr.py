"""DETR as `transformers` saves it, with timm's names in the backbone or with its own."""

from dataclasses import replace
from typing import Literal

from ferryman_models.checkpoints.hf_config import HFConfig, Positive
from ferryman_models.checkpoints.renames import Renames
from ferryman_models.detr import DETRConfig
from ferryman_models.resnet import RESNETS, ResNetConfig


class ResNetFacts(HFConfig):
    model_type: Literal["resnet"] = "resnet"
    embedding_size: Positive = 64
    hidden_sizes: tuple[Positive, ...] = (256, 512, 1024, 2048)
    depths: tuple[Positive, ...] = (3, 4, 6, 3)
    layer_type: Literal["basic", "bottleneck"] = "bottleneck"
    hidden_act: Literal["relu"] = "relu"
    downsample_in_first_stage: Literal[False] = False
    downsample_in_bottleneck: Literal[False] = False
    out_features: tuple[str, ...] | None = None


class TimmBackboneFacts(HFConfig):
    model_type: Literal["timm_backbone"]
    backbone: str


class DETRFacts(HFConfig):
    d_model: Positive = 256
    encoder_layers: Positive = 6
    decoder_layers: Positive = 6
    encoder_attention_heads: Positive = 8
    decoder_attention_heads: Positive = 8
    encoder_ffn_dim: Positive = 2048
    decoder_ffn_dim: Positive = 2048
    num_queries: Positive = 100
    activation_function: Literal["relu"] = "relu"
    position_embedding_type: Literal["sine"] = "sine"
    backbone: str | None = None
    backbone_config: ResNetFacts | TimmBackboneFacts | None = None
    dilation: bool = False


# A backbone as timm names its tensors, and as transformers names its own.
RESNET: Renames = (
    (r"^model\.backbone\.(conv_encoder\.)?model\.", "backbone."),
    (r"^backbone\.(_backbone\.)?conv1\.", "backbone.conv1."),
    (r"^backbone\.(_backbone\.)?bn1\.", "backbone.norm1."),
    (r"^backbone\.(_backbone\.)?layer([1-4])\.(\d+)\.", lambda m: f"backbone.stages.{int(m[2]) - 1}.{m[3]}."),
    (r"(^backbone\.stages\.\d+\.\d+)\.bn(\d)\.", r"\1.norm\2."),
    (r"(^backbone\.stages\.\d+\.\d+)\.downsample\.", r"\1.shortcut."),
    (r"^backbone\.embedder\.embedder\.convolution\.", "backbone.conv1."),
    (r"^backbone\.embedder\.embedder\.normalization\.", "backbone.norm1."),
    (r"^backbone\.encoder\.stages\.(\d+)\.layers\.(\d+)\.", r"backbone.stages.\1.\2."),
    (r"\.shortcut\.convolution\.", ".shortcut.0."),
    (r"\.shortcut\.normalization\.", ".shortcut.1."),
    (r"\.layer\.(\d)\.convolution\.", lambda m: f".conv{int(m[1]) + 1}."),
    (r"\.layer\.(\d)\.normalization\.", lambda m: f".norm{int(m[1]) + 1}."),
)
RENAMES: Renames = (
    *RESNET,
    (r"^model\.input_projection\.", "projection."),
    (r"^model\.query_position_embeddings\.weight$", "query_embeddings"),
    (r"^model\.(encoder|decoder)\.layers\.(\d+)\.", r"\1.\2."),
    (r"^model\.decoder\.layernorm\.", "decoder_norm."),
    (r"^encoder\.(\d+)\.self_attn\.", r"encoder.\1.attention."),
    (r"^encoder\.(\d+)\.self_attn_layer_norm\.", r"encoder.\1.norm_attention."),
    (r"^decoder\.(\d+)\.self_attn\.", r"decoder.\1.self_attention."),
    (r"^decoder\.(\d+)\.self_attn_layer_norm\.", r"decoder.\1.norm_self."),
    (r"^decoder\.(\d+)\.encoder_attn\.", r"decoder.\1.cross_attention."),
    (r"^decoder\.(\d+)\.encoder_attn_layer_norm\.", r"decoder.\1.norm_cross."),
    (r"attention\.q_proj\.", "attention.query."),
    (r"attention\.k_proj\.", "attention.key."),
    (r"attention\.v_proj\.", "attention.value."),
    (r"attention\.(o_proj|out_proj)\.", "attention.out."),
    (r"^(encoder|decoder)\.(\d+)\.(mlp\.)?fc1\.", r"\1.\2.up."),
    (r"^(encoder|decoder)\.(\d+)\.(mlp\.)?fc2\.", r"\1.\2.down."),
    (r"^(encoder|decoder)\.(\d+)\.final_layer_norm\.", r"\1.\2.norm_feed_forward."),
    (r"^class_labels_classifier\.", "class_head."),
    (r"^bbox_predictor\.", "box_head."),
)

# Of the mask head, under the names of the published files and under those of transformers 5's modules.
MASK_HEAD: Renames = (
    (r"^bbox_attention\.(q_linear|q_proj)\.", "attention_map.query."),
    (r"^bbox_attention\.(k_linear|k_proj)\.", "attention_map.key."),
    (r"^mask_head\.lay(\d)\.", lambda m: f"mask_head.convs.{int(m[1]) - 1}."),
    (r"^mask_head\.gn(\d)\.", lambda m: f"mask_head.norms.{int(m[1]) - 1}."),
    (r"^mask_head\.adapter(\d)\.", lambda m: f"mask_head.adapters.{int(m[1]) - 1}."),
    (r"^mask_head\.(out_lay|output_conv)\.", "mask_head.out."),
    (r"^mask_head\.conv(\d)\.(conv|norm)\.", lambda m: f"mask_head.{m[2]}s.{int(m[1]) - 1}."),
    (r"^mask_head\.fpn_stages\.(\d)\.fpn_adapter\.", r"mask_head.adapters.\1."),
    (r"^mask_head\.fpn_stages\.(\d)\.refine\.(conv|norm)\.", lambda m: f"mask_head.{m[2]}s.{int(m[1]) + 2}."),
)


def add_mask_head(detector: Renames) -> Renames:
    """The names of a DETR with a mask head: those of a DETR, below `detr.` on both sides, and the head's."""
    return (*MASK_HEAD, (r"^detr\.", ""), *detector, (r"^(?!attention_map\.|mask_head\.)", "detr."))


COUNTER = (r"\.num_batches_tracked$", "batch norm's counters answer nothing")


def detr_config_from_hf(facts: DETRFacts, classes: int) -> DETRConfig:
    """Raises ValueError for a backbone that is no ResNet, or for facts that contradict each other."""
    if facts.encoder_attention_heads != facts.decoder_attention_heads or facts.encoder_ffn_dim != facts.decoder_ffn_dim:
        raise ValueError("encoder and decoder differ in heads or in the width of their feed-forward parts")
    return DETRConfig(
        classes=classes,
        backbone=replace(_backbone(facts), dilate_last=facts.dilation),
        dim=facts.d_model,
        heads=facts.encoder_attention_heads,
        hidden=facts.encoder_ffn_dim,
        encoder_layers=facts.encoder_layers,
        decoder_layers=facts.decoder_layers,
        queries=facts.num_queries,
    )


def _backbone(facts: DETRFacts) -> ResNetConfig:
    own = facts.backbone_config
    if isinstance(own, ResNetFacts):
        stages = tuple(f"stage{number + 1}" for number in range(len(own.depths)))
        if own.out_features not in (None, stages, stages[-1:]):
            raise ValueError(
                f"the backbone answers with {own.out_features}, DETR needs its last stage, or all for masks"
            )
        expansion = 4 if own.layer_type == "bottleneck" else 1
        widths = tuple(size // expansion for size in own.hidden_sizes)
        if own.embedding_size != widths[0]:
            raise ValueError(f"the backbone's embedding_size {own.embedding_size} is not its first width {widths[0]}")
        return ResNetConfig(own.layer_type, own.depths, widths)
    name = own.backbone if own is not None else facts.backbone or "resnet50"
    if name not in RESNETS:
        raise ValueError(f"the backbone {name!r} is not known; known are {', '.join(RESNETS)}")
    return RESNETS[name]
