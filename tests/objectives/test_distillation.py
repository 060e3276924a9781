"""The teacher's image: many Euler steps from the given noise, without gradient."""

import torch

from ssdd import flow
from ssdd.nn.decoder import Decoder
from ssdd.nn.presets import decoder_size
from ssdd.objectives.distillation import teacher_image


def test_teacher_takes_its_steps_from_the_given_noise() -> None:
    """Another schedule, other noise, or a teacher that is trained along with its student."""
    torch.manual_seed(0)
    teacher = Decoder(decoder_size("XXS"), 4).eval()
    z, noise = torch.randn(2, 4, 2, 3), torch.randn(2, 3, 16, 24)
    found = teacher_image(teacher, z, noise)
    assert not found.requires_grad
    x = noise
    with torch.no_grad():
        for i in range(12):
            now, after = (1 - i / 12) ** 2, (1 - (i + 1) / 12) ** 2
            x = x + (now - after) * teacher(x, torch.full((2,), now), z)
    torch.testing.assert_close(found, x, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        one = flow.euler_sample(lambda x_t, t: teacher(x_t, t, z), noise, 1)
    torch.testing.assert_close(teacher_image(teacher, z, noise, steps=1), one)
