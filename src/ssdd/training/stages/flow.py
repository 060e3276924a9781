"""The diffusion decoder by flow matching.

Shapes: B batch, H x W pixels, c latent channels, h x w latent grid, N tokens, D width of the decoder.
"""

import copy
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ... import flow
from ...autoencoder import AutoencoderSSDD
from ...checkpoints.encoders import ENCODER_ENTRY, encoder_digest
from ...checkpoints.own_code import ForeignEncoder, save_own_encoder
from ...nn.decoder import Decoder, VelocityFeatures
from ...nn.encoder import Encoder
from ...objectives.adversarial import DiscriminatorInputs, PatchDiscriminator, frozen, hinge_generator_loss
from ...objectives.image import LossInputs, weighted_sum
from ...objectives.kl import sample_posterior
from ...objectives.repa import DinoFeatures, Projection, feature_block, repa_loss
from ..config import DistillationConfig, FlowConfig
from ..random import BatchRandom
from ..starting import Start, start_flow
from .base import Network, Stage, State, StepLosses

STEPS = 8
"""Default number of decoding steps of a model that was not trained for a single one."""


class TrainingPoint(NamedTuple):
    """Where each image of a batch is trained: target (B, 3, H, W), t (B,), noise, posterior noise (B, c, h, w)."""

    target: Tensor
    t: Tensor
    noise: Tensor
    posterior_noise: Tensor


class FlowOutput(NamedTuple):
    """velocity, x_t: (B, 3, H, W). kl: (B,). projected: decoder features for REPA, (B, N, D'), if there are any."""

    velocity: Tensor
    x_t: Tensor
    kl: Tensor
    projected: Tensor | None


class FlowModel(nn.Module):
    """Everything trainable in one forward pass: the encoder (unless frozen), the decoder, the REPA projection."""

    def __init__(self, decoder: Decoder, encoder: nn.Module | None, projection: Projection | None) -> None:
        super().__init__()
        self.decoder, self.encoder, self.projection = decoder, encoder, projection
        self.block = feature_block(decoder.size.layers) if projection is not None else None

    def forward(self, images: Tensor, moments: Tensor | None, point: TrainingPoint) -> FlowOutput:
        """Return velocity and more at a training point.

        Args:
            images: (B, 3, H, W), what is encoded.
            moments: (B, 2c, h, w) of the frozen encoder, else None.
            point: where each image is trained.
        """
        if self.encoder is not None:
            moments = self.encoder(images)
        assert moments is not None
        z, kl = sample_posterior(moments, point.posterior_noise)
        x_t = flow.interpolate(point.target, point.noise, point.t)
        out = self.decoder(x_t, point.t, z, self.block)
        if isinstance(out, VelocityFeatures) and self.projection is not None:
            return FlowOutput(out.velocity, x_t, kl, self.projection(out.features))
        return FlowOutput(out, x_t, kl, None)


class FlowStage(Stage):
    """Diffusion decoder, with or without its encoder (arXiv 2510.04961).

    L = mean (v - v_hat)^2 + w_lpips LPIPS(x, x_t + t v_hat) + w_repa (1 - cos(MLP(features), DINOv2(x)))
    + w_kl KL while the encoder is trained (+ w_adversarial, an ablation), at t = sigmoid(N(0, 1)), or at t = 1 for a
    share of the images where the config wants that (not of the paper).
    """

    steps: tuple[int, ...] = (1, STEPS)

    def __init__(self, config: FlowConfig | DistillationConfig, objectives: bool = True) -> None:
        loss, trains_encoder = config.loss, isinstance(config, FlowConfig) and config.model.train_encoder
        self.start: Start = start_flow(config.model, trains_encoder)
        encoder, decoder = self.start.encoder.module, self.start.decoder
        super().__init__(config, encoder, encoder.spatial_factor, trains_encoder, objectives)
        self.weights = {"flow": loss.flow, "repa": loss.repa} | self.weights
        projection = None
        if objectives and loss.repa:
            self.frozen["features"] = self.given["features"] = features = DinoFeatures(loss.repa_network)
            projection = Projection(decoder.size.channels[-1], features.width)
        if isinstance(config, FlowConfig):
            self.weights |= {"kl": config.loss.kl, "adversarial": config.loss.adversarial}
            self.adversarial_from = config.loss.adversarial_from_images
            if objectives and config.loss.adversarial:
                self.adversary = PatchDiscriminator(in_channels=6, time=True)
        decoder.gradient_checkpointing = config.recompute
        if trains_encoder and isinstance(encoder, Encoder):
            encoder.gradient_checkpointing = config.recompute
        self.model = FlowModel(decoder, encoder if trains_encoder else None, projection)
        if not trains_encoder:
            self.statistics = self.start.encoder.statistics
        if self.start.normalize:
            self.normalize_latents = decoder.normalize_latents
        if self.start.given is not None:
            self.given["start"] = nn.ModuleList([encoder, self.start.given])

    # ---- training ----------------------------------------------------------------------------------------------

    def losses(self, network: Network, images: Tensor, random: BatchRandom, seen: int) -> StepLosses:
        moments = self.frozen_moments(images)
        with torch.no_grad():
            point = self.training_point(images, moments, random)
        out = network(images, moments, point)
        velocity = out.velocity.float()
        predicted = flow.predict_image(out.x_t, velocity, point.t)

        terms = {"flow": F.mse_loss(velocity, flow.target_velocity(point.target, point.noise))}
        terms |= self.image_losses(LossInputs(predicted, point.target, point.t), random)
        if out.projected is not None:
            grid = (-(-images.shape[-2] // 8), -(-images.shape[-1] // 8))  # the tokens' grid
            terms["repa"] = repa_loss(out.projected, self.frozen["features"](images, grid)).mean()
        if self.model.encoder is not None:
            terms["kl"] = out.kl.mean()
        inputs = None
        if self.adversary is not None and seen >= self.adversarial_from:
            fake = torch.cat([predicted, out.x_t], dim=1)
            with frozen(self.adversary):
                terms["adversarial"] = hinge_generator_loss(self.adversary(fake, point.t))
            real = torch.cat([point.target, out.x_t.detach()], dim=1)
            inputs = DiscriminatorInputs(real, fake.detach(), point.t)
        return StepLosses(weighted_sum(terms, self.weights), terms, inputs)

    def training_point(self, images: Tensor, moments: Tensor | None, random: BatchRandom) -> TrainingPoint:
        """Draw a random time on the way to the image, and a random sample of the posterior."""
        assert isinstance(self.config, FlowConfig)
        t = flow.logit_normal_time(random.normal())
        noise = random.normal(*images.shape[1:])
        posterior_noise = random.normal(*self.latent_shape(images))
        if self.config.one_step_share:
            t = torch.where(random.uniform() < self.config.one_step_share, 1.0, t)
        return TrainingPoint(images, t, noise, posterior_noise)

    def latent_shape(self, images: Tensor) -> tuple[int, int, int]:
        """Return (c, h, w) of the latent of images (B, 3, H, W)."""
        encoder = self.start.encoder.module
        factor = encoder.spatial_factor
        return encoder.latent_channels, images.shape[-2] // factor, images.shape[-1] // factor

    # ---- result ------------------------------------------------------------------------------------------------

    @property
    def default_steps(self) -> int:
        """Return the number of decoding steps of the result where none is asked for: one, if it was trained for it."""
        return 1 if isinstance(self.config, DistillationConfig) or self.config.one_step_share else STEPS

    def result(self, state: State) -> AutoencoderSSDD:
        decoder = self.start.decoder
        autoencoder = AutoencoderSSDD(
            **self.start.encoder_config(),
            decoder_channels=decoder.size.channels,
            decoder_layers=decoder.size.layers,
            decoder_heads=decoder.size.heads,
            decoder_groups=decoder.size.groups,
            num_inference_steps=self.default_steps,
            sample_size=self.config.data.resolution,
            **_latent_normalization(decoder),
            **self.statistics,
        )
        autoencoder.decoder.load_state_dict(_below("decoder.", state))
        encoder: Encoder | ForeignEncoder | None = autoencoder.encoder
        if encoder is None:
            encoder = copy.deepcopy(self.start.encoder.module).eval()
            autoencoder.attach_encoder(encoder)
        encoder.load_state_dict(_below("encoder.", state) or self.start.encoder.module.state_dict())
        return autoencoder.eval()

    def export(self, result: AutoencoderSSDD, folder: Path, statistics: dict[str, Any]) -> None:
        own = result.attached_encoder
        if isinstance(own, ForeignEncoder):
            statistics = {**statistics, ENCODER_ENTRY: encoder_digest(own)}
        super().export(result, folder, statistics)
        if self.trains_encoder and isinstance(own, ForeignEncoder):
            save_own_encoder(own, folder)


def _latent_normalization(decoder: Decoder) -> dict[str, Any]:
    """Return the config entries of the statistics by which latents enter a decoder, if it has any."""
    if decoder.latents_mean is None or decoder.latents_std is None:
        return {}
    values = {"mean": decoder.latents_mean, "std": decoder.latents_std}
    return {f"decoder_latents_{name}": tuple(value.flatten().tolist()) for name, value in values.items()}


def _below(prefix: str, state: State) -> State:
    """Return the tensors of one submodule, under its own names."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
