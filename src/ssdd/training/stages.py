"""What is trained, and on which loss: one class per stage.

A stage holds ``model``, the trainable network that the loop optimises, averages and saves, beside the frozen
perceptual network, which none of these ever sees.

Shapes: B batch, H x W pixels, c latent channels, h x w latent grid.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .. import flow
from ..autoencoder import AutoencoderSSDD
from ..checkpoints.kl_vae import read_kl_encoder
from ..nn.presets import encoder_size
from ..objectives.perceptual import LPIPS
from .config import ModelConfig, TrainConfig
from .random import BatchRandom

Losses = dict[str, Tensor]
"""Scalars by name; ``total`` is the one to minimise."""

Network = Callable[..., Any]
"""A stage's ``model``, perhaps compiled or wrapped."""


class Stage(Protocol):
    """What the loop needs of a stage."""

    model: Any
    """The trainable network."""
    perceptual: LPIPS | None
    """The frozen one."""

    def losses(self, network: Network, images: Tensor, random: BatchRandom) -> Losses:
        """Losses of a batch (B, 3, H, W) in [-1, 1]; ``network`` is ``model``, perhaps wrapped."""
        ...

    def export(self, model: Any, folder: Path, statistics: "LatentStatistics") -> None:
        """Writes a trained (averaged) ``model`` as a folder that ``from_pretrained`` reads."""
        ...

    def latents(self, model: Any, images: Tensor) -> Tensor:
        """Raw latents (posterior mode) of (B, 3, H, W) images, for the stored statistics."""
        ...


class LatentStatistics:
    """Streaming mean and standard deviation of raw latents, per channel, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.sum = torch.zeros(())
        self.squares = torch.zeros(())

    def update(self, z: Tensor) -> None:
        """z: (B, c, h, w)."""
        values = z.detach().double().cpu().transpose(0, 1).flatten(1)  # (c, B * h * w)
        self.count += values.shape[1]
        self.sum = self.sum + values.sum(1)
        self.squares = self.squares + values.square().sum(1)

    def config(self) -> dict[str, object]:
        """Config entries of a model: ``normalised = (raw - shift_factor) * scaling_factor``, also per channel."""
        mean = self.sum / self.count
        variance = self.squares / self.count - mean.square()
        shift = mean.mean()
        overall = variance.mean() + (mean - shift).square().mean()
        return {
            "scaling_factor": 1 / overall.sqrt().item(),
            "shift_factor": shift.item(),
            "latents_mean": tuple(mean.tolist()),
            "latents_std": tuple(variance.sqrt().tolist()),
        }


class FlowModel(nn.Module):
    """Encoder, path and velocity network in one forward pass."""

    def __init__(self, autoencoder: AutoencoderSSDD, train_encoder: bool) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.train_encoder = train_encoder
        if autoencoder.encoder is not None:
            autoencoder.encoder.requires_grad_(train_encoder)

    def forward(
        self, images: Tensor, t: Tensor, noise: Tensor, posterior_noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns velocity (B, 3, H, W), x_t (B, 3, H, W), KL of each posterior (B,)."""
        with torch.set_grad_enabled(self.train_encoder and torch.is_grad_enabled()):
            posterior = self.autoencoder.encode(images).latent_dist
            z = posterior.mean.float() + posterior.std.float() * posterior_noise
            kl = posterior.kl()
        x_t = flow.interpolate(images, noise, t)
        return self.autoencoder.decoder(x_t, t, z), x_t, kl


class FlowStage:
    """Diffusion decoder, with or without its encoder: flow matching + LPIPS (+ KL) (FACTS of arXiv 2510.04961).

    L = mean (v - v_hat)^2 + w_lpips LPIPS(x, x_t + t v_hat) + w_kl KL, at t = sigmoid(N(0, 1)).
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.model = FlowModel(build_autoencoder(config.model, config.data.resolution), config.model.train_encoder)
        self.perceptual = LPIPS(config.loss.lpips_network) if config.loss.lpips else None

    def losses(self, network: Network, images: Tensor, random: BatchRandom) -> Losses:
        autoencoder, weights = self.model.autoencoder, self.config.loss
        grid = [s // autoencoder.spatial_factor for s in images.shape[-2:]]
        t = flow.logit_normal_time(random.normal())
        noise = random.normal(*images.shape[1:])
        posterior_noise = random.normal(autoencoder.config.latent_channels, *grid)

        velocity, x_t, kl = network(images, t, noise, posterior_noise)
        velocity = velocity.float()
        losses = {"flow": (velocity - flow.target_velocity(images, noise)).square().mean()}
        total = weights.flow * losses["flow"]
        if self.perceptual is not None:
            losses["lpips"] = self.perceptual(flow.predict_image(x_t, velocity, t), images).float().mean()
            total = total + weights.lpips * losses["lpips"]
        if self.model.train_encoder:
            losses["kl"] = kl.float().mean()
            total = total + weights.kl * losses["kl"]
        return {"total": total, **losses}

    def latents(self, model: Any, images: Tensor) -> Tensor:
        return model.autoencoder.encode(images).latent_dist.mode()

    def export(self, model: Any, folder: Path, statistics: LatentStatistics) -> None:
        model.autoencoder.register_to_config(sample_size=self.config.data.resolution, **statistics.config())
        model.autoencoder.save_pretrained(folder)


class KLVAEModel(nn.Module):
    """A diffusers ``AutoencoderKL`` in one forward pass."""

    def __init__(self, autoencoder: Any) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, images: Tensor, posterior_noise: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the reconstruction (B, 3, H, W) and the KL of each posterior (B,)."""
        posterior = self.autoencoder.encode(images).latent_dist
        z = posterior.mean.float() + posterior.std.float() * posterior_noise
        return self.autoencoder.decode(z).sample, posterior.kl()


class KLVAEStage:
    """KL-VAE by regression: w_l1 |x - x_hat| + w_lpips LPIPS + w_kl KL. A diffusers ``AutoencoderKL``, so that its
    result is a standard folder, and its encoder is ours (same architecture) for the stages after it."""

    def __init__(self, config: TrainConfig) -> None:
        from diffusers import AutoencoderKL

        self.config = config
        self.size = encoder_size(config.model.encoder, config.model.encoder_width, config.model.encoder_groups)
        levels = len(self.size.channels)
        self.model = KLVAEModel(
            AutoencoderKL(
                block_out_channels=self.size.channels,
                down_block_types=("DownEncoderBlock2D",) * levels,
                up_block_types=("UpDecoderBlock2D",) * levels,
                layers_per_block=2,
                latent_channels=self.size.latent_channels,
                norm_num_groups=self.size.groups,
                sample_size=config.data.resolution,
            )
        )
        self.perceptual = LPIPS(config.loss.lpips_network) if config.loss.lpips else None

    def losses(self, network: Network, images: Tensor, random: BatchRandom) -> Losses:
        weights = self.config.loss
        grid = [s // self.size.factor for s in images.shape[-2:]]
        reconstruction, kl = network(images, random.normal(self.size.latent_channels, *grid))
        reconstruction = reconstruction.float()
        losses = {"l1": (reconstruction - images).abs().mean(), "kl": kl.float().mean()}
        total = weights.l1 * losses["l1"] + weights.kl * losses["kl"]
        if self.perceptual is not None:
            losses["lpips"] = self.perceptual(reconstruction, images).float().mean()
            total = total + weights.lpips * losses["lpips"]
        return {"total": total, **losses}

    def latents(self, model: Any, images: Tensor) -> Tensor:
        return model.autoencoder.encode(images).latent_dist.mode()

    def export(self, model: Any, folder: Path, statistics: LatentStatistics) -> None:
        # AutoencoderKL itself knows only these two of the statistics
        stored = {k: v for k, v in statistics.config().items() if k in ("scaling_factor", "shift_factor")}
        model.autoencoder.register_to_config(**stored)
        model.autoencoder.save_pretrained(folder, safe_serialization=True)


def build_stage(config: TrainConfig) -> Stage:
    """The stage that ``config.stage`` names, with fresh or given weights."""
    return FlowStage(config) if config.stage == "flow" else KLVAEStage(config)


def build_autoencoder(config: ModelConfig, resolution: int) -> AutoencoderSSDD:
    """The autoencoder of a run before its first step. Raises ValueError where weights and sizes do not fit."""
    if config.start_from is not None:
        return AutoencoderSSDD.from_pretrained(config.start_from)
    autoencoder = AutoencoderSSDD.from_preset(
        config.encoder,
        config.decoder,
        config.encoder_width,
        config.encoder_groups,
        sample_size=resolution,
        num_inference_steps=8,
    )
    if config.encoder_from is not None:
        read = read_kl_encoder(config.encoder_from)
        expected = encoder_size(config.encoder, config.encoder_width, config.encoder_groups)
        if read.size != expected:
            raise ValueError(
                f"{config.encoder_from}: expected {expected}, found {read.size}; set --model.encoder, "
                "--model.encoder-width and --model.encoder-groups"
            )
        autoencoder.encoder.load_state_dict(read.state)
    return autoencoder
