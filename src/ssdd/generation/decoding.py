"""The decoder that turns generated latents into images: an ``AutoencoderSSDD``, or the KL-VAE it is compared with."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.utils import is_accelerate_available

from ..checkpoints.kl_vae import read_config
from ..checkpoints.places import find_model


def load_decoder(name: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    """In eval mode on its device; ``decode(raw latent).sample`` in its default steps.

    Args:
        name: embedded name, folder of a model or of a finished training run, or Hugging Face id.

    Raises OSError or ValueError with one line for anything else.
    """
    from ..autoencoder import AutoencoderSSDD

    folder = find_model(name, Path)  # a hub id stays as it is: diffusers fetches it
    kind = read_config(folder).get("_class_name") if folder.is_dir() else None
    if kind == "AutoencoderKL":
        options = {"use_safetensors": True, "low_cpu_mem_usage": is_accelerate_available()}
        model = AutoencoderKL.from_pretrained(str(folder), torch_dtype=dtype, **options)
    elif kind in ("AutoencoderSSDD", None):
        model = AutoencoderSSDD.from_pretrained(str(folder), torch_dtype=dtype)
    else:
        raise ValueError(f"{name}: expected a decoder, an AutoencoderSSDD or AutoencoderKL, found {kind}")
    return model.to(device).eval()


def spatial_factor(decoder: Any) -> int:
    """f: side of an image by that of its latent."""
    return int(2 ** (len(decoder.config.block_out_channels) - 1))
