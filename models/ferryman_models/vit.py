"""Vision Transformer (Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words")."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from ferryman_models.blocks import PreNormBlock
from ferryman_models.positions import Interpolation, interpolate_grid


@dataclass(frozen=True)
class ViTConfig:
    """Facts of a ViT. `image_size` is the (height, width) in pixels that the position embeddings were learned at.

    classes: 0 for a model without a head, which only embeds
    pooling: what the head sees: the class token, the mean of the patches, both side by side (DINOv2's linear
    head), the class tokens of the last four blocks and the mean of the last one's patches (its head on four layers),
    or class and distillation token, each through a head of its own whose logits are averaged (DeiT)
    distilled: a distillation token follows the class token (Touvron et al. 2021, DeiT)
    registers: tokens without position between those and the patches (Darcet et al. 2024)
    placed_prefix: whether class and distillation token have a position of their own
    norm_pooled: the last norm comes after the pooling, not before it
    interpolation: how position embeddings get to other sizes; see `positions.Interpolation`
    Raises ValueError when the patch does not tile the image, the heads do not divide the width, or the pooling needs
    a token that there is not.
    """

    image_size: tuple[int, int]
    patch: int
    dim: int
    depth: int
    heads: int
    hidden: int
    classes: int
    pooling: Literal["cls", "mean", "cls+mean", "cls4+mean", "cls+distillation"] = "cls"
    dropout: float = 0.0
    epsilon: float = 1e-6
    qkv_bias: bool = True
    layer_scale: bool = False
    feed_forward: Literal["gelu", "gelu-tanh", "swiglu"] = "gelu"
    class_token: bool = True
    distilled: bool = False
    registers: int = 0
    placed_prefix: bool = True
    norm_pooled: bool = False
    interpolation: Interpolation = "plain"

    def __post_init__(self) -> None:
        if self.patch < 1:
            raise ValueError(f"patch must be 1 pixel or more, got {self.patch}")
        self.grid(self.image_size)
        if self.heads < 1 or self.dim % self.heads:
            raise ValueError(f"dim {self.dim} is not a multiple of heads {self.heads}")
        poolings = ("cls", "mean", "cls+mean", "cls4+mean", "cls+distillation")
        if self.pooling not in poolings:
            raise ValueError(f"pooling must be one of {', '.join(poolings)}, got {self.pooling!r}")
        if "cls" in self.pooling and not self.class_token:
            raise ValueError(f"pooling {self.pooling!r} needs a class token")
        if "distillation" in self.pooling and not self.distilled:
            raise ValueError(f"pooling {self.pooling!r} needs a distillation token")
        if self.depth < self.pooled_blocks:
            raise ValueError(f"pooling {self.pooling!r} needs {self.pooled_blocks} blocks, there are {self.depth}")

    def grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of patches in an image of (height, width) pixels."""
        height, width = image_size
        if height < 1 or width < 1 or height % self.patch or width % self.patch:
            raise ValueError(f"image of {height}x{width} is not a multiple of the patch of {self.patch} pixels")
        return height // self.patch, width // self.patch

    @property
    def stride(self) -> int:
        """Pixels from one cell of the patch map to the next."""
        return self.patch

    @property
    def out_channels(self) -> int:
        """Of the patch map."""
        return self.dim

    @property
    def prefix(self) -> int:
        """Number of tokens before the patches."""
        return self.class_token + self.distilled + self.registers

    @property
    def pooled_blocks(self) -> int:
        """How many of the last blocks the head sees."""
        return 4 if self.pooling == "cls4+mean" else 1


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
    """Image encoder and classifier: patches, prefix tokens, learned positions, pre-norm encoder, linear head.

    Source: Dosovitskiy et al. 2021, section 3.1, equations 1 to 4. No representation layer before the
    head. With mean pooling the patches' final representations are averaged and the prefix is left out of
    the average (Beyer et al. 2022).
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        rows, columns = config.grid(config.image_size)
        dim, norm = config.dim, partial(nn.LayerNorm, config.dim, eps=config.epsilon)
        self.patches = nn.Conv2d(3, dim, config.patch, stride=config.patch)
        self.cls = nn.Parameter(torch.zeros(1, 1, dim)) if config.class_token else None
        self.distillation = nn.Parameter(torch.zeros(1, 1, dim)) if config.distilled else None
        self.registers = nn.Parameter(torch.zeros(1, config.registers, dim)) if config.registers else None
        placed = config.class_token + config.distilled if config.placed_prefix else 0
        self.positions = nn.Parameter(torch.randn(1, placed + rows * columns, dim) * 0.02)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            PreNormBlock(
                dim,
                config.heads,
                config.hidden,
                dropout=config.dropout,
                epsilon=config.epsilon,
                qkv_bias=config.qkv_bias,
                layer_scale=config.layer_scale,
                feed_forward=config.feed_forward,
            )
            for _ in range(config.depth)
        )
        self.norm = norm()
        pooled = {"cls+mean": 2, "cls4+mean": 5}.get(config.pooling, 1) * dim
        self.head = nn.Linear(pooled, config.classes) if config.classes else None
        twice = config.classes and config.pooling == "cls+distillation"
        self.head_distillation = nn.Linear(dim, config.classes) if twice else None

    def position_embeddings(self, image_size: tuple[int, int]) -> Tensor:
        """Embeddings for an image of (height, width) pixels: (1, placed prefix + rows * columns, dim)."""
        learned = self.config.grid(self.config.image_size)
        placed = self.positions.shape[1] - learned[0] * learned[1]
        to_grid = self.config.grid(image_size)
        patches = interpolate_grid(self.positions[:, placed:], learned, to_grid, self.config.interpolation)
        return torch.cat((self.positions[:, :placed], patches), dim=1)

    def forward_features(self, image: Tensor) -> Tensor:
        """image: (batch, 3, height, width) float, normalised. Returns (batch, prefix + rows * columns, dim)."""
        return self.forward_blocks(image, 1)[-1]

    def forward_blocks(self, image: Tensor, count: int) -> list[Tensor]:
        """The tokens after each of the last `count` blocks, each through the last norm, as `forward_features`."""
        positions = self.position_embeddings((image.shape[2], image.shape[3]))
        # (batch, dim, rows, columns) -> (batch, rows*columns, dim)
        x = self.patches(image).flatten(2).transpose(1, 2)
        prefix = [token.expand(x.shape[0], -1, -1) for token in (self.cls, self.distillation) if token is not None]
        registers = [] if self.registers is None else [self.registers.expand(x.shape[0], -1, -1)]
        if self.config.placed_prefix:
            x = torch.cat((*prefix, x), dim=1) + positions
            placed = len(prefix)
            x = torch.cat((x[:, :placed], *registers, x[:, placed:]), dim=1) if registers else x
        else:
            x = torch.cat((*prefix, *registers, x + positions), dim=1)
        x = self.dropout(x)
        answers: list[Tensor] = []
        for block in self.blocks:
            x = block(x)
            answers = [*answers[1 - count :], x] if count > 1 else [x]
        return answers if self.config.norm_pooled else [self.norm(answer) for answer in answers]

    def patch_map(self, image: Tensor) -> Tensor:
        """image: as of `forward_features`. Returns the patches' final representations, (batch, dim, rows, columns)."""
        patches = self.forward_features(image)[:, self.config.prefix :]
        # (batch, rows*columns, dim) -> (batch, dim, rows, columns)
        return patches.transpose(1, 2).unflatten(-1, self.config.grid((image.shape[2], image.shape[3])))

    def classify(self, tokens: Tensor, *earlier: Tensor) -> Tensor:
        """tokens: (batch, prefix + patches, dim), as `forward_features` returns them

        earlier: those of the blocks before the last, first to last, for a head that sees more than one
        Returns logits (batch, classes). Raises ValueError for a model without a head.
        """
        if self.head is None:
            raise ValueError("this ViT has no head; it only embeds")
        pooling = self.config.pooling
        if self.head_distillation is not None:
            return (self.head(tokens[:, 0]) + self.head_distillation(tokens[:, 1])) / 2
        parts: list[Tensor] = []
        if pooling != "mean":
            parts += [answer[:, 0] for answer in (*earlier, tokens)]
        if pooling != "cls":
            parts.append(tokens[:, self.config.prefix :].mean(dim=1))
        pooled = torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]
        return self.head(self.norm(pooled) if self.config.norm_pooled else pooled)

    def forward(self, image: Tensor) -> Tensor:
        """image: (batch, 3, height, width) float, normalised; both sides multiples of the patch.

        Returns logits (batch, classes). Raises ValueError for sides that the patch does not divide.
        """
        *earlier, last = self.forward_blocks(image, self.config.pooled_blocks)
        return self.classify(last, *earlier)
