"""Our own model's ``config.json`` and weights, checked before anything of their size is built or read.

A model folder may come from anywhere: its numbers decide how much memory the networks take, and its weights whether a
picture comes out at all.
"""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from .config import MOST_CHANNELS, MOST_LEVELS, read_batch_norm, read_config, read_json, read_statistics, short
from .embedded import embedded_folder
from .layout import CheckpointError, Expectation, take
from .places import download, find_model
from .weights import find_weights, open_weights, read_index, weight_header

MOST_LAYERS, MOST_STEPS, MOST_PIXELS = 64, 1000, 2**20
"""Of a model: transformer blocks, default decoding steps, side of its training images."""

_SEEDS = range(-(2**63), 2**64)  # what torch's generators take


@dataclass(frozen=True)
class _Checker:
    values: Mapping[str, Any]

    def integer(self, name: str, least: int, most: int) -> int:
        value = self.values[name]
        if type(value) is not int or not least <= value <= most:
            raise ValueError(f"expected {name} as an integer from {least} to {most}, found {short(value)}")
        return value

    def flag(self, name: str) -> bool:
        value = self.values[name]
        if type(value) is not bool:
            raise ValueError(f"expected {name} as true or false, found {short(value)}")
        return value

    def digest(self, name: str) -> None:
        value = self.values[name]
        if value is not None and not (isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value)):
            raise ValueError(f"expected {name} as 64 hexadecimal digits, found {short(value)}")

    def levels(self, name: str) -> tuple[int, ...]:
        value = self.values[name]
        fits = isinstance(value, list | tuple) and 1 <= len(value) <= MOST_LEVELS
        if not fits or any(type(n) is not int or not 1 <= n <= MOST_CHANNELS for n in value):
            raise ValueError(
                f"expected {name} as 1 to {MOST_LEVELS} integers from 1 to {MOST_CHANNELS}, found {short(value)}"
            )
        return tuple(value)

    def divides(self, name: str, channels: Iterable[int]) -> None:
        number = self.integer(name, 1, MOST_CHANNELS)
        if wrong := [n for n in channels if n % number]:
            raise ValueError(f"expected channels in multiples of {name} {number}, found {wrong[0]}")


def check_config(values: Mapping[str, Any]) -> None:
    """Raise ValueError with one line unless these arguments of ``AutoencoderSSDD``, all of them, make a model."""
    check = _Checker(values)
    encoder, decoder = check.levels("block_out_channels"), check.levels("decoder_channels")
    latent_channels = check.integer("latent_channels", 1, MOST_CHANNELS)
    check.integer("decoder_layers", 1, MOST_LAYERS)
    check.integer("num_inference_steps", 1, MOST_STEPS)
    check.integer("noise_seed", _SEEDS[0], _SEEDS[-1])
    check.integer("sample_size", 1, MOST_PIXELS)
    check.flag("force_upcast")
    check.digest("encoder_sha256")
    if check.flag("has_encoder"):
        check.divides("encoder_groups", encoder)
    check.divides("decoder_groups", decoder)
    check.divides("decoder_heads", decoder[-1:])
    read_statistics("config", values, latent_channels)
    if missing := [name for name in ("scaling_factor", "shift_factor") if values[name] is None]:
        raise ValueError(f"expected {missing[0]} as a number, found None")
    if (values["batch_norm_mean"] is None) != (values["batch_norm_var"] is None):
        raise ValueError("expected both batch_norm_mean and batch_norm_var or neither, found one of them")
    read_batch_norm("config", values, latent_channels)
    entering = {f"latents_{name}": values[f"decoder_latents_{name}"] for name in ("mean", "std")}
    if len(read_statistics("config: decoder", entering, latent_channels)) == 1:
        raise ValueError("expected both decoder_latents_mean and decoder_latents_std or neither, found one of them")


HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")
"""Arguments of diffusers' ``from_pretrained`` that say how the hub is asked."""


def find_folder(
    name: str,
    model: Callable[..., nn.Module],
    subfolder: str | None = None,
    variant: str | None = None,
    hub: Mapping[str, Any] = MappingProxyType({}),
) -> Path:
    """Folder of a model of ours: a local one, a run's result, a pipeline's VAE, an embedded one, or that of a hub id in
    the hub's cache.

    Of a hub id, config and index are checked before weights are fetched, and nothing but safetensors is. ``model``: the
    class; ``hub``: values of ``HUB_OPTIONS``. Raises CheckpointError or OSError with one line.
    """

    def fetch(hub_id: str) -> Path:
        options = {option: value for option, value in hub.items() if value is not None}
        inside = f"{hub_id}/{subfolder.strip('/')}" if subfolder else hub_id
        return download(inside, lambda folder: _expected(folder, model), variant, **options)

    local = Path(name) if Path(name).is_dir() else embedded_folder(name)
    return local / subfolder if local and subfolder else find_model(name, fetch)


def check_folder(
    folder: Path, model: Callable[..., nn.Module], variant: str | None = None, any_size: bool = False
) -> list[Path]:
    """Return the weights in a folder. Raise CheckpointError with one line unless its config.json describes them.

    Names, shapes and types are compared, by the headers alone, of the files that diffusers loads; no index may name
    anything but safetensors. ``model``: the class; entries of the config that its constructor does not know are passed
    over. ``any_size``: headers are not compared. Raises FileNotFoundError where there is no config or are no weights.
    """
    expected = _expected(folder, model)
    if not any(folder.glob("*.safetensors*")):
        raise FileNotFoundError(
            f"{folder}: expected weights in safetensors, found none; pickled weights (.bin, .pt) can run code and are "
            "never loaded"
        )
    for index in folder.glob("*.index*.json"):  # of any variant, in any of the ways that diffusers spells its name
        read_index(index)
        if not isinstance(read_json(index).get("metadata"), dict):
            raise CheckpointError(f"{index}: expected metadata, an object, which diffusers reads, found none")
    files = find_weights(str(folder), lambda name: path if (path := folder / name).is_file() else None, variant)
    if any_size:
        return files
    with ExitStack() as stack:
        opened = [stack.enter_context(open_weights(path)) for path in files]
        headers = {name: weight_header(str(folder), file, name) for file in opened for name in sorted(file.keys())}
    take(str(folder), headers, expected)
    return files


def _expected(folder: Path, model: Callable[..., nn.Module]) -> Expectation:
    """Return the weights that a config.json describes.

    Raises CheckpointError, or FileNotFoundError where there is none.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder}: expected a model folder, found no config.json in it")
    config = read_config(folder)
    found = config.get("_class_name", model.__name__)
    if found != model.__name__:
        raise CheckpointError(f"{folder}: expected an {model.__name__}, found {short(found)}")
    known = inspect.signature(model).parameters
    try:
        with torch.device("meta"):
            return Expectation(model(**{name: value for name, value in config.items() if name in known}), [])
    except ValueError as error:
        raise CheckpointError(f"{folder / 'config.json'}: {error}") from error


def check_finite(source: str, tensors: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError if a weight is NaN or infinite, which would be every pixel's. Costs one sum of each."""
    for name, tensor in tensors.items():
        if tensor.is_meta or not tensor.is_floating_point():
            continue
        # A finite sum has finite terms; one that is not may have overflowed.
        if not tensor.sum().isfinite() and not tensor.isfinite().all():
            raise CheckpointError(
                f"{source}: expected finite weights, found NaN or infinity in {name} ({tensor.dtype}): "
                "the training diverged, the file is damaged, or the numbers are too large for this precision"
            )
