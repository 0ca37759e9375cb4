"""Parts that more than one architecture is built of."""

from torch import Tensor, nn
from torch.nn import functional as F

from ferryman_models.attention import MultiHeadAttention


class FeedForward(nn.Module):
    """Two linear layers with an exact GELU between them, applied to every token by itself."""

    def __init__(self, dim: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.up = nn.Linear(dim, hidden)
        self.down = nn.Linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, tokens, dim). Returns (batch, tokens, dim)."""
        return self.down(self.dropout(F.gelu(self.up(x))))


class PreNormBlock(nn.Module):
    """Transformer encoder block with the layer norms before attention and before the feed-forward part.

    Source: Dosovitskiy et al. 2021, equations 2 and 3.
    """

    def __init__(self, dim: int, heads: int, hidden: int, *, dropout: float = 0.0, epsilon: float = 1e-6) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(dim, eps=epsilon)
        self.attention = MultiHeadAttention(dim, heads)
        self.norm_feed_forward = nn.LayerNorm(dim, eps=epsilon)
        self.feed_forward = FeedForward(dim, hidden, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, tokens, dim). Returns (batch, tokens, dim)."""
        normed = self.norm_attention(x)
        x = x + self.dropout(self.attention(normed, normed, normed))
        return x + self.dropout(self.feed_forward(self.norm_feed_forward(x)))
