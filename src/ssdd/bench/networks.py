"""The contenders: our networks, those of the field in diffusers, and our own on their definitions.

Shapes: B batch, S side of an image, c latent channels, g x g latent grid.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor, nn

from .. import flow
from ..autoencoder import AutoencoderSSDD
from ..dtypes import DTYPES, Dtype
from ..nn import fast
from ..nn.decoder import Decoder
from ..nn.presets import decoder_size, encoder_size
from .config import DecodeBench, EncodeBench, MemoryBench, Mode, Peer

PEER_FACTOR, PEER_CHANNELS = 8, 4
_SD_CHANNELS = (128, 256, 512, 512)
_SD_SIZE = 512
OUR_SIZES = "plain", "onnx"
"""Peers that are our own network, in each of its sizes."""

Work = Callable[[], Tensor]


@dataclass(frozen=True)
class Contender:
    """work: of the side of an image and a batch, the call to measure. autoencoder: None where it knows no tiles.

    counted: the same work where its operations can be counted, if that is another call.
    """

    name: str
    work: Callable[[int, int], Work]
    autoencoder: Any
    counted: Callable[[int, int], Work] | None = None


@dataclass(frozen=True)
class Preparation:
    """How networks are made ready, the same for all."""

    device: torch.device
    dtype: Dtype
    mode: Mode
    compile: bool

    def ours(self, autoencoder: AutoencoderSSDD) -> AutoencoderSSDD:
        """On the device, by ``optimize`` if the mode is that: on a CPU with its fused norms in any case."""
        if self.mode == "eager":
            return self.plain(autoencoder)
        return autoencoder.to(self.device).optimize(DTYPES[self.dtype], self.compile or self.device.type == "cpu")

    def peer(self, network: Any, *parts: nn.Module) -> Any:
        """On the device, in channels-last if the mode is optimized; ``parts`` are what is compiled."""
        self.plain(network)
        if self.mode == "optimized":
            network.to(memory_format=torch.channels_last)
            for part in parts if self.compile else ():
                part.compile()
        return network

    def plain(self, network: Any) -> Any:
        """On the device, as it was made."""
        # nn.Module's own: that of diffusers warns of a list of exceptions that is empty here.
        nn.Module.to(network, self.device, DTYPES[self.dtype])
        return network.eval().requires_grad_(False)

    def random(self, *shape: int) -> Tensor:
        """Standard normal, always the same."""
        values = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(0))
        return values.to(self.device, DTYPES[self.dtype])


def decode_contenders(settings: DecodeBench | MemoryBench, device: torch.device) -> list[Contender]:
    """The peers in the order given, then ours. Raises ValueError for names that there are not."""
    return [decode_contender(kind, size, settings, device) for kind, size in decoder_kinds(settings)]


def decoder_kinds(settings: DecodeBench | MemoryBench) -> list[tuple[Peer | None, str]]:
    """Peer (None for ours) and size of each contender; ``plain`` and ``onnx`` come in each of our sizes."""
    found: list[tuple[Peer | None, str]] = []
    sizes = tuple(dict.fromkeys(settings.decoders))
    for peer in dict.fromkeys(settings.peers):
        found += [(peer, size) for size in sizes] if peer in OUR_SIZES else [(peer, "")]
    return found + [(None, size) for size in sizes]


def decode_contender(
    kind: Peer | None, size: str, settings: DecodeBench | MemoryBench, device: torch.device
) -> Contender:
    """One of ``decoder_kinds``."""
    how = Preparation(device, settings.dtype, settings.mode, settings.compile)
    if kind == "plain":
        return _plain(size, settings, how)
    if kind is None:
        return _ours(size, settings, how)
    if kind == "onnx":
        from .onnx import onnx_contender

        return onnx_contender(size, settings.latent, how)
    vae = stable_diffusion_vae() if kind == "kl" else AutoencoderTiny()
    del vae.encoder
    how.peer(vae, vae.decoder)

    def work(side: int, batch: int) -> Work:
        z = how.random(batch, PEER_CHANNELS, side // PEER_FACTOR, side // PEER_FACTOR)
        return lambda: vae.decode(z).sample

    return Contender(_peer_name(kind), work, vae)


def encode_contenders(settings: EncodeBench, device: torch.device) -> list[Contender]:
    """The peers in the order given, then ours. Raises ValueError for an unknown latent."""
    how = Preparation(device, settings.dtype, settings.mode, settings.compile)
    contenders = []
    for kind in dict.fromkeys(settings.peers):
        vae = stable_diffusion_vae() if kind == "kl" else AutoencoderTiny()
        del vae.decoder
        how.peer(vae, vae.encoder)
        contenders.append(Contender(_peer_name(kind), _encoding(vae, how), vae))
    ours = how.ours(AutoencoderSSDD.from_preset(settings.latent, "XXS"))
    return [*contenders, Contender(f"SSDD {settings.latent}", _encoding(ours, how), ours)]


def stable_diffusion_vae() -> Any:
    """``AutoencoderKL`` in the shape of Stable Diffusion's, f8c4, random weights."""
    return AutoencoderKL(
        block_out_channels=_SD_CHANNELS,
        down_block_types=("DownEncoderBlock2D",) * len(_SD_CHANNELS),
        up_block_types=("UpDecoderBlock2D",) * len(_SD_CHANNELS),
        layers_per_block=2,
        latent_channels=PEER_CHANNELS,
        sample_size=_SD_SIZE,
    )


def _peer_name(kind: Peer) -> str:
    return f"{'KL-VAE' if kind == 'kl' else 'Tiny-VAE'} f{PEER_FACTOR}c{PEER_CHANNELS}"


def _encoding(vae: Any, how: Preparation) -> Callable[[int, int], Work]:
    """The latent as a user takes it: the posterior's mode, or what there is."""

    def work(side: int, batch: int) -> Work:
        images = how.random(batch, 3, side, side).clamp(-1, 1)

        def encode() -> Tensor:
            found = vae.encode(images)
            return found.latents if hasattr(found, "latents") else found.latent_dist.mode()

        return encode

    return work


def _ours(size: str, settings: DecodeBench | MemoryBench, how: Preparation) -> Contender:
    latent = encoder_size(settings.latent)
    vae = how.ours(AutoencoderSSDD.from_preset(settings.latent, size, has_encoder=False))

    def work(side: int, batch: int) -> Work:
        z = how.random(batch, latent.latent_channels, side // latent.factor, side // latent.factor)
        return lambda: vae.decode(z, num_inference_steps=settings.steps).sample

    return Contender(f"SSDD-{size} {settings.latent}", work, vae)


def _plain(size: str, settings: DecodeBench | MemoryBench, how: Preparation) -> Contender:
    """Return our decoder on the definitions of ``nn.ops``, in PyTorch's own memory layout."""
    latent = encoder_size(settings.latent)
    network = how.plain(Decoder(decoder_size(size), latent.latent_channels))

    def work(side: int, batch: int) -> Work:
        z = how.random(batch, latent.latent_channels, side // latent.factor, side // latent.factor)
        noise = how.random(batch, 3, side, side)

        def decode() -> Tensor:
            with fast.reference():
                return flow.euler_sample(lambda x, t: network(x.to(z.dtype), t, z), noise, settings.steps)

        return decode

    return Contender(f"plain-{size} {settings.latent}", work, None)
