"""The configuration: stable as JSON, differences named, bad settings refused; the recipes are the paper's."""

from dataclasses import replace
from pathlib import Path

import pytest

from ssdd.recipes import RECIPES, overview
from ssdd.recipes.paper import DECODERS, LATENTS, RESOLUTIONS
from ssdd.training.config import DataConfig, LogConfig, TrainConfig, check, differences, microbatch_size, to_json

EPOCH = 5005 * 256


def test_differences_are_named_and_harmless_ones_are_not() -> None:
    config = TrainConfig(data=DataConfig(paths=("a",), workers=1))
    assert differences(config, to_json(config)) == []
    moved = replace(config, data=DataConfig(paths=("b",), workers=4), log=LogConfig(stats_images=1), microbatch=2)
    assert differences(moved, to_json(config)) == []
    other = replace(config, seed=1, batch_size=8)
    assert differences(other, to_json(config)) == ["batch_size: 256 -> 8", "seed: 0 -> 1"]


def test_bad_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"pass --data\.paths"):
        check(TrainConfig())
    good = TrainConfig(data=DataConfig(paths=(str(tmp_path),)))
    check(good)
    with pytest.raises(ValueError, match="batch_size of at least 1, found 0"):
        check(replace(good, batch_size=0))
    with pytest.raises(ValueError, match="divisible by 3 processes"):
        check(good, processes=3)
    with pytest.raises(ValueError, match=r"data\.scale of at least 1"):
        check(replace(good, data=replace(good.data, scale=0.5)))
    with pytest.raises(ValueError, match="small enough for one GPU"):
        check(replace(good, stage="kl-vae", parallel="fsdp"))


def test_microbatch() -> None:
    assert microbatch_size(TrainConfig(batch_size=64), processes=4) == 16
    assert microbatch_size(TrainConfig(batch_size=64, microbatch=8), processes=4) == 8


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_documented_configs(name: str) -> None:
    """`ssdd train RECIPE --help` shows the summary; a recipe needs nothing but data to be trained."""
    recipe = RECIPES[name]
    config = recipe()
    assert isinstance(config, TrainConfig)
    assert recipe.summary.endswith(".")
    check(
        replace(config, data=replace(config.data, paths=("photos",))), processes=8 if config.parallel == "fsdp" else 1
    )
    for start in (config.model.start_from, config.model.encoder):
        if start is not None and start.startswith("runs/"):
            assert start.removeprefix("runs/") in RECIPES, f"starts from {start}, which no recipe makes"


def test_every_stage_of_every_size_is_there() -> None:
    names = set(RECIPES)
    for latent in LATENTS:
        assert {f"{latent}-encoder", f"{latent}-kl-vae"} <= names
        for size in DECODERS:
            assert f"{latent}-{size}-pretraining" in names
            for side in RESOLUTIONS:
                assert {f"{latent}-{size}-{side}", f"{latent}-{size}-{side}-distillation"} <= names
    assert LATENTS == ("f8c4", "f16c4", "f16c16", "f32c64")
    assert DECODERS == ("S", "B", "M", "L", "XL", "H")
    assert "LATENT-SIZE-RESOLUTION-distillation" in overview()


@pytest.mark.parametrize(
    ("name", "stage", "resolution", "scale", "rate", "epochs", "encoder"),
    [
        ("f16c4-encoder", "flow", 128, 2.0, 1e-4, 300, True),
        ("f16c4-S-pretraining", "flow", 128, 2.0, 8e-4, 300, False),
        ("f8c4-H-pretraining", "flow", 128, 2.0, 3e-4, 300, False),
        ("f32c64-XL-512", "flow", 512, 1.0, 1e-4, 100, False),
        ("f8c4-B-256-distillation", "distillation", 256, 1.0, 1e-4, 10, False),
    ],
)
def test_recipes_are_the_papers(
    name: str, stage: str, resolution: int, scale: float, rate: float, epochs: int, encoder: bool
) -> None:
    """A row of the paper's table of stages is mistyped."""
    config = RECIPES[name]()
    assert (config.stage, config.data.resolution, config.data.scale) == (stage, resolution, scale)
    assert (config.total_images, config.batch_size) == (epochs * EPOCH, 256)
    assert config.model.train_encoder is encoder
    optimizer, loss = config.optimizer, config.loss
    assert (optimizer.name, optimizer.learning_rate) == ("schedule-free-radam", rate)
    assert (optimizer.clip, optimizer.weight_decay, optimizer.warmup_images) == (0.1, 1e-2, 0)
    assert (loss.flow, loss.lpips, loss.repa, loss.kl, loss.adversarial) == (1.0, 0.5, 0.25, 1e-6, 0.0)
    assert loss.lpips_network == "vgg"
    assert 0.5 ** (256 / config.average.halflife_images) == pytest.approx(0.999, abs=1e-6)
    assert config.average.from_images == 50_000 * 256
    assert (config.precision, config.teacher_steps) == ("bf16", 12)
    if encoder:
        assert config.model.decoder == "M"
