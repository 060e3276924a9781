"""A KL-VAE whose decoder is of another width than its encoder: a baseline of equal operations on a shared encoder.

A diffusers ``AutoencoderKL`` has one width for both; where they agree, that is what is trained and saved.

Shapes: B batch, H x W pixels, f spatial factor, c latent channels, h x w = H/f x W/f latent grid.
"""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import (
    AutoencoderMixin,
    DecoderOutput,
    DiagonalGaussianDistribution,
)
from diffusers.models.autoencoders.vae import (
    Decoder as KLDecoder,
)
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from .encoder import Encoder
from .presets import GROUPS, EncoderSize


def kl_decoder(channels: tuple[int, ...], latent_channels: int, groups: int) -> KLDecoder:
    """Return the decoder of an ``AutoencoderKL`` with these channels, finest level first."""
    return KLDecoder(
        in_channels=latent_channels,
        out_channels=3,
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=2,
        norm_num_groups=groups,
    )


class AutoencoderKLBaseline(ModelMixin, ConfigMixin, AutoencoderMixin):
    """Our encoder and the decoder of an ``AutoencoderKL``, with the interface of one.

    Args:
        block_out_channels: channels of each encoder level.
        decoder_block_out_channels: channels of each decoder level; as many levels.
        latent_channels: c.
        encoder_groups, decoder_groups: groups of the norms.
        sample_size: side of the training images in pixels.
        scaling_factor, shift_factor: normalised = (raw - shift_factor) * scaling_factor.
    """

    @register_to_config
    def __init__(
        self,
        block_out_channels: tuple[int, ...] = (128, 256, 512, 512),
        decoder_block_out_channels: tuple[int, ...] = (128, 256, 512, 512),
        latent_channels: int = 4,
        encoder_groups: int = GROUPS,
        decoder_groups: int = GROUPS,
        sample_size: int = 256,
        scaling_factor: float = 1.0,
        shift_factor: float = 0.0,
    ) -> None:
        super().__init__()
        if len(block_out_channels) != len(decoder_block_out_channels):
            raise ValueError(
                f"expected as many decoder levels as the encoder's {len(block_out_channels)}, "
                f"found {len(decoder_block_out_channels)}"
            )
        self.encoder = Encoder(EncoderSize(tuple(block_out_channels), latent_channels, encoder_groups))
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 1)
        self.decoder = kl_decoder(tuple(decoder_block_out_channels), latent_channels, decoder_groups)

    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput:
        """Return the posterior of images (B, 3, H, W) in [-1, 1]."""
        posterior = DiagonalGaussianDistribution(self.encoder(x))
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def decode(self, z: Tensor, return_dict: bool = True, generator: torch.Generator | None = None) -> DecoderOutput:
        """Return images (B, 3, H, W) of raw latents (B, c, h, w); nothing in it is random."""
        image = self.decoder(self.post_quant_conv(z))
        return DecoderOutput(sample=image) if return_dict else (image,)
