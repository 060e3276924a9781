"""Raw and normalised latents: which of a config's four statistics count, and how.

Shapes: B batch, c latent channels, h x w latent grid.

``scaling_factor``, ``shift_factor``, ``latents_mean`` and ``latents_std`` are read by generation pipelines, each by a
formula of its own; ``latents_convention`` says what the four numbers of one model are:

- ``measured``: statistics as they were measured. They cannot be one map for all pipelines, and are none for SDXL, which
  multiplies ``latents_std`` by ``1 / scaling_factor``.
- ``pipeline``: the constants of one map, as diffusers' pipelines compute with them. A KL-VAE's are always that;
  ``pipeline_entries`` makes them of measured ones.

FLUX.2 has a batch norm in their place, over the 4c channels of latents in patches of 2 x 2 cells: mean and variance of
each channel at each place in a patch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..checkpoints.config import BATCH_NORM

Convention = Literal["measured", "pipeline"]
"""What a config's statistics are."""

Normalization = Literal["scale", "shift", "channel"]
"""scale: z = raw / std, which every pipeline undoes. shift: z = (raw - mean) / std, for SD3 and FLUX. channel: the same
with each channel's own mean and std, for SDXL with four channels."""


@dataclass(frozen=True)
class LatentMap:
    """normalised = (raw - shift) * scale; each a scalar, (1, c, 1, 1), or (1, c, h, w) where places differ."""

    shift: Tensor
    scale: Tensor


def check_convention(convention: str) -> None:
    """Raise ValueError for an unknown ``latents_convention``."""
    if convention not in get_args(Convention):
        raise ValueError(f"expected latents_convention {' or '.join(get_args(Convention))}, found {convention!r}")


def latent_map(config: Mapping[str, Any], like: Tensor) -> LatentMap:
    """Return the map that a config states, on the device and in the dtype of latents ``like``, (B, c, h, w).

    With a batch norm, FLUX.2's (raw - mean) / sqrt(var + eps) at each place of a patch. With mean and std of each
    channel, (raw - mean) / std where they are measured, and SDXL's (raw - mean) * scaling_factor / std where they are a
    pipeline's. Else (raw - shift_factor) * scaling_factor.
    """
    if config.get("batch_norm_mean") is not None:
        height, width = like.shape[2:]
        mean, var = (like.new_tensor(config[name]).view(1, -1, 2, 2) for name in BATCH_NORM[:2])
        std = (var + config["batch_norm_eps"]).sqrt()
        patches = (1, 1, -(-height // 2), -(-width // 2))
        mean, std = (values.repeat(patches)[..., :height, :width] for values in (mean, std))  # (1, c, h, w)
        return LatentMap(mean, 1 / std)
    mean, std = config["latents_mean"], config["latents_std"]
    scale = like.new_tensor(config["scaling_factor"])
    if mean is None or std is None:
        return LatentMap(like.new_tensor(config["shift_factor"]), scale)
    mean, std = (like.new_tensor(values).view(1, -1, 1, 1) for values in (mean, std))
    return LatentMap(mean, 1 / std if config["latents_convention"] == "measured" else scale / std)


def channel_statistics(config: Mapping[str, Any], channels: int) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return mean and std of each channel of raw latents that a config's map normalises; None if the map is none.

    Where a batch norm tells the places in a patch apart, they are pooled: a decoder's tiles may begin at any place, and
    the places of a channel hardly differ.
    """
    latents = latent_map(config, torch.empty(1, channels, 2, 2, dtype=torch.float64))
    shift, std = (values.expand(1, channels, 2, 2)[0].flatten(1) for values in (latents.shift, 1 / latents.scale))
    mean, std = shift.mean(1), (std.square().mean(1) + shift.var(1, unbiased=False)).sqrt()
    if mean.eq(0).all() and std.eq(1).all():
        return None
    return tuple(mean.tolist()), tuple(std.tolist())


def pipeline_entries(config: Mapping[str, Any], normalization: Normalization) -> dict[str, Any]:
    """Measured statistics -> the config entries of one map, which pipelines undo.

    Raises ValueError for an unknown normalisation, for statistics that are a pipeline's already, and for those of
    channels where there are none.
    """
    if normalization not in get_args(Normalization):
        raise ValueError(
            f"expected a normalisation, one of {', '.join(get_args(Normalization))}; found {normalization!r}"
        )
    if config.get("batch_norm_mean") is not None:
        raise ValueError("expected latents without a batch norm, found FLUX.2's, which its pipelines undo themselves")
    if config["latents_convention"] != "measured":
        raise ValueError(
            "expected measured latent statistics, found the constants of a pipeline, which its generative model was "
            "trained with: measure the latents again with `ssdd statistics` for another one"
        )
    entries: dict[str, Any] = {
        "scaling_factor": config["scaling_factor"],
        "shift_factor": config["shift_factor"] if normalization == "shift" else 0.0,
        "latents_mean": None,
        "latents_std": None,
        "latents_convention": "pipeline",
    }
    if normalization == "channel":
        if config["latents_mean"] is None or config["latents_std"] is None:
            raise ValueError("expected latents_mean and latents_std, found none: measure them with `ssdd statistics`")
        channels = {name: config[name] for name in ("latents_mean", "latents_std")}
        entries |= {"scaling_factor": 1.0, **channels}
    return entries


class NormalizationMixin:
    """The maps between raw and normalised latents of a model with a ``config``."""

    config: Any
    register_to_config: Any

    def normalize_latents(self, z: Tensor) -> Tensor:
        """Return normalised latents (B, c, h, w) of raw ones, by the stored statistics (see ``latent_map``)."""
        latents = latent_map(self.config, z)
        return (z - latents.shift) * latents.scale

    def denormalize_latents(self, z: Tensor) -> Tensor:
        """Return raw latents (B, c, h, w) of normalised ones: the inverse of ``normalize_latents``."""
        latents = latent_map(self.config, z)
        return z / latents.scale + latents.shift

    def use_normalization(self, normalization: Normalization) -> None:
        """Turn measured statistics into the constants of one map that a pipeline undoes.

        Call it before the pipeline's generative model is trained on ``normalize_latents``.

        Args:
            normalization: ``scale``, ``shift`` or ``channel``; see the table in the guide to pipelines.

        Raises:
            ValueError: The map is unknown, the statistics are a pipeline's already, or a channel's are missing.
        """
        self.register_to_config(**pipeline_entries(self.config, normalization))
