"""The KL-VAE: the encoder of small models, and the baseline that SSDD is compared with.

Shapes: B batch, H x W pixels, c latent channels, h x w latent grid.
"""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...checkpoints.names import DIFFUSERS_ENCODER, rename
from ...nn.kl_baseline import AutoencoderKLBaseline
from ...objectives.adversarial import (
    DiscriminatorInputs,
    PatchDiscriminator,
    adaptive_weight,
    frozen,
    hinge_generator_loss,
)
from ...objectives.image import LossInputs, weighted_sum
from ...objectives.kl import sample_posterior
from ...runtime.processes import mean_over_processes
from ..config import KLVAEConfig
from ..random import BatchRandom
from ..starting import KLVAEStart, start_kl_vae
from .base import Network, Stage, State, StepLosses


class KLVAEOutput(NamedTuple):
    """reconstruction: (B, 3, H, W). kl: (B,)."""

    reconstruction: Tensor
    kl: Tensor


class KLVAEModel(nn.Module):
    """Encoder (unless frozen) and decoder in one forward pass."""

    def __init__(self, start: KLVAEStart, train_encoder: bool) -> None:
        super().__init__()
        self.encoder = start.encoder if train_encoder else None
        self.post_quant_conv, self.decoder = start.post_quant_conv, start.decoder

    def forward(self, images: Tensor, moments: Tensor | None, posterior_noise: Tensor) -> KLVAEOutput:
        """Return reconstructions.

        Args:
            images: (B, 3, H, W).
            moments: (B, 2c, h, w) of the frozen encoder, else None.
            posterior_noise: (B, c, h, w), standard normal.
        """
        if self.encoder is not None:
            moments = self.encoder(images)
        assert moments is not None
        z, kl = sample_posterior(moments, posterior_noise)
        return KLVAEOutput(self.decoder(self.post_quant_conv(z)), kl)


class KLVAEStage(Stage):
    """KL-VAE by regression: w_l1 |x - x_hat| + w_lpips LPIPS + w_kl KL, and a PatchGAN where one is wanted.

    The adversarial term is scaled to the regression's gradient at the output layer (Esser et al. 2021). The result is a
    standard ``AutoencoderKL`` where encoder and decoder are of one width, else an ``AutoencoderKLBaseline``.
    """

    def __init__(self, config: KLVAEConfig, objectives: bool = True) -> None:
        loss, trains_encoder = config.loss, config.model.train_encoder
        self.start = start_kl_vae(config.model)
        encoder = self.start.encoder
        super().__init__(config, encoder, encoder.size.factor, trains_encoder, objectives)
        self.model = KLVAEModel(self.start, trains_encoder)
        if self.start.given:
            self.given["start"] = nn.ModuleList([encoder, self.start.decoder])
        if config.recompute:
            self.model.decoder.gradient_checkpointing = True
            self.model.decoder._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
            encoder.gradient_checkpointing = trains_encoder
        self.weights = {"l1": loss.l1} | self.weights
        if objectives and loss.adversarial:
            self.adversary = PatchDiscriminator()

    def losses(self, network: Network, images: Tensor, random: BatchRandom, seen: int) -> StepLosses:
        size, weights = self.start.encoder.size, self.config.loss
        grid = [s // size.factor for s in images.shape[-2:]]
        out = network(images, self.frozen_moments(images), random.normal(size.latent_channels, *grid))
        reconstruction = out.reconstruction.float()
        terms = {"l1": (reconstruction - images).abs().mean()}
        terms |= self.image_losses(LossInputs(reconstruction, images, images.new_ones(len(images))), random)
        regression = total = weighted_sum(terms, self.weights)
        if self.model.encoder is not None:
            terms["kl"] = out.kl.mean()
            total = total + weights.kl * terms["kl"]
        inputs = None
        if self.adversary is not None and seen >= weights.adversarial_from_images:
            with frozen(self.adversary):
                terms["adversarial"] = hinge_generator_loss(self.adversary(reconstruction))
            terms["adaptive"] = self._adaptive_weight(regression, terms["adversarial"])
            total = total + weights.adversarial * terms["adaptive"] * terms["adversarial"]
            inputs = DiscriminatorInputs(images, reconstruction.detach())
        return StepLosses(total, terms, inputs)

    def _adaptive_weight(self, regression: Tensor, adversarial: Tensor) -> Tensor:
        output = self.model.decoder.conv_out.weight

        def gradient(loss: Tensor) -> Tensor:
            # of the whole batch: the weight must not depend on how the batch is cut over processes
            return mean_over_processes(torch.autograd.grad(loss, output, retain_graph=True)[0])

        return adaptive_weight(gradient(regression), gradient(adversarial))

    def compiled_parts(self) -> list[nn.Module]:
        if self.adversary is None:
            return super().compiled_parts()
        # The adaptive weight asks for the gradient of the output layer alone; inside a graph it would cost all of it.
        encoder, decoder = self.model.encoder, self.model.decoder
        return [*([encoder] if encoder is not None else []), decoder.mid_block, *decoder.up_blocks]

    # ---- result ------------------------------------------------------------------------------------------------

    def result(self, state: State) -> Any:
        size, decoder = self.start.encoder.size, self.start.decoder_channels
        own = {f"encoder.{name}": tensor for name, tensor in self.start.encoder.state_dict().items()} | state
        if decoder != size.channels or self.start.decoder_groups != size.groups:
            wide = AutoencoderKLBaseline(
                block_out_channels=size.channels,
                decoder_block_out_channels=decoder,
                latent_channels=size.latent_channels,
                encoder_groups=size.groups,
                decoder_groups=self.start.decoder_groups,
                sample_size=self.config.data.resolution,
            )
            wide.load_state_dict(own)
            return wide.eval()
        levels = len(size.channels)
        model = AutoencoderKL(
            block_out_channels=size.channels,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            layers_per_block=2,
            latent_channels=size.latent_channels,
            norm_num_groups=size.groups,
            sample_size=self.config.data.resolution,
        )
        model.load_state_dict({_diffusers_name(name): tensor for name, tensor in own.items()})
        return model.eval()

    def reconstruct(self, result: Any, images: Tensor, steps: int) -> Tensor:
        return result.decode(self.latents(result, images)).sample

    def export(self, result: Any, folder: Path, statistics: dict[str, Any]) -> None:
        # A KL-VAE's config knows only these two of the statistics.
        super().export(result, folder, {k: v for k, v in statistics.items() if k in ("scaling_factor", "shift_factor")})


def _diffusers_name(name: str) -> str:
    own = name.removeprefix("encoder.")
    return name if own == name else rename(own, DIFFUSERS_ENCODER)
