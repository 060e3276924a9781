"""From which weights a flow stage starts: an encoder and a decoder, fresh or given."""

import re
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..autoencoder import AutoencoderSSDD
from ..nn.decoder import Decoder
from ..nn.presets import EncoderSize, decoder_size
from .config import TrainConfig
from .encoders import EncoderChoice, choose_encoder, resolve_model_folder

_STATISTICS = ("scaling_factor", "shift_factor", "latents_mean", "latents_std", "latents_convention", "force_upcast")


@dataclass(frozen=True)
class Start:
    """Networks before the first step.

    encoder: images -> moments. encoder_size: None for somebody's own module, which is not saved with the decoder.
    statistics: config entries of its latents, empty where nobody measured them.
    """

    encoder: nn.Module
    decoder: Decoder
    spatial_factor: int
    encoder_size: EncoderSize | None
    statistics: dict[str, Any]

    def encoder_config(self) -> dict[str, Any]:
        """What ``AutoencoderSSDD`` is told about the encoder."""
        size = self.encoder_size
        if size is not None:
            return {
                "block_out_channels": size.channels,
                "latent_channels": size.latent_channels,
                "encoder_groups": size.groups,
            }
        levels = self.spatial_factor.bit_length()  # their number stands for the factor
        return {
            "block_out_channels": (128,) * levels,
            "latent_channels": self.decoder.latent_channels,
            "has_encoder": False,
        }


def start(config: TrainConfig) -> Start:
    """The networks that ``config.model`` asks for. Raises ValueError with one line where they do not fit."""
    model = config.model
    if model.start_from is None:
        if (model.encoder is None or _is_preset(model.encoder)) and not model.train_encoder:
            raise ValueError("a frozen encoder must come from somewhere: pass --encoder or --model.start-from")
        choice = choose_encoder(model.encoder or "f8c4", model.encoder_width, model.encoder_groups)
        decoder = Decoder(decoder_size(model.decoder or "S"), choice.latent_channels)
        decoder.reset_parameters(model.init)
        return _checked(_chosen(choice, decoder), config)
    given = AutoencoderSSDD.from_pretrained(resolve_model_folder(model.start_from))
    if model.decoder is not None and decoder_size(model.decoder) != given.decoder.size:
        raise ValueError(f"{model.start_from}: expected a decoder of size {model.decoder}, found {given.decoder.size}")
    if model.encoder is not None and not _is_preset(model.encoder):
        choice = choose_encoder(model.encoder)
        if given.decoder.latent_channels != choice.latent_channels:
            raise ValueError(
                f"{model.start_from}: expected a decoder of {choice.latent_channels} latent channels for the encoder "
                f"{model.encoder}, found {given.decoder.latent_channels}"
            )
        return _checked(_chosen(choice, given.decoder), config)
    if given.encoder is None:
        raise ValueError(f"{model.start_from} has no encoder of its own: pass --encoder")
    found = f"f{given.spatial_factor}c{given.config.latent_channels}"
    if model.encoder not in (None, found):
        raise ValueError(f"{model.start_from}: expected an encoder {model.encoder}, found {found}")
    return _checked(_its_own(given, given.encoder), config)


def _chosen(choice: EncoderChoice, decoder: Decoder) -> Start:
    return Start(choice.module, decoder, choice.spatial_factor, choice.size, choice.statistics)


def _its_own(given: AutoencoderSSDD, encoder: nn.Module) -> Start:
    """Encoder and decoder of one model."""
    c = given.config
    size = EncoderSize(tuple(c.block_out_channels), c.latent_channels, c.encoder_groups)
    known = c.latents_std is not None or c.scaling_factor != 1.0
    statistics = {name: c[name] for name in _STATISTICS if known and c[name] is not None}
    return Start(encoder, given.decoder, size.factor, size, statistics)


def _checked(result: Start, config: TrainConfig) -> Start:
    check_factor(config, result.spatial_factor)
    if config.model.train_encoder and result.encoder_size is None:
        raise ValueError(f"{config.model.encoder} stays as it is: pass --model.no-train-encoder")
    return result


def check_factor(config: TrainConfig, factor: int) -> None:
    """Raises ValueError unless the crops are whole latent cells."""
    if config.data.resolution % factor:
        raise ValueError(
            f"expected a data.resolution that is a multiple of the encoder's factor {factor}, "
            f"found {config.data.resolution}"
        )


def _is_preset(name: str) -> bool:
    return re.fullmatch(r"f\d+c\d+", name) is not None
