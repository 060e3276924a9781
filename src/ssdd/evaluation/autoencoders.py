"""Autoencoders to evaluate, with one interface: saved models, a user's own code, JPEG files and bicubic resizing.

Shapes: B batch, H x W pixels, f spatial factor, c latent channels, h x w = H/f x W/f latent grid.
"""

import io
import math
import re
from abc import ABC, abstractmethod
from bisect import bisect
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, features
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..autoencoder import AutoencoderSSDD
from ..checkpoints.adapters import (
    DECODER_PARTS,
    INTERFACES,
    class_name,
    encode,
    only_side,
    probe,
    read_model,
)
from ..checkpoints.encoders import cast, encoder_beside, encoder_digest, load_encoder
from ..checkpoints.layout import CheckpointError
from ..checkpoints.ldm import read_ldm_vae
from ..checkpoints.own_code import OWN_CODE, ForeignEncoder, load_own, one_line
from ..checkpoints.places import download, find_model
from ..checkpoints.weights import find_weights
from ..data.pixels import Pixels, image_to_tensor, tensor_to_image
from ..nn.kl_baseline import AutoencoderKLBaseline
from ..nn.noise import image_generators
from ..runtime.text import quiet
from .weights import sha256

JPEG_AUTO = "jpeg:auto"
"""JPEG files of as many bytes as another autoencoder's latents: the caller knows which one."""


class Autoencoder(ABC):
    """Encode images to latents and decode them; ``load_autoencoder`` makes one."""

    name: str  # in tables: of a folder, a hub id, jpeg@1234B
    kind: str  # class or format
    source: str  # where it came from
    sha256: dict[str, str] = {}  # digest of each file of weights, by file name
    dtype: torch.dtype = torch.uint8  # of the networks; uint8 without any
    spatial_factor: int  # f; H and W of images are multiples of it
    latent_rule: str  # shape or size of the latent of an image H x W, in words
    parameters: int = 0  # of encoder and decoder
    decoder_parameters: int = 0
    steps: int | None = None  # default number of decoding steps; None if there is none to choose
    only_steps: int | None = None  # the one number of decoding steps that a decoder knows
    encoder: str | None = None  # the encoder that was attached to a model without one

    @property
    def has_steps(self) -> bool:
        """Whether there is a number of decoding steps to choose."""
        return self.steps is not None and self.only_steps is None

    def describe(self) -> dict[str, Any]:
        """Return the attributes that identify the autoencoder, as JSON types."""
        described = {
            "kind": self.kind,
            "source": self.source,
            "dtype": str(self.dtype).removeprefix("torch."),
            "steps": self.steps,
            "sha256": self.sha256,
            "latent": self.latent_rule,
        }
        return described if self.encoder is None else described | {"encoder": self.encoder}

    @abstractmethod
    def encode(self, images: Tensor) -> Any:
        """Return the latents of images (B, 3, H, W) in [-1, 1]: for a network the mode of the posterior, not scaled."""

    @abstractmethod
    def decode(self, latent: Any, steps: int | None = None, noise: Any = None) -> Tensor:
        """Return images (B, 3, H, W) in float32, about [-1, 1]: not clamped, and possibly not finite.

        Args:
            latent: what ``encode`` returned.
            steps: number of decoding steps; by default ``self.steps``.
            noise: what ``noise`` returned; by default for seed 0 and the numbers 0 to B - 1.
        """

    @abstractmethod
    def latent_bytes(self, latent: Any) -> list[int]:
        """Return the size of each image's latent: for networks 2 bytes per number, whatever their dtype."""

    def check_steps(self, steps: int | None) -> None:
        """Raise ValueError unless the decoder can take this number of steps; None is its default."""
        if steps is not None and self.only_steps not in (None, steps):
            raise ValueError(f"{self.name}: expected {self.only_steps} decoding steps, no other number, found {steps}")

    def noise(self, latent: Any, seed: int, numbers: Sequence[int]) -> Any:
        """Draw the noise of one call of ``decode``; return None if the decoder is deterministic.

        The noise of image i depends on (seed, numbers[i]), neither negative, and on its size; not on batch or device.
        """
        return None

    def flops(self, height: int, width: int, steps: int | None = None) -> tuple[int, int] | None:
        """Return the FLOPs to encode and to decode one image (a multiply-add is 2); None without a network."""
        return None

    def _check_images(self, images: Tensor) -> None:
        height, width = images.shape[2:]
        if height % self.spatial_factor or width % self.spatial_factor:
            raise ValueError(
                f"{self.name}: expected images with sides that are multiples of {self.spatial_factor}, found "
                f"{height} x {width}; crop them first"
            )


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
        dtype: dtype of the networks.
        encoder: encoder for an AutoencoderSSDD without one; others ignore it.

    Raises:
        ValueError, CheckpointError, OSError, ImportError: with one line.
    """
    path = Path(name)
    if not path.exists() and (match := re.fullmatch(r"(jpeg|bicubic):(.*)", name)):
        return _load_baseline(name, match[1], match[2])
    if not path.exists() and (match := re.fullmatch(OWN_CODE, name)):
        return OwnCode(name, match[1], match[2], torch.device(device), dtype)
    if not path.is_dir() and name.endswith((".pth", ".pt", ".ckpt", ".bin", ".pkl")):
        raise CheckpointError(
            f"{name}: expected a model folder or a .safetensors file, found the name of a pickle, which can run code "
            "and is never loaded: load it in code of yours with encode() and decode() and name that file.py:NAME"
        )
    return _load_saved(name, torch.device(device), dtype, encoder)


def check_encoder_attached(autoencoders: Iterable[Autoencoder], encoder: str | None) -> None:
    """Raise ValueError, naming the models, if an ``encoder`` was given and none of them took it."""
    autoencoders = list(autoencoders)
    if encoder is not None and all(autoencoder.encoder is None for autoencoder in autoencoders):
        names = ", ".join(dict.fromkeys(autoencoder.name for autoencoder in autoencoders))
        raise ValueError(f"{names}: expected a model without an encoder for --encoder, found none")


# ---- networks --------------------------------------------------------------------------------------------------------


class Network(Autoencoder):
    """Move tensors and count FLOPs around ``_encode`` and ``_decode`` of a subclass."""

    device: torch.device
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
        return self._encode(images.to(self.device, self.dtype))

    @torch.inference_mode()
    def decode(self, latent: Tensor, steps: int | None = None, noise: Any = None) -> Tensor:
        if noise is None:
            noise = self.noise(latent, 0, range(len(latent)))
        images = self._decode(latent.to(self.device, self.dtype), self.steps if steps is None else steps, noise)
        height, width = (side * self.spatial_factor for side in latent.shape[2:])
        if images.shape != (len(latent), 3, height, width):
            raise ValueError(
                f"{self.name}: expected images {(len(latent), 3, height, width)} from decode, found "
                f"{tuple(images.shape)}"
            )
        return images.float()

    def latent_bytes(self, latent: Tensor) -> list[int]:
        return [z.numel() * 2 for z in latent]

    def flops(self, height: int, width: int, steps: int | None = None) -> tuple[int, int]:
        with FlopCounterMode(display=False) as encoding:
            latent = self.encode(torch.full((1, 3, height, width), -1.0))
        with FlopCounterMode(display=False) as decoding:
            self.decode(latent, steps)
        return encoding.get_total_flops(), decoding.get_total_flops()


_OURS = {"AutoencoderSSDD": AutoencoderSSDD, "AutoencoderKLBaseline": AutoencoderKLBaseline}


class PretrainedAutoencoder(Network):
    """A model of one of the ``INTERFACES``, in eval mode, on its device and in its dtype, with an encoder.

    Factor and channels of its latents are found by encoding an image; raises CheckpointError where that fails.
    """

    def __init__(self, name: str, model: Any, source: str, digests: dict[str, str], encoder: str | None = None) -> None:
        self.name, self.kind, self.source, self.sha256 = name, type(model).__name__, source, digests
        self.device, self.dtype, self.model, self.encoder = model.device, model.dtype, model, encoder
        self.interface = INTERFACES[self.kind]
        self.parameters = _count_parameters(model, getattr(model, "attached_encoder", None))
        self.decoder_parameters = _count_parameters(*(getattr(model, part, None) for part in DECODER_PARTS))
        self.only_steps = self.interface.only_steps
        self.steps = model.config["num_inference_steps"] if self.kind == "AutoencoderSSDD" else self.only_steps
        self.only_side = only_side(model)
        self.spatial_factor = 1
        self.latent_channels, self.spatial_factor = probe(name, model, self.encode)
        self.latent_rule = f"({self.latent_channels}, H/{self.spatial_factor}, W/{self.spatial_factor})"

    def noise(self, latent: Tensor, seed: int, numbers: Sequence[int]) -> Any:
        if self.interface.noise is None:
            return None
        generators = image_generators(seed, numbers)
        if self.interface.noise == "generators":
            return generators
        shape = (3, *(side * self.spatial_factor for side in latent.shape[2:]))
        return torch.stack([torch.randn(shape, generator=g, device="cpu") for g in generators]).to(self.device)

    def optimize(self, compile: bool) -> None:
        """Make a model of ours ready for full speed in its dtype; see ``AutoencoderSSDD.optimize``."""
        if self.kind == "AutoencoderSSDD":
            self.model.optimize(self.dtype, compile)

    def latent_bytes(self, latent: Tensor) -> list[int]:
        if self.kind != "VQModel":
            return super().latent_bytes(latent)
        bits = math.ceil(math.log2(self.model.config["num_vq_embeddings"]))  # of an index into the codebook
        return [math.ceil(z[0].numel() * bits / 8) for z in latent]

    def _check_images(self, images: Tensor) -> None:
        super()._check_images(images)
        height, width = images.shape[2:]
        if self.only_side not in (None, height) or self.only_side not in (None, width):
            raise ValueError(
                f"{self.name}: expected images of {self.only_side} x {self.only_side} pixels, the only size that it "
                f"decodes to, found {height} x {width}; crop them first"
            )

    def _encode(self, x: Tensor) -> Tensor:
        return encode(self.model, x)[0]

    def _decode(self, z: Tensor, steps: int | None, noise: Any) -> Tensor:
        options: dict[str, Any] = {}
        if self.interface.noise == "tensor":
            options = {"num_inference_steps": steps, "noise": noise}
        elif self.interface.noise == "generators":  # it draws in the latent's dtype, at the start and between the steps
            options = {"generator": noise}
        y = self.model.decode(z.unsqueeze(2) if self.interface.frames else z, **options).sample
        if self.interface.frames:
            y = y.squeeze(2)
        if self.interface.alpha:
            y = y[:, :3]
        return y * 2 - 1 if self.interface.unit_range else y


class OwnCode(Network):
    """A user's encoder, as ``ForeignEncoder`` takes it, that has ``decode(z)`` besides.

    ``decode`` gets the mode of the latent, (B, c, h, w), and returns images (B, 3, H, W) in about [-1, 1], or an object
    of diffusers with them as ``sample``. Noise of its own would not follow the seed. A module that states a ``dtype``
    runs in it. The attribute ``decoder`` says which parameters are the decoder's.
    """

    def __init__(self, typed: str, path: str, attribute: str, device: torch.device, dtype: torch.dtype) -> None:
        own = load_own(typed, path, attribute)
        self.foreign = ForeignEncoder(own, typed).cast(dtype).to(device)
        file = Path(path)
        self.name, self.kind, self.source = f"{file.name}:{attribute}", type(own).__name__, typed
        self.sha256 = {file.name: sha256(file)} if path.endswith(".py") else {}
        self.device, self.dtype = device, self.foreign.dtype
        self.spatial_factor, self.latent_channels = f, c = self.foreign.spatial_factor, self.foreign.latent_channels
        self.latent_rule = f"({c}, H/{f}, W/{f})"
        parts = [own] if isinstance(own, nn.Module) else getattr(own, "__dict__", {}).values()
        self.parameters = _count_parameters(*parts)
        self.decoder_parameters = _count_parameters(getattr(own, "decoder", None))
        side = 256  # a multiple of every spatial factor that ``ForeignEncoder`` takes
        try:
            self.decode(self.encode(torch.zeros(1, 3, side, side)))
        except Exception as error:  # whatever the user's code raises
            raise ValueError(
                f"{typed}: expected code with encode(x) and decode(z) that encodes and decodes an image of "
                f"{side} x {side} pixels, found {one_line(error)}"
            ) from error

    def _encode(self, x: Tensor) -> Tensor:
        return self.foreign(x)[:, : self.latent_channels].to(self.dtype)  # (B, 2c, h, w): mean, then log-variance

    def _decode(self, z: Tensor, steps: int | None, noise: Any) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            decoded = self.foreign.source.decode(z)
        return getattr(decoded, "sample", decoded)


def _count_parameters(*parts: Any) -> int:
    """Count the parameters of those parts that are modules, shared ones once."""
    return sum(p.numel() for p in {p for part in parts if isinstance(part, nn.Module) for p in part.parameters()})


# ---- saved models ----------------------------------------------------------------------------------------------------


def _load_saved(name: str, device: torch.device, dtype: torch.dtype, encoder: str | None) -> PretrainedAutoencoder:
    """Read a model from safetensors, and attach the encoder to one that only decodes."""
    if name.endswith(".safetensors") and not Path(name).is_dir():
        files, source = [Path(name)], name
        folder = files[0].parent
        model = read_single_file(files[0]).to(dtype)
    else:
        folder = find_model(
            name,
            lambda hub: download(hub, lambda config: class_name(hub, config)),
            "jpeg:BYTES, bicubic:FACTOR, a .safetensors file in the layout of the authors or of LDM, code of yours "
            "(file.py:NAME, package.module:NAME), ",
        )
        files = find_weights(name, lambda file: path if (path := folder / file).is_file() else None)
        model = read_model(name, folder, files, dtype, _OURS.get(class_name(name, folder)))
        source = _source(name, folder)
    model = model.to(device).eval()
    digests = {file.name: sha256(file) for file in files}
    has_encoder = model.config.get("has_encoder", True)  # then --encoder is for other models
    beside = encoder_beside(name, model.config, None if has_encoder else encoder)
    if beside is None:
        return PretrainedAutoencoder(_display_name(name), model, source, digests)
    attached = load_encoder(beside, name, model.config, folder)
    digests[beside] = encoder_digest(attached)
    model.attach_encoder(cast(attached, model.dtype))
    return PretrainedAutoencoder(_display_name(name), model, source, digests, beside)


def read_single_file(path: Path) -> Any:
    """Return the KL-VAE of a file in LDM's layout, or else the AutoencoderSSDD of one in the authors' layout.

    It is on the CPU, in the file's precision. Raises CheckpointError for any other file.
    """
    with quiet("diffusers"):
        return read_ldm_vae(path) or AutoencoderSSDD.from_original(path)


def _display_name(name: str) -> str:
    """Return the name of a folder or file, or of the run or pipeline that it is the model/, vae/ or an export of."""
    path = Path(name)
    if not path.exists():
        return name
    path = path.absolute()
    while path.name in ("model", "vae") and path.parent.name:
        path = path.parent
    if path.parent.name == "exports" and path.name.isdecimal():
        return f"{path.parent.parent.name}@{int(path.name)}"
    return path.stem if path.is_file() else path.name


def _source(name: str, folder: Path) -> str:
    """Return the folder, an embedded name, or a hub id and the commit of its snapshot in the hub's cache."""
    if Path(name).is_dir():
        return str(folder)
    parts = folder.parts
    return f"{name}@{parts[parts.index('snapshots') + 1]}" if "snapshots" in parts else name


# ---- baselines without a network -------------------------------------------------------------------------------------


def _load_baseline(name: str, kind: str, number: str) -> Autoencoder:
    if not re.fullmatch(r"[1-9]\d{0,8}", number, re.ASCII):
        unit = "BYTES, of a file" if kind == "jpeg" else "FACTOR, of the sides"
        raise ValueError(f"{name}: expected {kind}:{unit}, a positive whole number, found {number!r}")
    return Jpeg(int(number)) if kind == "jpeg" else Bicubic(int(number))


class Jpeg(Autoencoder):
    """JPEG files of at most ``budget`` bytes each, at the best quality from 1 to 95 that a binary search finds.

    Pillow's defaults otherwise: 4:2:0 chroma, standard Huffman tables. A latent is a list of files. An image whose file
    is over the budget even at quality 1 decodes to NaN, and its latent counts 0 bytes.
    """

    _BEST_QUALITY = 95  # Pillow's advice: above it files grow and pictures do not get better

    def __init__(self, budget: int) -> None:
        self.budget, self.name, self.kind, self.spatial_factor = budget, f"jpeg@{budget}B", "JPEG", 1
        self.latent_rule = f"a file of at most {budget} bytes, quality 1 to {self._BEST_QUALITY}, 4:2:0"
        library = "libjpeg-turbo" if features.check_feature("libjpeg_turbo") else "libjpeg"
        self.source = f"Pillow {Image.__version__}, {library} {features.version_codec('jpg')}"

    def encode(self, images: Tensor) -> list[bytes]:
        return [self._file(Image.fromarray(pixels)) for pixels in tensor_to_image(images)]

    def _file(self, picture: Image.Image) -> bytes:
        def file(quality: int) -> bytes:
            stream = io.BytesIO()
            picture.save(stream, "JPEG", quality=quality)
            return stream.getvalue()

        too_large = bisect(range(1, self._BEST_QUALITY + 1), self.budget, key=lambda quality: len(file(quality)))
        return file(max(1, too_large))

    def decode(self, latent: list[bytes], steps: int | None = None, noise: Any = None) -> Tensor:
        images = [image_to_tensor(np.asarray(Image.open(io.BytesIO(file), formats=["JPEG"]))) for file in latent]
        for image, size in zip(images, self.latent_bytes(latent), strict=True):
            if not size:
                image.fill_(math.nan)
        return torch.stack(images)

    def latent_bytes(self, latent: list[bytes]) -> list[int]:
        return [len(file) if len(file) <= self.budget else 0 for file in latent]


class Bicubic(Autoencoder):
    """Reduce images by ``factor`` and enlarge them again, both bicubic, as ``pairs.bicubic_baseline`` has it.

    A latent is uint8 (B, h, w, 3).
    """

    def __init__(self, factor: int) -> None:
        self.spatial_factor, self.name, self.kind = factor, f"bicubic:{factor}", "bicubic"
        self.source, self.latent_rule = f"Pillow {Image.__version__}", f"(3, H/{factor}, W/{factor}) of 8 bits"

    def encode(self, images: Tensor) -> Pixels:
        self._check_images(images)
        height, width = (side // self.spatial_factor for side in images.shape[2:])
        return _resize(tensor_to_image(images), height, width)

    def decode(self, latent: Pixels, steps: int | None = None, noise: Any = None) -> Tensor:
        height, width = (side * self.spatial_factor for side in latent.shape[1:3])
        return torch.stack([image_to_tensor(image) for image in _resize(latent, height, width)])

    def latent_bytes(self, latent: Pixels) -> list[int]:
        return [image.nbytes for image in latent]


def _resize(images: Pixels, height: int, width: int) -> Pixels:
    resized = [Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC) for image in images]
    return np.stack([np.asarray(image) for image in resized])
