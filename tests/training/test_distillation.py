"""Distillation: the one-step student takes after the many-step teacher."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ssdd import AutoencoderSSDD, flow
from ssdd.data.pixels import image_to_tensor
from ssdd.training.config import TrainConfig
from ssdd.training.loop import train
from ssdd.training.random import BatchRandom
from ssdd.training.stages.distillation import DistillationStage

Small = Callable[..., TrainConfig]

LENGTH = ("--total-images", "160", "--batch-size", "4", "--average.halflife-images", "40", "--log.stats-images", "80")
"""Forty updates of four images."""


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the teacher's run; filled by the first test that needs it."""
    return tmp_path_factory.mktemp("teacher") / "run"


@pytest.fixture
def student_config(small: Small, teacher: Path, start: tuple[str, ...]) -> Small:
    """``student_config("--seed", "1")``: settings of a distillation of the teacher."""

    def make(*options: str) -> TrainConfig:
        if not (teacher / "model").is_dir():
            train(small(*LENGTH, *start, "--optimizer.learning-rate", "2e-3"), teacher)
        return small("--model.start-from", str(teacher), *LENGTH, *options, recipe="tiny-distillation")

    return make


@pytest.mark.slow
def test_student_is_closer_to_the_teachers_many_step_image(
    student_config: Small, teacher: Path, tmp_path: Path, picture: Callable[..., object]
) -> None:
    """On images that neither has seen: distillation has learned nothing, or the wrong target."""
    config = student_config("--optimizer.learning-rate", "5e-4", "--teacher-steps", "4")
    student = AutoencoderSSDD.from_pretrained(train(config, tmp_path / "student"))
    master = AutoencoderSSDD.from_pretrained(teacher / "model")
    assert student.config.num_inference_steps == 1, "a distilled model must decode in one step by default"
    assert master.config.num_inference_steps == 8

    held_out = torch.stack([image_to_tensor(picture(16, 16, seed)) for seed in range(16)])  # type: ignore[arg-type]
    noise = torch.randn(held_out.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        z = master.encode(held_out).latent_dist.mode()
        assert torch.equal(z, student.encode(held_out).latent_dist.mode()), "the encoder has changed"
        many = master.decode(z, num_inference_steps=4, noise=noise).sample
        one = master.decode(z, num_inference_steps=1, noise=noise).sample
        distilled = student.decode(z, noise=noise).sample
    to_teacher, to_student = (float((x - many).square().mean()) for x in (one, distilled))
    assert to_student < 0.5 * to_teacher, f"student {to_student:.5f}, teacher's own single step {to_teacher:.5f}"
    for name in ("scaling_factor", "shift_factor", "latents_mean", "latents_std"):
        assert student.config[name] == master.config[name], f"{name}: the latents are the same"


@pytest.mark.slow
def test_training_point_is_the_papers(student_config: Small, teacher: Path) -> None:
    """t = 1, the posterior's mode, and the image that the frozen teacher makes of the same noise in 12 steps."""
    stage = student_config().build_stage()
    assert isinstance(stage, DistillationStage)
    images = torch.rand(3, 3, 16, 16) * 2 - 1
    moments = stage.frozen["encoder"](images)
    with torch.no_grad():
        point = stage.training_point(images, moments, BatchRandom(0, 0, 3, torch.device("cpu")))
        out = stage.model(images, moments, point)
    assert point.t.tolist() == [1, 1, 1]
    assert torch.equal(out.x_t, point.noise), "the student does not start from the teacher's noise"
    mean = moments.chunk(2, dim=1)[0]
    master = AutoencoderSSDD.from_pretrained(teacher / "model")
    with torch.no_grad():
        expected = flow.euler_sample(lambda x_t, t: master.decoder(x_t, t, mean), point.noise, 12)
    torch.testing.assert_close(point.target, expected, atol=1e-5, rtol=1e-5)
    same = zip(stage.model.decoder.state_dict().values(), master.decoder.state_dict().values(), strict=True)
    assert all(a.equal(b) for a, b in same), "the student does not start from the teacher's weights"


def test_losses_are_measured_against_the_teacher(student_config: Small) -> None:
    """Flow matching at t = 1 is the distance to the teacher's image, not to the photograph."""
    stage = student_config().build_stage()
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    random = BatchRandom(0, 0, 2, torch.device("cpu"))
    losses = stage.losses(stage.model, images, random, seen=0)
    moments = stage.frozen["encoder"](images)
    with torch.no_grad():
        point = stage.training_point(images, moments, BatchRandom(0, 0, 2, torch.device("cpu")))
        mean = moments.chunk(2, dim=1)[0]
        reached = point.noise + stage.model.decoder(point.noise, point.t, mean)
    expected = (reached - point.target).square().mean()
    assert float(losses.terms["flow"].detach()) == pytest.approx(float(expected), rel=1e-4)
    losses.total.backward()
    assert all(p.grad is None for p in stage.frozen["teacher"].parameters()), "the teacher learns from the student"
