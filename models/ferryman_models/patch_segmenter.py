"""A linear segmentation head on a ViT's patches (Oquab et al. 2023, "DINOv2", section 7.4)."""

import torch
from torch import Tensor, nn

from ferryman_models.resnet import FrozenBatchNorm2d
from ferryman_models.vit import ViT, ViTConfig


class PatchSegmenter(nn.Module):
    """Every patch classified by itself: batch norm, then one linear layer.

    Source: facebookresearch/dinov2, `BNHead`: it sees the patches of the last block ("linear"), or of the last
    four blocks side by side ("ms"), each through the last norm.

    config: of the ViT, which has no head of its own; blocks: how many of its last blocks the head sees
    Raises ValueError when the ViT has a head or too few blocks.
    """

    def __init__(self, config: ViTConfig, classes: int, blocks: int = 1) -> None:
        super().__init__()
        if config.classes:
            raise ValueError("the ViT of a segmentation head has no head of its own")
        if not 1 <= blocks <= config.depth:
            raise ValueError(f"the head sees {blocks} blocks, the ViT has {config.depth}")
        self.config, self.classes, self.blocks = config, classes, blocks
        self.vit = ViT(config)
        self.norm = FrozenBatchNorm2d(blocks * config.dim)
        self.head = nn.Conv2d(blocks * config.dim, classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        """image: (batch, 3, height, width) float, normalised. Returns logits (batch, classes, rows, columns)."""
        answers = self.vit.forward_blocks(image, self.blocks)
        patches = torch.cat([answer[:, self.config.prefix :] for answer in answers], dim=-1)
        # (batch, rows*columns, channels) -> (batch, channels, rows, columns)
        grid = self.config.grid((image.shape[2], image.shape[3]))
        return self.head(self.norm(patches.transpose(1, 2).unflatten(2, grid)))
