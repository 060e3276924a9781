"""From which weights a stage starts: an encoder and a decoder, fresh or given."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL
from torch import nn

from ..autoencoder import AutoencoderSSDD
from ..checkpoints.config import BATCH_NORM, STATISTICS, read_config, short
from ..checkpoints.embedded import embedded_encoder
from ..checkpoints.kl_source import kl_encoder
from ..checkpoints.layout import CheckpointError
from ..checkpoints.places import download, find_model
from ..nn.decoder import Decoder
from ..nn.encoder import Encoder
from ..nn.kl_baseline import AutoencoderKLBaseline, kl_decoder
from ..nn.presets import decoder_size
from .config import FRESH, KLVAEModelConfig, ModelConfig, TeacherConfig, is_encoder_size
from .encoders import EncoderChoice, choose_encoder

logger = logging.getLogger(__name__)

_STATISTICS = (*STATISTICS, *BATCH_NORM, "latents_convention", "force_upcast")


@dataclass(frozen=True)
class Start:
    """Networks of a diffusion decoder before the first step.

    Attributes:
        encoder: with its statistics, which are empty where nobody measured them.
        decoder: on that encoder's latents.
        given: the decoder that it starts from, as it was loaded.
        normalize: whether the decoder is to get the encoder's latents normalised.
    """

    encoder: EncoderChoice
    decoder: Decoder
    given: Decoder | None = None
    normalize: bool = False

    def encoder_config(self) -> dict[str, Any]:
        """Return what ``AutoencoderSSDD`` is told about the encoder."""
        encoder = self.encoder.module
        if not isinstance(encoder, Encoder):
            levels = encoder.spatial_factor.bit_length()  # their number stands for the factor
            latent = {"latent_channels": encoder.latent_channels, "has_encoder": False}
            return {"block_out_channels": (128,) * levels, **latent}
        size = encoder.size
        return {
            "block_out_channels": size.channels,
            "latent_channels": size.latent_channels,
            "encoder_groups": size.groups,
        }


def start_flow(model: ModelConfig | TeacherConfig, train_encoder: bool) -> Start:
    """Return the networks that a config asks for.

    Raises:
        ValueError: they do not fit; one line.
    """
    if model.start_from is not None:
        return _given(model, train_encoder)
    assert isinstance(model, ModelConfig)
    encoder = choose_encoder(model.encoder or FRESH, model.encoder_width, model.encoder_groups, train_encoder)
    decoder = Decoder(decoder_size(model.decoder or "S"), encoder.module.latent_channels)
    decoder.reset_parameters(model.init)
    return Start(encoder, decoder, normalize=encoder.foreign and not train_encoder)


def _given(model: ModelConfig | TeacherConfig, train_encoder: bool) -> Start:
    """Return a whole model, or its decoder on another encoder.

    Where the latents have other channels, or are somebody else's and were its own encoder's, the decoder's layers that
    read them start afresh.
    """
    given = AutoencoderSSDD.from_pretrained(find_start(str(model.start_from), "AutoencoderSSDD"))
    decoder = getattr(model, "decoder", None)
    if decoder is not None and decoder_size(decoder) != given.decoder.size:
        raise ValueError(f"{model.start_from}: expected a decoder of size {decoder}, found {given.decoder.size}")
    name = model.encoder or embedded_encoder(given.config.encoder_sha256)
    if name is not None and not is_encoder_size(name):
        encoder = choose_encoder(name, trainable=train_encoder)
        before, now = given.decoder.latent_channels, encoder.module.latent_channels
        # It was trained together with its encoder, and on nobody else's.
        its_own = given.encoder is not None and given.decoder.latents_mean is None
        if before == now and (isinstance(model, TeacherConfig) or not encoder.foreign or not its_own):
            return Start(encoder, given.decoder, given.decoder)
        if isinstance(model, TeacherConfig):
            raise ValueError(
                f"{model.start_from}: expected a teacher of {now} latent channels for the encoder {name}, "
                f"found {before}"
            )
        logger.warning("%s: what reads its latents starts afresh, for those of %s", model.start_from, name)
        normalize = encoder.foreign and not train_encoder
        return Start(encoder, given.decoder.for_latents(now), given.decoder, normalize)
    if given.encoder is None:
        raise ValueError(f"{model.start_from} has no encoder of its own: pass --encoder")
    c = given.config
    name = f"f{given.spatial_factor}c{c.latent_channels}"
    if model.encoder not in (None, name):
        raise ValueError(f"{model.start_from}: expected an encoder {model.encoder}, found {name}")
    measured = c.latents_std is not None or c.scaling_factor != 1.0 or c.batch_norm_mean is not None
    statistics = {name: c[name] for name in _STATISTICS if measured and c[name] is not None}
    return Start(EncoderChoice(given.encoder, statistics), given.decoder, given.decoder)


def find_start(name: str, *kinds: str) -> Path:
    """Return the folder of a model of one of these classes, as ``find_model`` finds it.

    Raises CheckpointError or OSError with one line, for a model of another class before its weights are fetched.
    """

    def check(folder: Path) -> None:
        found = read_config(folder).get("_class_name")
        if found not in kinds:
            raise CheckpointError(
                f"{folder}: expected an {' or '.join(kinds)} to start from, found {short(found)}; name it as "
                "--model.encoder to take its encoder alone"
            )

    folder = find_model(name, lambda hub: download(hub, check))
    check(folder)
    return folder


@dataclass(frozen=True)
class KLVAEStart:
    """Networks of a KL-VAE before the first step. given: whether the decoder has weights already."""

    encoder: Encoder
    post_quant_conv: nn.Module
    decoder: Any
    decoder_channels: tuple[int, ...]
    decoder_groups: int
    given: bool = False


def start_kl_vae(model: KLVAEModelConfig) -> KLVAEStart:
    """Return the networks that a config asks for.

    Raises:
        ValueError: they do not fit; one line.
    """
    if model.start_from is not None:
        return _given_kl_vae(model.start_from)
    name = model.encoder or FRESH
    choice = choose_encoder(name, model.encoder_width, model.encoder_groups)
    if not isinstance(choice.module, Encoder):
        raise ValueError(f"{name}: expected an encoder of the KL-VAE's architecture for this stage, found another")
    channels, groups = choice.module.size.channels, choice.module.size.groups
    if model.decoder_width and model.decoder_width != channels[0]:
        channels = tuple(c * model.decoder_width // channels[0] for c in channels)
        groups = next(g for g in range(min(32, model.decoder_width // 4), 0, -1) if model.decoder_width % g == 0)
    c = choice.module.latent_channels
    return KLVAEStart(choice.module, nn.Conv2d(c, c, 1), kl_decoder(channels, c, groups), channels, groups)


def _given_kl_vae(name: str) -> KLVAEStart:
    """Return the networks of a trained KL-VAE."""
    folder = find_start(name, "AutoencoderKL", "AutoencoderKLBaseline")
    if read_config(folder)["_class_name"] == "AutoencoderKLBaseline":
        wide = AutoencoderKLBaseline.from_pretrained(folder, use_safetensors=True, low_cpu_mem_usage=False)
        c = wide.config
        channels = tuple(c.decoder_block_out_channels)
        return KLVAEStart(wide.encoder, wide.post_quant_conv, wide.decoder, channels, c.decoder_groups, given=True)
    vae = AutoencoderKL.from_pretrained(folder, use_safetensors=True, low_cpu_mem_usage=False)
    read = kl_encoder(vae)
    encoder = Encoder(read.size)
    encoder.load_state_dict(read.state)
    post = vae.post_quant_conv
    if post is None:  # a convolution that changes nothing
        post = nn.Conv2d(read.size.latent_channels, read.size.latent_channels, 1)
        nn.init.dirac_(post.weight)
        nn.init.zeros_(post.bias)  # type: ignore[arg-type]
    return KLVAEStart(encoder, post, vae.decoder, read.size.channels, read.size.groups, given=True)
