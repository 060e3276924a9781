"""A KL-VAE however it is given: the model itself, its folder or single file, a pipeline's, a run's, a hub id."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers

from .kl_vae import KLEncoder, encoder_of, read_kl_encoder, read_layout
from .layout import CheckpointError
from .ldm import read_ldm_vae
from .places import download, find_model

_CLASSES = ("AutoencoderKL", "AutoencoderKLFlux2")


def kl_encoder(vae: Any) -> KLEncoder:
    """Return the encoder and the constants of a KL-VAE; tensors of a model in memory are shared, not copied.

    Raises CheckpointError or OSError with one line for anything else, or for another architecture than ours.
    """
    if isinstance(vae, str | Path) and Path(vae).is_file():
        found = read_ldm_vae(Path(vae))
        if found is None:
            raise CheckpointError(f"{vae}: expected a KL-VAE in the layout of LDM in this file, found none")
        return without_scale(kl_encoder(found))
    if isinstance(vae, str | Path):
        return read_kl_encoder(find_model(str(vae), lambda hub: download(hub, read_layout)))
    kind = next((name for name in _CLASSES if isinstance(vae, getattr(diffusers, name, ()))), None)
    if kind is None:
        raise CheckpointError(
            f"expected an AutoencoderKL, a model folder or a Hugging Face id, found {type(vae).__name__}"
        )
    state = vae.state_dict()
    if any(tensor.is_meta for tensor in state.values()):
        raise CheckpointError(
            f"expected an {kind} with its weights in memory, found them offloaded: take it before offloading"
        )
    return encoder_of(f"this {kind}", json.loads(vae.to_json_string()) | {"_class_name": kind}, state)


def without_scale(read: KLEncoder) -> KLEncoder:
    """Return a single file's encoder without the constants of a config, which it did not have; a batch norm stays."""
    return read if "batch_norm_mean" in read.statistics else replace(read, statistics={}, convention="measured")
