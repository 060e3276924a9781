"""The decoder as one writes it down: the same network as ``ssdd.nn.decoder``, without anything that makes it quick.

The context map is repeated to the size of a level before its 1x1 convolution; every token's scores with all others are
computed and most of them masked; an upsampling is done before its convolution; norm, scale, shift and SiLU are a pass
each; the memory layout is NCHW. Names are those of ``Decoder``, so ``load_state_dict`` takes its weights unchanged. It
stands alone, to be read and to be measured against.

Shapes: B batch, H x W pixels, c latent channels, h x w latent grid, C channels of a level, E context channels,
T time features, R x C' token grid, N = R * C' tokens, D width.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DOWN_BLOCKS, UP_BLOCKS = 2, 3
RADIUS = 7


class AdaptiveGroupNorm(nn.Module):
    """Group norm, scale and shift from the context at full resolution, SiLU."""

    def __init__(self, channels: int, context: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, affine=False)
        self.modulation = nn.Conv2d(context, 2 * channels, 1)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        context = F.interpolate(context, size=x.shape[-2:], mode="nearest")  # (B, E, H, W)
        scale, shift = self.modulation(context).chunk(2, dim=1)
        return F.silu(self.norm(x) * (1 + scale) + shift)


class ResNetBlock(nn.Module):
    """Norm by context, convolution, norm by time, convolution, shortcut."""

    def __init__(self, cin: int, cout: int, context: int, time: int, groups: int) -> None:
        super().__init__()
        self.norm1 = AdaptiveGroupNorm(cin, context, groups)
        self.conv1 = nn.Conv2d(cin, cout, 3, padding=1)
        self.time = nn.Linear(time, 2 * cout)
        self.norm2 = nn.GroupNorm(groups, cout)
        self.conv2 = nn.Conv2d(cout, cout, 3, padding=1)
        self.shortcut = nn.Identity() if cin == cout else nn.Conv2d(cin, cout, 1)

    def forward(self, x: Tensor, context: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.time(F.silu(time))[:, :, None, None].chunk(2, dim=1)  # (B, C, 1, 1)
        hidden = self.conv1(self.norm1(x, context))
        hidden = self.conv2(F.silu(self.norm2(hidden) * (1 + scale) + shift))
        return hidden + self.shortcut(x)


class TransformerBlock(nn.Module):
    """Attention in a 15 x 15 window with a bias by relative position, then GEGLU."""

    def __init__(self, width: int, heads: int, context: int) -> None:
        super().__init__()
        self.norm1 = nn.ModuleDict({"modulation": nn.Linear(context, 2 * width)})
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.feed_forward = nn.ModuleDict({"expand": nn.Linear(width, 8 * width), "out": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor, context: Tensor, index: Tensor, outside: Tensor) -> Tensor:
        """x: (B, N, D); context: (B, E, R, C'); index, outside: (N, N), of ``window``."""
        modulation = self.norm1["modulation"](F.silu(context).flatten(2).transpose(1, 2))  # (B, N, 2D)
        shift, scale = modulation.chunk(2, dim=-1)
        x = x + self.attention(F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift, index, outside)
        value, gate = self.feed_forward["expand"](self.norm2(x)).chunk(2, dim=-1)
        return x + self.feed_forward["out"](value * F.gelu(gate))


class Attention(nn.Module):
    """All N x N scores, those outside the window masked."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.bias_table = nn.Parameter(torch.zeros(2 * RADIUS + 1, 2 * RADIUS + 1, heads))

    def forward(self, x: Tensor, index: Tensor, outside: Tensor) -> Tensor:
        q, k, v = (p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.q, self.k, self.v))
        bias = self.bias_table.flatten(0, 1)[index].permute(2, 0, 1)  # (h, N, N)
        bias = bias.masked_fill(outside, float("-inf"))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])
        return self.out(out.transpose(1, 2).flatten(2))


def window(rows: int, columns: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of all pairs query, key: the place in the bias table, and whether the key is out of sight. (N, N) each."""
    token = torch.arange(rows * columns, device=device)
    dy = token[:, None] // columns - token // columns
    dx = token[:, None] % columns - token % columns
    index = (dy.clamp(-RADIUS, RADIUS) + RADIUS) * (2 * RADIUS + 1) + dx.clamp(-RADIUS, RADIUS) + RADIUS
    return index, (dy.abs() > RADIUS) | (dx.abs() > RADIUS)


class Middle(nn.Module):
    """The transformer on the tokens, added to its input."""

    def __init__(self, width: int, layers: int, heads: int, context: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, eps=1e-6)
        self.proj_in = nn.Linear(width, width)
        self.blocks = nn.ModuleList(TransformerBlock(width, heads, context) for _ in range(layers))
        self.proj_out = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x: (B, D, R, C'); context: (B, E, h, w)."""
        rows, columns = x.shape[-2:]
        index, outside = window(rows, columns, x.device)
        context = F.interpolate(context, size=(rows, columns), mode="nearest")
        tokens = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))  # (B, N, D)
        for block in self.blocks:
            tokens = block(tokens, context, index, outside)
        return x + self.proj_out(tokens).transpose(1, 2).unflatten(2, (rows, columns))


class Resampling(nn.Module):
    """The convolution after an upsampling, or with stride 2."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=stride, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class DownLevel(nn.Module):
    """Blocks, then a convolution with stride 2, but in the last level."""

    def __init__(self, cin: int, cout: int, context: int, time: int, groups: int, last: bool) -> None:
        super().__init__()
        inputs = (cin, *[cout] * (DOWN_BLOCKS - 1))
        self.blocks = nn.ModuleList(ResNetBlock(a, cout, context, time, groups) for a in inputs)
        self.downsample = None if last else Resampling(cout, stride=2)

    def forward(self, x: Tensor, context: Tensor, time: Tensor) -> list[Tensor]:
        """All outputs: they are skips; the last goes on."""
        outputs = [x]
        for block in self.blocks:
            outputs.append(block(outputs[-1], context, time))
        if self.downsample is not None:
            outputs.append(self.downsample(outputs[-1]))
        return outputs[1:]


class UpLevel(nn.Module):
    """Blocks, each with a skip, then an upsampling and its convolution, but in the last level."""

    def __init__(self, cin: int, cout: int, skips: list[int], context: int, time: int, groups: int, last: bool) -> None:
        super().__init__()
        inputs = (cin, *[cout] * (UP_BLOCKS - 1))
        pairs = zip(inputs, skips, strict=True)
        self.blocks = nn.ModuleList(ResNetBlock(a + skip, cout, context, time, groups) for a, skip in pairs)
        self.upsample = None if last else Resampling(cout, stride=1)

    def forward(self, x: Tensor, skips: list[Tensor], context: Tensor, time: Tensor) -> Tensor:
        """Takes its skips off the list's end."""
        for block in self.blocks:
            x = block(torch.cat([x, skips.pop()], dim=1), context, time)
        if self.upsample is None:
            return x
        height, width = skips[-1].shape[-2:]
        return self.upsample(F.interpolate(x, scale_factor=2.0, mode="nearest")[..., :height, :width])


class PlainDecoder(nn.Module):
    """The velocity network in a size of ``presets.DECODERS``.

    Args:
        channels: of each level.
        layers, heads: of the transformer.
        groups: of the norms.
        latent_channels: c.
    """

    def __init__(self, channels: tuple[int, ...], layers: int, heads: int, groups: int, latent_channels: int) -> None:
        super().__init__()
        first, width, top = channels[0], channels[-1], len(channels) - 1
        time = 4 * first
        self.conv_in = nn.Conv2d(3 + latent_channels, first, 3, padding=1)
        self.time = nn.ModuleDict(
            {"mlp": nn.Sequential(nn.Linear(first, time), nn.SiLU(), nn.Linear(time, time))},
        )
        self.context = nn.Sequential(
            nn.Conv2d(latent_channels, first, 3, padding=1), nn.SiLU(), nn.Conv2d(first, first, 3, padding=1)
        )
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        skips, cin = [first], first
        for i, cout in enumerate(channels):
            self.down.append(DownLevel(cin, cout, first, time, groups, last=i == top))
            skips += [cout] * (DOWN_BLOCKS if i == top else DOWN_BLOCKS + 1)
            cin = cout
        self.middle = Middle(width, layers, heads, first, groups)
        for i, cout in enumerate(reversed(channels)):
            taken = [skips.pop() for _ in range(UP_BLOCKS)]
            self.up.append(UpLevel(cin, cout, taken, first, time, groups, last=i == top))
            cin = cout
        self.norm_out = nn.GroupNorm(groups, first)
        self.conv_out = nn.Conv2d(first, 3, 3, padding=1)

    def forward(self, x_t: Tensor, t: Tensor, z: Tensor) -> Tensor:
        """Velocity (B, 3, H, W). x_t: (B, 3, H, W), any size; t: (B,) in [0, 1], or (1,); z: (B, c, h, w)."""
        time, context = self._time(t), self.context(z)
        x = self.conv_in(torch.cat([x_t, F.interpolate(z, size=x_t.shape[-2:], mode="nearest")], dim=1))
        skips = [x]
        for level in self.down:
            skips += level(skips[-1], context, time)
        x = self.middle(skips[-1], context)
        for level in self.up:
            x = level(x, skips, context, time)
        return self.conv_out(F.silu(self.norm_out(x)))

    def decode(self, z: Tensor, noise: Tensor, steps: int = 1) -> Tensor:
        """Image (B, 3, H, W) of a latent (B, c, h, w), by Euler steps from the noise (B, 3, H, W), in float32."""
        x = noise.float()
        for i in range(steps):
            now, after = (1 - i / steps) ** 2, (1 - (i + 1) / steps) ** 2
            t = torch.full((len(z),), now, device=z.device)
            x = x + (now - after) * self(x.to(z.dtype), t, z).float()
        return x

    def _time(self, t: Tensor) -> Tensor:
        """(B,) -> (B, T): sinusoids of 1000 t, then two layers."""
        half = self.conv_in.out_channels // 2
        frequencies = torch.exp(torch.arange(half, device=t.device) * (-math.log(10000) / half))
        angles = 1000 * t.float()[:, None] * frequencies
        return self.time["mlp"](torch.cat([angles.cos(), angles.sin()], dim=-1).to(self.conv_in.weight.dtype))
