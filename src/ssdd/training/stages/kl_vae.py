"""The KL-VAE: the encoder of small models, and the baseline that SSDD is compared with.

Shapes: B batch, H x W pixels, c latent channels, h x w latent grid.
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from ...nn.presets import encoder_size
from ...objectives.adversarial import PatchDiscriminator, adaptive_weight, frozen, hinge_generator_loss
from ...objectives.kl import sample_posterior
from ...objectives.perceptual import LPIPS
from ...processes import mean_over_processes
from ..config import TrainConfig
from ..encoders import resolve_model_folder
from ..random import BatchRandom
from ..starting import check_factor
from .base import Judged, Network, State, StepLosses, blank_image


class KLVAEOutput(NamedTuple):
    """reconstruction: (B, 3, H, W). kl: (B,)."""

    reconstruction: Tensor
    kl: Tensor


class KLVAEModel(nn.Module):
    """A diffusers ``AutoencoderKL`` in one forward pass."""

    def __init__(self, autoencoder: Any) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, images: Tensor, posterior_noise: Tensor) -> KLVAEOutput:
        moments = self.autoencoder.encode(images).latent_dist.parameters
        z, kl = sample_posterior(moments, posterior_noise)
        return KLVAEOutput(self.autoencoder.decode(z).sample, kl)


class KLVAEStage:
    """KL-VAE by regression: w_l1 |x - x_hat| + w_lpips LPIPS + w_kl KL, and a PatchGAN where one is wanted.

    A diffusers ``AutoencoderKL``, so that its result is a standard folder; its encoder is ours, the same network.
    The adversarial term is scaled to the regression's gradient at the output layer (Esser et al. 2021).
    """

    preview_steps: tuple[int, ...] = (1,)

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.statistics: dict[str, Any] = {}
        self.model = KLVAEModel(_start(config))
        self.factor = 2 ** (len(self.model.autoencoder.config.block_out_channels) - 1)
        check_factor(config, self.factor)
        if config.recompute:
            self.model.autoencoder.enable_gradient_checkpointing()
        self.frozen: dict[str, nn.Module] = {}
        if config.loss.lpips:
            self.frozen["perceptual"] = LPIPS(config.loss.lpips_network)
        self.adversary = PatchDiscriminator() if config.loss.adversarial else None

    def losses(self, network: Network, images: Tensor, random: BatchRandom, seen: int) -> StepLosses:
        weights = self.config.loss
        grid = [s // self.factor for s in images.shape[-2:]]
        out = network(images, random.normal(self.model.autoencoder.config.latent_channels, *grid))
        reconstruction = out.reconstruction.float()
        terms = {"l1": (reconstruction - images).abs().mean(), "kl": out.kl.mean()}
        regression = weights.l1 * terms["l1"]
        if "perceptual" in self.frozen:
            terms["lpips"] = self.frozen["perceptual"](reconstruction, images).float().mean()
            regression = regression + weights.lpips * terms["lpips"]
        total = regression + weights.kl * terms["kl"]
        judged = None
        if self.adversary is not None and seen >= weights.adversarial_from_images:
            with frozen(self.adversary):
                terms["adversarial"] = hinge_generator_loss(self.adversary(reconstruction))
            terms["adaptive"] = self._adaptive_weight(regression, terms["adversarial"])
            total = total + weights.adversarial * terms["adaptive"] * terms["adversarial"]
            judged = Judged(images, reconstruction.detach())
        return StepLosses(total, terms, judged)

    def _adaptive_weight(self, regression: Tensor, adversarial: Tensor) -> Tensor:
        output = self.model.autoencoder.decoder.conv_out.weight

        def gradient(loss: Tensor) -> Tensor:
            # of the whole batch: the weight must not depend on how the batch is cut over processes
            return mean_over_processes(torch.autograd.grad(loss, output, retain_graph=True)[0])

        return adaptive_weight(gradient(regression), gradient(adversarial))

    def example(self, device: torch.device) -> Tensor:
        return blank_image(self.config.data.resolution, device)

    def compiled_parts(self) -> list[nn.Module]:
        if self.adversary is None:
            return [self.model]
        # The adaptive weight asks for the gradient of the output layer alone; inside a graph it would cost all of it.
        vae = self.model.autoencoder
        return [vae.encoder, vae.decoder.mid_block, *vae.decoder.up_blocks]

    def result(self, state: State) -> Any:
        model = AutoencoderKL.from_config(self.model.autoencoder.config)
        model.load_state_dict({name.removeprefix("autoencoder."): tensor for name, tensor in state.items()})
        return model.eval()

    def latents(self, result: Any, images: Tensor) -> Tensor:
        return result.encode(images).latent_dist.mode()

    def reconstruct(self, result: Any, images: Tensor, steps: int) -> Tensor:
        return result.decode(self.latents(result, images)).sample

    def export(self, result: Any, folder: Path, statistics: dict[str, Any]) -> None:
        # AutoencoderKL itself knows only these two of the statistics
        stored = {k: v for k, v in statistics.items() if k in ("scaling_factor", "shift_factor")}
        result.register_to_config(**stored)
        result.save_pretrained(folder, safe_serialization=True)


def _start(config: TrainConfig) -> Any:
    """A fresh AutoencoderKL with our encoder's sizes, or a given one."""
    if config.model.start_from is not None:
        folder = resolve_model_folder(config.model.start_from, kind="AutoencoderKL")
        return AutoencoderKL.from_pretrained(folder, use_safetensors=True, low_cpu_mem_usage=False)
    size = encoder_size(config.model.encoder or "f8c4", config.model.encoder_width, config.model.encoder_groups)
    levels = len(size.channels)
    return AutoencoderKL(
        block_out_channels=size.channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=2,
        latent_channels=size.latent_channels,
        norm_num_groups=size.groups,
        sample_size=config.data.resolution,
    )
