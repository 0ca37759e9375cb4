"""DETR's mask head (Carion et al. 2020, section 4.4 "DETR for panoptic segmentation" and figure 8)."""

from itertools import pairwise
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ferryman_models.attention import mask_from_valid
from ferryman_models.detr import DETR, DETRConfig
from ferryman_models.resnet import FrozenBatchNorm2d, Norm, ResNet, ResNetConfig

GROUPS = 8  # of every group norm, or fewer where there are fewer channels
STRIDE = 4  # pixels of the image per cell of a mask: the first stage's


class DetrMasksOutput(NamedTuple):
    """`DetrOutput`, and a mask for every query of the last decoder layer.

    masks: (batch, queries, rows, columns) logits, one pixel of the first stage's map each; above 0 is inside
    """

    logits: Tensor
    boxes_cxcywh: Tensor
    memory: Tensor
    masks: Tensor


class AttentionMap(nn.Module):
    """Where each query looks in the encoder's memory: attention without values, one map a head."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, queries: Tensor, memory: Tensor, valid_cells: Tensor) -> Tensor:
        """queries: (batch, queries, dim); memory: (batch, rows * columns, dim)

        valid_cells: (batch, rows, columns) bool, True on real cells
        Returns (batch, queries, heads, rows, columns): a query's maps sum to one over all heads together, 0 on padding.
        """
        # (batch, tokens, dim) -> (batch, heads, tokens, d_head)
        query = self.query(queries).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key = self.key(memory).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
        scores = scores + mask_from_valid(valid_cells.flatten(1), scores.dtype)
        # (batch, heads, queries, cells) -> (batch, queries, heads*cells) -> (batch, queries, heads, rows, columns)
        weights = scores.transpose(1, 2).flatten(2).softmax(dim=-1)
        return weights.unflatten(2, (self.heads, valid_cells.shape[1], valid_cells.shape[2]))


class MaskHead(nn.Module):
    """Convolutions from one query's attention maps to its mask, up the backbone's stages as in a feature pyramid.

    Source: Carion et al. 2020, figure 8: every step is a 3x3 convolution, group norm and ReLU; a step up doubles
    the resolution and adds the stage of that resolution at the width of the step.

    dim: the transformer's; heads: maps of each query; stages: channels of the three stages, coarse to fine
    Raises ValueError when dim is below 16, or a width is not a multiple of its groups.
    """

    def __init__(self, dim: int, heads: int, stages: tuple[int, int, int]) -> None:
        super().__init__()
        if dim < 16:
            raise ValueError(f"a mask head needs a dim of 16 or more, got {dim}")
        widths = (dim + heads, dim + heads, dim // 2, dim // 4, dim // 8, dim // 16)
        self.convs = nn.ModuleList(nn.Conv2d(inputs, outputs, 3, padding=1) for inputs, outputs in pairwise(widths))
        self.norms = nn.ModuleList(nn.GroupNorm(min(GROUPS, width), width) for width in widths[1:])
        self.adapters = nn.ModuleList(
            nn.Conv2d(channels, width, 1) for channels, width in zip(stages, widths[2:5], strict=True)
        )
        self.out = nn.Conv2d(widths[-1], 1, 3, padding=1)

    def forward(self, features: Tensor, maps: Tensor, stages: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """features: (batch, dim, rows, columns), the backbone's last map at the transformer's width

        maps: (batch, queries, heads, rows, columns); stages: (batch, channels, rows_i, columns_i) each, coarse to fine
        Returns logits (batch, queries, rows_3, columns_3).
        """
        batch, queries = maps.shape[:2]
        # From here on every query is a picture of its own: (batch*queries, channels, rows, columns).
        x = torch.cat((_repeat(features, queries), maps.flatten(0, 1)), dim=1)
        first, second, *steps = zip(self.convs, self.norms, strict=True)
        for conv, norm in (first, second):
            x = F.relu(norm(conv(x)))
        for adapter, stage, (conv, norm) in zip(self.adapters, stages, steps, strict=True):
            adapted = _repeat(adapter(stage), queries)
            x = adapted + F.interpolate(x, size=adapted.shape[-2:], mode="nearest")
            x = F.relu(norm(conv(x)))
        # (batch*queries, 1, rows, columns) -> (batch, queries, rows, columns)
        return self.out(x)[:, 0].unflatten(0, (batch, queries))


def _repeat(x: Tensor, times: int) -> Tensor:
    """(batch, channels, rows, columns) -> (batch * times, channels, rows, columns), neighbours alike."""
    return x[:, None].expand(-1, times, -1, -1, -1).flatten(0, 1)


class DETRForMasks(nn.Module):
    """A DETR whose every query also gets a mask.

    Source: Carion et al. 2020, section 4.4. The last decoder layer alone is given masks.

    norm: of the backbone; see `ResNet`
    Raises ValueError when the backbone is no ResNet or has fewer than three stages, or the widths don't suit the head.
    """

    def __init__(self, config: DETRConfig, norm: Norm = FrozenBatchNorm2d) -> None:
        super().__init__()
        self.config = config
        if not isinstance(config.backbone, ResNetConfig):
            raise ValueError("a mask head needs the stages of a ResNet; a ViT has none")
        channels = config.backbone.stage_channels
        if len(channels) < 3:
            raise ValueError(f"a mask head needs three stages of the backbone, there are {len(channels)}")
        self.detr = DETR(config, norm)
        self.attention_map = AttentionMap(config.dim, config.heads)
        self.mask_head = MaskHead(config.dim, config.heads, (channels[2], channels[1], channels[0]))

    def forward(self, image: Tensor, valid: Tensor) -> DetrMasksOutput:
        """image: (batch, 3, height, width) float, normalised; valid: (batch, height, width) bool, True on pixels."""
        stages = cast("ResNet", self.detr.backbone).forward_stages(image)
        features = self.detr.projection(stages[-1])
        memory, positions, valid_cells = self.detr.encode(features, valid)
        answers = self.detr.decode(memory, positions, valid_cells)
        maps = self.attention_map(answers[-1], memory, valid_cells)
        masks = self.mask_head(features, maps, (stages[2], stages[1], stages[0]))
        return DetrMasksOutput(self.detr.class_head(answers), self.detr.box_head(answers), memory, masks)


def mask_grid(image_size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the masks for an image of (height, width) pixels."""
    return -(-image_size[0] // STRIDE), -(-image_size[1] // STRIDE)
