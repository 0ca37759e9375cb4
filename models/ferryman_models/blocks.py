"""Parts that more than one architecture is built of."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ferryman_models.attention import MultiHeadAttention


class FeedForward(nn.Module):
    """Two linear layers with a GELU between them, applied to every token by itself.

    approximate: "none" for the exact GELU, "tanh" for Hendrycks and Gimpel's approximation, which Google's ViT has
    """

    def __init__(self, dim: int, hidden: int, dropout: float = 0.0, approximate: str = "none") -> None:
        super().__init__()
        self.approximate = approximate
        self.up = nn.Linear(dim, hidden)
        self.down = nn.Linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, tokens, dim). Returns (batch, tokens, dim)."""
        return self.down(self.dropout(F.gelu(self.up(x), approximate=self.approximate)))


class SwiGLU(nn.Module):
    """Feed-forward part whose hidden values are gated by SiLU (Shazeer 2020, "GLU Variants", equation 6)."""

    def __init__(self, dim: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, hidden)
        self.up = nn.Linear(dim, hidden)
        self.down = nn.Linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, tokens, dim). Returns (batch, tokens, dim)."""
        return self.down(self.dropout(F.silu(self.gate(x)) * self.up(x)))


class PreNormBlock(nn.Module):
    """Transformer encoder block with the layer norms before attention and before the feed-forward part.

    Source: Dosovitskiy et al. 2021, equations 2 and 3; layer scale: Touvron et al. 2021, "Going deeper with Image
    Transformers", equation 4.

    layer_scale: each branch is multiplied by a learned weight per channel before it is added
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        hidden: int,
        *,
        dropout: float = 0.0,
        epsilon: float = 1e-6,
        qkv_bias: bool = True,
        layer_scale: bool = False,
        feed_forward: Literal["gelu", "gelu-tanh", "swiglu"] = "gelu",
    ) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(dim, eps=epsilon)
        self.attention = MultiHeadAttention(dim, heads, bias=qkv_bias)
        self.norm_feed_forward = nn.LayerNorm(dim, eps=epsilon)
        if feed_forward == "swiglu":
            self.feed_forward = SwiGLU(dim, hidden, dropout)
        else:
            self.feed_forward = FeedForward(dim, hidden, dropout, "tanh" if feed_forward == "gelu-tanh" else "none")
        self.dropout = nn.Dropout(dropout)
        self.scale_attention = nn.Parameter(torch.ones(dim)) if layer_scale else None
        self.scale_feed_forward = nn.Parameter(torch.ones(dim)) if layer_scale else None

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, tokens, dim). Returns (batch, tokens, dim)."""
        normed = self.norm_attention(x)
        attended = self.dropout(self.attention(normed, normed, normed))
        x = x + (attended if self.scale_attention is None else attended * self.scale_attention)
        fed = self.dropout(self.feed_forward(self.norm_feed_forward(x)))
        return x + (fed if self.scale_feed_forward is None else fed * self.scale_feed_forward)
