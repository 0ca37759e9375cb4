"""Position information: learned embeddings at other sizes, and the two-dimensional sine encoding."""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

# How a model's authors resample the learned positions; the wrong one moves every answer a little.
# "offset": as if the grid were a tenth of a cell larger (DINOv2, to keep floor(size * scale) from losing a cell).
Interpolation = Literal["plain", "antialias", "offset"]


def interpolate_grid(
    embeddings: Tensor, grid: tuple[int, int], to_grid: tuple[int, int], interpolation: Interpolation = "plain"
) -> Tensor:
    """Learned embeddings of a grid of patches, bicubically resampled to another grid.

    Source: Dosovitskiy et al. 2021, section 3.2 (fine-tuning at higher resolution); "offset" and "antialias":
    facebookresearch/dinov2, `DinoVisionTransformer.interpolate_pos_encoding`, without and with registers.

    embeddings: (1, rows * columns, dim) for grid = (rows, columns)
    Returns (1, to_rows * to_columns, dim).
    """
    if grid == to_grid:
        return embeddings
    # (1, rows*columns, dim) -> (1, dim, rows, columns)
    image = embeddings.unflatten(1, grid).permute(0, 3, 1, 2)
    if interpolation == "offset":
        scale = [(to + 0.1) / learned for to, learned in zip(to_grid, grid, strict=True)]
        image = F.interpolate(image, scale_factor=scale, mode="bicubic", align_corners=False)
    else:
        antialias = interpolation == "antialias"
        image = F.interpolate(image, size=to_grid, mode="bicubic", align_corners=False, antialias=antialias)
    # (1, dim, to_rows, to_columns) -> (1, to_rows*to_columns, dim)
    return image.flatten(2).transpose(1, 2)


def encode_sine_2d(valid: Tensor, dim: int, temperature: float = 10_000.0) -> Tensor:
    """Sine position encoding of a feature map; positions count valid cells and run from 0 to 2 pi.

    Source: Carion et al. 2020, appendix A.4; the first half of the channels encodes y, the second x.

    valid: (batch, rows, columns), True on real pixels, False on padding; or each cell's share of real pixels in [0, 1]
    dim: a multiple of 4
    Returns (batch, rows, columns, dim) float32.
    """
    epsilon = 1e-6
    counted = valid.to(torch.float32)
    y = counted.cumsum(1)  # (batch, rows, columns)
    x = counted.cumsum(2)
    y = y / (y[:, -1:, :] + epsilon) * (2 * math.pi)
    x = x / (x[:, :, -1:] + epsilon) * (2 * math.pi)
    frequencies = torch.arange(dim // 4, dtype=torch.float32, device=valid.device)
    frequencies = temperature ** (2 * frequencies / (dim // 2))  # (dim/4,)

    def encode(position: Tensor) -> Tensor:
        angles = position[..., None] / frequencies  # (batch, rows, columns, dim/4)
        # sines and cosines alternate: (..., dim/4, 2) -> (..., dim/2)
        return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)

    return torch.cat((encode(y), encode(x)), dim=-1)
