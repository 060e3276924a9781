"""Autoencoders of diffusers that are not our network: how each class is called, and its encoder as a module.

Shapes: B batch, H x W pixels, f spatial factor, c latent channels.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import diffusers
import torch
from torch import Tensor, nn

from ..runtime.text import quiet
from .config import STATISTICS, read_config, short
from .layout import CheckpointError, first
from .own_code import one_line
from .weights import find_weights


@dataclass(frozen=True)
class Interface:
    """How a class of diffusers, or of ours, differs from ``AutoencoderKL``."""

    frames: bool = False  # takes videos, here of one frame: (B, 3, 1, H, W), latents (B, c, 1, h, w)
    alpha: bool = False  # images are RGBA, here opaque
    unit_range: bool = False  # images are in [0, 1]
    normalizes: bool = False  # its encode applies the statistics of its config: its latents have none besides
    noise: Literal["tensor", "generators"] | None = None  # a random decoder takes (B, 3, H, W), or a generator each
    only_steps: int | None = None  # the one number of decoding steps that its scheduler knows

    @property
    def usual(self) -> bool:
        """Whether it decodes (B, c, h, w) to (B, 3, H, W) in [-1, 1], the same each time, as a pipeline expects."""
        return not (self.frames or self.alpha or self.unit_range or self.noise)


INTERFACES = {
    "AutoencoderSSDD": Interface(noise="tensor"),
    "AutoencoderKL": Interface(),
    "AutoencoderKLBaseline": Interface(),
    "AutoencoderTiny": Interface(),
    "AutoencoderDC": Interface(),
    "ConsistencyDecoderVAE": Interface(noise="generators", only_steps=2),
    "AsymmetricAutoencoderKL": Interface(),
    "AutoencoderKLFlux2": Interface(),
    "AutoencoderKLHunyuanImage": Interface(),
    "AutoencoderKLHunyuanImageRefiner": Interface(frames=True),
    "AutoencoderKLKVAE": Interface(),
    "AutoencoderKLQwenImage": Interface(frames=True),
    "AutoencoderKLQwenImage21": Interface(frames=True, alpha=True),
    "AutoencoderKLWan": Interface(frames=True),
    "AutoencoderRAE": Interface(unit_range=True, normalizes=True),
    "VQModel": Interface(),
}
"""The class names in a config.json that are understood."""

_OF_OTHER_THINGS = {
    "videos": "AutoencoderKL(Allegro|CogVideoX|Cosmos|HunyuanVideo|HunyuanVideo15|KVAEVideo|LTXVideo|LTX2Video|Magvit"
    "|MiniMaxH3|Mochi|TemporalDecoder)|AutoencoderVidTok",
    "sound": "AutoencoderKL(KVAEAudio|LTX2Audio|MiniMaxH3Audio)|AutoencoderOobleck|AutoencoderSAME",
}

DECODER_PARTS = ("decoder", "decoder_unet", "post_quant_conv", "quantize")
"""Attributes of these classes that no encoding needs."""


def class_name(name: str, folder: Path) -> str:
    """Return the class that a folder's config.json names. Raises CheckpointError unless it is one of ``INTERFACES``."""
    kind = read_config(folder).get("_class_name")
    if kind not in INTERFACES:
        things = [f", an autoencoder of {t}" for t, kinds in _OF_OTHER_THINGS.items() if re.fullmatch(kinds, str(kind))]
        raise CheckpointError(
            f"{name}: expected one of {', '.join(INTERFACES)}, found {short(kind)}{''.join(things)}; wrap it in a "
            "class of yours with encode() and decode() and name it MODULE:CLASS"
        )
    return kind


def read_model(name: str, folder: Path, files: list[Path], dtype: torch.dtype, cls: Any = None) -> Any:
    """Return the model of a folder; raise CheckpointError unless its weights are complete and for RGB.

    Args:
        name: as the user typed it, for errors.
        folder: with its config.json.
        files: its weights, as ``find_weights`` gives them.
        dtype: of the model.
        cls: its class; by default that of diffusers with the name in the config.
    """
    kind = class_name(name, folder)
    cls = cls or getattr(diffusers, kind, None)
    if cls is None:
        raise CheckpointError(f"{name}: expected a release of diffusers with {kind}, found {diffusers.__version__}")
    variant = "fp16" if ".fp16" in files[0].name else None  # half precision is all that the folder has
    try:
        with quiet("diffusers"):
            model, info = cls.from_pretrained(
                str(folder), torch_dtype=dtype, variant=variant, use_safetensors=True, output_loading_info=True
            )
    except Exception as error:  # whatever diffusers makes of another's config and files
        raise CheckpointError(
            f"{name}: expected an {kind} with the weights that its config.json describes, found {one_line(error)[:400]}"
        ) from error
    differences = [f"no {key}" for key in sorted(info["missing_keys"])]
    differences += [f"unexpected {key}" for key in sorted(info["unexpected_keys"])]
    if differences:  # diffusers would fill them with random numbers, or leave them out
        raise CheckpointError(
            f"{name}: expected the weights of an {kind} as its config.json has it, found {len(differences)} "
            f"differences: {first(differences)}"
        )
    patch = model.config.get("patch_size") if INTERFACES[kind].frames else None  # Wan folds pixels into channels
    colors, space = (4, "RGBA") if INTERFACES[kind].alpha else (3, "RGB")
    expected = colors * patch**2 if isinstance(patch, int) else colors
    for key in ("in_channels", "out_channels", "encoder_in_channels", "input_channels", "num_channels"):
        if model.config.get(key, expected) != expected:
            raise CheckpointError(f"{name}: expected {key} {expected}, for {space}, found {short(model.config[key])}")
    return model


def encode(model: Any, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return mean and log-variance (B, c, h, w) of images (B, 3, H, W) in [-1, 1]; None for a plain latent's."""
    interface = INTERFACES[type(model).__name__]
    if interface.unit_range:
        x = (x + 1) / 2
    if interface.alpha:
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
    encoded = model.encode(x.unsqueeze(2) if interface.frames else x)
    if "latent_dist" not in encoded:
        return encoded[0], None
    mean, logvar = encoded.latent_dist.mean, encoded.latent_dist.logvar
    return (mean.squeeze(2), logvar.squeeze(2)) if interface.frames else (mean, logvar)


def only_side(model: Any) -> int | None:
    """Return the side of the images that a model takes, if it has one size alone."""
    side: int | None = getattr(model, "decoder_image_size", None)  # of AutoencoderRAE
    return side


def probe(name: str, model: Any, encode: Callable[[Tensor], Tensor]) -> tuple[int, int]:
    """Return channels and spatial factor of a model's latents, by encoding an image. Raises CheckpointError."""
    side = only_side(model) or 128
    try:
        z = encode(torch.full((1, 3, side, side), -1.0))
    except Exception as error:  # whatever diffusers makes of an unusual config
        raise CheckpointError(
            f"{name}: expected an {type(model).__name__} that encodes an image of {side} x {side} pixels, "
            f"found {one_line(error)[:400]}"
        ) from error
    return z.shape[1], side // z.shape[2]


class DiffusersEncoder(nn.Module):
    """The encoder of a model of diffusers, in the form of a user's own: ``ForeignEncoder`` takes it.

    Args:
        name: as the user typed it, for errors.
        model: of one of the ``INTERFACES``; its decoder goes.
    """

    def __init__(self, name: str, model: Any) -> None:
        super().__init__()
        self.kind, self.only_side = type(model).__name__, only_side(model)
        for part in DECODER_PARTS:
            if isinstance(getattr(model, part, None), nn.Module):
                setattr(model, part, nn.Identity())
        self.model = model.eval()
        with torch.no_grad():
            self.latent_channels, self.spatial_factor = probe(name, model, lambda x: encode(model, x)[0])
        for entry in () if INTERFACES[self.kind].normalizes else STATISTICS:
            setattr(self, entry, model.config.get(entry))

    def encode(self, x: Tensor) -> Any:
        """Return the latent of images (B, 3, H, W) in [-1, 1], or an object with a Gaussian as ``latent_dist``."""
        if self.only_side is not None and x.shape[2:] != (self.only_side, self.only_side):
            raise ValueError(
                f"{self.kind}: expected images of {self.only_side} x {self.only_side} pixels, the only size that it "
                f"encodes, found {x.shape[2]} x {x.shape[3]}"
            )
        mean, logvar = encode(self.model, x)
        return mean if logvar is None else SimpleNamespace(latent_dist=SimpleNamespace(mean=mean, logvar=logvar))


def adapt_encoder(name: str, folder: Path) -> DiffusersEncoder:
    """Return the encoder of a folder of diffusers, in float32. Raises CheckpointError."""
    files = find_weights(name, lambda file: path if (path := folder / file).is_file() else None)
    return DiffusersEncoder(name, read_model(name, folder, files, torch.float32))
