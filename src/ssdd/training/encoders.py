"""The encoder that ``--model.encoder`` names: ours, that of an autoencoder of diffusers, or the user's own module.

Shapes: B batch, H x W pixels, f spatial factor, c latent channels.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoints.config import read_config, short
from ..checkpoints.encoders import find_encoder
from ..checkpoints.kl_vae import KLEncoder
from ..checkpoints.layout import CheckpointError
from ..checkpoints.own_code import OWN_CODE, ForeignEncoder, load_own
from ..checkpoints.places import HUB_ID, find_model
from ..nn.encoder import Encoder
from ..nn.presets import ENCODER_WIDTH, GROUPS, EncoderSize, encoder_size
from .config import is_encoder_size

_OTHERS = "a size like f8c4, code of yours (package.module:NAME, file.py:NAME), "


@dataclass(frozen=True)
class EncoderChoice:
    """An encoder to train a decoder for.

    Attributes:
        module: (B, 3, H, W) in [-1, 1] -> moments (B, 2c, H/f, W/f): mean, then log-variance.
        latent_channels: c.
        spatial_factor: f.
        size: size of our architecture, which is AutoencoderKL's too; None: another one, not saved with the decoder.
        statistics: config entries of the decoder's model: those of scaling_factor, shift_factor, latents_mean and
            latents_std that the source states, and what a KL-VAE's pipelines need besides (latents_convention,
            force_upcast, FLUX.2's batch norm).
        foreign: whether it is somebody else's: the scale of its latents can be anything.
    """

    module: Any
    latent_channels: int
    spatial_factor: int
    size: EncoderSize | None
    statistics: dict[str, Any]
    foreign: bool = False


def choose_encoder(
    name: str, width: int = ENCODER_WIDTH, groups: int = GROUPS, trainable: bool = False
) -> EncoderChoice:
    """Return the encoder called ``name``.

    Args:
        name: a size such as f8c4 (random weights); a saved encoder, as ``checkpoints.encoders.find_encoder`` takes it
            (a model's folder, a run's or a pipeline's; an embedded model; a Hugging Face id OWNER/NAME or
            OWNER/NAME/SUBFOLDER; a single file); package.module:NAME or file.py:NAME, the user's own code (see
            ``ForeignEncoder``).
        width: channels of the first level of a random one.
        groups: groups of the norms of a random one.
        trainable: whether code of the user's own gets gradients.

    Raises:
        ValueError, CheckpointError, OSError, ImportError: it cannot be had; one line.
    """
    if is_encoder_size(name):
        size = encoder_size(name, width, groups)
        return EncoderChoice(Encoder(size), size.latent_channels, size.factor, size, {})
    if not Path(name).exists() and (code := re.fullmatch(OWN_CODE, name)):
        own = ForeignEncoder(load_own(name, code[1], code[2]), name, trainable)
        stated = own.statistics | ({"latents_convention": "pipeline"} if "batch_norm_mean" in own.statistics else {})
        return EncoderChoice(own, own.latent_channels, own.spatial_factor, None, stated, foreign=True)
    read = find_encoder(name, _OTHERS)
    if not isinstance(read, KLEncoder):
        own = ForeignEncoder(read, name, trainable)
        stated = own.statistics | ({"latents_convention": "pipeline"} if own.statistics else {})
        return EncoderChoice(own, own.latent_channels, own.spatial_factor, None, stated, foreign=True)
    stated = dict(read.statistics)
    if read.convention == "pipeline":
        stated["latents_convention"] = "pipeline"
    if read.force_upcast:
        stated["force_upcast"] = True
    return EncoderChoice(read.build(), read.size.latent_channels, read.size.factor, read.size, stated, read.foreign)


def resolve_model_folder(name: str, *kinds: str) -> str:
    """Return what ``from_pretrained`` of a whole model takes for ``name``: the result of a training run's folder,
    another folder, and an embedded name or a Hugging Face id OWNER/NAME as it is.

    Args:
        name: see above.
        kinds: classes that the folder may hold; AutoencoderSSDD by default.

    Raises:
        CheckpointError, FileNotFoundError: a run that is not finished yet, a folder of another class, or nothing.
    """
    folder = find_model(name, Path)
    if not Path(name).is_dir():
        if folder == Path(name) and not re.fullmatch(HUB_ID, name):
            raise FileNotFoundError(f"{name}: expected a model folder or a Hugging Face id OWNER/NAME, found neither")
        return name
    found, kinds = read_config(folder).get("_class_name"), kinds or ("AutoencoderSSDD",)
    if found not in kinds:
        raise CheckpointError(
            f"{folder}: expected an {' or '.join(kinds)} to start from, found {short(found)}; name it as "
            "--model.encoder to take its encoder alone"
        )
    return str(folder)
