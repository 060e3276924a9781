"""The decoder: a velocity network v(x_t, t, z), U-Net outside, windowed transformer inside.

Shapes: B batch, H x W pixels, c latent channels, h x w latent grid, C0 channels of the first level (also of the
context), N = H/8 * W/8 tokens, D channels of the last level. The latent grid and the token grid are independent.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from . import fast
from .blocks import Downsample, GroupNorm, GroupNormSilu, ResNetBlock, Upsample, run
from .presets import DecoderSize, Init
from .transformer import TransformerBlock

DOWN_BLOCKS = 2
UP_BLOCKS = 3

Stem = Callable[[], Tensor]
"""Makes the first skip."""


@dataclass(frozen=True)
class VelocityFeatures:
    """What the decoder returns when it is asked for features.

    velocity: (B, 3, H, W). features: (B, N, D), output of the requested transformer block.
    grid: (rows, columns) of the tokens.
    """

    velocity: Tensor
    features: Tensor
    grid: tuple[int, int]


class TimeEmbedding(nn.Module):
    """Sinusoids of 1000 t (cosines first), then a two-layer perceptron."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.mlp = nn.Sequential(nn.Linear(channels, 4 * channels), nn.SiLU(), nn.Linear(4 * channels, 4 * channels))

    def forward(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        """t: (B,) in [0, 1]; returns (B, 4 C0) in the given dtype."""
        half = self.channels // 2
        # float32 whatever the dtype of the model: 1000 t does not fit bfloat16
        frequencies = torch.exp(torch.arange(half, device=t.device, dtype=torch.float32) * (-math.log(10000) / half))
        angles = 1000.0 * t.float()[:, None] * frequencies[None, :]
        embedding = torch.cat([angles.cos(), angles.sin()], dim=-1)  # (B, C0)
        return self.mlp(embedding.to(dtype))


class DownLevel(nn.Module):
    """ResNet blocks of one level, then a downsampling (none in the last)."""

    def __init__(self, cin: int, cout: int, context: int, time: int, groups: int, last: bool) -> None:
        super().__init__()
        channels = [cin] + [cout] * DOWN_BLOCKS
        self.blocks = nn.ModuleList(ResNetBlock(a, b, context, time, groups) for a, b in pairwise(channels))
        self.downsample = None if last else Downsample(cout)

    def forward(self, x: Tensor, context: Tensor, time: Tensor, recompute: bool) -> list[Tensor]:
        """Return outputs of each block and of the downsampling: the skips; the last of them goes on."""
        outputs = [x]
        for block in self.blocks:
            outputs.append(run(block, outputs[-1], context, time, recompute=recompute))
        if self.downsample is not None:
            outputs.append(self.downsample(outputs[-1]))
        return outputs[1:]


class UpLevel(nn.Module):
    """ResNet blocks of one level, each with one skip beside its input, then an upsampling (none in the last)."""

    def __init__(self, cin: int, cout: int, skips: list[int], context: int, time: int, groups: int, last: bool) -> None:
        super().__init__()
        inputs = [cin] + [cout] * (UP_BLOCKS - 1)
        self.blocks = nn.ModuleList(
            ResNetBlock(a + skip, cout, context, time, groups) for a, skip in zip(inputs, skips, strict=True)
        )
        self.upsample = None if last else Upsample(cout)

    def forward(
        self, inputs: list[Tensor | Stem], context: Tensor, time: Tensor, size: torch.Size | None, recompute: bool
    ) -> Tensor:
        """Return the level's result, upsampled to ``size`` (H, W) but in the last level.

        Args:
            inputs: the skips, or functions that make them, then what comes from below, last. The list is emptied on
                the way, so that nobody else holds them: they are most of the memory of a decoding.
            context, time: see ``ResNetBlock``.
            size: of the level above.
            recompute: see ``run``.
        """
        x = _made(inputs.pop())
        for block in self.blocks:
            beside = [x, _made(inputs.pop()).to(x.device)]
            del x
            x = run(block, beside, context, time, recompute=recompute)
        return x if self.upsample is None or size is None else self.upsample(x, size)


def _made(skip: Tensor | Stem) -> Tensor:
    return skip if isinstance(skip, Tensor) else skip()


class Middle(nn.Module):
    """Transformer blocks on the coarsest grid, added to their input."""

    def __init__(self, width: int, layers: int, heads: int, context_channels: int, groups: int) -> None:
        super().__init__()
        self.norm = GroupNorm(groups, width, eps=1e-6)
        self.proj_in = nn.Linear(width, width)
        self.blocks = nn.ModuleList(TransformerBlock(width, heads, context_channels) for _ in range(layers))
        self.proj_out = nn.Linear(width, width)

    def forward(
        self, x: Tensor, context: Tensor, feature_block: int | None, recompute: bool
    ) -> tuple[Tensor, Tensor | None]:
        """x: (B, D, R, C); returns the same, and the tokens (B, N, D) after ``feature_block``."""
        grid, features = (x.shape[-2], x.shape[-1]), None
        tokens = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))  # (B, N, D)
        for i, block in enumerate(self.blocks):
            tokens = run(block, tokens, context, grid, recompute=recompute)
            if i == feature_block:
                features = tokens
        return x + self.proj_out(tokens).transpose(1, 2).unflatten(2, grid), features


class Decoder(nn.Module):
    """Velocity of the flow from noise to the image, given the latent.

    Args:
        size: levels, transformer layers and heads; see ``presets.py``.
        latent_channels: c, channels of z.
        latents_mean, latents_std: c numbers each. With them z enters as ``(z - mean) / std``: a decoder for somebody
            else's latents need not learn their scale. Without them z enters as it is.
    """

    latents_mean: Tensor | None
    latents_std: Tensor | None

    def __init__(
        self,
        size: DecoderSize,
        latent_channels: int,
        latents_mean: Sequence[float] | None = None,
        latents_std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.size = size
        self.latent_channels = latent_channels
        self.gradient_checkpointing = False
        channels, first = size.channels, size.channels[0]
        time = 4 * first

        self.conv_in = nn.Conv2d(3 + latent_channels, first, 3, padding=1)
        self.time = TimeEmbedding(first)
        self.context = nn.Sequential(
            nn.Conv2d(latent_channels, first, 3, padding=1), nn.SiLU(), nn.Conv2d(first, first, 3, padding=1)
        )

        self.down = nn.ModuleList()
        skips, cin = [first], first
        for i, cout in enumerate(channels):
            last = i == len(channels) - 1
            self.down.append(DownLevel(cin, cout, first, time, size.groups, last))
            skips += [cout] * (DOWN_BLOCKS if last else DOWN_BLOCKS + 1)
            cin = cout

        self.middle = Middle(channels[-1], size.layers, size.heads, first, size.groups)

        self.up = nn.ModuleList()
        for i, cout in enumerate(reversed(channels)):
            taken = [skips.pop() for _ in range(UP_BLOCKS)]
            self.up.append(UpLevel(cin, cout, taken, first, time, size.groups, last=i == len(channels) - 1))
            cin = cout

        self.norm_out = GroupNormSilu(size.groups, first, eps=1e-5)
        self.conv_out = nn.Conv2d(first, 3, 3, padding=1)
        # No weights: the model's config states them.
        self.register_buffer("latents_mean", None, persistent=False)
        self.register_buffer("latents_std", None, persistent=False)
        if latents_mean is not None and latents_std is not None:
            self.normalize_latents(latents_mean, latents_std)
        self.reset_parameters()

    def normalize_latents(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Let latents enter as ``(z - mean) / std``, with a number a channel."""
        device = self.conv_in.weight.device
        self.latents_mean = torch.tensor(mean, dtype=torch.float32, device=device).view(1, -1, 1, 1)
        self.latents_std = torch.tensor(std, dtype=torch.float32, device=device).view(1, -1, 1, 1)

    def for_latents(self, channels: int) -> "Decoder":
        """Return a decoder with copies of these weights for other latents, of so many channels.

        What reads the latents is drawn afresh. They enter as they are.
        """
        other = Decoder(self.size, channels)
        state, fresh = self.state_dict(), other.state_dict()
        image = state["conv_in.weight"][:, :3]
        state["conv_in.weight"] = torch.cat([image, fresh["conv_in.weight"][:, 3:].to(image)], dim=1)
        state["context.0.weight"] = fresh["context.0.weight"]
        other.load_state_dict(state)
        return other

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Decoder":
        """Move or convert everything but the type of the latents' mean and deviation, which stays float32."""
        mean, std = self.latents_mean, self.latents_std
        super()._apply(fn, recurse)
        if mean is not None and std is not None and mean.device.type != "meta":
            device = self.conv_in.weight.device
            self.latents_mean, self.latents_std = mean.to(device), std.to(device)
        return self

    def reset_parameters(self, init: Init = "fan-in") -> None:
        """Draw fresh weights.

        Linear layers are Xavier-uniform and biases zero. The last layer of every residual branch but the attention's
        is zero, and so are the bias tables; the output convolution is not.

        Args:
            init: ``fan-in`` gives convolutions a standard deviation of 1 / sqrt(fan_in), so that the paths without
                norms (shortcuts, resamplers, input) keep the scale of what they carry; the modulation of the adaptive
                norms keeps 0.02. ``paper``: 0.02 for all of them, as published. The gain of an un-normalised path is
                then 0.15 to 0.35, and a dozen in a row leave the coarse levels and the transformer without gradient.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
            elif isinstance(module, nn.Conv2d):
                fan_in = module.weight[0].numel()
                nn.init.normal_(module.weight, std=0.02 if init == "paper" else fan_in**-0.5)
            if isinstance(module, (nn.Linear, nn.Conv2d)) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, ResNetBlock):
                nn.init.normal_(module.norm1.modulation.weight, std=0.02)
                nn.init.zeros_(module.conv2.weight)
            elif isinstance(module, TransformerBlock):
                nn.init.zeros_(module.feed_forward.out.weight)
                nn.init.zeros_(module.attention.bias_table)

    def forward(self, x_t: Tensor, t: Tensor, z: Tensor, feature_block: int | None = None) -> Tensor | VelocityFeatures:
        """Velocity ``x - noise`` at time t.

        Args:
            x_t: (B, 3, H, W) noisy image.
            t: (B,) in [0, 1], 1 = pure noise; or (1,), the same for all, which is quicker.
            z: (B, c, h, w) raw latent; its grid may be coarser or finer than the tokens'.
            feature_block: index of a transformer block whose output is wanted too.

        Returns:
            (B, 3, H, W), or ``VelocityFeatures`` if ``feature_block`` is given.

        Raises:
            ValueError: wrong number of latent channels, or no such block.
        """
        if z.shape[1] != self.latent_channels:
            raise ValueError(f"expected a latent with {self.latent_channels} channels, found {z.shape[1]}")
        if feature_block is not None and not 0 <= feature_block < self.size.layers:
            raise ValueError(f"expected a block from 0 to {self.size.layers - 1}, found {feature_block}")

        if self.latents_mean is not None and self.latents_std is not None:
            z = (z.float() - self.latents_mean) / self.latents_std  # before it is rounded: it may be far from zero
        z = z.to(x_t.dtype)
        time, context, recompute = self.time(t, x_t.dtype), self.context(z), self.gradient_checkpointing

        def stem() -> Tensor:
            return self.conv_in(torch.cat([x_t, fast.resize(z, (x_t.shape[2], x_t.shape[3]))], dim=1))

        x = stem()
        # The first skip is a sixth of the memory and a 300th of the work: where no gradient needs it, it is made again.
        skips: list[Tensor | Stem] = [x if torch.is_grad_enabled() or torch.compiler.is_compiling() else stem]
        sizes: list[torch.Size] = []
        for level in self.down:
            sizes.append(x.shape[-2:])
            outputs = level(x, context, time, recompute)
            skips += outputs
            x = outputs[-1]

        grid = (x.shape[-2], x.shape[-1])
        x, features = self.middle(x, context, feature_block, recompute)

        for level, size in zip(self.up, [*reversed(sizes[:-1]), None], strict=True):
            inputs = [*skips[-UP_BLOCKS:], x]
            del skips[-UP_BLOCKS:], x
            x = level(inputs, context, time, size, recompute)
        velocity = self.conv_out(self.norm_out(x))
        return velocity if features is None else VelocityFeatures(velocity, features, grid)
