"""Run lengths against COCO's own tool, and maps at the original's pixels against PyTorch's resampling."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco
from torch.nn import functional as F

from ferryman.masks import Mask, Sampler, find_box
from ferryman.preprocess import Geometry

_RANDOM = np.random.default_rng(3)
MASKS: dict[str, NDArray[np.bool_]] = {
    "random": _RANDOM.random((7, 5)) < 0.5,
    "one-row": _RANDOM.random((1, 9)) < 0.5,
    "one-column": _RANDOM.random((9, 1)) < 0.5,
    "nothing": np.zeros((4, 3), dtype=np.bool_),
    "everything": np.ones((4, 3), dtype=np.bool_),
    "one-pixel-in": np.ones((1, 1), dtype=np.bool_),
    "one-pixel-out": np.zeros((1, 1), dtype=np.bool_),
}


# pycocotools' own arrays don't know NumPy 2's copy keyword.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
@pytest.mark.parametrize("name", MASKS)
def test_runs_are_those_of_coco(name: str) -> None:
    inside = MASKS[name]
    mask = Mask.of(inside)
    height, width = inside.shape
    uncompressed: Any = {"size": [height, width], "counts": list(mask.counts)}
    encoded: Any = coco.frPyObjects(uncompressed, height, width)
    assert np.array_equal(coco.decode(encoded), inside)
    assert np.array_equal(mask.to_array(), inside)
    assert mask.area == inside.sum() == coco.area(encoded)
    if inside.any():
        x, y, w, h = coco.toBbox(encoded)
        assert find_box(inside) == (x, y, x + w, y + h)


@pytest.mark.parametrize(("size", "counts"), [((2, 3), (1, 4)), ((2, 3), (1, 6)), ((2, 3), (7, -1)), ((2, 3), ())])
def test_runs_of_another_length_are_refused(size: tuple[int, int], counts: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="no mask of 2x3"):
        Mask(size, counts)


@pytest.mark.parametrize(
    ("original", "valid"),
    [
        pytest.param((30, 40), (12, 16), id="shrunk"),
        pytest.param((7, 5), (12, 9), id="enlarged-and-padded"),
        pytest.param((1, 40), (1, 16), id="flat"),
        pytest.param((1, 1), (12, 12), id="one-pixel"),
    ],
)
def test_resampling_is_that_of_pytorch(original: tuple[int, int], valid: tuple[int, int]) -> None:
    """`grid_sample` at the places where the original's pixels lie, computed here from the corners."""
    canvas, cells = (12, 16), _RANDOM.normal(size=(5, 6)).astype(np.float32)
    geometry = Geometry(original, valid, (0.0, 0.0, float(original[1]), float(original[0])), valid)
    sampler = Sampler.of(geometry, canvas)
    y, x = (
        (torch.arange(sides, dtype=torch.float64) + 0.5) / sides * real / whole * 2 - 1
        for sides, real, whole in zip(original, valid, canvas, strict=True)
    )
    grid = torch.stack((x[None].expand(len(y), -1), y[:, None].expand(-1, len(x))), dim=-1)[None]
    source = torch.from_numpy(cells).double()[None, None]
    for mode, found in (("bilinear", sampler.bilinear(cells)), ("nearest", sampler.nearest(cells))):
        expected = F.grid_sample(source, grid, mode=mode, padding_mode="border", align_corners=False)[0, 0]
        assert found.shape == original
        assert np.abs(found - expected.numpy()).max() <= 1e-5
    if valid == canvas:
        expected = F.interpolate(source, size=original, mode="bilinear", align_corners=False)[0, 0]
        assert np.abs(sampler.bilinear(cells) - expected.numpy()).max() <= 1e-5
