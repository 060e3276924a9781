"""The encoder that ``--model.encoder`` names: ours, that of an autoencoder of diffusers, or the user's own module.

Shapes: B batch, H x W pixels, f spatial factor, c latent channels.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoints.encoders import find_encoder
from ..checkpoints.kl_vae import KLEncoder
from ..checkpoints.own_code import OWN_CODE, ForeignEncoder, load_own
from ..nn.encoder import Encoder
from ..nn.presets import ENCODER_WIDTH, GROUPS, encoder_size
from .config import is_encoder_size

_OTHERS = "a size like f8c4, code of yours (package.module:NAME, file.py:NAME), "


@dataclass(frozen=True)
class EncoderChoice:
    """An encoder to train a decoder for.

    Attributes:
        module: (B, 3, H, W) in [-1, 1] -> moments (B, 2c, H/f, W/f): mean, then log-variance. One of our architecture,
            which is AutoencoderKL's too, or another one, which is not saved with the decoder.
        statistics: config entries of the decoder's model: those of scaling_factor, shift_factor, latents_mean and
            latents_std that the source states, and what a KL-VAE's pipelines need besides (latents_convention,
            force_upcast, FLUX.2's batch norm).
        foreign: whether it is somebody else's: the scale of its latents can be anything.
    """

    module: Encoder | ForeignEncoder
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
        return EncoderChoice(Encoder(encoder_size(name, width, groups)), {})
    code = None if Path(name).exists() else re.fullmatch(OWN_CODE, name)
    read = load_own(name, code[1], code[2]) if code else find_encoder(name, _OTHERS)
    if not isinstance(read, KLEncoder):
        own = ForeignEncoder(read, name, trainable)
        of_pipelines = "batch_norm_mean" in own.statistics if code else own.statistics
        stated = own.statistics | ({"latents_convention": "pipeline"} if of_pipelines else {})
        return EncoderChoice(own, stated, foreign=True)
    stated = dict(read.statistics)
    if read.convention == "pipeline":
        stated["latents_convention"] = "pipeline"
    if read.force_upcast:
        stated["force_upcast"] = True
    return EncoderChoice(read.build(), stated, read.foreign)
