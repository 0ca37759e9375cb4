"""DETR (Carion et al. 2020, "End-to-End Object Detection with Transformers")."""

from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ferryman_models.attention import MultiHeadAttention, mask_from_valid
from ferryman_models.dinov2 import dinov2_config
from ferryman_models.positions import encode_sine_2d
from ferryman_models.resnet import RESNETS, FrozenBatchNorm2d, Norm, ResNet, ResNetConfig
from ferryman_models.vit import ViT, ViTConfig


@dataclass(frozen=True)
class DETRConfig:
    """Facts of a DETR. `classes` does not count "no object", which is the last of the class head's outputs.

    backbone: a ResNet, or a ViT (DINOv2) without a head, whose map of patches takes the place of the ResNet's
    positions: what they count: the cells that are not padding, as the paper's code does, or their "pixels". Boxes are
    relative to the valid pixels; where a map has few cells, one that is half padding puts all of them off by a tenth
    temperature: of the sine encoding; 20 spreads the frequencies over what a map of 10 cells can tell apart (Liu et al.
    2022, "DAB-DETR")
    place_features: positions are also added to the backbone's features, so that the memory holds them ("sine at input"
    in table 3); else they reach it through the attention's weights alone
    query_groups: above 1, training runs that many sets of queries side by side, blind to each other, each matched
    by itself (Chen et al. 2022, "Group DETR"); `eval()` runs the first alone.
    Raises ValueError when the heads do not divide the width, the width is not a multiple of 4, or the ViT has a head.
    """

    classes: int
    backbone: ResNetConfig | ViTConfig = field(default_factory=lambda: RESNETS["resnet50"])
    dim: int = 256
    heads: int = 8
    hidden: int = 2048
    encoder_layers: int = 6
    decoder_layers: int = 6
    queries: int = 100
    positions: Literal["cells", "pixels"] = "cells"
    temperature: float = 10_000.0
    place_features: bool = False
    query_groups: int = 1
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.heads < 1 or self.dim % self.heads or self.dim % 4:
            raise ValueError(f"dim must be a multiple of heads and of 4, got dim={self.dim}, heads={self.heads}")
        if isinstance(self.backbone, ViTConfig) and (self.backbone.classes or self.backbone.norm_pooled):
            raise ValueError("a ViT as the backbone has no head: classes must be 0, and its norm before the pooling")


def detr_config(
    name: Literal["detr-r50", "detr-r101", "detr-r50-dc5", "detr-r101-dc5"], classes: int = 91
) -> DETRConfig:
    """The published presets (Carion et al. 2020, table 1); 91 is COCO's highest category number plus one."""
    names = ("detr-r50", "detr-r101", "detr-r50-dc5", "detr-r101-dc5")
    if name not in names:
        raise ValueError(f"name must be one of {', '.join(names)}, got {name!r}")
    backbone = RESNETS["resnet101" if "r101" in name else "resnet50"]
    return DETRConfig(classes, replace(backbone, dilate_last=name.endswith("dc5")))


def dinov2_detr_config(
    size: Literal["small", "base", "large"] = "small", *, registers: bool = True, classes: int = 91
) -> DETRConfig:
    """DETR on a DINOv2: its map of 14-pixel patches has seen the whole picture, so three encoder layers are enough."""
    return DETRConfig(classes, dinov2_config(size, registers=registers), encoder_layers=3)


class DetrOutput(NamedTuple):
    """Answers of every decoder layer, the last layer's last; of that alone where the model has no `auxiliary`.

    logits: (layers, batch, queries, classes + 1); boxes_cxcywh: (layers, batch, queries, 4) in [0, 1] of the valid area
    memory: (batch, rows * columns, dim), the encoder's answer
    """

    logits: Tensor
    boxes_cxcywh: Tensor
    memory: Tensor


class EncoderLayer(nn.Module):
    """Post-norm encoder layer; positions are added to queries and keys, not to values (figure 10)."""

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(dim, heads)
        self.norm_attention = nn.LayerNorm(dim)
        self.up, self.down = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.norm_feed_forward = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """x, positions: (batch, cells, dim); mask: (batch, 1, 1, cells) additive. Returns (batch, cells, dim)."""
        placed = x + positions
        x = self.norm_attention(x + self.dropout(self.attention(placed, placed, x, mask)))
        fed = self.down(self.dropout(F.relu(self.up(x))))
        return self.norm_feed_forward(x + self.dropout(fed))


class DecoderLayer(nn.Module):
    """Post-norm decoder layer: attention among queries, attention to the memory, feed-forward part (figure 10)."""

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.self_attention = MultiHeadAttention(dim, heads)
        self.norm_self = nn.LayerNorm(dim)
        self.cross_attention = MultiHeadAttention(dim, heads)
        self.norm_cross = nn.LayerNorm(dim)
        self.up, self.down = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.norm_feed_forward = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        query_positions: Tensor,
        query_mask: Tensor | None,
        memory: Tensor,
        placed_memory: Tensor,
        memory_mask: Tensor,
    ) -> Tensor:
        """x, query_positions: (batch, queries, dim); memory, placed_memory: (batch, cells, dim)

        query_mask: additive, (queries, queries), or None; memory_mask: additive, (batch, 1, 1, cells)
        Returns (batch, queries, dim).
        """
        placed = x + query_positions
        x = self.norm_self(x + self.dropout(self.self_attention(placed, placed, x, query_mask)))
        attended = self.cross_attention(x + query_positions, placed_memory, memory, memory_mask)
        x = self.norm_cross(x + self.dropout(attended))
        fed = self.down(self.dropout(F.relu(self.up(x))))
        return self.norm_feed_forward(x + self.dropout(fed))


def choose_pixels(pixels: int, cells: int) -> Tensor:
    """The pixel of each cell that PyTorch's nearest resize takes: (cells,) int64, ascending.

    As indices, since ONNX's Resize divides by the scale's inverse: of 6 cells of 14 pixels it takes pixel 13 for the
    second, which is still the picture where padding begins at 14.
    """
    return (torch.arange(cells, dtype=torch.float32) * (pixels / cells)).floor().to(torch.int64).clamp(max=pixels - 1)


class BoxHead(nn.Module):
    """Three linear layers with ReLU between them and a sigmoid behind (section 3.2)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList((nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, 4)))

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., dim). Returns (..., 4) in [0, 1]: centre x, centre y, width, height."""
        first, second, last = self.layers
        return last(F.relu(second(F.relu(first(x))))).sigmoid()


class DETR(nn.Module):
    """Detector: ResNet (or ViT), sine positions, transformer, and one class and one box a query.

    Source: Carion et al. 2020, section 3.2 and appendix A.3.

    norm: of the backbone; see `ResNet`.
    auxiliary: whether every decoder layer answers, as training wants it, or the last alone
    """

    def __init__(self, config: DETRConfig, norm: Norm = FrozenBatchNorm2d) -> None:
        super().__init__()
        self.config = config
        self.auxiliary = True
        dim, heads, hidden, dropout = config.dim, config.heads, config.hidden, config.dropout
        backbone = config.backbone
        self.backbone = ViT(backbone) if isinstance(backbone, ViTConfig) else ResNet(backbone, norm)
        self.projection = nn.Conv2d(config.backbone.out_channels, dim, 1)
        self.encoder = nn.ModuleList(EncoderLayer(dim, heads, hidden, dropout) for _ in range(config.encoder_layers))
        self.decoder = nn.ModuleList(DecoderLayer(dim, heads, hidden, dropout) for _ in range(config.decoder_layers))
        self.decoder_norm = nn.LayerNorm(dim)
        self.query_embeddings = nn.Parameter(torch.randn(config.query_groups * config.queries, dim))
        self.class_head = nn.Linear(dim, config.classes + 1)
        self.box_head = BoxHead(dim)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2 and name.startswith(("encoder", "decoder")):
                nn.init.xavier_uniform_(parameter)

    def project(self, image: Tensor) -> Tensor:
        """The backbone's map at the transformer's width: (batch, dim, rows, columns)."""
        backbone = self.backbone
        return self.projection(backbone.patch_map(image) if isinstance(backbone, ViT) else backbone(image))

    def count_pixels(self, valid: Tensor) -> Tensor:
        """valid: (batch, height, width) bool. Returns each cell's share of real pixels, (batch, rows, columns)."""
        stride = self.config.backbone.stride
        height, width = valid.shape[1:]
        # A cell at the edge may reach beyond the canvas.
        padded = F.pad(valid[:, None].to(torch.float32), (0, -width % stride, 0, -height % stride))
        return F.avg_pool2d(padded, stride)[:, 0]

    def encode(self, features: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Memory, its positions, both (batch, cells, dim), and which cells are real, (batch, rows, columns) bool."""
        # One pixel of the mask a cell, as the paper's code does.
        rows, columns = (choose_pixels(valid.shape[1 + side], features.shape[2 + side]) for side in (0, 1))
        valid_cells = valid[:, rows.to(valid.device)][:, :, columns.to(valid.device)]
        counted = self.count_pixels(valid) if self.config.positions == "pixels" else valid_cells
        # (batch, rows, columns, dim) -> (batch, cells, dim)
        positions = encode_sine_2d(counted, self.config.dim, self.config.temperature).to(features.dtype).flatten(1, 2)
        mask = mask_from_valid(valid_cells.flatten(1), features.dtype)
        # (batch, dim, rows, columns) -> (batch, cells, dim)
        x = features.flatten(2).transpose(1, 2)
        if self.config.place_features:
            x = x + positions
        for layer in self.encoder:
            x = layer(x, positions, mask)
        return x, positions, valid_cells

    def decode(self, memory: Tensor, positions: Tensor, valid_cells: Tensor) -> Tensor:
        """Normalised answers of every decoder layer, or of the last: (layers, batch, queries, dim)."""
        groups = self.config.query_groups if self.training else 1
        queries = self.config.queries
        query_positions = self.query_embeddings[: groups * queries].expand(memory.shape[0], -1, -1)
        query_mask = None
        if groups > 1:
            together = torch.ones(queries, queries, dtype=torch.bool, device=memory.device)
            together = torch.block_diag(*[together] * groups)
            query_mask = mask_from_valid(together, memory.dtype)[:, 0, 0, :]
        mask = mask_from_valid(valid_cells.flatten(1), memory.dtype)
        x = torch.zeros_like(query_positions)
        answers: list[Tensor] = []
        for layer in self.decoder:
            x = layer(x, query_positions, query_mask, memory, memory + positions, mask)
            answers.append(x)
        return self.decoder_norm(torch.stack(answers if self.auxiliary else answers[-1:]))

    def forward(self, image: Tensor, valid: Tensor) -> DetrOutput:
        """image: (batch, 3, height, width) float, normalised; valid: (batch, height, width) bool, True on pixels."""
        memory, positions, valid_cells = self.encode(self.project(image), valid)
        answers = self.decode(memory, positions, valid_cells)
        return DetrOutput(self.class_head(answers), self.box_head(answers), memory)
