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
from ...checkpoints.own_code import ForeignEncoder, save_own_encoder
from ...nn.decoder import Decoder, VelocityFeatures
from ...nn.encoder import Encoder
from ...objectives.adversarial import PatchDiscriminator, frozen, hinge_generator_loss
from ...objectives.image import ImageLosses, LossInputs, weighted_sum
from ...objectives.kl import sample_posterior
from ...objectives.repa import DinoFeatures, Projection, feature_block, repa_loss
from ..config import DistillationConfig, FlowConfig
from ..random import BatchRandom
from ..starting import Start, start_flow
from .base import DiscriminatorInputs, Network, NormalizeLatents, State, StepLosses, blank_image

STEPS = 8
"""Default number of decoding steps of a model that is not distilled."""


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
        """images: (B, 3, H, W), what is encoded; moments: of the frozen encoder, else None."""
        if self.encoder is not None:
            moments = self.encoder(images)
        assert moments is not None
        z, kl = sample_posterior(moments, point.posterior_noise)
        x_t = flow.interpolate(point.target, point.noise, point.t)
        out = self.decoder(x_t, point.t, z, self.block)
        if isinstance(out, VelocityFeatures) and self.projection is not None:
            return FlowOutput(out.velocity, x_t, kl, self.projection(out.features))
        return FlowOutput(out, x_t, kl, None)


class FlowStage:
    """Diffusion decoder, with or without its encoder (arXiv 2510.04961).

    L = mean (v - v_hat)^2 + w_lpips LPIPS(x, x_t + t v_hat) + w_repa (1 - cos(MLP(features), DINOv2(x)))
    + w_kl KL while the encoder is trained (+ w_adversarial, an ablation), at t = sigmoid(N(0, 1)), or at t = 1 for a
    share of the images where the config wants that (not of the paper).
    """

    steps: tuple[int, ...] = (1, STEPS)

    def __init__(self, config: FlowConfig | DistillationConfig, objectives: bool = True) -> None:
        loss = config.loss
        self.config = config
        self.trains_encoder = isinstance(config, FlowConfig) and config.model.train_encoder
        self.start: Start = start_flow(config.model, config.data.resolution, self.trains_encoder)
        encoder, decoder = self.start.encoder, self.start.decoder
        self.statistics = {} if self.trains_encoder else self.start.statistics
        self.given: dict[str, nn.Module] = {} if self.trains_encoder else {"encoder": encoder}
        self.weights = {"flow": loss.flow, "repa": loss.repa}
        self.frozen: dict[str, nn.Module] = {} if self.trains_encoder else {"encoder": encoder.eval()}
        self.adversary: PatchDiscriminator | None = None
        projection = None
        if objectives:
            self.frozen["images"] = losses = ImageLosses(loss.lpips, loss.lpips_network, loss.own)
            self.weights |= losses.weights
            if loss.repa:
                self.frozen["features"] = features = DinoFeatures(loss.repa_network)
                projection = Projection(decoder.size.channels[-1], features.width)
            if isinstance(config, FlowConfig):
                self.weights |= {"kl": config.loss.kl, "adversarial": config.loss.adversarial}
                self.adversarial_from = config.loss.adversarial_from_images
                if config.loss.adversarial:
                    self.adversary = PatchDiscriminator(in_channels=6, time=True)
        if not self.trains_encoder:
            encoder.requires_grad_(False)
        decoder.gradient_checkpointing = config.recompute
        if self.trains_encoder and isinstance(encoder, Encoder):
            encoder.gradient_checkpointing = config.recompute
        self.model = FlowModel(decoder, encoder if self.trains_encoder else None, projection)
        self.normalize_latents: NormalizeLatents | None = decoder.normalize_latents if self.start.normalize else None
        if self.start.given:
            self.given["start"] = nn.ModuleList([encoder, decoder])

    # ---- training ----------------------------------------------------------------------------------------------

    def losses(self, network: Network, images: Tensor, random: BatchRandom, seen: int) -> StepLosses:
        with torch.no_grad():
            moments = self.frozen["encoder"](images) if "encoder" in self.frozen else None
            point = self.training_point(images, moments, random)
        out = network(images, moments, point)
        velocity = out.velocity.float()
        predicted = flow.predict_image(out.x_t, velocity, point.t)

        terms = {"flow": F.mse_loss(velocity, flow.target_velocity(point.target, point.noise))}
        terms |= self.frozen["images"](LossInputs(predicted, point.target, point.t), self.positions(random))
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

    def positions(self, random: BatchRandom) -> Tensor | None:
        """Draw where each image lies on LPIPS's grid."""
        return random.uniform(2) if self.config.loss.lpips_shift else None

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
        factor = self.start.spatial_factor
        return self.start.decoder.latent_channels, images.shape[-2] // factor, images.shape[-1] // factor

    def example(self, device: torch.device) -> Tensor:
        return blank_image(self.config.data.resolution, device)

    def compiled_parts(self) -> list[nn.Module]:
        return [self.model]

    # ---- result ------------------------------------------------------------------------------------------------

    def result(self, state: State) -> AutoencoderSSDD:
        decoder = self.start.decoder
        autoencoder = AutoencoderSSDD(
            **self.start.encoder_config(),
            decoder_channels=decoder.size.channels,
            decoder_layers=decoder.size.layers,
            decoder_heads=decoder.size.heads,
            decoder_groups=decoder.size.groups,
            num_inference_steps=self.steps[-1],
            sample_size=self.config.data.resolution,
            **_latent_normalization(decoder),
            **self.statistics,
        )
        autoencoder.decoder.load_state_dict(_below("decoder.", state))
        trained = _below("encoder.", state)
        if autoencoder.encoder is not None:
            autoencoder.encoder.load_state_dict(trained or self.start.encoder.state_dict())
        else:
            own = copy.deepcopy(self.start.encoder)
            own.load_state_dict(trained or self.start.encoder.state_dict())
            autoencoder.attach_encoder(own.eval())
        return autoencoder.eval()

    def latents(self, result: AutoencoderSSDD, images: Tensor) -> Tensor:
        return result.encode(images).latent_dist.mode()

    def reconstruct(self, result: AutoencoderSSDD, images: Tensor, steps: int) -> Tensor:
        return result.decode(self.latents(result, images), num_inference_steps=steps).sample

    def export(self, result: AutoencoderSSDD, folder: Path, statistics: dict[str, Any]) -> None:
        result.register_to_config(**statistics)
        result.save_pretrained(folder)
        if self.trains_encoder and isinstance(own := result.attached_encoder, ForeignEncoder):
            save_own_encoder(own, folder)


def _latent_normalization(decoder: Decoder) -> dict[str, tuple[float, ...]]:
    """Return the config entries of the statistics by which latents enter a decoder, if it has any."""
    if decoder.latents_mean is None or decoder.latents_std is None:
        return {}
    values = {"mean": decoder.latents_mean, "std": decoder.latents_std}
    return {f"decoder_latents_{name}": tuple(value.flatten().tolist()) for name, value in values.items()}


def _below(prefix: str, state: State) -> State:
    """Return the tensors of one submodule, under its own names."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
