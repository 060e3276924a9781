"""The encoder whose latents are stored: found by name, hashed, run. Nothing of a model's decoder is needed.

Shapes: B crops of S x S pixels, f spatial factor, c latent channels, h = w = S / f.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..checkpoints.kl_vae import KLEncoder, read_encoder, read_layout
from ..checkpoints.places import download, find_model
from ..dtypes import DTYPES, Dtype
from ..nn.encoder import Encoder

_LOGVAR = (-30.0, 20.0)
"""Bounds of the log-variance in diffusers' ``DiagonalGaussianDistribution``, which ``AutoencoderSSDD.encode`` gives."""


@dataclass(frozen=True)
class Posterior:
    """mean and logvar of raw latents, (B, c, h, w)."""

    mean: Tensor
    logvar: Tensor


class LatentEncoder:
    """Encoder of an AutoencoderSSDD or AutoencoderKL, in eval mode.

    Attributes:
        name: as it was given. sha256: of shape and weights of the encoder alone: models that differ in their decoder,
            or in the statistics of their config, have the same latents.
    """

    def __init__(self, name: str, device: torch.device | str = "cpu", dtype: Dtype = "fp32") -> None:
        """
        Args:
            name: an embedded model, the folder of a model, a training run or a pipeline, a Hugging Face id.
            dtype: fp32, bf16 or fp16.

        Raises CheckpointError or OSError with one line.
        """
        read = read_encoder(find_model(name, lambda hub: download(hub, read_layout)))
        self.name, self.sha256 = name, _digest(read)
        self.latent_channels, self.spatial_factor = read.size.latent_channels, read.size.factor
        self.device = torch.device(device)
        self._read, self._dtype = read, DTYPES[dtype]

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "encoder_sha256": self.sha256,
            "spatial_factor": self.spatial_factor,
            "latent_channels": self.latent_channels,
        }

    @cached_property
    def _module(self) -> Encoder:
        """On the device when it is first used: who only plans needs none."""
        module = Encoder(self._read.size)
        module.load_state_dict(self._read.state)
        return module.to(self.device, self._dtype).eval().requires_grad_(False)

    @torch.inference_mode()
    def encode(self, x: Tensor) -> Posterior:
        """(B, 3, S, S) in [-1, 1] on its device -> what ``AutoencoderSSDD.encode(x).latent_dist`` has."""
        mean, logvar = self._module(x.to(self._dtype)).chunk(2, dim=1)
        return Posterior(mean, logvar.clamp(*_LOGVAR))


def _digest(read: KLEncoder) -> str:
    """Of the shape and the weights in float32."""
    digest = hashlib.sha256(repr((read.size.channels, read.size.latent_channels, read.size.groups)).encode())
    for name in sorted(read.state):
        tensor = read.state[name].detach().float().cpu().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
