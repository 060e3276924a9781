"""A decoder of somebody's raw latents: ours, a KL-VAE, any other class that evaluation knows, or the user's own code.

Shapes: B batch, c latent channels, h x w latent grid, f spatial factor.
"""

import hashlib
import logging
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.vae import DecoderOutput
from torch import Tensor

from ..autoencoder import AutoencoderSSDD
from ..autoencoder.estimate import LARGE_PIXELS
from ..checkpoints.config import read_config
from ..checkpoints.encoders import encoder_digest
from ..checkpoints.identity import LatentIdentity, check_decoder, find_decoder, identify, identify_weights
from ..checkpoints.own_model import MOST_STEPS
from ..checkpoints.places import download, find_model
from .autoencoders import Network, OwnCode, PretrainedAutoencoder, load_autoencoder, read_single_file

logger = logging.getLogger(__name__)


class LatentDecoder:
    """A decoder in eval mode on its device.

    Attributes:
        model: the autoencoder itself.
        identity: of the latents that it decodes.
        device: of the model.
    """

    def __init__(self, model: "AutoencoderSSDD | Network", identity: LatentIdentity) -> None:
        self.model, self.identity, self.device = model, identity, model.device

    @property
    def sha256(self) -> str:
        """Return the digest of what decides its images: the weights, and the settings of a model of ours."""
        known = self._weights
        if isinstance(self.model, AutoencoderSSDD):
            known = [*known, *(str(self.model.config[name]) for name in ("num_inference_steps", "noise_seed"))]
        return hashlib.sha256("\n".join(known).encode()).hexdigest()

    @cached_property
    def _weights(self) -> list[str]:
        """Digests of the weights as they were saved, and the statistics by which a decoder of ours reads latents."""
        if isinstance(self.model, AutoencoderSSDD):
            entering = (self.model.config[f"decoder_latents_{name}"] for name in ("mean", "std"))
            statistics = [str([float(number) for number in numbers]) for numbers in entering if numbers is not None]
            return [identify_weights(self.model.decoder), *statistics]
        return sorted(self.model.sha256.values())

    @property
    def latent_channels(self) -> int:
        """Return c."""
        return self.identity.latent_channels

    @property
    def spatial_factor(self) -> int:
        """Return f: the side of an image by that of its latent."""
        return self.identity.spatial_factor

    @torch.inference_mode()
    def decode(self, z: Tensor, num_inference_steps: int | None = None) -> DecoderOutput:
        """Return images (B, 3, h*f, w*f) in float32, about [-1, 1], as ``sample``, of raw latents (B, c, h, w).

        A decoder of diffusion takes the noise that it takes by default: the same for each image of a size.
        """
        if isinstance(self.model, AutoencoderSSDD):
            image = self.model.decode(z.to(self.device), num_inference_steps=num_inference_steps).sample
            return DecoderOutput(sample=image.float())
        network: Any = self.model  # a Network: mypy does not see that ours, with diffusers' untyped bases, is none
        network.check_steps(num_inference_steps)
        images = [network.decode(one, num_inference_steps) for one in (z.split(1) if self._draws_noise else (z,))]
        return DecoderOutput(sample=torch.cat(images))

    @property
    def _draws_noise(self) -> bool:
        """Whether the noise would depend on an image's place in the batch."""
        return isinstance(self.model, PretrainedAutoencoder) and self.model.interface.noise is not None

    def check(self, latents: LatentIdentity, force: bool = False) -> None:
        """Raise ValueError unless these latents may be decoded; see ``check_decoder``, whose warning is logged."""
        if warning := check_decoder(latents, self.identity, force):
            logger.warning("%s", warning)

    def describe_decoding(self, name: str, steps: int | None, source: str) -> str:
        """Return what decides an image, in words, for its file: ``NAME: what two names of one model share``.

        Args:
            name: of the decoder.
            steps: of decoding; None for its default.
            source: what is decoded.
        """
        facts = [source, f"decoder {self.sha256[:12]}"]
        if isinstance(self.model, AutoencoderSSDD):
            steps = steps or self.model.config["num_inference_steps"]
            facts.append(f"noise seed {self.model.config['noise_seed']}")
        return f"{name}: {', '.join(facts)}" + ("" if steps is None else f", steps {steps}")

    def set_noise_seed(self, seed: int) -> None:
        """Decode from other noise. Raises ValueError for a decoder that is not ours."""
        self._set("another seed of the noise", noise_seed=seed)

    def set_steps(self, steps: int) -> None:
        """Decode in so many steps by default. Raises ValueError for too many, and for a decoder that is not ours."""
        if not 1 <= steps <= MOST_STEPS:
            raise ValueError(f"expected from 1 to {MOST_STEPS} decoding steps, found {steps}")
        self._set("a number of decoding steps", num_inference_steps=steps)

    def _set(self, what: str, **settings: int) -> None:
        if not isinstance(self.model, AutoencoderSSDD):
            raise ValueError(f"expected a decoder of ours for {what}, found {self.identity.name}")
        self.model.register_to_config(**settings)

    def optimize(self, dtype: torch.dtype | None = None, compile: bool = True) -> None:
        """Make a model of ours ready for full speed; see ``AutoencoderSSDD.optimize``. Others stay as they are."""
        if isinstance(self.model, AutoencoderSSDD):
            _ = self._weights  # before they are converted
            self.model.optimize(dtype, compile)

    def tile_foreign(self, height: int, width: int) -> None:
        """Switch the tiling of a model that is not ours on for images over a megapixel; ours decides by itself."""
        model: Any = self.model.model if isinstance(self.model, PretrainedAutoencoder) else None
        if hasattr(model, "enable_tiling"):
            model.enable_tiling() if height * width > LARGE_PIXELS else model.disable_tiling()


def load_decoder(name: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> LatentDecoder:
    """Return the decoder of a model, which needs no encoder.

    Args:
        name: see ``load_autoencoder``.
        device: where it runs.
        dtype: of its network. A KL-VAE whose config says ``force_upcast`` runs in float32 instead of float16.

    Raises ValueError, CheckpointError, OSError or ImportError with one line.
    """
    folder, config = _find_folder(name), {}
    if folder is not None:
        config = read_config(folder)
        if config.get("_class_name") == "AutoencoderSSDD":
            model = AutoencoderSSDD.from_pretrained(str(folder), torch_dtype=dtype).to(device).eval()
            return LatentDecoder(model, identify(name))
    elif name.endswith(".safetensors"):
        model = read_single_file(Path(name))
        if isinstance(model, AutoencoderSSDD):
            return LatentDecoder(model.to(device, dtype).eval(), _identify_single_file(name, model))
        config = {**model.config, "_class_name": type(model).__name__}
    if dtype == torch.float16 and config.get("force_upcast", True) and config.get("_class_name") == "AutoencoderKL":
        logger.info("%s: float32 instead of float16, as its force_upcast asks", name)
        dtype = torch.float32
    loaded = load_autoencoder(name, device, dtype)
    if not isinstance(loaded, Network):
        raise ValueError(f"{name}: expected a decoder of latents, found {loaded.kind}")
    return LatentDecoder(loaded, identify_network(name, loaded))


def load_decoder_of(
    latents: LatentIdentity,
    name: str | None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    force: bool = False,
) -> LatentDecoder:
    """Return a decoder of these latents: the one that was asked for, or else the model that made them.

    Args:
        latents: whose latents.
        name: of the decoder; None for the model that made them, if it is on this machine and still the same.
        device: See ``load_decoder``.
        dtype: See ``load_decoder``.
        force: take a decoder of another encoder too, with a warning.

    Raises OtherEncoderError, with both names, for a decoder of another encoder, and as ``load_decoder``.
    """
    decoder = load_decoder(find_decoder(latents) if name is None else name, device, dtype)
    decoder.check(latents, force)
    return decoder


def _find_folder(name: str) -> Path | None:
    """Return the folder of a saved model; None for a single file, or code of the user's."""
    if Path(name).is_file() or (":" in name and not Path(name).exists()):
        return None
    return find_model(name, lambda hub: download(hub, read_config), "a single file, code of yours (file.py:NAME), ")


def _identify_single_file(name: str, model: AutoencoderSSDD) -> LatentIdentity:
    """Return whose latents a file in the authors' layout decodes: without an encoder in it, nobody knows."""
    if model.encoder is None:
        return LatentIdentity(name, None, model.spatial_factor, model.latent_channels)
    return identify(name)


def identify_network(name: str, loaded: Network) -> LatentIdentity:
    """Return whose latents a network decodes."""
    if isinstance(loaded, OwnCode):
        return LatentIdentity(name, encoder_digest(loaded.foreign), loaded.spatial_factor, loaded.latent_channels)
    return identify(name)
