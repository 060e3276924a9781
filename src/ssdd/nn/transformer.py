"""The transformer in the middle of the decoder: windowed attention and GEGLU, conditioned on the latent.

Shapes: B batch, R x C token grid, N = R*C tokens, D width, E context channels, h x w latent grid.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import fast

WINDOW = 15
"""Side of the attention window in tokens (read off the released weights; see ``ops.windowed_attention``)."""


class AdaptiveLayerNorm(nn.Module):
    """LayerNorm without weights, then ``x * (1 + scale) + shift`` with both predicted from the context map."""

    def __init__(self, width: int, context_channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-5, elementwise_affine=False)
        self.modulation = nn.Linear(context_channels, 2 * width)  # shift, scale

    def forward(self, x: Tensor, context: Tensor, grid: tuple[int, int]) -> Tensor:
        """x: (B, N, D); context: (B, E, h, w); returns (B, N, D)."""
        modulation = self.modulation(F.silu(context).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # (B, 2D, h, w)
        shift, scale = fast.resize(modulation, grid).flatten(2).transpose(1, 2).chunk(2, dim=-1)  # (B, N, D) each
        return torch.addcmul(shift, self.norm(x), 1 + scale)


class WindowedSelfAttention(nn.Module):
    """Multi-head self-attention in a local window, with a relative position bias of its own."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"expected a width divisible by the {heads} heads, found {width}")
        self.heads = heads
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(width, width, bias=False)
        self.v = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width)
        self.bias_table = nn.Parameter(self.q.weight.new_zeros(WINDOW, WINDOW, heads))

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """x: (B, N, D) in row-major order of the grid; returns (B, N, D)."""
        q, k, v = (p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.q, self.k, self.v))
        out = fast.windowed_attention(q, k, v, self.bias_table, grid)  # (B, heads, N, D / heads)
        return self.out(out.transpose(1, 2).flatten(2))


class GEGLU(nn.Module):
    """Feed-forward ``W2 (a * gelu(b))`` with ``a, b = W1 x`` of four times the width (Shazeer 2020)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, 8 * width)
        self.out = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.expand(x).chunk(2, dim=-1)
        return self.out(value * F.gelu(gate))


class TransformerBlock(nn.Module):
    """Adaptive norm and windowed attention, then norm and feed-forward, each added to its input."""

    def __init__(self, width: int, heads: int, context_channels: int) -> None:
        super().__init__()
        self.norm1 = AdaptiveLayerNorm(width, context_channels)
        self.attention = WindowedSelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-5)
        self.feed_forward = GEGLU(width)

    def forward(self, x: Tensor, context: Tensor, grid: tuple[int, int]) -> Tensor:
        """x: (B, N, D); context: (B, E, h, w); returns (B, N, D)."""
        x = x + self.attention(self.norm1(x, context, grid), grid)
        return x + self.feed_forward(self.norm2(x))
