"""Position information: learned embeddings at other sizes, and the two-dimensional sine encoding."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def interpolate_grid(embeddings: Tensor, grid: tuple[int, int], to_grid: tuple[int, int]) -> Tensor:
    """Learned embeddings of a grid of patches, resampled to another grid (bicubic, not antialiased).

    Source: Dosovitskiy et al. 2021, section 3.2 (fine-tuning at higher resolution).

    embeddings: (1, rows * columns, dim) for grid = (rows, columns)
    Returns (1, to_rows * to_columns, dim).
    """
    if grid == to_grid:
        return embeddings
    # (1, rows*columns, dim) -> (1, dim, rows, columns)
    image = embeddings.unflatten(1, grid).permute(0, 3, 1, 2)
    image = F.interpolate(image, size=to_grid, mode="bicubic", align_corners=False)
    # (1, dim, to_rows, to_columns) -> (1, to_rows*to_columns, dim)
    return image.flatten(2).transpose(1, 2)


def encode_sine_2d(valid: Tensor, dim: int, temperature: float = 10_000.0) -> Tensor:
    """Sine position encoding of a feature map; positions count valid cells and run from 0 to 2 pi.

    Source: Carion et al. 2020, appendix A.4; the first half of the channels encodes y, the second x.

    valid: (batch, rows, columns) bool, True on real pixels, False on padding; dim: a multiple of 4
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
