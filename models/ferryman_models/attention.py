"""Multi-head attention (Vaswani et al. 2017, section 3.2), in a plain and a fused form."""

from collections.abc import Callable, Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def attention_weights(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(Q K^T / sqrt(d_head) + mask): (batch, heads, targets, sources), each target's in [0, 1] and 1 in all.

    The parameters are those of `attend_plain`.
    """
    # Scaling the smaller operand first keeps the scores in range in half precision.
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    if mask is not None:
        scores = scores + mask
    return scores.softmax(dim=-1)


def attend_plain(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(Q K^T / sqrt(d_head) + mask) V as two matrix products and a softmax.

    This is the form to export: the fused operator brings masks and IsNaN nodes into the graph.

    query: (batch, heads, targets, d_head); key, value: (batch, heads, sources, d_head)
    mask: additive, broadcastable to (batch, heads, targets, sources), or None
    Returns (batch, heads, targets, d_head).
    """
    return attention_weights(query, key, mask) @ value


def attend_fused(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """The same as `attend_plain`, through PyTorch's fused kernel: faster to run and to train."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


class AttendAndKeep:
    """`attend_plain` that keeps the weights of its last call, (batch, heads, targets, sources)."""

    def __init__(self) -> None:
        self._weights: Tensor | None = None

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        self._weights = attention_weights(query, key, mask)
        return self._weights @ value

    @property
    def weights(self) -> Tensor:
        """Raises RuntimeError before the first call."""
        if self._weights is None:
            raise RuntimeError("this attention has not run, so it has no weights")
        return self._weights


class MultiHeadAttention(nn.Module):
    """Multi-head self- and cross-attention.

    Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.2.2.

    dim: width of queries, keys, values and the answer; a multiple of `heads`
    bias: of the projections to queries, keys and values; the last one always has its own
    Raises ValueError when `dim` is not a multiple of `heads`.
    """

    def __init__(self, dim: int, heads: int, *, bias: bool = True, attend: Attend = attend_plain) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise ValueError(f"dim must be a multiple of heads, got dim={dim}, heads={heads}")
        self.heads = heads
        self.attend = attend
        self.query = nn.Linear(dim, dim, bias)
        self.key = nn.Linear(dim, dim, bias)
        self.value = nn.Linear(dim, dim, bias)
        self.out = nn.Linear(dim, dim)

    def split_heads(self, x: Tensor) -> Tensor:
        # (batch, tokens, dim) -> (batch, heads, tokens, d_head)
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """query: (batch, targets, dim); key, value: (batch, sources, dim)

        mask: additive float mask broadcastable to (batch, heads, targets, sources), or None
        Returns (batch, targets, dim).
        """
        attended = self.attend(
            self.split_heads(self.query(query)),
            self.split_heads(self.key(key)),
            self.split_heads(self.value(value)),
            mask,
        )
        # (batch, heads, targets, d_head) -> (batch, targets, dim)
        return self.out(attended.transpose(1, 2).flatten(-2))


def set_attend(model: nn.Module, attend: Attend) -> None:
    """Makes every attention inside `model` use `attend_plain` or `attend_fused`."""
    for module in model.modules():
        if isinstance(module, MultiHeadAttention):
            module.attend = attend


@contextmanager
def watch_attention(attention: MultiHeadAttention) -> Generator[AttendAndKeep, None, None]:
    """Keeps the weights that `attention` gives inside the block; the module may be shared, and is left as it was."""
    before, keeper = attention.attend, AttendAndKeep()
    attention.attend = keeper
    try:
        yield keeper
    finally:
        attention.attend = before


def mask_from_valid(valid: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive attention mask from a mask of valid source positions.

    valid: (batch, sources) bool, True where a position may be attended to
    Returns (batch, 1, 1, sources) of `dtype`: 0 where valid, a large negative number elsewhere. It is half of
    the dtype's minimum, so that adding a score can't overflow to -inf and a row without any valid
    position gives a uniform answer, not NaN.
    """
    blocked = torch.finfo(dtype).min / 2
    return torch.zeros_like(valid, dtype=dtype).masked_fill(~valid, blocked)[:, None, None, :]
