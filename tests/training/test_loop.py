"""The loop: it learns, resumes exactly, and writes a model that loads."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import load_file

from ssdd import AutoencoderSSDD
from ssdd.training import checkpoint, loop
from ssdd.training.config import DataConfig, LossConfig, ModelConfig, OptimizerConfig, TrainConfig
from ssdd.training.loop import learning_rate, train

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def few_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handful of crops for the latent statistics: tests need no better ones."""
    monkeypatch.setattr(loop, "STATISTICS_IMAGES", 16)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Smooth coloured pictures."""
    folder = tmp_path_factory.mktemp("photographs")
    random = np.random.default_rng(0)
    for i in range(12):
        small = Image.fromarray(random.integers(0, 256, (3, 4, 3), dtype=np.uint8))
        small.resize((48, 40), Image.Resampling.BICUBIC).save(folder / f"{i:02d}.png")
    return folder


@pytest.fixture
def tiny(photographs: Path) -> TrainConfig:
    """XXS decoder and width-32 encoder on 16 px, without LPIPS: it needs no weights."""
    return TrainConfig(
        stage="flow",
        model=ModelConfig(encoder="f4c4", encoder_width=32, decoder="XXS"),
        data=DataConfig(paths=(str(photographs),), resolution=16, workers=0),
        loss=LossConfig(lpips=0.0),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_images=16, decay_images=0),
        total_images=24,
        batch_size=4,
        ema_halflife_images=16,
        precision="fp32",
        log_images=8,
        checkpoint_images=12,
    )


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "diffusion_pytorch_model.safetensors")


def test_flow_stage_writes_a_model_that_loads(tiny: TrainConfig, tmp_path: Path) -> None:
    model = train(tiny, tmp_path / "run", CPU)
    ae = AutoencoderSSDD.from_pretrained(model)
    assert ae.config.sample_size == 16
    assert len(ae.config.latents_std) == 4
    z = ae.normalize_latents(ae.encode(torch.rand(4, 3, 16, 16) * 2 - 1).latent_dist.mode())
    assert 0.2 < z.std() < 5, "the stored statistics don't normalise the latents"
    lines = [json.loads(line) for line in (tmp_path / "run" / "stats.jsonl").read_text().splitlines()]
    assert [line["images"] for line in lines] == [8, 16, 24]
    assert {"total", "flow", "kl", "gradient", "learning_rate", "images_per_second"} <= lines[0].keys()


def test_interrupted_run_resumes_exactly(tiny: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed run sees other data or noise, or has lost the optimiser's or the average's state."""
    train(tiny, tmp_path / "whole", CPU)

    updates = 0
    clip = torch.nn.utils.clip_grad_norm_

    def stop_at_the_fifth(*args: object, **kwargs: object) -> torch.Tensor:
        nonlocal updates
        updates += 1
        if updates == 5:  # after the checkpoint at 12 images, with one more update that is lost
            raise KeyboardInterrupt
        return clip(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(loop.nn.utils, "clip_grad_norm_", stop_at_the_fifth)
    with pytest.raises(KeyboardInterrupt):
        train(tiny, tmp_path / "cut", CPU)
    monkeypatch.undo()
    assert [p.name for p in checkpoint.list_checkpoints(tmp_path / "cut")] == ["000000000012"]
    train(tiny, tmp_path / "cut", CPU)

    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(v, cut[k]) for k, v in whole.items())
    stats = [
        [
            {k: v for k, v in json.loads(line).items() if k != "images_per_second"}
            for line in path.read_text().splitlines()
        ]
        for path in (tmp_path / "whole" / "stats.jsonl", tmp_path / "cut" / "stats.jsonl")
    ]
    # a mean over an interval that the interruption fell into covers fewer steps; the later ones are equal
    assert stats[0][-1] == stats[1][-1]


def test_training_learns(tiny: TrainConfig, tmp_path: Path) -> None:
    """The loss does not fall: a sign, a detached tensor, a step that isn't taken."""
    config = replace(tiny, total_images=320, batch_size=8, log_images=64, checkpoint_images=1000)
    train(config, tmp_path / "run", CPU)
    lines = [json.loads(line) for line in (tmp_path / "run" / "stats.jsonl").read_text().splitlines()]
    assert lines[-1]["flow"] < 0.6 * lines[0]["flow"], [line["flow"] for line in lines]


def test_kl_vae_then_frozen_encoder(tiny: TrainConfig, tmp_path: Path) -> None:
    """The second stage must take the first one's encoder, bit for bit, and leave it alone."""
    train(replace(tiny, stage="kl-vae"), tmp_path / "encoder", CPU)
    vae = AutoencoderKL.from_pretrained(tmp_path / "encoder" / "model", low_cpu_mem_usage=False)
    model = replace(tiny.model, encoder_from=str(tmp_path / "encoder" / "model"), train_encoder=False)
    ae = AutoencoderSSDD.from_pretrained(train(replace(tiny, model=model), tmp_path / "decoder", CPU))
    x = torch.rand(1, 3, 16, 16) * 2 - 1
    torch.testing.assert_close(ae.encode(x).latent_dist.mean, vae.encode(x).latent_dist.mean, atol=1e-5, rtol=1e-5)
    for ours, theirs in (("conv_in.weight", "encoder.conv_in.weight"), ("moments.bias", "quant_conv.bias")):
        assert torch.equal(ae.encoder.state_dict()[ours], vae.state_dict()[theirs])


def test_start_from_a_model(tiny: TrainConfig, tmp_path: Path) -> None:
    """Fine-tuning would start from random weights."""
    first = train(tiny, tmp_path / "first", CPU)
    still = replace(
        tiny, optimizer=OptimizerConfig(learning_rate=0.0), model=replace(tiny.model, start_from=str(first))
    )
    second = train(still, tmp_path / "second", CPU)
    a, b = AutoencoderSSDD.from_pretrained(first), AutoencoderSSDD.from_pretrained(second)
    assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def test_other_settings_in_the_same_folder_are_refused(tiny: TrainConfig, tmp_path: Path) -> None:
    """Two experiments would be mixed in one folder."""
    train(replace(tiny, total_images=4), tmp_path / "run", CPU)
    with pytest.raises(ValueError, match=r"other settings \(seed: 0 -> 1; total_images: 4 -> 8\)"):
        train(replace(tiny, total_images=8, seed=1), tmp_path / "run", CPU)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="found other files"):
        train(tiny, tmp_path / "mine", CPU)


def test_encoder_of_another_size_is_refused(tiny: TrainConfig, tmp_path: Path) -> None:
    train(replace(tiny, stage="kl-vae", total_images=4), tmp_path / "encoder", CPU)
    model = replace(tiny.model, encoder="f8c4", encoder_from=str(tmp_path / "encoder" / "model"))
    with pytest.raises(ValueError, match=r"found EncoderSize\(channels=\(32, 64, 128\)"):
        train(replace(tiny, model=model), tmp_path / "decoder", CPU)
    assert not (tmp_path / "decoder").exists(), "a run that cannot start leaves a folder in the way of the next try"


def test_diverged_run_stops(tiny: TrainConfig, tmp_path: Path) -> None:
    """A run that has gone to NaN must not go on for days."""
    wild = replace(tiny, optimizer=OptimizerConfig(learning_rate=1e30, clip=1e30, warmup_images=0))
    with pytest.raises(FloatingPointError, match="not finite"):
        train(wild, tmp_path / "run", CPU)


def test_learning_rate_schedule() -> None:
    config = TrainConfig(
        batch_size=10,
        total_images=100,
        optimizer=OptimizerConfig(learning_rate=1.0, warmup_images=40, decay_images=30),
    )
    rates = [learning_rate(config, seen) for seen in range(0, 100, 10)]
    expected = [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 2 / 3, 1 / 3]
    torch.testing.assert_close(torch.tensor(rates), torch.tensor(expected))
