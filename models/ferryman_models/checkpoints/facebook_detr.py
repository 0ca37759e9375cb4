"""DETR's weights as facebookresearch/detr names them: detectors, and panoptic models with a mask head."""

import re
from collections.abc import Mapping

from torch import Tensor

from ferryman.errors import CheckpointError
from ferryman_models.checkpoints.fused import split_qkv
from ferryman_models.checkpoints.hf_detr import RESNET, add_mask_head
from ferryman_models.checkpoints.renames import Renames, drop_tensors, rename_tensors
from ferryman_models.detr import DETRConfig
from ferryman_models.resnet import RESNETS, ResNetConfig

_LAYER = r"^transformer\.(encoder|decoder)\.layers\.(\d+)\."
RENAMES: Renames = (
    (r"^backbone\.0\.body\.", "backbone."),
    *RESNET,
    (r"^input_proj\.", "projection."),
    (r"^query_embed\.weight$", "query_embeddings"),
    (r"^class_embed\.", "class_head."),
    (r"^bbox_embed\.", "box_head."),
    (r"^transformer\.decoder\.norm\.", "decoder_norm."),
    (_LAYER, r"\1.\2."),
    (r"^(encoder|decoder)\.(\d+)\.linear1\.", r"\1.\2.up."),
    (r"^(encoder|decoder)\.(\d+)\.linear2\.", r"\1.\2.down."),
    (r"^encoder\.(\d+)\.self_attn\.", r"encoder.\1.attention."),
    (r"^encoder\.(\d+)\.norm1\.", r"encoder.\1.norm_attention."),
    (r"^encoder\.(\d+)\.norm2\.", r"encoder.\1.norm_feed_forward."),
    (r"^decoder\.(\d+)\.self_attn\.", r"decoder.\1.self_attention."),
    (r"^decoder\.(\d+)\.multihead_attn\.", r"decoder.\1.cross_attention."),
    (r"^decoder\.(\d+)\.norm1\.", r"decoder.\1.norm_self."),
    (r"^decoder\.(\d+)\.norm2\.", r"decoder.\1.norm_cross."),
    (r"^decoder\.(\d+)\.norm3\.", r"decoder.\1.norm_feed_forward."),
    (r"attention\.out_proj\.", "attention.out."),
)
_DROPPED = ((r"\.num_batches_tracked$", "batch norm's counters answer nothing"),)
HEADS = 8  # facebookresearch/detr main.py, --nheads; all published models have it


def our_tensors(tensors: Mapping[str, Tensor], where: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors under our names, and notes on those left out. Raises CheckpointError; where: opens its message."""
    kept, notes = drop_tensors(tensors, _DROPPED)
    return rename_tensors(split_qkv(kept), RENAMES, where), notes


def our_tensors_with_masks(tensors: Mapping[str, Tensor], where: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The same for a panoptic model (models/segmentation.py, `DETRsegm`)."""
    kept, notes = drop_tensors(tensors, _DROPPED)
    return rename_tensors(split_qkv(kept), add_mask_head(RENAMES), where), notes


def config_from_tensors(state: Mapping[str, Tensor], where: str, *, backbone: str, dilate: bool) -> DETRConfig:
    """The configuration of a DETR with these tensors, ours by name. Raises CheckpointError when they are no DETR's."""
    state = {name.removeprefix("detr."): tensor for name, tensor in state.items()}
    for name in ("query_embeddings", "class_head.weight", "encoder.0.up.weight"):
        if name not in state:
            raise CheckpointError(f"{where}: no DETR's weights: there is no {name}")
    queries, dim = state["query_embeddings"].shape
    facts = RESNETS[backbone]
    return DETRConfig(
        classes=len(state["class_head.weight"]) - 1,
        backbone=ResNetConfig(facts.block, facts.depths, facts.widths, dilate_last=dilate),
        dim=dim,
        heads=HEADS,
        hidden=len(state["encoder.0.up.weight"]),
        encoder_layers=_count(state, "encoder"),
        decoder_layers=_count(state, "decoder"),
        queries=queries,
    )


def _count(state: Mapping[str, Tensor], part: str) -> int:
    return 1 + max((int(match[1]) for name in state if (match := re.match(rf"{part}\.(\d+)\.", name))), default=-1)
