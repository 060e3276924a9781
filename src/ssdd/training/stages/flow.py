"""The diffusion decoder: flow matching, and distillation to one step.

Shapes: B batch, H x W pixels, c latent channels, h x w latent grid, N tokens, D width of the decoder.
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ... import flow
from ...autoencoder import AutoencoderSSDD
from ...nn.decoder import Decoder, VelocityFeatures
from ...nn.encoder import Encoder
from ...objectives.adversarial import PatchDiscriminator, frozen, hinge_generator_loss
from ...objectives.distillation import teacher_image
from ...objectives.kl import sample_posterior
from ...objectives.perceptual import LPIPS
from ...objectives.repa import DinoFeatures, Projection, feature_block, repa_loss
from ..config import TrainConfig
from ..random import BatchRandom
from ..starting import Start, start
from .base import Judged, Network, State, StepLosses, blank_image

STEPS = 8
"""Default number of decoding steps of a model that is not distilled."""


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

    def forward(
        self, images: Tensor, target: Tensor, t: Tensor, noise: Tensor, posterior_noise: Tensor, moments: Tensor | None
    ) -> FlowOutput:
        """images: what is encoded; target: the end of the path; moments: of the frozen encoder, else None."""
        if self.encoder is not None:
            moments = self.encoder(images)
        assert moments is not None
        z, kl = sample_posterior(moments, posterior_noise)
        x_t = flow.interpolate(target, noise, t)
        out = self.decoder(x_t, t, z, self.block)
        if isinstance(out, VelocityFeatures) and self.projection is not None:
            return FlowOutput(out.velocity, x_t, kl, self.projection(out.features))
        return FlowOutput(out, x_t, kl, None)


@dataclass(frozen=True)
class Draw:
    """One training point of each image: target (B, 3, H, W), t (B,), noise, posterior noise (B, c, h, w)."""

    target: Tensor
    t: Tensor
    noise: Tensor
    posterior_noise: Tensor


class FlowStage:
    """Diffusion decoder, with or without its encoder (arXiv 2510.04961).

    L = mean (v - v_hat)^2 + w_lpips LPIPS(x, x_t + t v_hat) + w_repa (1 - cos(MLP(features), DINOv2(x)))
    + w_kl KL while the encoder is trained (+ w_adversarial, an ablation), at t = sigmoid(N(0, 1)), or at t = 1 for a
    share of the images where the config wants that (not of the paper).
    """

    preview_steps: tuple[int, ...] = (1, STEPS)

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.start: Start = start(config)
        trained = config.model.train_encoder
        encoder, decoder = self.start.encoder, self.start.decoder
        self.statistics = {} if trained else self.start.statistics
        self.frozen: dict[str, nn.Module] = {}
        if config.loss.lpips:
            self.frozen["perceptual"] = LPIPS(config.loss.lpips_network)
        projection = None
        if config.loss.repa:
            features = DinoFeatures(config.loss.repa_network)
            self.frozen["features"] = features
            projection = Projection(decoder.size.channels[-1], features.width)
        if not trained:
            self.frozen["encoder"] = encoder.eval().requires_grad_(False)
        decoder.gradient_checkpointing = config.recompute
        if trained and isinstance(encoder, Encoder):
            encoder.gradient_checkpointing = config.recompute
        self.model = FlowModel(decoder, encoder if trained else None, projection)
        self.adversary = PatchDiscriminator(in_channels=6, time=True) if config.loss.adversarial else None

    # ---- training ----------------------------------------------------------------------------------------------

    def losses(self, network: Network, images: Tensor, random: BatchRandom, seen: int) -> StepLosses:
        weights = self.config.loss
        with torch.no_grad():
            moments = self.frozen["encoder"](images) if "encoder" in self.frozen else None
            draw = self.draw(images, moments, random)
        out = network(images, draw.target, draw.t, draw.noise, draw.posterior_noise, moments)
        velocity = out.velocity.float()
        predicted = flow.predict_image(out.x_t, velocity, draw.t)

        terms = {"flow": F.mse_loss(velocity, flow.target_velocity(draw.target, draw.noise))}
        total = weights.flow * terms["flow"]
        if "perceptual" in self.frozen:
            terms["lpips"] = self.frozen["perceptual"](predicted, draw.target).float().mean()
            total = total + weights.lpips * terms["lpips"]
        if out.projected is not None:
            grid = (-(-images.shape[-2] // 8), -(-images.shape[-1] // 8))  # the tokens' grid
            terms["repa"] = repa_loss(out.projected, self.frozen["features"](images, grid)).mean()
            total = total + weights.repa * terms["repa"]
        if self.model.encoder is not None:
            terms["kl"] = out.kl.mean()
            total = total + weights.kl * terms["kl"]
        judged = None
        if self.adversary is not None and seen >= weights.adversarial_from_images:
            fake = torch.cat([predicted, out.x_t], dim=1)
            with frozen(self.adversary):
                terms["adversarial"] = hinge_generator_loss(self.adversary(fake, draw.t))
            total = total + weights.adversarial * terms["adversarial"]
            judged = Judged(torch.cat([draw.target, out.x_t.detach()], dim=1), fake.detach(), draw.t)
        return StepLosses(total, terms, judged)

    def draw(self, images: Tensor, moments: Tensor | None, random: BatchRandom) -> Draw:
        """The training point: a random time on the way to the image, a random sample of the posterior."""
        t = flow.logit_normal_time(random.normal())
        noise = random.normal(*images.shape[1:])
        posterior_noise = random.normal(*self.latent_shape(images))
        if self.config.one_step_share:
            t = torch.where(random.uniform() < self.config.one_step_share, 1.0, t)
        return Draw(images, t, noise, posterior_noise)

    def latent_shape(self, images: Tensor) -> tuple[int, int, int]:
        """(c, h, w) of the latent of images (B, 3, H, W)."""
        factor = self.start.spatial_factor
        return self.start.decoder.latent_channels, images.shape[-2] // factor, images.shape[-1] // factor

    def example(self, device: torch.device) -> Tensor:
        return blank_image(self.config.data.resolution, device)

    def compiled_parts(self) -> list[nn.Module]:
        return [self.model]

    # ---- result ------------------------------------------------------------------------------------------------

    def result(self, state: State) -> AutoencoderSSDD:
        size = self.start.decoder.size
        autoencoder = AutoencoderSSDD(
            **self.start.encoder_config(),
            decoder_channels=size.channels,
            decoder_layers=size.layers,
            decoder_heads=size.heads,
            decoder_groups=size.groups,
            num_inference_steps=self.preview_steps[-1],
            sample_size=self.config.data.resolution,
            **self.statistics,
        )
        autoencoder.decoder.load_state_dict(_below("decoder.", state))
        if autoencoder.encoder is not None:
            trained = _below("encoder.", state)
            autoencoder.encoder.load_state_dict(trained or self.start.encoder.state_dict())
        return autoencoder.eval()

    def latents(self, result: AutoencoderSSDD, images: Tensor) -> Tensor:
        if result.encoder is None:
            return self.frozen["encoder"](images).float().chunk(2, dim=1)[0]
        return result.encode(images).latent_dist.mode()

    def reconstruct(self, result: AutoencoderSSDD, images: Tensor, steps: int) -> Tensor:
        return result.decode(self.latents(result, images), num_inference_steps=steps).sample

    def export(self, result: AutoencoderSSDD, folder: Path, statistics: dict[str, Any]) -> None:
        result.register_to_config(**statistics)
        result.save_pretrained(folder)


class DistillationStage(FlowStage):
    """One-step student of a multi-step teacher, which is the frozen model that the student starts from.

    Both get the same noise and the posterior's mode; the student, at t = 1, is to reach in one step the image that
    the teacher reaches in ``config.teacher_steps``. LPIPS compares with the teacher's image too, REPA with the real.
    """

    preview_steps: tuple[int, ...] = (1,)

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        teacher = copy.deepcopy(self.model.decoder).eval().requires_grad_(False)
        teacher.gradient_checkpointing = False
        self.frozen["teacher"] = teacher

    def draw(self, images: Tensor, moments: Tensor | None, random: BatchRandom) -> Draw:
        """t = 1, the posterior's mode, and the teacher's image as the target."""
        assert moments is not None
        noise = random.normal(*images.shape[1:])
        no_noise = images.new_zeros(images.shape[0], *self.latent_shape(images))
        z, _ = sample_posterior(moments, no_noise)
        target = teacher_image(self.frozen["teacher"], z, noise, self.config.teacher_steps)
        return Draw(target, t=noise.new_ones(images.shape[0]), noise=noise, posterior_noise=no_noise)


def _below(prefix: str, state: State) -> State:
    """The tensors of one submodule, under its own names."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
