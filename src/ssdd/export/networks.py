"""The modules that are traced: the model's networks with what an ONNX file does besides, on ``export.ops``.

Shapes: B batch, f spatial factor, c latent channels, h x w latent grid, H x W = h*f x w*f pixels.
"""

import torch
from torch import Tensor, nn

from ..nn import fast
from ..nn.decoder import Decoder
from ..nn.encoder import LOGVAR_RANGE, Encoder
from . import ops


class ExportEncoder(nn.Module):
    """Image to the posterior's mean and log-variance, those of ``AutoencoderSSDD.encode``."""

    def __init__(self, network: Encoder) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) in [-1, 1] -> mean and logvar, each (B, c, h, w), raw; all float32."""
        with fast.using(ops):
            mean, logvar = self.network(image.to(self.network.dtype)).float().chunk(2, dim=1)
        return mean, logvar.clamp(*LOGVAR_RANGE)


class ExportDecoder(nn.Module):
    """One Euler step from noise to the image, ``noise + v(noise, 1, latent)``; f is ``factor``."""

    def __init__(self, network: Decoder, factor: int) -> None:
        super().__init__()
        self.network, self.factor = network, factor

    def forward(self, latent: Tensor, noise: Tensor) -> Tensor:
        """Return the image, about [-1, 1] and not clamped; all float32.

        Args:
            latent: (B, c, h, w), raw.
            noise: (B, 3, H, W), standard normal.

        Returns:
            (B, 3, H, W).
        """
        # Also tells the tracing how the sizes depend on each other, by which ``ops`` decides.
        size = (self.factor * latent.shape[2], self.factor * latent.shape[3])
        if (noise.shape[2], noise.shape[3]) != size:
            raise ValueError(f"expected noise of {size[0]} x {size[1]}, found {noise.shape[2]} x {noise.shape[3]}")
        dtype = self.network.conv_in.weight.dtype
        with fast.using(ops):
            velocity = self.network(noise.to(dtype), torch.ones(1, device=noise.device), latent)
        return noise + velocity.float()
