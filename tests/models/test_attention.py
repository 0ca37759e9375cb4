"""Attention against `torch.nn.MultiheadAttention`."""

import pytest
import torch
from torch import Tensor, nn

from ferryman_models.attention import (
    Attend,
    MultiHeadAttention,
    attend_fused,
    attend_plain,
    mask_from_valid,
    set_attend,
)
from ferryman_models.vit import ViT, ViTConfig

from .weights import max_error, randomize

# Answers are near one and sums run over 32 channels: a few float32 roundings (6e-8 each) apart.
TOLERANCE = 2e-6

DIM, HEADS, BATCH, TARGETS, SOURCES = 32, 4, 3, 5, 7
ATTENDS = [pytest.param(attend_plain, id="plain"), pytest.param(attend_fused, id="fused")]


def attention_from_torch(source: nn.MultiheadAttention, attend: Attend) -> MultiHeadAttention:
    target = MultiHeadAttention(DIM, HEADS, attend=attend)
    weights: dict[str, Tensor] = {}
    # in_proj holds query, key and value on top of each other: (3 * dim, dim) -> 3 x (dim, dim)
    for name, weight, bias in zip(
        ("query", "key", "value"), source.in_proj_weight.chunk(3), source.in_proj_bias.chunk(3), strict=True
    ):
        weights[f"{name}.weight"], weights[f"{name}.bias"] = weight, bias
    weights["out.weight"], weights["out.bias"] = source.out_proj.weight, source.out_proj.bias
    target.load_state_dict(weights, strict=True)
    return target


@pytest.mark.parametrize("mask", ["none", "additive", "valid"])
@pytest.mark.parametrize("cross", [pytest.param(False, id="self"), pytest.param(True, id="cross")])
@pytest.mark.parametrize("attend", ATTENDS)
@torch.no_grad()
def test_attention_equals_torch(attend: Attend, cross: bool, mask: str) -> None:
    torch.manual_seed(0)
    reference = nn.MultiheadAttention(DIM, HEADS, batch_first=True)
    randomize(reference, seed=1)
    attention = attention_from_torch(reference, attend)
    query = torch.randn(BATCH, TARGETS, DIM)
    key, value = query, query
    if cross:  # Key and value differ, so that a swap of the two is seen.
        key, value = torch.randn(2, BATCH, SOURCES, DIM).unbind()
    ours: Tensor | None = None
    attn_mask: Tensor | None = None
    blocked: Tensor | None = None
    if mask == "additive":
        ours = attn_mask = torch.randn(TARGETS, key.shape[1]) * 3
    if mask == "valid":
        valid = torch.arange(key.shape[1]) < torch.tensor([[key.shape[1]], [3], [1]])
        ours, blocked = mask_from_valid(valid, torch.float32), ~valid

    expected, _ = reference(query, key, value, blocked, need_weights=False, attn_mask=attn_mask)

    assert max_error(attention(query, key, value, ours), expected) <= TOLERANCE


@pytest.mark.parametrize("attend", ATTENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@torch.no_grad()
def test_row_without_valid_sources_is_finite(dtype: torch.dtype, attend: Attend) -> None:
    """Minus infinity would give NaN here, which is what `torch.nn.MultiheadAttention` answers."""
    torch.manual_seed(0)
    query = torch.randn(2, HEADS, TARGETS, 8, dtype=dtype)
    key, value = torch.randn(2, 2, HEADS, SOURCES, 8, dtype=dtype).unbind()
    valid = torch.tensor([[False], [True]]).expand(2, SOURCES)

    attended = attend(query, key, value, mask_from_valid(valid, dtype))

    assert attended.isfinite().all()
    if dtype == torch.float32:  # In half precision the scores aren't lost in the mask's rounding.
        uniform = value[0].mean(dim=-2, keepdim=True).expand_as(attended[0])
        assert max_error(attended[0], uniform) <= TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_mask_from_valid_survives_scores(dtype: torch.dtype) -> None:
    valid = torch.tensor([[True, False], [False, False]])
    mask = mask_from_valid(valid, dtype)

    assert mask.shape == (2, 1, 1, 2)
    assert mask.dtype == dtype
    assert (mask[:, 0, 0] == 0).equal(valid)
    # 1e4 is more than a score in half precision reaches.
    assert (mask - 1e4).isfinite().all()
    assert mask[0, 0, 0].softmax(0).tolist() == [1, 0]


def test_set_attend_reaches_every_attention() -> None:
    model = ViT(ViTConfig((32, 32), 16, dim=DIM, depth=3, heads=HEADS, hidden=64, classes=5))
    set_attend(model, attend_fused)

    attentions = [module for module in model.modules() if isinstance(module, MultiHeadAttention)]
    assert [attention.attend for attention in attentions] == [attend_fused] * 3


def test_dim_that_heads_do_not_divide() -> None:
    with pytest.raises(ValueError, match="multiple of heads, got dim=10, heads=4"):
        MultiHeadAttention(10, 4)
