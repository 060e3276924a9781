"""The encoder of a saved autoencoder under our names: a diffusers ``AutoencoderKL`` or our ``AutoencoderSSDD``.

``AutoencoderKL`` is SD-VAE, SDXL, SD3, FLUX and our own kl-vae runs: the same network as ours, in other names and with
or without its last 1x1 convolution. Files are not trusted: every number of ``config.json`` is checked, and names and
shapes are compared by the headers of the safetensors before any weight is read.
"""

import json
import re
import reprlib
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..nn.encoder import BLOCKS, Encoder
from ..nn.presets import GROUPS, EncoderSize
from ..normalization import Convention
from .layout import CheckpointError, Expectation, take
from .names import DIFFUSERS_ENCODER, Rules, rename

KL_DEFAULTS: dict[str, Any] = {
    "in_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"],
    "block_out_channels": [64],
    "layers_per_block": 1,
    "act_fn": "silu",
    "latent_channels": 4,
    "norm_num_groups": 32,
    "scaling_factor": 0.18215,
    "shift_factor": None,
    "use_quant_conv": True,
    "mid_block_add_attention": True,
    "force_upcast": True,
}
"""What diffusers takes for a key that an ``AutoencoderKL``'s config does not have."""

STATISTICS = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
"""Config entries that say how raw latents are normalised."""

_WEIGHTS = ("diffusion_pytorch_model.safetensors.index{}.json", "diffusion_pytorch_model{}.safetensors")
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
MOST_CHANNELS = 2**14
"""Of a layer in a file that somebody else wrote."""

_MOST_LEVELS, _MOST_JSON_BYTES = 7, 2**24
_INSTEAD = "take another encoder, or wrap this one in a class of yours with encode() and name it MODULE:CLASS"

_OLD_ATTENTION: Rules = [
    (r"(\.mid_block\.attentions\.0)\.query\.", r"\1.to_q."),
    (r"(\.mid_block\.attentions\.0)\.key\.", r"\1.to_k."),
    (r"(\.mid_block\.attentions\.0)\.value\.", r"\1.to_v."),
    (r"(\.mid_block\.attentions\.0)\.proj_attn\.", r"\1.to_out.0."),
]
"""Names in files of early diffusers -> the present ones."""


@dataclass(frozen=True)
class EncoderLayout:
    """What the config of a folder says about its encoder; ``rules`` turn our names into the file's."""

    source: str
    size: EncoderSize
    statistics: dict[str, Any]
    rules: Rules
    quant_conv: bool = True
    """False: the file has no last 1x1 convolution, and ours becomes the identity."""
    convention: Convention = "pipeline"
    """What the statistics are."""
    force_upcast: bool = False
    """float16 is not enough for it in SDXL's pipelines."""


@dataclass(frozen=True)
class KLEncoder:
    """Shape and weights of an encoder in our names, and those of ``STATISTICS`` that its config states."""

    size: EncoderSize
    state: dict[str, Tensor]
    statistics: dict[str, Any]
    convention: Convention = "pipeline"
    force_upcast: bool = False

    def config(self) -> dict[str, Any]:
        """Arguments of ``AutoencoderSSDD`` for a model with this encoder, but for its decoder."""
        return {
            "block_out_channels": self.size.channels,
            "latent_channels": self.size.latent_channels,
            "encoder_groups": self.size.groups,
            "force_upcast": self.force_upcast,
            "latents_convention": self.convention,
            **self.statistics,
        }


def read_kl_encoder(folder: str | Path) -> KLEncoder:
    """The encoder of an ``AutoencoderKL`` folder. Raises CheckpointError if it is missing or holds something else."""
    found = read_config(folder).get("_class_name")
    if found != "AutoencoderKL":
        raise CheckpointError(f"{folder}: expected an AutoencoderKL, found {short(found)}")
    return read_encoder(folder)


def read_encoder(folder: str | Path) -> KLEncoder:
    """The encoder of an ``AutoencoderKL`` or ``AutoencoderSSDD`` folder. Raises CheckpointError."""
    layout = read_layout(folder)
    files = find_weights(str(folder), lambda name: path if (path := Path(folder) / name).is_file() else None)
    return _found(layout, _read_state(layout, files))


def encoder_of(source: str, config: dict[str, Any], tensors: Mapping[str, Tensor]) -> KLEncoder:
    """The encoder of a model in memory, by its config and its tensors, which are shared. Raises CheckpointError."""
    layout = _layout(source, config)
    state = {name: tensor for name, tensor in tensors.items() if name.startswith(_prefixes(layout))}
    return _found(layout, take(source, state | _identity(layout, "cpu"), _expected(layout)))


def _found(layout: EncoderLayout, state: dict[str, Tensor]) -> KLEncoder:
    return KLEncoder(layout.size, state, layout.statistics, layout.convention, layout.force_upcast)


# ---- config.json ---------------------------------------------------------------------------------------------------


def read_config(folder: str | Path) -> dict[str, Any]:
    """The ``config.json`` of a folder. Raises CheckpointError if there is none, or it is not a JSON object."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder}: expected a model folder of diffusers, found no config.json there")
    return read_json(path)


def read_layout(folder: str | Path) -> EncoderLayout:
    """Size and names of a folder's encoder, by its config alone. Raises CheckpointError if it is not one of ours."""
    return _layout(str(folder), read_config(folder))


def _layout(source: str, config: dict[str, Any]) -> EncoderLayout:
    kind = config.get("_class_name")
    if kind in ("AutoencoderSSDD", "AutoencoderKLBaseline"):
        if not config.get("has_encoder", True):
            raise CheckpointError(f"{source}: expected a model with an encoder, found one that only decodes")
        size = read_size(source, config, config.get("encoder_groups", GROUPS))
        statistics = read_statistics(source, config, size.latent_channels)
        convention: Convention = "pipeline" if config.get("latents_convention") == "pipeline" else "measured"
        upcast = config.get("force_upcast") is True
        return EncoderLayout(source, size, statistics, [(r"^", "encoder.")], True, convention, upcast)
    if kind != "AutoencoderKL":
        raise CheckpointError(f"{source}: expected AutoencoderKL or AutoencoderSSDD, found {short(kind)}; {_INSTEAD}")
    config = KL_DEFAULTS | config
    if config["shift_factor"] is None:
        config["shift_factor"] = 0.0
    size = read_size(source, config, config["norm_num_groups"])
    for name, expected in {
        "in_channels": 3,
        "down_block_types": ["DownEncoderBlock2D"] * len(size.channels),
        "layers_per_block": BLOCKS,
        "act_fn": "silu",
        "mid_block_add_attention": True,
    }.items():
        if config[name] != expected and (name, config[name]) != ("act_fn", "swish"):  # another name of SiLU
            raise CheckpointError(
                f"{source}: expected {name} {short(expected)} as in ours, found {short(config[name])}; {_INSTEAD}"
            )
    statistics = read_statistics(source, config, size.latent_channels)
    upcast = config["force_upcast"] is not False
    return EncoderLayout(
        source, size, statistics, DIFFUSERS_ENCODER, bool(config["use_quant_conv"]), "pipeline", upcast
    )


def read_statistics(source: str, values: Mapping[str, Any], channels: int) -> dict[str, Any]:
    """Those of ``STATISTICS`` that are stated, as numbers and tuples of numbers. Raises CheckpointError."""
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


def read_size(source: str, config: Mapping[str, Any], groups: Any) -> EncoderSize:
    """Return the encoder's size as a config states it. Raises CheckpointError."""
    channels, latent = config.get("block_out_channels", []), config.get("latent_channels", 0)
    if not isinstance(channels, list | tuple) or not 2 <= len(channels) <= _MOST_LEVELS:
        raise CheckpointError(
            f"{source}: expected block_out_channels of 2 to {_MOST_LEVELS} levels, found {short(channels)}"
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


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file. Raises CheckpointError if it is none, or far too large."""
    try:
        found = json.loads(path.read_text("utf-8") if path.stat().st_size <= _MOST_JSON_BYTES else "")
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: expected a JSON object, found something else ({error})") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {short(found)}")
    return found


def short(value: Any) -> str:
    """One short line, whatever the value."""
    return value if isinstance(value, str) and re.fullmatch(r"[\w.-]{1,60}", value) else reprlib.repr(value)


# ---- weights -------------------------------------------------------------------------------------------------------


def find_weights(source: str, fetch: Callable[[str], Path | None], variant: str | None = None) -> list[Path]:
    """The safetensors of a model: the shards of an index, or else one file, as diffusers chooses between them.

    ``fetch``: path of a file beside the config, or None. ``variant``: as in diffusers; without it, half precision where
    there is nothing else. Raises CheckpointError.
    """
    order = [name.format(part) for part in ([f".{variant}"] if variant else ["", ".fp16"]) for name in _WEIGHTS]
    if not (found := next(filter(None, map(fetch, order)), None)):
        raise CheckpointError(
            f"{source}: expected {order[1]}, found none; pickled weights (.bin) can run code and are never loaded: "
            "convert them with diffusers' save_pretrained"
        )
    if found.suffix != ".json":
        return [found]
    files = {name: fetch(name) for name in read_index(found)}
    if missing := [name for name, path in files.items() if path is None]:
        raise CheckpointError(f"{source}: expected all {len(files)} shards of {found.name}, found no {missing[0]}")
    return list(filter(None, files.values()))


def read_index(path: Path) -> list[str]:
    """The shards that an index names. Raises CheckpointError unless all are safetensors files beside it."""
    shards = read_json(path).get("weight_map")
    names = sorted(set(map(str, shards.values()))) if isinstance(shards, dict) else []
    if not names or not all(re.fullmatch(r"\w[\w.-]*\.safetensors", name) for name in names):
        raise CheckpointError(f"{path}: expected the names of safetensors files beside it, found {short(names)}")
    return names


def _read_state(layout: EncoderLayout, files: list[Path]) -> dict[str, Tensor]:
    """The encoder's tensors under our names; none is read before all names and shapes are right."""
    expected = _expected(layout)
    where: dict[str, tuple[Any, str]] = {}
    with ExitStack() as stack:
        for path in files:
            file = stack.enter_context(open_weights(path))
            names = [name for name in sorted(file.keys()) if name.startswith(_prefixes(layout))]
            where |= {rename(name, _OLD_ATTENTION): (file, name) for name in names}
        headers = {name: weight_header(layout.source, file, key) for name, (file, key) in where.items()}
        take(layout.source, headers | _identity(layout, "meta"), expected)
        tensors = {name: file.get_tensor(key) for name, (file, key) in where.items()}
    return take(layout.source, tensors | _identity(layout, "cpu"), expected)


def _expected(layout: EncoderLayout) -> Expectation:
    with torch.device("meta"):
        return Expectation(Encoder(layout.size), layout.rules)


def _prefixes(layout: EncoderLayout) -> tuple[str, ...]:
    return ("encoder.", "quant_conv.") if layout.quant_conv else ("encoder.",)


def open_weights(path: Path) -> Any:
    """Open a safetensors file. Raise CheckpointError with its path if it is something else or a part of one."""
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError) as error:
        place = path.resolve() if path.is_symlink() else path  # the hub's cache would link the same file again
        raise CheckpointError(
            f"{place}: expected a complete safetensors file, found something else or a part of one ({error}); delete "
            "it and get it anew"
        ) from error


def weight_header(source: str, file: Any, name: str) -> Tensor:
    """A tensor of the shape and dtype in an open safetensors file, without memory. Raises CheckpointError."""
    shape, dtype = file.get_slice(name).get_shape(), file.get_slice(name).get_dtype()
    if dtype not in _DTYPES or max(shape, default=0) > MOST_CHANNELS:
        raise CheckpointError(f"{source}: expected {name} as {', '.join(_DTYPES)}, found {dtype} of {short(shape)}")
    return torch.empty(shape, dtype=_DTYPES[dtype], device="meta")


def _identity(layout: EncoderLayout, device: str) -> dict[str, Tensor]:
    """The 1x1 convolution that changes nothing, where the file has none."""
    if layout.quant_conv:
        return {}
    moments = 2 * layout.size.latent_channels
    weight = torch.eye(moments, device=device)[:, :, None, None]
    return {"quant_conv.weight": weight, "quant_conv.bias": torch.zeros(moments, device=device)}
