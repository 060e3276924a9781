"""The only table of sizes: decoders XS to H and encoders f8c4 to f32c64, as in the paper and its release."""

import re
from dataclasses import dataclass
from typing import Literal

Init = Literal["fan-in", "paper"]
"""How a decoder's convolutions begin: see ``Decoder.reset_parameters``."""

ENCODER_WIDTH = 128
"""Channels of the first encoder level in the paper; 64 (or 32) makes a small encoder."""


GROUPS = 32
"""Groups of every GroupNorm in the paper. Where a level has just 32 channels, each group is one channel and the norm
takes away its mean; small models do better with fewer groups."""


@dataclass(frozen=True)
class DecoderSize:
    """Shape of the velocity network: channels of each level, transformer blocks, attention heads, norm groups."""

    channels: tuple[int, ...]
    layers: int
    heads: int
    groups: int = GROUPS


@dataclass(frozen=True)
class EncoderSize:
    """Shape of the encoder: channels of each level (n levels make a factor of 2^(n-1)), latent channels, groups."""

    channels: tuple[int, ...]
    latent_channels: int
    groups: int = GROUPS

    @property
    def factor(self) -> int:
        """Pixels per latent cell and axis."""
        return 2 ** (len(self.channels) - 1)


def _size(base: int, multipliers: tuple[int, ...], layers: int, heads: int | None = None) -> DecoderSize:
    channels = tuple(-(-base * m // 32) * 32 for m in multipliers)  # rounded up to whole groups of the norm
    return DecoderSize(channels, layers, heads or min(16, max(4, channels[-1] // 64)))


DECODERS: dict[str, DecoderSize] = {
    "XXS": DecoderSize((32, 64, 96, 96), layers=4, heads=4, groups=8),  # not in the paper: for CPUs and tests
    "XS": _size(32, (1, 2, 3, 3), 8, heads=4),
    "S": _size(48, (1, 2, 3, 3), 8, heads=4),
    "B": _size(64, (1, 2, 3, 3), 10),
    "M": _size(96, (1, 2, 3, 3), 12),
    "L": _size(96, (1, 2, 4, 4), 16),
    "XL": _size(128, (1, 2, 4, 4), 16),
    "H": _size(192, (1, 2, 4, 4), 16),
}


def decoder_size(name: str) -> DecoderSize:
    """Return the decoder size called ``name``, e.g. ``"S"``. Raises ValueError for an unknown name."""
    if name not in DECODERS:
        raise ValueError(f"expected a decoder size, one of {', '.join(DECODERS)}; found {name!r}")
    return DECODERS[name]


def encoder_size(name: str, width: int = ENCODER_WIDTH, groups: int = GROUPS) -> EncoderSize:
    """Return the encoder called ``name``, e.g. ``"f8c4"``: factor 8, 4 latent channels; any factor from 4 to 32.

    ``width`` is the channels of the first level; the others have 2 and 4 times as many. Raises ValueError.
    """
    match = re.fullmatch(r"f(4|8|16|32)c([1-9]\d{0,3})", name)
    if match is None:
        raise ValueError(f"expected an encoder like f8c4, f16c16 or f32c64 (factor 4 to 32), found {name!r}")
    if width < 32 or width % 32:
        raise ValueError(f"expected an encoder width that is a multiple of 32, found {width}")
    levels = int(match[1]).bit_length()
    multipliers = (1, 2) + (4,) * (levels - 2)
    return EncoderSize(tuple(width * m for m in multipliers), int(match[2]), groups)
