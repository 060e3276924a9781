"""A diffusion transformer on latents: the published DiT block, and by four switches the block of LightningDiT.

DiT (Peebles & Xie 2023, arXiv 2212.09748): patches of the latent are tokens; each block normalises its input without
weights, and shift, scale and gate of both its branches are linear in an embedding of time and class. All gates begin
at zero (adaLN-Zero), so that a fresh block is the identity and a fresh network predicts zero.

LightningDiT (Yao et al. 2025, arXiv 2501.01423) changes the block by what language models have:

- ``qk_norm``: queries and keys of each head are normalised by their root mean square,
- ``rope``: they are rotated by angles proportional to the row and the column of their token,
- ``swiglu``: the MLP is ``W2 (silu(a) * b)`` with ``a, b = W1 x``, 2/3 as wide, so with as many weights,
- ``rms_norm``: RMSNorm in place of LayerNorm.

Shapes: B batch, c latent channels, h x w latent grid, p side of a patch, N = h/p * w/p tokens in row-major order,
D width, d width of a head.
"""

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn

_FREQUENCIES = 256
"""Sines and cosines that the time enters the network as."""

_LONGEST_PERIOD = 10_000.0
"""Of the sines and cosines of time and positions."""

Rotation = tuple[Tensor, Tensor]
"""Cosine and sine of the angles of each token, (N, d/2) each."""


class LatentTransformer(ModelMixin, ConfigMixin):
    """Class-conditional velocity network, called as diffusers' ``DiTTransformer2DModel`` is.

    Args:
        in_channels: c.
        sample_size: (h, w) of the latents it is for. Nothing depends on it: any grid of whole patches may come in.
        patch_size: p.
        num_layers: blocks.
        num_attention_heads: heads of a block.
        attention_head_dim: d, a multiple of 4. D = heads * d.
        num_classes: classes; the label ``num_classes`` stands for no class.
        mlp_ratio: hidden width of the MLP by D; 2/3 of it with ``swiglu``, rounded up to a multiple of 8.
        qk_norm, rope, swiglu, rms_norm: the parts of LightningDiT's block.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["DiTBlock"]

    @register_to_config
    def __init__(
        self,
        in_channels: int = 4,
        sample_size: tuple[int, int] = (32, 32),
        patch_size: int = 2,
        num_layers: int = 28,
        num_attention_heads: int = 16,
        attention_head_dim: int = 72,
        num_classes: int = 1000,
        mlp_ratio: float = 4.0,
        qk_norm: bool = False,
        rope: bool = False,
        swiglu: bool = False,
        rms_norm: bool = False,
    ) -> None:
        super().__init__()
        if attention_head_dim % 4:
            raise ValueError(f"expected a head width that is a multiple of 4, found {attention_head_dim}")
        width = num_attention_heads * attention_head_dim
        self.patch_embedding = nn.Conv2d(in_channels, width, patch_size, stride=patch_size)
        self.time_embedding = TimeEmbedding(width)
        self.class_embedding = nn.Embedding(num_classes + 1, width)
        self.blocks = nn.ModuleList(
            DiTBlock(width, num_attention_heads, mlp_ratio, qk_norm=qk_norm, swiglu=swiglu, rms_norm=rms_norm)
            for _ in range(num_layers)
        )
        self.norm_out = _norm(width, rms_norm)
        self.modulation_out = nn.Linear(width, 2 * width)  # shift, scale
        self.patch_out = nn.Linear(width, patch_size**2 * in_channels)
        self.gradient_checkpointing = False
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the published initial weights: Xavier, embeddings N(0, 0.02), zeros wherever adaLN-Zero has them."""
        for name, p in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(p)
            elif p.dim() > 1:
                nn.init.xavier_uniform_(p.flatten(1))  # a convolution as the matrix of a linear layer
        nn.init.normal_(self.class_embedding.weight, std=0.02)
        nn.init.normal_(self.time_embedding.linear_1.weight, std=0.02)
        nn.init.normal_(self.time_embedding.linear_2.weight, std=0.02)
        for name, p in self.named_parameters():
            if name.endswith(("modulation.weight", "modulation_out.weight", "patch_out.weight")):
                nn.init.zeros_(p)

    def forward(
        self, hidden_states: Tensor, timestep: Tensor, class_labels: Tensor, return_dict: bool = True
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """Return the velocity.

        Args:
            hidden_states: (B, c, h, w), noisy latents; h and w are multiples of the patch.
            timestep: (B,), 1000 t.
            class_labels: (B,), integers from 0 to ``num_classes``.
            return_dict: False for a tuple.
        """
        patch = self.config.patch_size
        grid = (hidden_states.shape[-2] // patch, hidden_states.shape[-1] // patch)
        x = self.patch_embedding(hidden_states).flatten(2).transpose(1, 2)  # (B, N, D)
        rows, columns = _token_positions(grid, x.device)
        dtype = hidden_states.dtype  # the sum over the blocks keeps it under autocast
        x = x.to(dtype) + sincos_positions(rows, columns, x.shape[-1]).to(dtype)
        rotation = axial_rotation(rows, columns, self.config.attention_head_dim) if self.config.rope else None
        condition = F.silu(self.time_embedding(timestep, dtype) + self.class_embedding(class_labels))  # (B, D)
        for block in self.blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                x = self._gradient_checkpointing_func(block, x, condition, rotation)
            else:
                x = block(x, condition, rotation)
        shift, scale = self.modulation_out(condition).chunk(2, dim=-1)
        x = self.patch_out(_modulate(self.norm_out(x), shift, scale))  # (B, N, p * p * c)
        sample = x.unflatten(1, grid).unflatten(-1, (patch, patch, -1))  # (B, h/p, w/p, p, p, c)
        sample = sample.permute(0, 5, 1, 3, 2, 4).reshape(hidden_states.shape)
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)


class DiTBlock(nn.Module):
    """Attention and MLP, each on a normalised and modulated input, gated and added to it."""

    def __init__(
        self, width: int, heads: int, mlp_ratio: float, *, qk_norm: bool, swiglu: bool, rms_norm: bool
    ) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 6 * width)
        self.norm_1 = _norm(width, rms_norm)
        self.attention = Attention(width, heads, qk_norm)
        self.norm_2 = _norm(width, rms_norm)
        self.mlp = SwiGLU(width, mlp_ratio) if swiglu else MLP(width, mlp_ratio)

    def forward(self, x: Tensor, condition: Tensor, rotation: Rotation | None) -> Tensor:
        """x: (B, N, D); condition: (B, D), after its SiLU; returns (B, N, D)."""
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.modulation(condition).chunk(6, dim=-1)
        x = x + gate_1[:, None] * self.attention(_modulate(self.norm_1(x), shift_1, scale_1), rotation)
        return x + gate_2[:, None] * self.mlp(_modulate(self.norm_2(x), shift_2, scale_2))


class Attention(nn.Module):
    """Multi-head self-attention of all tokens."""

    def __init__(self, width: int, heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.norm_q = RMSNorm(width // heads) if qk_norm else nn.Identity()
        self.norm_k = RMSNorm(width // heads) if qk_norm else nn.Identity()
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, rotation: Rotation | None) -> Tensor:
        """x: (B, N, D); returns (B, N, D)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, N, d) each
        q, k = self.norm_q(q), self.norm_k(k)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.out(x.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """``W2 gelu(W1 x)``."""

    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        hidden = int(ratio * width)
        self.expand = nn.Linear(width, hidden)
        self.out = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.gelu(self.expand(x), approximate="tanh"))


class SwiGLU(nn.Module):
    """``W2 (silu(a) * b)`` with ``a, b = W1 x`` (Shazeer 2020)."""

    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        hidden = -(-int(2 * ratio * width / 3) // 8) * 8  # fast matrix products want multiples of 8
        self.expand = nn.Linear(width, 2 * hidden)
        self.out = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.expand(x).chunk(2, dim=-1)
        return self.out(F.silu(gate) * value)


class RMSNorm(nn.Module):
    """``x / rms(x) * weight`` over the last dimension, computed in float32 and returned in the dtype of ``x``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), eps=1e-6).to(x.dtype)


class TimeEmbedding(nn.Module):
    """Sines and cosines of the time, then a linear layer, SiLU, a linear layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(_FREQUENCIES, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, timestep: Tensor, dtype: torch.dtype) -> Tensor:
        """timestep: (B,), 1000 t; returns (B, D)."""
        angles = timestep.float()[:, None] * _frequencies(_FREQUENCIES // 2, timestep.device)
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1)  # (B, 256)
        return self.linear_2(F.silu(self.linear_1(waves.to(dtype))))


def sincos_positions(rows: Tensor, columns: Tensor, width: int) -> Tensor:
    """Return fixed position embeddings, (N, D): a half for the column and a half for the row, sines then cosines.

    Args:
        rows, columns: position of each token, (N,).
        width: D.
    """
    frequencies = _frequencies(width // 4, rows.device)
    angles = [position[:, None] * frequencies for position in (columns, rows)]
    return torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=-1)


def axial_rotation(rows: Tensor, columns: Tensor, head_width: int) -> Rotation:
    """Return the angles of a two-dimensional rotary embedding: half of the pairs turn by the row, half by the column.

    Args:
        rows, columns: position of each token, (N,).
        head_width: d.
    """
    frequencies = _frequencies(head_width // 4, rows.device)
    angles = torch.cat([rows[:, None] * frequencies, columns[:, None] * frequencies], dim=-1)  # (N, d/2)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotate pair i of each head, (x_i, x_{i + d/2}), by the i-th angle of its token (Su et al. 2021).

    Args:
        x: (B, heads, N, d).
        rotation: of the N tokens.
    """
    cos, sin = rotation
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def _token_positions(grid: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return row and column of each token, (N,), in float32."""
    numbers = torch.arange(grid[0] * grid[1], device=device)
    return (numbers // grid[1]).float(), (numbers % grid[1]).float()


def _frequencies(count: int, device: torch.device) -> Tensor:
    """Return angular frequencies from 1 down to nearly 1 / 10,000, (count,), in float32."""
    return _LONGEST_PERIOD ** (-torch.arange(count, device=device, dtype=torch.float32) / count)


def _norm(width: int, rms: bool) -> nn.Module:
    return RMSNorm(width) if rms else nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return ``x * (1 + scale) + shift``; x: (B, N, D), shift and scale: (B, D)."""
    return torch.addcmul(shift[:, None], x, 1 + scale[:, None])
