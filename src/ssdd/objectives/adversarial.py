"""Adversarial loss, for the KL-VAE baseline and an ablation only: a PatchGAN discriminator (Isola et al. 2017) with
spectral normalisation (Miyato et al. 2018), hinge losses, and VQGAN's weight (Esser et al. 2021).

Shapes: B batch, C channels, H x W pixels, h x w patches: one logit for each.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from ..nn.decoder import TimeEmbedding

_LEAK = 0.2


class SpectralConv(nn.Conv2d):
    """4x4 convolution whose weight is divided by its largest singular value.

    One power iteration a forward pass estimates that value while in train mode; in eval mode it stays as it is.
    """

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__(cin, cout, 4, stride, padding=1)
        spectral_norm(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C', floor(H / 2), floor(W / 2)) of (B, C, H, W), or (B, C', H - 1, W - 1) for stride 1."""
        with torch.autocast(x.device.type, enabled=False):  # bfloat16 would spoil the power iteration
            weight = self.weight
        return F.conv2d(x, weight, self.bias, self.stride, padding=1)


class PatchDiscriminator(nn.Module):
    """Tells real patches from generated ones: strided 4x4 convolutions, one more with stride 1, a head of one channel.

    There is no batch norm: an image's logits depend on that image alone, so that a loss doesn't depend on how a batch
    is cut over processes. (What counts is only the number of forward passes in train mode: each is one power
    iteration, the same in every process.)

    Args:
        in_channels: C, 3 for images, 6 for ``concat(image, x_t)``.
        width: channels of the first layer; they double up to 8 times that.
        layers: number of strided convolutions; 3 see 70 x 70 pixels a logit.
        time: whether it is told the time of x_t; every hidden layer gets a bias from it. No scale: the bound on
            how fast a logit changes with the image, which the normalisation is there for, holds at all times.
    """

    def __init__(self, in_channels: int = 3, width: int = 64, layers: int = 3, time: bool = False) -> None:
        super().__init__()
        channels = [in_channels] + [width * min(8, 2**i) for i in range(layers + 1)]
        self.convs = nn.ModuleList(
            SpectralConv(channels[i], channels[i + 1], stride=2 if i < layers else 1) for i in range(layers + 1)
        )
        self.head = SpectralConv(channels[-1], 1, stride=1)
        self.time = TimeEmbedding(width) if time else None
        self.biases = nn.ModuleList(nn.Linear(4 * width, c) for c in channels[1:]) if time else None

    def forward(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        """Return logits, high for real patches.

        Args:
            x: (B, C, H, W) in about [-1, 1], H and W at least ``3 * 2**layers``.
            t: (B,) in [0, 1], given if and only if the discriminator has ``time``.

        Returns:
            (B, 1, h, w), h = floor(H / 2**layers) - 2.
        """
        embedding = None if self.time is None or t is None else F.silu(self.time(t, x.dtype))
        for i, conv in enumerate(self.convs):
            x = conv(x)
            if self.biases is not None:
                x = x + self.biases[i](embedding).to(x.dtype)[:, :, None, None]
            x = F.leaky_relu(x, _LEAK)
        return self.head(x)


@dataclass(frozen=True)
class DiscriminatorInputs:
    """real, fake: (B, C, H, W), without gradient; t: (B,), where the discriminator is told the time."""

    real: Tensor
    fake: Tensor
    t: Tensor | None = None


def hinge_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return ``(mean max(0, 1 - real) + mean max(0, 1 + fake)) / 2`` of logits, a float32 scalar, 1 if undecided.

    It is a plain mean over all patches: over equal parts of a batch, the means of the parts average to the whole.
    """
    return (F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean()) / 2


def hinge_generator_loss(fake: Tensor) -> Tensor:
    """Return ``-mean fake`` of logits, a float32 scalar, whose parts average like the discriminator's."""
    return -fake.float().mean()


def discriminator_loss(discriminator: Callable[..., Tensor], inputs: DiscriminatorInputs) -> Tensor:
    """Return the hinge loss of a discriminator; real and fake go in one pass: one power iteration, one pass of DDP."""
    t = None if inputs.t is None else torch.cat([inputs.t, inputs.t])
    return hinge_discriminator_loss(*discriminator(torch.cat([inputs.real, inputs.fake]), t).chunk(2))


def adaptive_weight(reconstruction_gradient: Tensor, adversarial_gradient: Tensor, limit: float = 1e4) -> Tensor:
    """Return the weight that makes the adversarial loss pull as hard as the others: ``|g_rec| / (|g_adv| + 1e-4)``.

    Args:
        reconstruction_gradient: gradient of the other losses at one tensor, usually the generator's last weight; of
            the whole batch, so averaged over processes first where there are several.
        adversarial_gradient: gradient of the adversarial loss at the same tensor.
        limit: largest value.

    Returns:
        float32 scalar in [0, limit] on the same device, a constant to autograd; the host doesn't wait for it.
    """
    reconstruction = reconstruction_gradient.detach().float().norm()
    adversarial = adversarial_gradient.detach().float().norm()
    return (reconstruction / (adversarial + 1e-4)).clamp(0, limit)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Let gradients through a module, and give none to its parameters: for the generator's pass."""
    module.requires_grad_(False)
    yield
    module.requires_grad_(True)
