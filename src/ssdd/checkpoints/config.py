"""``config.json`` of a model's folder, read and checked: files are not trusted, every number of them is checked."""

import json
import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..nn.presets import EncoderSize
from .layout import CheckpointError

STATISTICS = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
"""Config entries that say how raw latents are normalised."""

BATCH_NORM = ("batch_norm_mean", "batch_norm_var", "batch_norm_eps")
"""Config entries of FLUX.2's batch norm: 4c means, 4c variances, channel by channel, and what is added to these."""

MOST_CHANNELS = 2**14
"""Of a layer in a file that somebody else wrote."""

MOST_LEVELS = 8
"""Of a network: a spatial factor of 128, which DC-AE has."""

_MOST_JSON_BYTES = 2**24


def read_config(folder: str | Path) -> dict[str, Any]:
    """Return the ``config.json`` of a folder. Raise CheckpointError if there is none, or it is none of a model."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder}: expected a model folder of diffusers, found no config.json there")
    config = read_json(path)
    if not isinstance(kind := config.get("_class_name", ""), str):
        raise CheckpointError(f"{folder}: expected _class_name as a text, found {short(kind)}")
    return config


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a file. Raise CheckpointError if it is none, or far too large."""
    try:
        found = json.loads(path.read_text("utf-8") if path.stat().st_size <= _MOST_JSON_BYTES else "")
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: expected a JSON object, found something else ({error})") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {short(found)}")
    return found


def read_statistics(source: str, values: Mapping[str, Any], channels: int) -> dict[str, Any]:
    """Return those of ``STATISTICS`` that are stated, as numbers and tuples of numbers. Raise CheckpointError."""
    stated = {name: values[name] for name in STATISTICS if values.get(name) is not None}
    for name, value in stated.items():
        per_channel = name.startswith("latents_")
        numbers = value if per_channel and isinstance(value, list | tuple) else (value,)
        least = 0.0 if name in ("scaling_factor", "latents_std") else -1e30
        sane = all(type(n) in (int, float) and least < n < 1e30 for n in numbers)  # false for NaN
        if not sane or len(numbers) != (channels if per_channel else 1):
            what = f"{channels} numbers (one per channel)" if per_channel else "a number"
            above = " above zero" if least == 0 else ""
            raise CheckpointError(f"{source}: expected {name} as {what}{above}, found {short(value)}")
        stated[name] = tuple(map(float, numbers)) if per_channel else float(value)
    return stated


def read_batch_norm(source: str, values: Mapping[str, Any], channels: int) -> dict[str, Any]:
    """Return the entries of ``BATCH_NORM``, if there are any, as numbers and tuples. Raise CheckpointError."""
    if values.get("batch_norm_mean") is None and values.get("batch_norm_var") is None:
        return {}

    def read(name: str, least: float, count: int = 4 * channels) -> tuple[float, ...]:
        value = values.get(name)
        numbers = value if isinstance(value, list | tuple) else (value,)
        if len(numbers) != count or not all(type(n) in (int, float) and least <= n < 1e30 for n in numbers):
            what = "a number above zero" if count == 1 else f"{count} finite numbers (four per channel)"
            raise CheckpointError(f"{source}: expected {name} as {what}, found {short(value)}")
        return tuple(map(float, numbers))

    mean, var, (eps,) = read("batch_norm_mean", -1e30), read("batch_norm_var", 0.0), read("batch_norm_eps", 1e-30, 1)
    return {"batch_norm_mean": mean, "batch_norm_var": var, "batch_norm_eps": eps}


def read_size(source: str, config: Mapping[str, Any], groups: Any) -> EncoderSize:
    """Return the encoder's size as a config states it. Raises CheckpointError."""
    channels, latent = config.get("block_out_channels", []), config.get("latent_channels", 0)
    if not isinstance(channels, list | tuple) or not 2 <= len(channels) <= MOST_LEVELS:
        raise CheckpointError(
            f"{source}: expected block_out_channels of 2 to {MOST_LEVELS} levels, found {short(channels)}"
        )
    if any(type(n) is not int or not 1 <= n <= MOST_CHANNELS for n in (*channels, latent, groups)):
        raise CheckpointError(
            f"{source}: expected channels and norm groups as integers from 1 to {MOST_CHANNELS}, found "
            f"block_out_channels {short(channels)}, latent_channels {short(latent)}, groups {short(groups)}"
        )
    if any(c % groups for c in channels):
        raise CheckpointError(
            f"{source}: expected channels in multiples of {groups} norm groups, found {short(channels)}"
        )
    return EncoderSize(tuple(channels), latent, groups)


def short(value: Any) -> str:
    """Return one short line, whatever the value."""
    return value if isinstance(value, str) and re.fullmatch(r"[\w.-]{1,60}", value) else reprlib.repr(value)
