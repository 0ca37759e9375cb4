"""Position encodings against `transformers`' and against what resampling must keep."""

import pytest
import torch
from transformers.models.detr.modeling_detr import DetrSinePositionEmbedding

from ferryman_models.positions import encode_sine_2d, interpolate_grid

from .weights import max_error, pad_images

# Angles reach 2 pi, whose float32 rounding is 5e-7; the frequencies are rounded in another order.
SINE_TOLERANCE = 2e-6


@pytest.mark.parametrize("dim", [4, 64, 256])
@pytest.mark.parametrize("grid", [pytest.param((5, 8), id="5x8"), pytest.param((1, 1), id="1x1")])
def test_sine_equals_hf(grid: tuple[int, int], dim: int) -> None:
    _, valid = pad_images([grid, (3, 2), (1, 6), (0, 0)], grid, seed=0)
    reference = DetrSinePositionEmbedding(dim // 2, normalize=True)

    expected = reference(torch.Size((len(valid), dim, *grid)), valid.device, torch.float32, mask=valid)

    # (batch, dim, rows, columns) -> (batch, rows, columns, dim)
    assert max_error(encode_sine_2d(valid, dim), expected.permute(0, 2, 3, 1)) <= SINE_TOLERANCE


def test_interpolate_grid_keeps_rows_and_columns_apart() -> None:
    """A row number stays one along every row, a column number along every column: no axis is swapped."""
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(7.0), indexing="ij")
    embeddings = torch.stack((rows, columns), dim=-1).flatten(0, 1)[None]

    out_rows, out_columns = interpolate_grid(embeddings, (4, 7), (9, 5)).unflatten(1, (9, 5)).unbind(-1)

    # Cubic weights add up to one within a few float32 roundings of numbers up to 6.
    assert out_rows.std(dim=2).max() <= 1e-5
    assert out_columns.std(dim=1).max() <= 1e-5
    assert (out_rows.diff(dim=1) > 0).all()
    assert (out_columns.diff(dim=2) > 0).all()


def test_interpolate_grid_leaves_its_own_grid_alone() -> None:
    embeddings = torch.randn(1, 6, 8)
    assert interpolate_grid(embeddings, (2, 3), (2, 3)).equal(embeddings)
