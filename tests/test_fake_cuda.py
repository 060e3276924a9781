"""The library's work on a GPU, without one: all on one device, and no waiting where there should be none."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException

from ssdd import AutoencoderSSDD
from ssdd.generation.config import GenerationConfig
from ssdd.generation.data import LatentBatch
from ssdd.generation.task import GenerationTask
from ssdd.objectives.perceptual import backbone_path
from ssdd.runtime.processes import Processes
from ssdd.training.config import (
    DataConfig,
    FlowConfig,
    FlowLoss,
    KLVAEConfig,
    KLVAELoss,
    KLVAEModelConfig,
    ModelConfig,
    TrainConfig,
    ValidationConfig,
)
from ssdd.training.state import TrainingState
from ssdd.training.step import autocast_for, take_update
from ssdd.training.task import Batch, Task
from ssdd.training.tokenizer import TokenizerTask
from ssdd.training.watch import FiniteCount
from tests.fake_cuda import CUDA, Copy, fake_cuda, to_fake_cuda
from tests.generation.latents import random_latents

squeeze = pytest.mark.skipif(not backbone_path("squeeze").is_file(), reason="needs LPIPS' SqueezeNet in TORCH_HOME")

SMALL = FlowConfig(
    model=ModelConfig(encoder="f8c4", encoder_width=32, encoder_groups=8, decoder="XXS"),
    data=DataConfig(resolution=64),
    validation=ValidationConfig(count=0),
    loss=FlowLoss(lpips=0.0),
    batch_size=4,
)


KL_VAE = KLVAEConfig(
    model=KLVAEModelConfig(encoder="f8c4", encoder_width=32, encoder_groups=8),
    data=SMALL.data,
    validation=SMALL.validation,
    loss=KLVAELoss(lpips=0.0, adversarial=0.1),
    batch_size=4,
)


class PhotographlessTask(TokenizerTask):
    """The training of a tokenizer, whose batches come from the test."""

    def __init__(self, config: TrainConfig) -> None:
        self.config, self.stage = config, config.build_stage()


def autoencoder(dtype: torch.dtype = torch.float32) -> AutoencoderSSDD:
    return AutoencoderSSDD.from_preset("f8c4", "XXS", encoder_width=32, encoder_groups=8).eval().to(dtype)


def test_mistakes_show() -> None:
    with fake_cuda() as device:
        x = torch.ones(3, device=CUDA)
        with pytest.raises(RuntimeError, match="same device"):
            x + torch.ones(3)
        with pytest.raises(DataDependentOutputException):
            float(x[0])
        torch.ones(5).to(CUDA)
        torch.ones(6).to(CUDA, non_blocking=True)
        x.cpu()
    assert device.copies == [Copy("cuda", (5,), True), Copy("cuda", (6,), False), Copy("cpu", (3,), True)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [(64, 64), (40, 136)])
def test_encode_and_decode(dtype: torch.dtype, size: tuple[int, int]) -> None:
    """Nothing is copied but the noise, once a size, by an operator that fake tensors pass over."""
    model = autoencoder(dtype)
    with fake_cuda() as device, torch.inference_mode():
        to_fake_cuda(model)
        x = torch.zeros(2, 3, *size, device=CUDA, dtype=dtype)
        image = model.decode(model.encode(x).latent_dist.mode(), num_inference_steps=3).sample
    assert (image.device, image.shape, image.dtype) == (CUDA, x.shape, dtype)
    assert device.copies == []


@pytest.mark.slow
def test_tiles_and_slices() -> None:
    model = autoencoder()
    model.enable_tiling()
    model.enable_slicing()
    with fake_cuda(), torch.inference_mode():
        to_fake_cuda(model)
        x = torch.zeros(2, 3, 520, 712, device=CUDA)
        image = model.decode(model.encode(x).latent_dist.mode(), num_inference_steps=1).sample
    assert (image.device, image.shape) == (CUDA, x.shape)


def copies_of_an_update(task: Task, make_batch: Callable[[], Batch]) -> list[Copy]:
    """Between host and GPU, in the second update of a training."""
    stage = task.stage
    with fake_cuda() as device:
        batch = make_batch()
        for module in (stage.model, *stage.frozen.values(), *filter(None, [stage.adversary])):
            to_fake_cuda(module)
        state = TrainingState(task, Processes(0, 1, CUDA), Path("none"))
        skipped = FiniteCount(CUDA)
        for _ in range(2):
            device.copies.clear()
            for trained in filter(None, [state.generator, state.adversary]):
                for p in trained.update.parameters:
                    p.grad = torch.zeros_like(p)
            taken = take_update(state, batch, autocast_for(task.config, CUDA))
            skipped.add(taken.finite, state.seen)
    assert all(value.device == CUDA for value in (*taken.values.values(), taken.finite, skipped.numbers))
    return device.copies


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor:UserWarning")  # by a deep copy
@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        pytest.param(replace(SMALL, loss=FlowLoss(lpips_network="squeeze")), marks=squeeze),
        replace(SMALL, one_step_share=0.5, recompute=True),
        replace(SMALL, precision="fp32", loss=replace(SMALL.loss, adversarial=0.1, adversarial_from_images=0)),
        KL_VAE,
    ],
    ids=["flow", "LPIPS", "one step", "with a discriminator", "KL-VAE"],
)
def test_an_update_waits_for_nothing(config: TrainConfig) -> None:
    task = PhotographlessTask(config)
    images = copies_of_an_update(task, lambda: torch.zeros(4, 3, 64, 64, dtype=torch.uint8))
    assert images == [Copy("cuda", (4, 3, 64, 64), waits=False)]


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor:UserWarning")
def test_an_update_of_a_dit_waits_for_nothing() -> None:
    config = GenerationConfig(latents="memory", size="tiny/2", batch_size=4)
    task = GenerationTask(config, random_latents())
    latents = copies_of_an_update(
        task, lambda: LatentBatch(torch.zeros(4, 4, 4, 4), torch.zeros(4, 4, 4, 4), torch.zeros(4, dtype=torch.int64))
    )
    assert [copy.shape for copy in latents] == [(4, 4, 4, 4), (4, 4, 4, 4), (4,)]
    assert not any(copy.waits for copy in latents)
