"""The memory that decoding keeps: bounded, left alone where somebody else chose, and without a trace in a picture."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ferryman.preprocess import preprocess_image
from ferryman.server.decoding import Decoder
from ferryman.specs import PreprocessSpec

from ..toy import make_picture

core: Any = Image.core


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("PILLOW_BLOCKS_MAX", raising=False)
    size, blocks = core.get_block_size(), core.get_blocks_max()
    core.set_blocks_max(0)
    yield
    core.set_block_size(size)
    core.set_blocks_max(blocks)


def test_memory_is_kept_and_bounded() -> None:
    Decoder(3)
    assert core.get_blocks_max() * core.get_block_size() == 3 * 16 * 2**20


def test_who_sets_pillow_s_variables_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PILLOW_BLOCKS_MAX", "0")
    Decoder(3)
    assert core.get_blocks_max() == 0


def test_what_memory_held_before_is_not_in_a_picture() -> None:
    """Bit for bit: small pictures after large ones, on canvases that are padded and that are cut."""
    pictures = [make_picture((9, 200, 31 * seed), 40 + 37 * seed, 500 - 60 * seed, seed=seed) for seed in range(7)]
    specs = [
        PreprocessSpec(size=(90, 120), fit="pad", pad_value=(1, 2, 3)),
        PreprocessSpec(size=(64, 64), fit="crop", shortest_edge=70, interpolation="bicubic"),
    ]

    def canvases() -> list[Any]:
        return [preprocess_image(picture, spec)[0] for picture in pictures for spec in specs]

    fresh = canvases()
    Decoder(1)
    core.reset_stats()
    for _ in range(2):
        for canvas, expected in zip(canvases(), fresh, strict=True):
            np.testing.assert_array_equal(canvas, expected)
    assert core.get_stats()["reused_blocks"]
