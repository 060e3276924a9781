"""The encoder of a saved autoencoder under our names: a diffusers ``AutoencoderKL`` or our ``AutoencoderSSDD``.

``AutoencoderKL`` is SD-VAE, SDXL, SD3, FLUX and our own kl-vae runs: the same network as ours, in other names and with
or without its last 1x1 convolution. ``AutoencoderKLFlux2`` is the same network again, and keeps the statistics of its
latents as a batch norm. Files are not trusted: every number of ``config.json`` is checked, and names and shapes are
compared by the headers of the safetensors before any weight is read.
"""

import inspect
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import AutoencoderKL, AutoencoderKLFlux2
from torch import Tensor, nn

from ..nn.encoder import BLOCKS, Encoder
from ..nn.presets import GROUPS, EncoderSize
from .config import read_batch_norm, read_config, read_size, read_statistics, short
from .layout import CheckpointError, Expectation, take
from .names import DIFFUSERS_ENCODER, Rules, rename
from .weights import find_weights, open_weights, weight_header

if TYPE_CHECKING:
    from ..autoencoder.normalization import Convention


def _defaults(model: Any) -> dict[str, Any]:
    """Return what diffusers takes for a key that a config does not have, as JSON types."""
    parameters = inspect.signature(model).parameters.values()
    return {p.name: list(p.default) if isinstance(p.default, tuple) else p.default for p in parameters}


KL_DEFAULTS = _defaults(AutoencoderKL)
_DEFAULTS = {"AutoencoderKL": KL_DEFAULTS, "AutoencoderKLFlux2": _defaults(AutoencoderKLFlux2)}
_OURS = ("AutoencoderSSDD", "AutoencoderKLBaseline")

SAME_NETWORK = (*_OURS, *_DEFAULTS)
"""Classes whose encoder is the same network as ours."""


_INSTEAD = "take another encoder, or wrap this one in a class of yours with encode() and name it MODULE:CLASS"

_OLD_ATTENTION: Rules = [
    (r"(\.mid_block\.attentions\.0)\.query\.", r"\1.to_q."),
    (r"(\.mid_block\.attentions\.0)\.key\.", r"\1.to_k."),
    (r"(\.mid_block\.attentions\.0)\.value\.", r"\1.to_v."),
    (r"(\.mid_block\.attentions\.0)\.proj_attn\.", r"\1.to_out.0."),
]
"""Names in files of early diffusers -> the present ones."""


@dataclass(frozen=True)
class KLEncoder:
    """Shape and weights of an encoder in our names, and the statistics of its latents that came with it.

    Those are what its config states of ``STATISTICS``, or FLUX.2's of ``BATCH_NORM``.
    """

    size: EncoderSize
    state: dict[str, Tensor]
    statistics: dict[str, Any]
    convention: "Convention" = "pipeline"
    """What the statistics are."""
    force_upcast: bool = False
    """float16 is not enough for it in SDXL's pipelines."""
    foreign: bool = False
    """It is somebody else's: the scale of its latents can be anything."""

    def build(self) -> Encoder:
        """Return the network, in eval mode."""
        encoder = Encoder(self.size)
        encoder.load_state_dict(self.state)
        return encoder.eval()

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


@dataclass(frozen=True)
class EncoderLayout:
    """What a config says about an encoder, whose weights are still to be read, and how the file names them."""

    source: str
    encoder: KLEncoder
    quant_conv: bool = True
    """False: the file has no last 1x1 convolution, and ours becomes the identity."""
    batch_norm: Mapping[str, Any] | None = None
    """Of FLUX.2: the config of a batch norm, whose running statistics are in the file."""

    @property
    def rules(self) -> Rules:
        """Our names -> the file's."""
        return DIFFUSERS_ENCODER if self.encoder.foreign else [(r"^", "encoder.")]


def read_kl_encoder(folder: str | Path) -> KLEncoder:
    """Return the encoder of an ``AutoencoderKL`` or FLUX.2 folder. Raise CheckpointError for anything else."""
    found = read_config(folder).get("_class_name")
    if found not in _DEFAULTS:
        raise CheckpointError(f"{folder}: expected an AutoencoderKL, found {short(found)}")
    return read_encoder(folder)


def read_encoder(folder: str | Path) -> KLEncoder:
    """Return the encoder of a folder of ``SAME_NETWORK``. Raise CheckpointError."""
    layout = read_layout(folder)
    files = find_weights(str(folder), lambda name: path if (path := Path(folder) / name).is_file() else None)
    return _found(layout, _read_state(layout, files))


def encoder_of(source: str, config: dict[str, Any], tensors: Mapping[str, Tensor]) -> KLEncoder:
    """Return the encoder of a model in memory, by its config and its tensors, which are shared.

    Raises CheckpointError.
    """
    layout = _layout(source, config)
    state = {name: tensor for name, tensor in tensors.items() if name.startswith(_prefixes(layout))}
    return _found(layout, take(source, state | _identity(layout, "cpu"), _expected(layout)))


def _found(layout: EncoderLayout, state: dict[str, Tensor]) -> KLEncoder:
    encoder = layout.encoder
    if layout.batch_norm is None:
        return replace(encoder, state=state)
    running = {f"batch_norm_{name}": state.pop(f"bn.running_{name}").tolist() for name in ("mean", "var")}
    statistics = read_batch_norm(layout.source, {**layout.batch_norm, **running}, encoder.size.latent_channels)
    return replace(encoder, state=state, statistics=statistics)


def read_layout(folder: str | Path) -> EncoderLayout:
    """Size and names of a folder's encoder, by its config alone. Raises CheckpointError if it is not one of ours."""
    return _layout(str(folder), read_config(folder))


def _layout(source: str, config: dict[str, Any]) -> EncoderLayout:
    kind = config.get("_class_name")
    if kind in _OURS:
        if not config.get("has_encoder", True):
            raise CheckpointError(f"{source}: expected a model with an encoder, found one that only decodes")
        size = read_size(source, config, config.get("encoder_groups", GROUPS))
        statistics = read_statistics(source, config, size.latent_channels)
        statistics |= read_batch_norm(source, config, size.latent_channels)
        convention: Convention = "pipeline" if config.get("latents_convention") == "pipeline" else "measured"
        upcast = config.get("force_upcast") is True
        return EncoderLayout(source, KLEncoder(size, {}, statistics, convention, upcast))
    if kind not in _DEFAULTS:
        raise CheckpointError(f"{source}: expected AutoencoderKL or AutoencoderSSDD, found {short(kind)}; {_INSTEAD}")
    config = _DEFAULTS[kind] | config
    size = read_size(source, config, config["norm_num_groups"])
    same = {
        "in_channels": 3,
        "down_block_types": ["DownEncoderBlock2D"] * len(size.channels),
        "layers_per_block": BLOCKS,
        "act_fn": "silu",
        "mid_block_add_attention": True,
    }
    flux2 = kind == "AutoencoderKLFlux2"
    for name, expected in (same | {"patch_size": [2, 2]} if flux2 else same).items():
        if config[name] != expected and (name, config[name]) != ("act_fn", "swish"):  # another name of SiLU
            raise CheckpointError(
                f"{source}: expected {name} {short(expected)} as in ours, found {short(config[name])}; {_INSTEAD}"
            )
    encoder, quant_conv = KLEncoder(size, {}, {}, foreign=True), bool(config["use_quant_conv"])
    if flux2:  # diffusers knows no scale of it, and runs it in any precision
        return EncoderLayout(source, encoder, quant_conv, {"batch_norm_eps": config["batch_norm_eps"]})
    statistics = {"shift_factor": 0.0} | read_statistics(source, config, size.latent_channels)
    upcast = config["force_upcast"] is not False
    return EncoderLayout(source, replace(encoder, statistics=statistics, force_upcast=upcast), quant_conv)


def _read_state(layout: EncoderLayout, files: list[Path]) -> dict[str, Tensor]:
    """Return the encoder's tensors under our names; none is read before all names and shapes are right."""
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
        encoder = Encoder(layout.encoder.size)
        if layout.batch_norm is not None:
            encoder.bn = nn.BatchNorm2d(4 * layout.encoder.size.latent_channels, affine=False)
            encoder.bn.num_batches_tracked = None
        return Expectation(encoder, layout.rules)


def _prefixes(layout: EncoderLayout) -> tuple[str, ...]:
    prefixes = ("encoder.", *(["quant_conv."] if layout.quant_conv else []))
    return prefixes if layout.batch_norm is None else (*prefixes, "bn.running_")


def _identity(layout: EncoderLayout, device: str) -> dict[str, Tensor]:
    """Return the 1x1 convolution that changes nothing, where the file has none."""
    if layout.quant_conv:
        return {}
    moments = 2 * layout.encoder.size.latent_channels
    weight = torch.eye(moments, device=device)[:, :, None, None]
    return {"quant_conv.weight": weight, "quant_conv.bias": torch.zeros(moments, device=device)}
