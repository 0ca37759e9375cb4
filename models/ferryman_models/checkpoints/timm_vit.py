"""The tensors of ViTs as timm and facebookresearch/dinov2 name them, and the facts that follow from them."""

import math
import re
from collections.abc import Mapping

from pydantic import TypeAdapter
from torch import Tensor

from ferryman.errors import CheckpointError
from ferryman_models.checkpoints.fused import split_gate, split_qkv
from ferryman_models.checkpoints.renames import Renames, drop_tensors, rename_tensors
from ferryman_models.positions import Interpolation
from ferryman_models.vit import ViTConfig

RENAMES: Renames = (
    (r"^cls_token$", "cls"),
    (r"^dist_token$", "distillation"),
    (r"^(reg_token|register_tokens)$", "registers"),
    (r"^pos_embed$", "positions"),
    (r"^patch_embed\.proj\.", "patches."),
    (r"\.norm1\.", ".norm_attention."),
    (r"\.norm2\.", ".norm_feed_forward."),
    (r"\.attn\.(query|key|value)\.", r".attention.\1."),
    (r"\.attn\.proj\.", ".attention.out."),
    (r"\.mlp\.(fc1|up)\.", ".feed_forward.up."),
    (r"\.mlp\.gate\.", ".feed_forward.gate."),
    (r"\.mlp\.(fc2|w3)\.", ".feed_forward.down."),
    (r"\.ls1\.gamma$", ".scale_attention"),
    (r"\.ls2\.gamma$", ".scale_feed_forward"),
    (r"^fc_norm\.", "norm."),
    (r"^head_dist\.", "head_distillation."),
)
DROPPED = ((r"^mask_token$", "the mask token is left out: it is for pretraining"),)


def our_tensors(tensors: Mapping[str, Tensor], where: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors under our names, and notes on those left out. Raises CheckpointError; where: opens its message."""
    kept, notes = drop_tensors(tensors, DROPPED)
    parted = split_qkv(kept)
    if _is_swiglu(parted):
        packed = "mlp.w12" if any(".mlp.w12." in name for name in parted) else "mlp.fc1"
        parted = split_gate(parted, packed, "mlp.gate", "mlp.up")
    return rename_tensors(parted, RENAMES, where), notes


def _is_swiglu(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the feed-forward parts have gates: the first matrix has twice the rows that the second takes in."""
    for first, second in (("w12", "w3"), ("fc1", "fc2")):
        up, down = tensors.get(f"blocks.0.mlp.{first}.weight"), tensors.get(f"blocks.0.mlp.{second}.weight")
        if up is not None and down is not None and up.ndim == down.ndim == 2:
            return up.shape[0] == 2 * down.shape[1]
    return False


def config_from_tensors(
    state: Mapping[str, Tensor],
    heads: int,
    pooling: str,
    interpolation: Interpolation,
    where: str,
    image_size: tuple[int, int] | None = None,
    norm_pooled: bool = False,
) -> ViTConfig:
    """The configuration of a ViT with these tensors, ours by name; only heads and pooling can't be seen in them.

    image_size: (height, width) in pixels that the positions were learned at, by default of a square grid
    Raises CheckpointError when the tensors are no ViT's.
    """
    for name in ("patches.weight", "positions", "blocks.0.feed_forward.down.weight"):
        if name not in state:
            raise CheckpointError(f"{where}: no ViT's weights: there is no {name}")
    dim, _, patch, _ = state["patches.weight"].shape
    prefix = sum(name in state for name in ("cls", "distillation"))
    placed, cells = (prefix, state["positions"].shape[1] - prefix)
    rows = columns = math.isqrt(max(0, cells))
    if image_size is not None:
        rows, columns = image_size[0] // patch, image_size[1] // patch
    if rows * columns != cells:
        placed, cells = 0, state["positions"].shape[1]
        if image_size is None:
            rows = columns = math.isqrt(cells)
        if rows * columns != cells:
            raise CheckpointError(
                f"{where}: {state['positions'].shape[1]} positions are no grid of patches with or without {prefix} "
                "tokens before them"
            )
    blocks = {int(match[1]) for name in state if (match := re.match(r"blocks\.(\d+)\.", name))}
    facts: dict[str, object] = {
        "image_size": (rows * patch, columns * patch),
        "patch": patch,
        "dim": dim,
        "depth": max(blocks) + 1,
        "heads": heads,
        "hidden": state["blocks.0.feed_forward.down.weight"].shape[1],
        "classes": len(state["head.weight"]) if "head.weight" in state else 0,
        "pooling": pooling,
        "qkv_bias": "blocks.0.attention.query.bias" in state,
        "layer_scale": "blocks.0.scale_attention" in state,
        "feed_forward": "swiglu" if "blocks.0.feed_forward.gate.weight" in state else "gelu",
        "class_token": "cls" in state,
        "distilled": "distillation" in state,
        "registers": state["registers"].shape[1] if "registers" in state else 0,
        "placed_prefix": placed > 0,
        "norm_pooled": norm_pooled,
        "interpolation": interpolation,
    }
    try:
        return TypeAdapter(ViTConfig).validate_python(facts)
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}") from error
