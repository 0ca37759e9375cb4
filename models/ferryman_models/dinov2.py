"""DINOv2 (Oquab et al. 2023) and its registers (Darcet et al. 2024): ViTs with layer scale, and SwiGLU for giant."""

from typing import Literal

from ferryman_models.vit import ViTConfig

# dim, depth, heads, hidden: facebookresearch/dinov2, `vit_small` to `vit_giant2`. SwiGLU keeps two thirds of the
# hidden width of 4 * dim, rounded up to a multiple of 8.
_SIZES = {
    "small": (384, 12, 6, 1536),
    "base": (768, 12, 12, 3072),
    "large": (1024, 24, 16, 4096),
    "giant": (1536, 40, 24, 4096),
}


def dinov2_config(
    size: Literal["small", "base", "large", "giant"], *, registers: bool = False, classes: int = 0
) -> ViTConfig:
    """The published models: patches of 14 pixels, positions learned at 518 pixels.

    registers: the models with four of them; they also resample their positions otherwise
    classes: of the linear head on class token and mean patch, 0 for none
    """
    if size not in _SIZES:
        raise ValueError(f"size must be one of {', '.join(_SIZES)}, got {size!r}")
    dim, depth, heads, hidden = _SIZES[size]
    return ViTConfig(
        image_size=(518, 518),
        patch=14,
        dim=dim,
        depth=depth,
        heads=heads,
        hidden=hidden,
        classes=classes,
        pooling="cls+mean",
        layer_scale=True,
        feed_forward="swiglu" if size == "giant" else "gelu",
        registers=4 if registers else 0,
        interpolation="antialias" if registers else "offset",
    )
