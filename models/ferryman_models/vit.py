"""Vision Transformer (Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words")."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ferryman_models.blocks import PreNormBlock
from ferryman_models.positions import interpolate_grid


@dataclass(frozen=True)
class ViTConfig:
    """Facts of a ViT. `image_size` is the (height, width) in pixels that the position embeddings were learned at.

    Raises ValueError when the patch does not tile the image or the heads do not divide the width.
    """

    image_size: tuple[int, int]
    patch: int
    dim: int
    depth: int
    heads: int
    hidden: int
    classes: int
    pooling: Literal["cls", "mean"] = "cls"
    dropout: float = 0.0
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        if self.patch < 1:
            raise ValueError(f"patch must be 1 pixel or more, got {self.patch}")
        self.grid(self.image_size)
        if self.heads < 1 or self.dim % self.heads:
            raise ValueError(f"dim {self.dim} is not a multiple of heads {self.heads}")
        if self.pooling not in ("cls", "mean"):
            raise ValueError(f"pooling must be 'cls' or 'mean', got {self.pooling!r}")

    def grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of patches in an image of (height, width) pixels."""
        height, width = image_size
        if height < 1 or width < 1 or height % self.patch or width % self.patch:
            raise ValueError(f"image of {height}x{width} is not a multiple of the patch of {self.patch} pixels")
        return height // self.patch, width // self.patch


# dim, depth, heads, hidden: Dosovitskiy et al. 2021, table 1; tiny and small: Touvron et al. 2021, table 1
_SIZES = {
    "tiny": (192, 12, 3, 768),
    "small": (384, 12, 6, 1536),
    "base": (768, 12, 12, 3072),
    "large": (1024, 24, 16, 4096),
}


def vit_config(
    size: Literal["tiny", "small", "base", "large"],
    patch: Literal[14, 16, 32] = 16,
    image_size: tuple[int, int] = (224, 224),
    classes: int = 1000,
) -> ViTConfig:
    """The published presets: ViT-Ti, -S, -B and -L with patches of 14, 16 or 32 pixels."""
    if size not in _SIZES:
        raise ValueError(f"size must be one of {', '.join(_SIZES)}, got {size!r}")
    dim, depth, heads, hidden = _SIZES[size]
    return ViTConfig(image_size, patch, dim, depth, heads, hidden, classes)


class ViT(nn.Module):
    """Image classifier: patches, class token, learned positions, pre-norm encoder, linear head.

    Source: Dosovitskiy et al. 2021, section 3.1, equations 1 to 4. No representation layer before the
    head. With mean pooling the patches' final representations are averaged and the class token is left out of
    the average (Beyer et al. 2022).
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        rows, columns = config.grid(config.image_size)
        self.patches = nn.Conv2d(3, config.dim, config.patch, stride=config.patch)
        self.cls = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.positions = nn.Parameter(torch.randn(1, 1 + rows * columns, config.dim) * 0.02)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            PreNormBlock(config.dim, config.heads, config.hidden, dropout=config.dropout, epsilon=config.epsilon)
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.dim, eps=config.epsilon)
        self.head = nn.Linear(config.dim, config.classes)

    def position_embeddings(self, image_size: tuple[int, int]) -> Tensor:
        """Embeddings for an image of (height, width) pixels: (1, 1 + rows * columns, dim)."""
        learned = self.config.grid(self.config.image_size)
        patches = interpolate_grid(self.positions[:, 1:], learned, self.config.grid(image_size))
        return torch.cat((self.positions[:, :1], patches), dim=1)

    def forward_features(self, image: Tensor) -> Tensor:
        """image: (batch, 3, height, width) float, normalised. Returns (batch, 1 + rows * columns, dim)."""
        positions = self.position_embeddings((image.shape[2], image.shape[3]))
        # (batch, dim, rows, columns) -> (batch, rows*columns, dim)
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls.expand(x.shape[0], -1, -1), x), dim=1)
        x = self.dropout(x + positions)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def classify(self, tokens: Tensor) -> Tensor:
        """tokens: (batch, 1 + patches, dim), as `forward_features` returns them. Returns logits (batch, classes)."""
        pooled = tokens[:, 0] if self.config.pooling == "cls" else tokens[:, 1:].mean(dim=1)
        return self.head(pooled)

    def forward(self, image: Tensor) -> Tensor:
        """image: (batch, 3, height, width) float, normalised; both sides multiples of the patch.

        Returns logits (batch, classes). Raises ValueError for sides that the patch does not divide.
        """
        return self.classify(self.forward_features(image))
