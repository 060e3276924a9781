"""What is evaluated: saved autoencoders, a user's own code, JPEG files and fewer pixels, all with one interface.

Shapes: B batch, H x W pixels, f spatial factor, c latent channels, h x w = H/f x W/f latent grid.
"""

import hashlib
import io
import itertools
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import diffusers
import numpy as np
import torch
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from diffusers.utils import logging
from PIL import Image, features
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..autoencoder import AutoencoderSSDD
from ..checkpoints.encoders import cast, check_encoder, encoder_digest, load_encoder
from ..checkpoints.kl_vae import find_weights, read_config, short
from ..checkpoints.layout import CheckpointError, first
from ..checkpoints.own_code import OWN_CODE, ForeignEncoder, load_own, one_line
from ..checkpoints.places import download, find_model
from ..data.pixels import Pixels, image_to_tensor, tensor_to_image
from ..kl_baseline import AutoencoderKLBaseline

JPEG_AUTO = "jpeg:auto"
"""JPEG files of as many bytes as another autoencoder's latents: the caller knows which one."""


class Autoencoder(ABC):
    """Anything that makes images small and large again; ``load_autoencoder`` makes one.

    Attributes:
        name: as in tables: a folder's name, a hub id, ``jpeg@1234B``.
        kind: class or format.
        source: where it came from.
        sha256: of each file of weights, by file name.
        device: where images are encoded and decoded.
        dtype: of the networks; uint8 where there is none.
        spatial_factor: f; H and W of images are multiples of it.
        latent_channels: c; None where a latent is no tensor.
        latent_rule: what a latent of an image H x W is, in words.
        parameters: number of parameters of encoder and decoder; 0 where there is no network.
        decoder_parameters: number of parameters of the decoder.
        steps: default number of decoding steps; None where there is none to choose.
        encoder: name of the encoder that was attached to a model without one, or None.
    """

    name: str
    kind: str
    source: str
    sha256: dict[str, str] = {}
    device: torch.device
    dtype: torch.dtype = torch.uint8
    spatial_factor: int
    latent_channels: int | None = None
    latent_rule: str
    parameters: int = 0
    decoder_parameters: int = 0
    steps: int | None = None
    encoder: str | None = None

    def describe(self) -> dict[str, Any]:
        """Return the attributes that say what this is, as JSON types."""
        return {
            "kind": self.kind,
            "source": self.source,
            "dtype": str(self.dtype).removeprefix("torch."),
            "steps": self.steps,
            "sha256": self.sha256,
            "latent": self.latent_rule,
        } | ({} if self.encoder is None else {"encoder": self.encoder})

    @abstractmethod
    def encode(self, images: Tensor) -> Any:
        """Return the latents of images (B, 3, H, W) in [-1, 1]; of a network the mode of the posterior, raw.

        Raises:
            ValueError: for images of a wrong shape.
        """

    @abstractmethod
    def decode(self, latent: Any, steps: int | None = None, noise: Any = None) -> Tensor:
        """Return images (B, 3, H, W) in float32, about [-1, 1], not clamped, with whatever is not finite.

        Args:
            latent: what ``encode`` returned.
            steps: number of decoding steps; by default ``self.steps``.
            noise: what ``noise`` returned; by default that of seed 0 and the numbers 0 to B - 1.

        Raises:
            ValueError: for a latent of a wrong shape, and as ``check_steps``.
        """

    @abstractmethod
    def latent_bytes(self, latent: Any) -> list[int]:
        """Return the bytes of each image's latent: 16 bits a number for networks, in whatever dtype they run."""

    def check_steps(self, steps: int | None) -> None:
        """Raise ValueError unless the decoder can take this number of steps; None is its default."""
        if steps is not None and self.steps is None:
            raise ValueError(
                f"{self.name}: expected no number of decoding steps, for it has none to count, found {steps}"
            )
        if steps is not None and steps < 1:
            raise ValueError(f"{self.name}: expected at least 1 decoding step, found {steps}")

    def noise(self, latent: Any, seed: int, numbers: Sequence[int]) -> Any:
        """Draw everything that is random in ``decode``, for one call of it; None if nothing is.

        The noise of image i depends on (seed, numbers[i]), neither negative, and on the image's size. It is drawn on
        the CPU, so that it is the same for any batch, device and number of processes.
        """
        return None

    def flops(self, height: int, width: int, steps: int | None = None) -> tuple[int, int] | None:
        """Return the operations of matrix products and convolutions to encode and to decode one image.

        A multiplication and an addition count as two. None where there is no network.
        """
        return None

    def _check_images(self, images: Tensor) -> None:
        shape, f = tuple(images.shape), self.spatial_factor
        if len(shape) != 4 or shape[1] != 3 or shape[2] % f or shape[3] % f or 0 in shape:
            raise ValueError(
                f"{self.name}: expected images (B, 3, H, W) with H and W multiples of {f}, found {shape}; "
                "crop them first"
            )


def image_generators(seed: int, numbers: Sequence[int]) -> list[torch.Generator]:
    """Return a generator on the CPU for each image, by the images' numbers: the stream is the same for any device."""
    states = [np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0] for number in numbers]
    return [torch.Generator("cpu").manual_seed(int(state >> np.uint64(1))) for state in states]


def load_autoencoder(
    name: str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    encoder: str | None = None,
) -> Autoencoder:
    """Return the autoencoder called ``name``.

    Args:
        name: the folder of a model of ``INTERFACES``, of a training run or of a pipeline with vae/; an embedded model;
            a Hugging Face id OWNER/NAME or OWNER/NAME/SUBFOLDER; a .safetensors file in the layout of the authors or
            of latent diffusion (LDM); package.module:NAME or file.py:NAME, the user's own code (see ``OwnCode``);
            jpeg:BYTES; bicubic:FACTOR.
        device: where it runs.
        dtype: of the networks.
        encoder: encoder for an AutoencoderSSDD without one (see ``checkpoints.encoders.load_encoder``); others
            ignore it.

    Raises:
        ValueError, CheckpointError, OSError, ImportError: with one line. ``JPEG_AUTO`` is left to the caller, and a
            ValueError here.
    """
    if (baseline := re.fullmatch(r"(jpeg|bicubic):(.*)", name)) and not Path(name).exists():
        return _load_baseline(name, baseline[1], baseline[2], torch.device(device))
    if not Path(name).exists() and (own := re.fullmatch(OWN_CODE, name)):
        return OwnCode(name, own[1], own[2], device, dtype)
    if name.endswith((".pth", ".pt", ".ckpt", ".bin", ".pkl")) and not Path(name).is_dir():
        raise CheckpointError(
            f"{name}: expected a model folder or a .safetensors file, found the name of a pickle, which can run code "
            "and is never loaded: load it in code of yours with encode() and decode() and name that file.py:NAME"
        )
    return _load_saved(name, torch.device(device), dtype, encoder)


def check_encoder_attached(autoencoders: Iterable[Autoencoder], encoder: str | None) -> None:
    """Raise ValueError, naming the models, if an ``encoder`` was given and none of them took it."""
    autoencoders = list(autoencoders)
    if encoder is None or any(autoencoder.encoder is not None for autoencoder in autoencoders):
        return
    names = ", ".join(dict.fromkeys(autoencoder.name for autoencoder in autoencoders))
    raise ValueError(f"{names}: expected a model without an encoder for --encoder, found none")


# ---- networks --------------------------------------------------------------------------------------------------------


class Network(Autoencoder):
    """An encoder and a decoder; a subclass sets the attributes, and says how to encode and decode a batch."""

    latent_channels: int

    @abstractmethod
    def _encode(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, c, h, w)"""

    @abstractmethod
    def _decode(self, z: Tensor, steps: int | None, noise: Any) -> Tensor:
        """(B, c, h, w) -> (B, 3, H, W)"""

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        self._check_images(images)
        z = self._encode(images.to(self.device, self.dtype))
        grid = [side // self.spatial_factor for side in images.shape[2:]]
        return self._checked("a latent", z, (len(images), self.latent_channels, *grid))

    @torch.inference_mode()
    def decode(self, latent: Tensor, steps: int | None = None, noise: Any = None) -> Tensor:
        self.check_steps(steps)
        self._checked("a latent", latent, (len(latent), self.latent_channels, *latent.shape[2:4]))
        if noise is None:
            noise = self.noise(latent, 0, range(len(latent)))
        images = self._decode(latent.to(self.device, self.dtype), self.steps if steps is None else steps, noise)
        size = [side * self.spatial_factor for side in latent.shape[2:]]
        return self._checked("images", images, (len(latent), 3, *size)).float()

    def latent_bytes(self, latent: Tensor) -> list[int]:
        return [z.numel() * 2 for z in latent]

    def flops(self, height: int, width: int, steps: int | None = None) -> tuple[int, int]:
        """Count the operations while a black image goes through; see ``Autoencoder``."""
        with FlopCounterMode(display=False) as encoding:
            latent = self.encode(torch.full((1, 3, height, width), -1.0))
        steps = self.steps if steps is None else steps
        if steps is None or steps <= 2:
            return encoding.get_total_flops(), self._decode_flops(latent, steps)
        one, two = self._decode_flops(latent, 1), self._decode_flops(latent, 2)
        return encoding.get_total_flops(), one + (steps - 1) * (two - one)  # every step after the first is the same

    def _decode_flops(self, latent: Tensor, steps: int | None) -> int:
        with FlopCounterMode(display=False) as counter:
            self.decode(latent, steps)
        return counter.get_total_flops()

    def _checked(self, what: str, found: Any, expected: tuple[int, ...]) -> Tensor:
        """Return the tensor; raise ValueError if it is not a floating-point one of the expected shape."""
        if isinstance(found, Tensor) and found.shape == expected and len(expected) == 4 and found.is_floating_point():
            return found
        shown = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"{self.name}: expected {what} {expected} of floating-point numbers, found {shown}")


@dataclass(frozen=True)
class Interface:
    """How a class of diffusers, or of ours, differs from ``AutoencoderKL``.

    Attributes:
        frames: it takes videos, here of a single frame: (B, 3, 1, H, W), latents (B, c, 1, h, w).
        unit_range: its images are in [0, 1].
        noise: what its decoder takes where it is random: a tensor (B, 3, H, W), or a generator for each image.
    """

    frames: bool = False
    unit_range: bool = False
    noise: Literal["tensor", "generators"] | None = None


INTERFACES = {
    "AutoencoderSSDD": Interface(noise="tensor"),
    "AutoencoderKL": Interface(),
    "AutoencoderKLBaseline": Interface(),
    "AutoencoderTiny": Interface(),
    "AutoencoderDC": Interface(),
    "ConsistencyDecoderVAE": Interface(noise="generators"),
    "AsymmetricAutoencoderKL": Interface(),
    "AutoencoderKLFlux2": Interface(),
    "AutoencoderKLHunyuanImage": Interface(),
    "AutoencoderKLKVAE": Interface(),
    "AutoencoderKLQwenImage": Interface(frames=True),
    "AutoencoderKLWan": Interface(frames=True),
    "AutoencoderRAE": Interface(unit_range=True),
    "VQModel": Interface(),
}
"""The class names in a config.json that are understood."""

_OURS = {"AutoencoderSSDD": AutoencoderSSDD, "AutoencoderKLBaseline": AutoencoderKLBaseline}
_DECODER_PARTS = ("decoder", "decoder_unet", "post_quant_conv", "quantize")
_CONSISTENCY_STEPS = 2  # the only number for which diffusers' scheduler of ConsistencyDecoderVAE knows the times
_TRIAL_SIDE = 128


class PretrainedAutoencoder(Network):
    """A model of one of the ``INTERFACES``.

    Factor and channels of its latents are those of a black image's.

    Args:
        name: as in tables.
        model: in eval mode, on its device and in its dtype, with an encoder.
        source: where it came from.
        sha256: of each file of weights, by file name.
        encoder: name of the encoder if it was attached.

    Raises:
        CheckpointError: if the black image cannot be encoded, or its latent is no grid.
    """

    def __init__(self, name: str, model: Any, source: str, sha256: dict[str, str], encoder: str | None = None) -> None:
        self.name, self.kind, self.source, self.sha256 = name, type(model).__name__, source, sha256
        self.device, self.dtype, self.model, self.encoder = model.device, model.dtype, model, encoder
        self.interface = INTERFACES[self.kind]
        self.parameters = _parameters(model, getattr(model, "attached_encoder", None))
        self.decoder_parameters = _parameters(*(getattr(model, part, None) for part in _DECODER_PARTS))
        if self.kind == "AutoencoderSSDD":
            self.steps = model.config["num_inference_steps"]
        elif self.kind == "ConsistencyDecoderVAE":
            self.steps = _CONSISTENCY_STEPS
        self.only_side: int | None = getattr(model, "decoder_image_size", None)  # AutoencoderRAE has one size alone
        self.latent_channels, self.spatial_factor = c, f = self._latent_shape()
        self.latent_rule = f"({c}, H/{f}, W/{f})"

    @torch.inference_mode()
    def _latent_shape(self) -> tuple[int, int]:
        """Return latent channels and spatial factor."""
        side = self.only_side or _TRIAL_SIDE
        try:
            black = torch.full((1, 3, side, side), -1.0, dtype=self.dtype, device=self.device)
            shape = tuple(self._encode(black).shape)
        except Exception as error:  # whatever diffusers makes of an unusual config
            raise CheckpointError(
                f"{self.name}: expected an {self.kind} that encodes an image of {side} x {side} pixels, "
                f"found {one_line(error)[:400]}"
            ) from error
        if len(shape) != 4 or 0 in shape or shape[2] != shape[3] or side % shape[2]:
            raise CheckpointError(
                f"{self.name}: expected a latent (1, c, {side}/f, {side}/f) of an image of {side} x {side} pixels, "
                f"found {shape}"
            )
        return shape[1], side // shape[2]

    def check_steps(self, steps: int | None) -> None:
        super().check_steps(steps)
        if self.kind == "ConsistencyDecoderVAE" and steps not in (None, _CONSISTENCY_STEPS):
            raise ValueError(
                f"{self.name}: expected {_CONSISTENCY_STEPS} decoding steps, no other number, found {steps}"
            )

    def noise(self, latent: Tensor, seed: int, numbers: Sequence[int]) -> Any:
        if self.interface.noise is None:
            return None
        generators = image_generators(seed, numbers)
        if self.interface.noise == "generators":
            return generators
        shape = (3, *(side * self.spatial_factor for side in latent.shape[2:]))
        return torch.stack([torch.randn(shape, generator=g, device="cpu") for g in generators]).to(self.device)

    def latent_bytes(self, latent: Tensor) -> list[int]:
        """See ``Autoencoder``; of a VQModel the bytes of the indices into its codebook."""
        if self.kind != "VQModel":
            return super().latent_bytes(latent)
        bits = math.ceil(math.log2(self.model.config["num_vq_embeddings"]))
        return [math.ceil(z[0].numel() * bits / 8) for z in latent]

    def _check_images(self, images: Tensor) -> None:
        super()._check_images(images)
        if self.only_side is not None and tuple(images.shape[2:]) != (self.only_side, self.only_side):
            raise ValueError(
                f"{self.name}: expected images of {self.only_side} x {self.only_side} pixels, the only size that it "
                f"decodes to, found {tuple(images.shape)}; crop them first"
            )

    def _encode(self, x: Tensor) -> Tensor:
        if self.interface.unit_range:
            x = (x + 1) / 2
        encoded = self.model.encode(x.unsqueeze(2) if self.interface.frames else x)
        z = encoded.latent_dist.mode() if "latent_dist" in encoded else encoded[0]
        return z.squeeze(2) if self.interface.frames else z

    def _decode(self, z: Tensor, steps: int | None, noise: Any) -> Tensor:
        options: dict[str, Any] = {}
        if self.interface.noise == "tensor":
            options = {"num_inference_steps": steps, "noise": noise}
        elif self.interface.noise == "generators":  # it draws in the latent's dtype, at the start and between the steps
            options = {"generator": noise}
        y = self.model.decode(z.unsqueeze(2) if self.interface.frames else z, **options).sample
        if self.interface.frames:
            y = y.squeeze(2)
        return y * 2 - 1 if self.interface.unit_range else y


class OwnCode(Network):
    """A user's encoder, as ``checkpoints.own_code.ForeignEncoder`` takes it, that has ``decode(z)`` besides.

    ``decode`` gets the mode of the latent, (B, c, h, w), and returns images (B, 3, H, W) in about [-1, 1], or an object
    of diffusers with them as ``sample``. It has no steps, and noise of its own would not follow the seed. A module that
    states a ``dtype`` runs in it, another one in the ``dtype`` given here. All its parameters count, and those of its
    attribute ``decoder`` as the decoder's.

    Args:
        typed: ``file.py:NAME`` or ``package.module:NAME``, as the user typed it.
        path: the file or module.
        attribute: NAME.
        device: where it runs.
        dtype: of its networks.

    Raises:
        ValueError, FileNotFoundError, ImportError: with one line if the code is something else, or if an image of 256
            x 256 does not go through it.
    """

    def __init__(self, typed: str, path: str, attribute: str, device: torch.device | str, dtype: torch.dtype) -> None:
        own = load_own(typed, path, attribute)
        self.foreign = ForeignEncoder(own, typed).cast(dtype).to(device)
        if not callable(getattr(own, "decode", None)):
            raise ValueError(
                f"{typed}: expected an object with decode(z) besides encode(x), found {type(own).__name__} without it: "
                "give it one that makes images (B, 3, H, W) in [-1, 1] of the latent"
            )
        file = Path(path)
        self.name, self.kind, self.source = f"{file.name}:{attribute}", type(own).__name__, typed
        self.sha256 = {file.name: _sha256(file)} if path.endswith(".py") else {}
        self.device, self.dtype = torch.device(device), self.foreign.dtype
        self.spatial_factor, self.latent_channels = f, c = self.foreign.spatial_factor, self.foreign.latent_channels
        self.latent_rule = f"({c}, H/{f}, W/{f})"
        parts = [own] if isinstance(own, nn.Module) else getattr(own, "__dict__", {}).values()
        self.parameters = _parameters(*parts)
        self.decoder_parameters = _parameters(getattr(own, "decoder", None))
        side = 256  # a multiple of every spatial factor that ``ForeignEncoder`` takes
        try:
            self.decode(self.encode(torch.zeros(1, 3, side, side)))
        except Exception as error:  # whatever the user's code raises
            raise ValueError(
                f"{typed}: expected code that encodes and decodes an image of {side} x {side} pixels, "
                f"found {one_line(error)}"
            ) from error

    def _encode(self, x: Tensor) -> Tensor:
        return self.foreign(x)[:, : self.latent_channels].to(self.dtype)  # (B, 2c, h, w): mean, then log-variance

    def _decode(self, z: Tensor, steps: int | None, noise: Any) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            decoded = self.foreign.source.decode(z)
        return getattr(decoded, "sample", decoded)


def _parameters(*parts: Any) -> int:
    """Count the parameters of those that are modules, shared ones once."""
    return sum(p.numel() for p in {p for part in parts if isinstance(part, nn.Module) for p in part.parameters()})


# ---- saved models ----------------------------------------------------------------------------------------------------


def _load_saved(name: str, device: torch.device, dtype: torch.dtype, encoder: str | None) -> PretrainedAutoencoder:
    """Read a model from safetensors, whole or not at all, and attach the encoder to one that only decodes."""
    if name.endswith(".safetensors") and not Path(name).is_dir():
        model, files, source = _read_file(Path(name), dtype), [Path(name)], name
        folder = files[0].parent
    else:
        folder = find_model(
            name,
            lambda hub: download(hub, lambda config: _class_name(hub, config)),
            "jpeg:BYTES, bicubic:FACTOR, a .safetensors file in the layout of the authors or of LDM, code of yours "
            "(file.py:NAME, package.module:NAME), ",
        )
        files = find_weights(name, lambda file: path if (path := folder / file).is_file() else None)
        model, source = _read_folder(name, folder, files, dtype), _source(name, folder)
    model = model.to(device).eval()
    sha256 = {file.name: _sha256(file) for file in files}
    if model.config.get("has_encoder", True):
        return PretrainedAutoencoder(_short(name), model, source, sha256)
    check_encoder(name, model.config, encoder)
    assert encoder is not None
    attached = load_encoder(encoder, name, model.config, folder)
    sha256[encoder] = encoder_digest(attached)
    model.attach_encoder(cast(attached, model.dtype))
    return PretrainedAutoencoder(_short(name), model, source, sha256, encoder)


def _read_folder(name: str, folder: Path, files: list[Path], dtype: torch.dtype) -> Any:
    kind = _class_name(name, folder)
    cls = _OURS.get(kind) or getattr(diffusers, kind, None)
    if cls is None:
        raise CheckpointError(f"{name}: expected a release of diffusers with {kind}, found {diffusers.__version__}")
    variant = "fp16" if ".fp16" in files[0].name else None  # half precision is all that the folder has
    try:
        with _quiet():
            model, info = cls.from_pretrained(
                str(folder),
                torch_dtype=dtype,
                variant=variant,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
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
    rgb = 3 * patch**2 if isinstance(patch, int) else 3
    for key in ("in_channels", "out_channels", "encoder_in_channels", "input_channels", "num_channels"):
        if model.config.get(key, rgb) != rgb:
            raise CheckpointError(f"{name}: expected {key} {rgb}, for RGB, found {short(model.config[key])}")
    return model


def _class_name(name: str, folder: Path) -> str:
    kind = read_config(folder).get("_class_name")
    if kind not in INTERFACES:
        raise CheckpointError(
            f"{name}: expected one of {', '.join(INTERFACES)}, found {short(kind)}; wrap it in a class of yours with "
            "encode() and decode() and name it MODULE:CLASS"
        )
    return kind


def _read_file(path: Path, dtype: torch.dtype) -> Any:
    """Return the AutoencoderKL of a file in LDM's layout, or else the AutoencoderSSDD of one in the authors' layout."""
    tensors = _ldm_tensors(path)
    model = AutoencoderSSDD.from_original(path) if tensors is None else _ldm_vae(path, tensors)
    with _quiet():
        return model.to(dtype)


def _ldm_tensors(path: Path) -> dict[str, Tensor] | None:
    """Read a VAE's tensors from a file of it alone or of a whole model; None if there are none in LDM's layout."""
    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            for prefix in ("first_stage_model.", "vae.", ""):
                if f"{prefix}decoder.up.0.block.0.conv1.weight" in names:
                    parts = tuple(prefix + part for part in ("encoder.", "decoder.", "quant_conv.", "post_quant_conv."))
                    return {
                        name.removeprefix(prefix): file.get_tensor(name) for name in names if name.startswith(parts)
                    }
    except (SafetensorError, OSError):
        pass  # the reader of the authors' layout says what is wrong with the file
    return None


def _ldm_vae(path: Path, tensors: dict[str, Tensor]) -> diffusers.AutoencoderKL:
    """Return the AutoencoderKL with these weights; its config is read off their names and shapes."""

    def count(name: str) -> int:
        return next(i for i in itertools.count() if name.format(i) not in tensors)

    levels = count("encoder.down.{}.block.0.conv1.weight")
    try:
        with torch.device("meta"):
            model = diffusers.AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * levels,
                up_block_types=("UpDecoderBlock2D",) * levels,
                block_out_channels=[len(tensors[f"encoder.down.{i}.block.0.conv1.weight"]) for i in range(levels)],
                layers_per_block=count("encoder.down.0.block.{}.conv1.weight"),
                latent_channels=tensors["decoder.conv_in.weight"].shape[1],
                norm_num_groups=32,  # always, in LDM
                use_quant_conv="quant_conv.weight" in tensors,
                use_post_quant_conv="post_quant_conv.weight" in tensors,
                mid_block_add_attention="encoder.mid.attn_1.norm.weight" in tensors,
            )
        state = convert_ldm_vae_checkpoint(tensors, model.config)
        model.load_state_dict(state, assign=True)
    except Exception as error:  # another architecture
        found = one_line(error)[:400]
    else:
        if len(state) == len(tensors):
            return model
        found = f"{len(tensors) - len(state)} unexpected tensors"  # which the conversion leaves out
    raise CheckpointError(f"{path}: expected the weights of an AutoencoderKL in the layout of LDM, found {found}")


def _short(name: str) -> str:
    """Return the name of a folder or file, or of the run or pipeline that it is the model/ or vae/ of."""
    path = Path(name)
    if not path.exists():
        return name
    path = path.absolute()
    while path.name in ("model", "vae") and path.parent.name:
        path = path.parent
    return path.stem if path.is_file() else path.name


def _source(name: str, folder: Path) -> str:
    """Return the folder, an embedded name, or a hub id and the commit of its snapshot in the hub's cache."""
    if Path(name).is_dir():
        return str(folder)
    parts = folder.parts
    return f"{name}@{parts[parts.index('snapshots') + 1]}" if "snapshots" in parts else name


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence diffusers' lines on missing weights and unknown config entries: the first raise an error here."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


# ---- baselines without a network -------------------------------------------------------------------------------------


class JpegFiles(list[bytes | None]):
    """The files of a batch, None for an image that does not fit its budget; ``size`` is (H, W) of the images."""

    size: tuple[int, int]


class Jpeg(Autoencoder):
    """JPEG files of at most ``budget`` bytes each, at the best quality from 1 to 95 that a binary search finds.

    Pillow's defaults otherwise: 4:2:0 chroma, standard Huffman tables. An image that is over the budget at quality 1
    has no file (None) and decodes to NaN.

    Raises:
        ValueError: for a budget below 1.
    """

    _BEST_QUALITY = 95  # Pillow's advice: above it files grow and pictures do not get better

    def __init__(self, budget: int, device: torch.device | str = "cpu") -> None:
        if budget < 1:
            raise ValueError(f"expected a budget of at least 1 byte for a JPEG file, found {budget}")
        self.budget, self.device = budget, torch.device(device)
        self.name, self.kind, self.spatial_factor = f"jpeg@{budget}B", "JPEG", 1
        self.latent_rule = f"a file of at most {budget} bytes, quality 1 to {self._BEST_QUALITY}, 4:2:0"
        library = "libjpeg-turbo" if features.check_feature("libjpeg_turbo") else "libjpeg"
        self.source = f"Pillow {Image.__version__}, {library} {features.version_codec('jpg')}"

    def encode(self, images: Tensor) -> JpegFiles:
        self._check_images(images)
        files = JpegFiles(self._file(pixels) for pixels in tensor_to_image(images))
        files.size = (images.shape[2], images.shape[3])
        return files

    def _file(self, pixels: Pixels) -> bytes | None:
        picture, best = Image.fromarray(pixels), None
        low, high = 1, self._BEST_QUALITY
        while low <= high:
            quality = (low + high) // 2
            stream = io.BytesIO()
            picture.save(stream, "JPEG", quality=quality)
            if stream.tell() <= self.budget:
                best, low = stream.getvalue(), quality + 1
            else:
                high = quality - 1
        return best

    def decode(self, latent: JpegFiles, steps: int | None = None, noise: Any = None) -> Tensor:
        self.check_steps(steps)
        images = torch.full((len(latent), 3, *latent.size), math.nan, device="cpu")
        for image, file in zip(images, latent, strict=True):
            if file is not None:
                image.copy_(image_to_tensor(np.asarray(Image.open(io.BytesIO(file), formats=["JPEG"]))))
        return images.to(self.device)

    def latent_bytes(self, latent: JpegFiles) -> list[int]:
        return [0 if file is None else len(file) for file in latent]


class Bicubic(Autoencoder):
    """The image reduced by ``factor`` and enlarged again, both bicubic, as ``pairs.bicubic_baseline`` has it.

    A latent is uint8 (B, h, w, 3).

    Raises:
        ValueError: for a factor below 1.
    """

    def __init__(self, factor: int, device: torch.device | str = "cpu") -> None:
        if factor < 1:
            raise ValueError(f"expected a factor of at least 1 for the bicubic baseline, found {factor}")
        self.spatial_factor, self.device = factor, torch.device(device)
        self.name, self.kind, self.source = f"bicubic:{factor}", "bicubic", f"Pillow {Image.__version__}"
        self.latent_rule = f"(3, H/{factor}, W/{factor}) of 8 bits"

    def encode(self, images: Tensor) -> Pixels:
        self._check_images(images)
        size = (images.shape[3] // self.spatial_factor, images.shape[2] // self.spatial_factor)
        return np.stack([_resized(image, size) for image in tensor_to_image(images)])

    def decode(self, latent: Pixels, steps: int | None = None, noise: Any = None) -> Tensor:
        self.check_steps(steps)
        size = (latent.shape[2] * self.spatial_factor, latent.shape[1] * self.spatial_factor)
        return torch.stack([image_to_tensor(_resized(image, size)) for image in latent]).to(self.device)

    def latent_bytes(self, latent: Pixels) -> list[int]:
        return [image.nbytes for image in latent]


def _load_baseline(name: str, kind: str, number: str, device: torch.device) -> Autoencoder:
    if name == JPEG_AUTO:
        raise ValueError(f"{name}: expected another model to take the bytes of, found none; give them: jpeg:BYTES")
    if not re.fullmatch(r"[1-9]\d{0,8}", number, re.ASCII):
        unit = "BYTES, of a file, or jpeg:auto" if kind == "jpeg" else "FACTOR, of the sides"
        raise ValueError(f"{name}: expected {kind}:{unit}, a positive whole number, found {number!r}")
    return Jpeg(int(number), device) if kind == "jpeg" else Bicubic(int(number), device)


def _resized(image: Pixels, size: tuple[int, int]) -> Pixels:
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
