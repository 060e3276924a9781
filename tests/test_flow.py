"""Flow matching: path, time law, Euler schedule and sampler."""

import itertools
import math

import pytest
import torch

from ssdd import flow


def test_path_and_velocity_are_consistent() -> None:
    """From any point of the path, the velocity leads to the image: x = x_t + t v."""
    x, noise, t = torch.randn(4, 3, 5, 7), torch.randn(4, 3, 5, 7), torch.tensor([0.0, 0.3, 0.9, 1.0])
    x_t = flow.interpolate(x, noise, t)
    assert torch.equal(x_t[0], x[0]), "t = 0 is not the image"
    assert torch.equal(x_t[3], noise[3]), "t = 1 is not the noise"
    torch.testing.assert_close(flow.predict_image(x_t, flow.target_velocity(x, noise), t), x)


def test_time_law_is_logit_normal() -> None:
    """Median 1/2, quartiles of sigmoid(N(0, 1))."""
    t = flow.logit_normal_time(torch.randn(200_000, generator=torch.Generator().manual_seed(0)))
    assert 0 < t.min() < t.max() < 1
    quartiles = torch.quantile(t, torch.tensor([0.25, 0.5, 0.75]))
    expected = torch.sigmoid(torch.tensor([-0.67449, 0.0, 0.67449]))
    torch.testing.assert_close(quartiles, expected, atol=0.004, rtol=0)


def test_schedule() -> None:
    """t_i = (1 - i/N)^2."""
    assert flow.euler_times(1) == [1.0, 0.0]
    assert flow.euler_times(4) == [1.0, 0.5625, 0.25, 0.0625, 0.0]


@pytest.mark.parametrize("steps", [0, -1, 1.5, True, "8", None])
def test_wrong_number_of_steps_is_refused(steps: object) -> None:
    with pytest.raises(ValueError, match="expected a positive whole number of steps"):
        flow.euler_times(steps)  # type: ignore[arg-type]


def test_one_step_is_noise_plus_velocity() -> None:
    """Single-step decoding is not x = eps + v(eps, 1)."""
    noise = torch.randn(2, 3, 4, 4)
    seen = []

    def velocity(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append((x_t, t))
        return 0.5 * x_t + 1

    assert torch.equal(flow.euler_sample(velocity, noise, 1), noise + (0.5 * noise + 1))
    assert len(seen) == 1
    assert torch.equal(seen[0][0], noise)
    assert torch.equal(seen[0][1], torch.ones(1))


@pytest.mark.parametrize("steps", [1, 3, 8])
def test_a_straight_path_is_followed_exactly(steps: int) -> None:
    """With the true velocity of one image, any number of steps ends at the image."""
    x, noise = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    result = flow.euler_sample(lambda x_t, t: x - noise, noise, steps)
    torch.testing.assert_close(result, x)


def test_sampler_converges_to_the_flow() -> None:
    """More steps come closer to the solution of the differential equation, x(0) = x(1) e for dx/dt = -x."""
    noise = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    errors = [abs(flow.euler_sample(lambda x, t: x, noise, n).item() - math.e) for n in (4, 16, 64, 256)]
    assert all(b < 0.5 * a for a, b in itertools.pairwise(errors)), errors


def test_half_precision_velocities_are_summed_in_float32() -> None:
    """The state is rounded at every step."""
    result = flow.euler_sample(lambda x, t: torch.full_like(x, 1e-3).bfloat16(), torch.ones(1, 3, 2, 2).bfloat16(), 64)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, torch.full_like(result, 1.001), atol=2e-5, rtol=0)
