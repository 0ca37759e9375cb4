"""ViT against `transformers`' with the same random weights."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ferryman_models.attention import attend_fused, attend_plain, set_attend
from ferryman_models.vit import ViT, ViTConfig, vit_config

from .weights import count_parameters, hf_vit, max_error, vit_weights_from_hf

# Logits are near one; both sum in float32, in other orders where the fused kernels see fit.
TOLERANCE = 1e-5

# An epsilon this large shows in the answer if one of the norms has another.
SQUARE = ViTConfig((64, 64), patch=16, dim=48, depth=3, heads=4, hidden=80, classes=7, epsilon=1e-3)
WIDE = replace(SQUARE, image_size=(32, 80))


def pair(config: ViTConfig) -> tuple[ViT, Any]:
    reference = hf_vit(config)
    model = ViT(config)
    model.load_state_dict(vit_weights_from_hf(reference), strict=True)
    return model.eval(), reference


def images(batch: int, size: tuple[int, int]) -> Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("batch", [1, 3], ids="batch{}".format)
@pytest.mark.parametrize(
    ("config", "size"),
    [
        pytest.param(SQUARE, (64, 64), id="learned-size"),
        pytest.param(SQUARE, (96, 48), id="interpolated"),
        # Sixteen patches as learned, in another arrangement.
        pytest.param(SQUARE, (32, 128), id="interpolated-same-count"),
        pytest.param(WIDE, (32, 80), id="learned-not-square"),
    ],
)
@torch.no_grad()
def test_vit_equals_hf(config: ViTConfig, size: tuple[int, int], batch: int) -> None:
    model, reference = pair(config)
    image = images(batch, size)

    expected = reference(image, interpolate_pos_encoding=size != config.image_size).logits

    assert expected.std() > 0.1  # not a comparison of constants
    for attend in (attend_plain, attend_fused):
        set_attend(model, attend)
        assert max_error(model(image), expected) <= TOLERANCE


@torch.no_grad()
def test_mean_pooling_leaves_the_class_token_out() -> None:
    """transformers' normalised tokens, averaged here."""
    reference = hf_vit(SQUARE)
    model = ViT(replace(SQUARE, pooling="mean")).eval()
    model.load_state_dict(vit_weights_from_hf(reference), strict=True)
    image = images(2, (64, 64))

    tokens = reference.vit(image).last_hidden_state
    expected = reference.classifier(sum(tokens[:, i] for i in range(1, 17)) / 16)

    assert max_error(model(image), expected) <= TOLERANCE
    assert max_error(model(image), reference(image).logits) > 0.1


# The counts of timm's models of these names.
@pytest.mark.parametrize(
    ("size", "patch", "parameters"),
    [
        pytest.param("tiny", 16, 5_717_416, id="Ti16"),
        pytest.param("small", 16, 22_050_664, id="S16"),
        pytest.param("base", 16, 86_567_656, id="B16"),
        pytest.param("base", 32, 88_224_232, id="B32"),
        pytest.param("large", 16, 304_326_632, id="L16"),
    ],
)
def test_presets_have_the_published_size(size: Any, patch: Any, parameters: int) -> None:
    with torch.device("meta"):
        model = ViT(vit_config(size, patch))
    assert count_parameters(model) == parameters


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"image_size": (64, 60)}, "64x60 is not a multiple of the patch of 16", id="width"),
        pytest.param({"image_size": (60, 64)}, "60x64 is not a multiple of the patch of 16", id="height"),
        pytest.param({"image_size": (0, 64)}, "0x64 is not a multiple", id="no-pixels"),
        pytest.param({"patch": 0}, "patch must be 1 pixel or more, got 0", id="no-patch"),
        pytest.param({"heads": 0}, "dim 48 is not a multiple of heads 0", id="no-heads"),
        pytest.param({"heads": 5}, "dim 48 is not a multiple of heads 5", id="heads"),
        pytest.param({"pooling": "max"}, "pooling must be one of .*, got 'max'", id="pooling"),
    ],
)
def test_bad_config(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SQUARE, **changes)


def test_unknown_preset() -> None:
    unknown: Any = "huge"
    with pytest.raises(ValueError, match="size must be one of tiny, small, base, large, got 'huge'"):
        vit_config(unknown)


@pytest.mark.parametrize("size", [(64, 72), (72, 64), (8, 64)], ids=str)
def test_image_that_the_patch_does_not_divide(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"{size[0]}x{size[1]} is not a multiple of the patch of 16"):
        ViT(SQUARE)(images(1, size))
