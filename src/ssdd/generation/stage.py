"""Flow matching on normalised latents, class-conditional.

Shapes: B batch, c latent channels, h x w latent grid.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import flow
from ..autoencoder.normalization import latent_map
from ..objectives.adversarial import PatchDiscriminator
from ..objectives.kl import sample_posterior
from ..tokenization import LatentDataset
from ..training.random import BatchRandom
from ..training.stages.base import Network, State, StepLosses
from .config import GenerationConfig
from .data import LatentBatch, Shape, normalization_of
from .model import build_dit, dit_size, null_class, predict_velocity, prepare


class LatentStage:
    """L = mean (v - v_hat)^2 at t = sigmoid(N(0, 1)), labels hidden at random for classifier-free guidance.

    Args:
        config: of the run.
        data: the latents.
        shapes: (c, h, w) of them, the most frequent one first; by default the one of ``data``.

    Raises:
        ValueError: data and settings do not go together.
    """

    adversary: PatchDiscriminator | None = None

    def __init__(self, config: GenerationConfig, data: LatentDataset, shapes: Sequence[Shape] = ()) -> None:
        self.config = config
        shapes = shapes or [data.latent_shape]
        if config.network == "diffusers" and any(shape != data.latent_shape for shape in shapes):
            raise ValueError(
                "diffusers' DiT needs square latents of one shape, found a set with buckets: use --network dit or "
                "lightning"
            )
        self.shape = tuple(shapes[0])
        self.statistics = normalization_of(data.statistics, self.shape[0])
        grids = [*shapes, data.latent_shape]  # the last is what samples have
        size = dit_size(config.size, grids, data.model.spatial_factor)
        self.model = build_dit(size, data.latent_shape, len(data.classes), config.network)
        if config.recompute:
            self.model.enable_gradient_checkpointing()
        self.frozen: dict[str, nn.Module] = {}

    def losses(self, network: Network, batch: LatentBatch, random: BatchRandom, seen: int) -> StepLosses:
        shape = batch.mean.shape[1:]
        noise, posterior_noise = random.normal(*shape), random.normal(*shape)
        t = flow.logit_normal_time(random.normal())
        hidden = torch.special.ndtr(random.normal()) < self.config.label_dropout  # uniform in [0, 1]
        x = self.normalized(batch, posterior_noise)
        labels = torch.where(hidden, null_class(self.model), batch.labels)
        velocity = predict_velocity(network, flow.interpolate(x, noise, t), t, labels).float()
        loss = F.mse_loss(velocity, flow.target_velocity(x, noise))
        return StepLosses(loss, {"flow": loss})

    def normalized(self, batch: LatentBatch, noise: Tensor) -> Tensor:
        """Return normalised latents, (B, c, h, w), of samples of the posterior, or of its mean."""
        z = batch.mean
        if self.config.posterior == "sample":
            z, _ = sample_posterior(torch.cat([batch.mean, batch.logvar], dim=1), noise)
        latents = latent_map(self.statistics, z)
        return (z - latents.shift) * latents.scale

    def example(self, device: torch.device) -> LatentBatch:
        zeros = torch.zeros(1, *self.shape, device=device)
        return LatentBatch(zeros, zeros, torch.full((1,), null_class(self.model), device=device))

    def compiled_parts(self) -> list[nn.Module]:
        return [self.model]

    def result(self, state: State) -> Any:
        """Return the DiT with the weights of an (averaged) ``model``, in eval mode, on the CPU."""
        model = type(self.model).from_config(self.model.config)
        model.load_state_dict(state)
        return prepare(model).eval()
