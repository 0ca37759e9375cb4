"""DINOv2's published linear heads, files of their own beside the backbone's: of classes, and of segmentation.

Facts: facebookresearch/dinov2, dinov2/hub/classifiers.py (`dinov2_vits14_linear_head.pth`, `..._linear4_head.pth`) and
dinov2/eval/segmentation/models/decode_heads/linear_head.py (`dinov2_vits14_ade20k_linear_head.pth`, `..._ms_head.pth`).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from torch import Tensor, nn

from ferryman.errors import CheckpointError
from ferryman_models.checkpoints.base import build_model
from ferryman_models.checkpoints.renames import Renames, drop_tensors, rename_tensors
from ferryman_models.patch_segmenter import PatchSegmenter
from ferryman_models.vit import ViT, ViTConfig

_LINEAR: Renames = ((r"^(linear_head\.)?(weight|bias)$", r"head.\2"),)
_DECODE_HEAD: Renames = ((r"^decode_head\.bn\.", "norm."), (r"^decode_head\.conv_seg\.", "head."))
_COUNTER = ((r"\.num_batches_tracked$", "batch norm's counters answer nothing"),)
# Class tokens of one or of four blocks, and the mean patch.
_POOLINGS: dict[int, Literal["cls+mean", "cls4+mean"]] = {2: "cls+mean", 5: "cls4+mean"}
_BLOCKS = (1, 4)


def build_with_head(
    config: ViTConfig, state: Mapping[str, Tensor], head: Mapping[str, Tensor], where: str
) -> nn.Module:
    """The ViT with the head that these tensors are: a ViT that classifies, or a PatchSegmenter.

    config, state: of the backbone, ours by name; where: the head's file, opens every message
    Raises CheckpointError when the tensors are neither head, or the head of another backbone.
    """
    tensors, _ = drop_tensors(head, _COUNTER)
    segments = any(name.startswith("decode_head.") for name in tensors)
    ours = rename_tensors(tensors, _DECODE_HEAD if segments else _LINEAR, where)
    weight = ours.get("head.weight")
    if weight is None or weight.ndim != (4 if segments else 2):
        raise CheckpointError(
            f"{where}: no linear head of DINOv2: expected weight and bias, or decode_head.conv_seg and decode_head.bn, "
            f"got {', '.join(sorted(head)[:4])}"
        )
    classes, channels = weight.shape[:2]
    widths = channels // config.dim if channels % config.dim == 0 else 0
    allowed = _BLOCKS if segments else tuple(_POOLINGS)
    if widths not in allowed:
        expected = " or ".join(str(count * config.dim) for count in allowed)
        raise CheckpointError(f"{where}: the head takes {channels} channels, one on this backbone takes {expected}")
    if segments:
        backbone = {f"vit.{name}": tensor for name, tensor in state.items()}
        return build_model(lambda: PatchSegmenter(config, classes, widths), backbone | ours, where)
    headed = replace(config, classes=classes, pooling=_POOLINGS[widths])
    return build_model(lambda: ViT(headed), {**state, **ours}, where)
