"""ViT's weights as torchvision names them (torchvision/models/vision_transformer.py)."""

from collections.abc import Mapping

from torch import Tensor

from ferryman_models.checkpoints.fused import split_qkv
from ferryman_models.checkpoints.renames import Renames, rename_tensors
from ferryman_models.checkpoints.timm_vit import config_from_tensors as config_of_vit
from ferryman_models.vit import ViTConfig

RENAMES: Renames = (
    (r"^class_token$", "cls"),
    (r"^conv_proj\.", "patches."),
    (r"^encoder\.pos_embedding$", "positions"),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"^encoder\.ln\.", "norm."),
    (r"^heads\.head\.", "head."),
    (r"\.ln_1\.", ".norm_attention."),
    (r"\.ln_2\.", ".norm_feed_forward."),
    (r"\.self_attention\.out_proj\.", ".attention.out."),
    (r"\.self_attention\.", ".attention."),
    # Files older than torchvision 0.14 call the linear layers linear_1 and linear_2.
    (r"\.mlp\.(0|linear_1)\.", ".feed_forward.up."),
    (r"\.mlp\.(3|linear_2)\.", ".feed_forward.down."),
)


def our_tensors(tensors: Mapping[str, Tensor], where: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors under our names; nothing is left out. Raises CheckpointError; where: opens its message."""
    return rename_tensors(split_qkv(tensors), RENAMES, where), ()


def config_from_tensors(state: Mapping[str, Tensor], where: str, *, heads: int) -> ViTConfig:
    """Raises CheckpointError when the tensors are no ViT's."""
    return config_of_vit(state, heads, "cls", "plain", where)
