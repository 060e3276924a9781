"""A KL-VAE however it is given: the model itself, its folder, a pipeline's, a training run's, a hub id."""

import json
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL

from .kl_vae import KLEncoder, encoder_of, read_kl_encoder, read_layout
from .layout import CheckpointError
from .places import download, find_model


def kl_encoder(vae: Any) -> KLEncoder:
    """The encoder and the constants of a KL-VAE; tensors of a model in memory are shared, not copied.

    Raises CheckpointError or OSError with one line for anything else, or for another architecture than ours.
    """
    if isinstance(vae, str | Path):
        return read_kl_encoder(find_model(str(vae), lambda hub: download(hub, read_layout)))
    if not isinstance(vae, AutoencoderKL):
        raise CheckpointError(
            f"expected an AutoencoderKL, a model folder or a Hugging Face id, found {type(vae).__name__}"
        )
    state = vae.state_dict()
    if any(tensor.is_meta for tensor in state.values()):
        raise CheckpointError(
            "expected an AutoencoderKL with its weights in memory, found them offloaded: take it before offloading"
        )
    return encoder_of("this AutoencoderKL", json.loads(vae.to_json_string()) | {"_class_name": "AutoencoderKL"}, state)
