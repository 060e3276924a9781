"""The authors' released layout (Hugging Face ``facebook/SSDD``): sizes inferred from shapes, every tensor checked.

The release has 24 files: decoders S, B, M, L, XL for the encoders f8c4, f16c4, f16c16 and f32c64, and S, B, M, L for
the SD-VAE's latents. How the last four name their encoder is not known to us: our encoder's names, a diffusers
encoder and no encoder at all are understood.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..nn.decoder import Decoder
from ..nn.encoder import Encoder
from ..nn.presets import DECODERS, DecoderSize, EncoderSize
from .layout import CheckpointError, Expectation, first, take
from .names import AUTHORS_DECODER, AUTHORS_ENCODER, DIFFUSERS_ENCODER
from .weights import read_tensors

MULTI_STEPS = 8
"""Default steps: the release does not say which files are distilled, and eight suit either kind."""

_SD_VAE_CHANNELS = (128, 256, 512, 512)
_MOST_LAYERS = 64


@dataclass(frozen=True)
class OriginalCheckpoint:
    """Constructor arguments and state dict of an ``AutoencoderSSDD``, and what they were recognised as."""

    config: dict[str, Any]
    state: dict[str, Tensor]
    encoder: str
    """Such as ``f8c4``; ``none`` for a decoder alone."""
    decoder: str
    """Such as ``S``; ``custom`` for a size outside the table."""


def read_original(source: str | Path | Mapping[str, Tensor]) -> OriginalCheckpoint:
    """Read a safetensors file, or a mapping of its tensors, in the authors' layout.

    Raises CheckpointError if it is anything else.
    """
    name, tensors = _read(source)
    decoder_tensors = {k: v for k, v in tensors.items() if k.startswith("decoder.")}
    encoder_tensors = {k: v for k, v in tensors.items() if not k.startswith("decoder.")}
    size, channels = _decoder_size(name, decoder_tensors)
    with torch.device("meta"):
        decoder = Expectation(Decoder(size, channels), AUTHORS_DECODER, "decoder.")
    state = {f"decoder.{k}": v for k, v in take(name, decoder_tensors, decoder).items()}

    encoder = EncoderSize(_SD_VAE_CHANNELS, channels)
    if encoder_tensors:
        encoder, expected = _encoder(name, encoder_tensors)
        if encoder.latent_channels != channels:
            raise CheckpointError(
                f"{name}: the encoder has {encoder.latent_channels} latent channels, the decoder {channels}"
            )
        state |= {f"encoder.{k}": v for k, v in take(name, encoder_tensors, expected).items()}

    config = {
        "block_out_channels": encoder.channels,
        "latent_channels": channels,
        "decoder_channels": size.channels,
        "decoder_layers": size.layers,
        "decoder_heads": size.heads,
        "has_encoder": bool(encoder_tensors),
        "num_inference_steps": MULTI_STEPS,
    }
    preset = next((k for k, v in DECODERS.items() if v == size), "custom")
    return OriginalCheckpoint(config, state, f"f{encoder.factor}c{channels}" if encoder_tensors else "none", preset)


def _read(source: str | Path | Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    if isinstance(source, Mapping):
        wrong = [k for k, v in source.items() if not isinstance(k, str) or not isinstance(v, Tensor)]
        if wrong:
            raise CheckpointError(f"state dict: expected names and tensors, found another kind at {wrong[0]!r}")
        return "state dict", dict(source)
    path = Path(source)
    if not path.is_file():
        raise CheckpointError(f"{path}: expected a safetensors file, found {'a folder' if path.is_dir() else 'none'}")
    return str(path), read_tensors(path)


def _decoder_size(name: str, tensors: Mapping[str, Tensor]) -> tuple[DecoderSize, int]:
    """Size and latent channels, read off the shapes."""
    conv_in = _shape(name, tensors, "decoder.conv_in.weight", 4)
    table = _shape(
        name, tensors, "decoder.mid_block.transformer_blocks.0.relative_position_bias.relative_bias_table", 3
    )
    levels = _count(tensors, r"decoder\.down_blocks\.(\d+)\.")
    layers = _count(tensors, r"decoder\.mid_block\.transformer_blocks\.(\d+)\.")
    channels = tuple(
        _shape(name, tensors, f"decoder.down_blocks.{i}.resnets.0.conv1.weight", 4)[0] for i in range(levels)
    )
    heads, latent = table[2], conv_in[1] - 3
    sane = levels >= 1 and all(c > 0 and c % 32 == 0 for c in channels) and 1 <= layers <= _MOST_LAYERS and latent > 0
    if not sane or heads < 1 or channels[-1] % heads:
        raise CheckpointError(
            f"{name}: expected a decoder with channels in multiples of 32 and at most {_MOST_LAYERS} layers, found "
            f"channels {channels}, {layers} layers, {heads} heads, {latent} latent channels"
        )
    return DecoderSize(channels, layers, heads), latent


def _encoder(name: str, tensors: Mapping[str, Tensor]) -> tuple[EncoderSize, Expectation]:
    """Size of the encoder and the layout that its names follow."""
    diffusers = any(k.startswith("encoder.down_blocks.") for k in tensors)
    level = r"encoder\.down_blocks\.(\d+)\." if diffusers else r"encoder\.down\.(\d+)\."
    block = "encoder.down_blocks.{}.resnets.0" if diffusers else "encoder.down.{}.block.0"
    moments = "quant_conv.weight" if diffusers else "encoder.out_proj.weight"
    levels = _count(tensors, level)
    channels = tuple(_shape(name, tensors, f"{block.format(i)}.conv1.weight", 4)[0] for i in range(levels))
    latent = _shape(name, tensors, moments, 4)[0] // 2
    if not 3 <= levels <= 6 or latent < 1 or not all(c > 0 and c % 32 == 0 for c in channels):
        raise CheckpointError(
            f"{name}: expected an encoder with 3 to 6 levels and channels in multiples of 32, found channels {channels}"
        )
    size = EncoderSize(channels, latent)
    with torch.device("meta"):
        module = Encoder(size)
    if diffusers:
        return size, Expectation(module, DIFFUSERS_ENCODER)
    return size, Expectation(module, AUTHORS_ENCODER, "encoder.")


def _shape(name: str, tensors: Mapping[str, Tensor], key: str, dimensions: int) -> tuple[int, ...]:
    if key not in tensors:
        raise CheckpointError(
            f"{name}: expected the authors' layout with {key}; found {len(tensors)} tensors there, "
            f"{first(sorted(tensors)) or 'none'}"
        )
    if tensors[key].dim() != dimensions:
        raise CheckpointError(f"{name}: expected {key} with {dimensions} dimensions, found {list(tensors[key].shape)}")
    return tuple(tensors[key].shape)


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """One more than the highest index that the pattern finds in the names."""
    return 1 + max((int(m[1]) for k in tensors if (m := re.match(pattern, k)) and len(m[1]) < 4), default=-1)
