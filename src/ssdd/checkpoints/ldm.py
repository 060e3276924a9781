"""A KL-VAE in the layout of latent diffusion (LDM): the single files of SD, SDXL, SD3, FLUX and FLUX.2 as people
download them."""

import itertools
import re
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .layout import CheckpointError
from .own_code import one_line


def read_ldm_vae(path: Path) -> Any:
    """Return the VAE of a safetensors file in LDM's layout, alone or in a whole model, in the file's precision.

    It is an AutoencoderKL, or an AutoencoderKLFlux2 if there is a batch norm; None for a file of another layout. Raises
    CheckpointError for a VAE of another architecture.
    """
    tensors = _tensors(path)
    return _build(path, tensors) if tensors else None


def _tensors(path: Path) -> dict[str, Tensor]:
    """Read the VAE of a file in LDM's layout, alone or in a whole model; return nothing for other files."""
    parts = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.", "bn.running_")
    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            ours = any("relative_bias_table" in name for name in names)  # the authors' layout has diffusers' names too
            if "decoder.up_blocks.0.resnets.0.conv1.weight" in names and not ours:
                raise CheckpointError(
                    f"{path}: expected a single file in the layout of LDM or of the authors, found diffusers' layout: "
                    "pass the folder that holds it and its config.json"
                )
            for prefix in ("first_stage_model.", "vae.", ""):
                if f"{prefix}decoder.up.0.block.0.conv1.weight" in names:
                    kept = [name for name in names if name.startswith(tuple(prefix + part for part in parts))]
                    return {_own_name(name.removeprefix(prefix)): file.get_tensor(name) for name in kept}
    except (SafetensorError, OSError):
        pass  # the reader of the authors' layout says what is wrong with the file
    return {}


def _own_name(name: str) -> str:
    """Return the name that SD's file has for what FLUX.2's keeps within its encoder and decoder."""
    return re.sub(r"^(encoder|decoder)\.(quant_conv|post_quant_conv)\.", r"\2.", name)


def _build(path: Path, tensors: dict[str, Tensor]) -> Any:
    """Return the model with these weights; its config is read off their names and shapes."""

    def count(name: str) -> int:
        return next(i for i in itertools.count() if name.format(i) not in tensors)

    expected = f"{path}: expected the weights of an AutoencoderKL in the layout of LDM"
    levels = count("encoder.down.{}.block.0.conv1.weight")
    try:
        with torch.device("meta"):
            model = (AutoencoderKL if "bn.running_mean" not in tensors else diffusers.AutoencoderKLFlux2)(
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
        state |= {name: tensor for name, tensor in tensors.items() if name.startswith("bn.")}
        model.load_state_dict(state, assign=True)
    except Exception as error:  # another architecture
        raise CheckpointError(f"{expected}, found {one_line(error)[:400]}") from error
    if len(state) != len(tensors):  # the conversion leaves out what it does not know
        raise CheckpointError(f"{expected}, found {len(tensors) - len(state)} unexpected tensors")
    return model
