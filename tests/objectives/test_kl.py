"""The posterior: drawn from, and its divergence."""

import torch

from ssdd.objectives.kl import sample_posterior


def test_posterior() -> None:
    """mean + std * noise, and the KL by its formula, in float32 whatever comes in."""
    moments = torch.randn(2, 8, 3, 3).bfloat16()
    noise = torch.randn(2, 4, 3, 3)
    z, kl = sample_posterior(moments, noise)
    mean, logvar = moments.float().chunk(2, dim=1)
    torch.testing.assert_close(z, mean + (0.5 * logvar).exp() * noise)
    torch.testing.assert_close(kl, 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum(dim=(1, 2, 3)))
    assert z.dtype == kl.dtype == torch.float32


def test_zeros_give_the_mode_exactly() -> None:
    """Distillation decodes the mode: with rounding, teacher and student would see another latent than decoding does."""
    moments = torch.randn(2, 8, 3, 3)
    assert sample_posterior(moments, torch.zeros(2, 4, 3, 3))[0].equal(moments[:, :4])


def test_extreme_variances_stay_finite() -> None:
    moments = torch.cat([torch.zeros(1, 2, 2, 2), torch.tensor([-1e6, 1e6])[None, :, None, None].expand(1, 2, 2, 2)], 1)
    z, kl = sample_posterior(moments, torch.ones(1, 2, 2, 2))
    assert z.isfinite().all()
    assert kl.isfinite().all()
