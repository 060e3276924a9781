"""The posterior of the latent, and its divergence from the standard normal distribution.

Shapes: B batch, c latent channels, h x w latent grid.
"""

from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor


def sample_posterior(moments: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return a sample of the posterior, and its divergence from the standard normal distribution.

    Args:
        moments: (B, 2c, h, w), mean then log-variance, which is clamped to [-30, 20].
        noise: (B, c, h, w) standard normal; zeros give the posterior's mode.

    Returns:
        z = mean + std * noise, (B, c, h, w), and KL = 0.5 sum(mean^2 + var - 1 - log var) over c, h, w, (B,); both in
        float32.
    """
    posterior = DiagonalGaussianDistribution(moments.float())
    return posterior.mean + posterior.std * noise, posterior.kl()
