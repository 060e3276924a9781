"""The encoder of a diffusers KL-VAE (``AutoencoderKL``: SD-VAE, SDXL, our own kl-vae runs) under our names."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..nn.encoder import Encoder
from ..nn.presets import EncoderSize
from .layout import CheckpointError, Expectation, take
from .names import DIFFUSERS_ENCODER


@dataclass(frozen=True)
class KLEncoder:
    """Shape and weights of an encoder, in our names."""

    size: EncoderSize
    state: dict[str, Tensor]


def read_kl_encoder(folder: str | Path) -> KLEncoder:
    """Reads ``config.json`` and the safetensors of an ``AutoencoderKL`` folder.

    Raises CheckpointError if the folder is missing or holds something else.
    """
    folder = Path(folder)
    for needed in ("config.json", "diffusion_pytorch_model.safetensors"):
        if not (folder / needed).is_file():
            raise CheckpointError(f"{folder}: expected a KL-VAE folder of diffusers, found no {needed} there")
    config = json.loads((folder / "config.json").read_text())
    if config.get("_class_name") != "AutoencoderKL":
        raise CheckpointError(f"{folder}: expected an AutoencoderKL, found {config.get('_class_name')}")
    size = EncoderSize(tuple(config["block_out_channels"]), config["latent_channels"], config["norm_num_groups"])
    with torch.device("meta"):
        expected = Expectation(Encoder(size), DIFFUSERS_ENCODER)
    tensors = load_file(folder / "diffusion_pytorch_model.safetensors")
    tensors = {k: v for k, v in tensors.items() if k.startswith(("encoder.", "quant_conv."))}
    return KLEncoder(size, take(str(folder), tensors, expected))
