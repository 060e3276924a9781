"""The configuration: stable as JSON, differences named, bad settings refused; the recipes are the paper's."""

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from ssdd.generation.config import GenerationConfig
from ssdd.recipes import RECIPES, Axes
from ssdd.training.config import (
    AverageConfig,
    DataConfig,
    DiscriminatorConfig,
    DistillationConfig,
    DistillationLoss,
    FlowConfig,
    FlowLoss,
    KLVAEConfig,
    KLVAELoss,
    KLVAEModelConfig,
    LogConfig,
    ModelConfig,
    OptimizerConfig,
    TeacherConfig,
    TrainConfig,
    ValidationConfig,
    differences,
    microbatch_size,
    read_config,
    to_json,
)

EPOCH = 5005 * 256

PHOTOS = DataConfig(paths=("photos",))


def changed(config: Any, setting: str, value: object) -> Any:
    """A config with ``section.name`` or ``name`` set to another value."""
    section, dot, name = setting.rpartition(".")
    if not dot:
        return replace(config, **{name: value})
    return replace(config, **{section: replace(getattr(config, section), **{name: value})})


def test_differences_are_named_and_harmless_ones_are_not() -> None:
    """A run could not be moved or logged otherwise, or goes on as another experiment."""
    config = FlowConfig(data=DataConfig(paths=("a",), workers=1), model=ModelConfig("enc", train_encoder=False))
    assert differences(config, to_json(config)) == []
    moved = replace(config, data=DataConfig(paths=("b",), workers=4), log=LogConfig(stats_images=1), microbatch=2)
    moved = replace(moved, model=replace(config.model, encoder="old/enc"), validation=ValidationConfig(count=3))
    assert differences(moved, to_json(config)) == []
    other = replace(config, seed=1, batch_size=8)
    assert differences(other, to_json(config)) == ["batch_size: 256 -> 8", "seed: 0 -> 1"]
    assert differences(KLVAEConfig(), to_json(FlowConfig()))[-1] == "stage: flow -> kl-vae"
    # Only what lies somewhere can have moved.
    for name, before, after in (("encoder", "f8c4", "f16c4"), ("encoder", "enc", "f8c4"), ("start_from", "run", None)):
        first, second = (FlowConfig(model=ModelConfig(**{name: value})) for value in (before, after))
        assert differences(second, to_json(first)) == [f"model.{name}: {before} -> {after}"]
    own = FlowConfig(loss=FlowLoss(own=("losses/mine.py:edges:0.1",)))
    assert differences(replace(own, loss=FlowLoss(own=("/moved/mine.py:edges:0.1",))), to_json(own)) == []
    assert differences(replace(own, loss=FlowLoss(own=("losses/mine.py:edges:0.2",))), to_json(own)) != []


@pytest.mark.parametrize(("setting", "adversarial", "allowed"), [("microbatch", 0.0, True), ("microbatch", 0.5, False)])
def test_microbatch_belongs_to_a_run_with_a_discriminator(setting: str, adversarial: float, allowed: bool) -> None:
    """Its adaptive weight is that of a microbatch: with another one the run would go on as another."""
    config = KLVAEConfig(loss=KLVAELoss(adversarial=adversarial))
    assert (differences(replace(config, microbatch=2), to_json(config)) == []) is allowed


def test_only_a_run_without_decay_may_grow() -> None:
    """A decaying rate is that of the old length; a shorter run has what is too much already."""
    steady = FlowConfig(optimizer=OptimizerConfig(decay_images=0, warmup_images=10), total_images=100)
    assert differences(replace(steady, total_images=200), to_json(steady)) == []
    assert differences(replace(steady, total_images=50), to_json(steady)) == ["total_images: 100 -> 50"]
    decaying = changed(steady, "optimizer.decay_images", 50)
    assert differences(replace(decaying, total_images=200), to_json(decaying)) == ["total_images: 100 -> 200"]
    squeezed = changed(steady, "optimizer.warmup_images", 150)  # the warm-up was shortened to the run's length
    assert differences(replace(squeezed, total_images=200), to_json(squeezed)) == ["total_images: 100 -> 200"]


@pytest.mark.parametrize("config", [FlowConfig(), DistillationConfig(), KLVAEConfig()], ids=lambda c: c.stage)
def test_config_is_read_back(config: TrainConfig) -> None:
    """``ssdd train --config`` and ``ssdd train export`` make something else of a run's config.json."""
    config = replace(config, data=replace(PHOTOS, scale=3.0), seed=3)
    assert read_config(to_json(config)) == config
    for text in ("[]", "{", "null", '{"stage": "mine"}', '{"stage": "flow", "seed": "many"}', "[" * 100_000):
        with pytest.raises(ValueError, match="expected the settings of a run of `ssdd train`"):
            read_config(text)


RANGES = [
    ("batch_size", 0, "expected batch_size of at least 1, found 0"),
    ("seed", -1, "expected seed of at least 0, found -1"),
    ("one_step_share", 1.5, "expected one_step_share of at most 1, found 1.5"),
    ("data.scale", 0.5, "expected data.scale of at least 1, found 0.5"),
    ("data.resolution", 4, "expected data.resolution of at least 8, found 4"),
    ("validation.share", -0.1, "expected validation.share of at least 0, found -0.1"),
    ("validation.steps", (1, 0), "expected validation.steps of at least 1"),
    ("optimizer.warmup_images", -1, "expected optimizer.warmup_images of at least 0, found -1"),
    ("optimizer.decay_images", -5, "expected optimizer.decay_images of at least 0, found -5"),
    ("optimizer.weight_decay", -1e-3, "expected optimizer.weight_decay of at least 0, found -0.001"),
    ("optimizer.clip", 0.0, "expected optimizer.clip above 0, found 0.0"),
    ("optimizer.betas", (0.9, 1.0), "expected optimizer.betas below 1"),
    ("optimizer.learning_rate", float("nan"), "expected optimizer.learning_rate to be a finite number, found nan"),
    ("average.halflife_images", 0.0, "expected average.halflife_images above 0, found 0.0"),
    ("discriminator.learning_rate", 0.0, "expected discriminator.learning_rate above 0, found 0.0"),
    ("loss.lpips", -1.0, "expected loss.lpips of at least 0, found -1.0"),
    ("log.checkpoint_images", 0, "expected log.checkpoint_images of at least 1, found 0"),
    ("precision", "fp8", "precision: invalid enum value 'fp8'"),
    ("total_images", 1.5, "total_images: expected `int`, got `float`"),
]


@pytest.mark.parametrize(("setting", "value", "message"), RANGES, ids=[f"{name}={value}" for name, value, _ in RANGES])
def test_settings_out_of_range_are_named(setting: str, value: object, message: str) -> None:
    """A run of days starts with a setting that cannot be meant, or ends in a traceback."""
    good = FlowConfig(data=PHOTOS)
    good.check()
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        changed(good, setting, value).check()
    assert "\n" not in str(caught.value)


WITHOUT_EFFECT = [
    (FlowConfig(optimizer=OptimizerConfig("schedule-free-radam", decay_images=5)), "optimizer.decay_images 5"),
    (FlowConfig(loss=FlowLoss(repa_network="mine")), "loss.repa_network mine has no effect: loss.repa is 0"),
    (FlowConfig(loss=FlowLoss(lpips=0, lpips_network="alex")), "loss.lpips_network alex"),
    (KLVAEConfig(loss=KLVAELoss(lpips=0, lpips_shift=False)), "loss.lpips_shift False has no effect: loss.lpips is 0"),
    (FlowConfig(validation=ValidationConfig(count=0), log=LogConfig(sample_images=5)), "log.sample_images 5"),
    (FlowConfig(validation=ValidationConfig(count=0), log=LogConfig(sample_count=3)), "log.sample_count 3"),
    (FlowConfig(loss=FlowLoss(adversarial_from_images=8)), "loss.adversarial_from_images 8"),
    (FlowConfig(discriminator=DiscriminatorConfig(learning_rate=1.0)), "discriminator.learning_rate 1.0"),
    (FlowConfig(model=ModelConfig("runs/x", train_encoder=False), loss=FlowLoss(kl=1.0)), "loss.kl 1.0"),
    (FlowConfig(model=ModelConfig("runs/x", encoder_width=32)), "model.encoder_width 32"),
    (FlowConfig(model=ModelConfig(start_from="runs/x", init="paper")), "model.init paper"),
    (FlowConfig(validation=ValidationConfig(paths=("mine",), share=0.5)), "validation.share 0.5"),
    (DistillationConfig(loss=DistillationLoss(repa_network="mine")), "loss.repa_network mine"),
    (KLVAEConfig(model=KLVAEModelConfig(start_from="runs/x", decoder_width=64)), "model.decoder_width 64"),
    (KLVAEConfig(model=KLVAEModelConfig("runs/y", start_from="runs/x")), "model.encoder runs/y"),
    (KLVAEConfig(model=KLVAEModelConfig("runs/x", train_encoder=False), loss=KLVAELoss(kl=1.0)), "loss.kl 1.0"),
]


@pytest.mark.parametrize(("config", "message"), WITHOUT_EFFECT, ids=[message for _, message in WITHOUT_EFFECT])
def test_settings_without_effect_are_refused(config: TrainConfig, message: str) -> None:
    """Somebody sets it, and believes that it has worked."""
    config = replace(config, data=PHOTOS)
    if isinstance(config, DistillationConfig):
        config = replace(config, model=TeacherConfig("teacher"))
    with pytest.raises(ValueError, match=rf"^stage {config.stage}: .* has no effect: ") as caught:
        config.check()
    assert message in str(caught.value)


def test_what_cannot_be_trained_here() -> None:
    """The reason comes hours later, or as a traceback."""
    with pytest.raises(ValueError, match=r"pass --data\.paths"):
        FlowConfig().check()
    good = FlowConfig(data=PHOTOS)
    with pytest.raises(ValueError, match="divisible by 3 processes"):
        good.check(processes=3)
    with pytest.raises(ValueError, match="small enough for one GPU"):
        KLVAEConfig(data=PHOTOS, parallel="fsdp").check(processes=2)
    with pytest.raises(ValueError, match="distillation needs the teacher"):
        DistillationConfig(data=PHOTOS).check()
    for kind, model in ((FlowConfig, ModelConfig), (KLVAEConfig, KLVAEModelConfig)):
        with pytest.raises(ValueError, match="a frozen encoder must come from somewhere"):
            kind(data=PHOTOS, model=model("f8c4", train_encoder=False)).check()
    with pytest.raises(TypeError, match="TrainConfig is no stage"):
        TrainConfig().build_stage()


def test_microbatch() -> None:
    assert microbatch_size(FlowConfig(batch_size=64), processes=4) == 16
    assert microbatch_size(FlowConfig(batch_size=64, microbatch=8), processes=4) == 8


def test_generation_has_the_same_checks() -> None:
    """``ssdd generate train`` would take what ``ssdd train`` refuses."""
    config = GenerationConfig(latents="a")
    config.check()
    with pytest.raises(ValueError, match=r"expected average\.halflife_images above 0, found 0"):
        replace(config, average=AverageConfig(halflife_images=0)).check()
    with pytest.raises(ValueError, match=r"stage generation: log\.sample_images 5 has no effect: no decoder draws"):
        replace(config, log=LogConfig(sample_images=5)).check()
    replace(config, log=LogConfig(sample_images=0)).check()


# ---- recipes --------------------------------------------------------------------------------------------------------


def with_data(config: Any) -> Any:
    return replace(config, data=replace(config.data, paths=("photos",)))


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_documented_configs(name: str) -> None:
    """`ssdd train --help` shows the summary; a recipe needs nothing but data to be trained."""
    recipe = RECIPES[name]
    config = recipe()
    assert isinstance(config, TrainConfig)
    assert recipe.summary.endswith(".")
    with_data(config).check()
    assert json.loads(to_json(config))["stage"] == config.stage


@pytest.mark.parametrize("latent", [None, "f8c4", "f16c4", "f16c16", "f32c64"])
@pytest.mark.parametrize("scale", ["paper", "gpu", "cpu", "tiny"])
def test_each_stage_starts_from_the_run_before_it(scale: str, latent: str | None) -> None:
    """A stage looks for a folder that no other one makes."""
    for decoder in (None, "S", "H"):
        for resolution in (None, 128, 256, 512):
            axes = Axes(latent, decoder, resolution, scale)  # type: ignore[arg-type]
            free = replace(axes, decoder=None, resolution=None)
            before = {
                "pretraining": ("encoder", free),
                "finetuning": ("pretraining", replace(axes, resolution=None)),
                "distillation": ("finetuning", axes),
            }
            for name, (earlier, at) in before.items():
                model: Any = RECIPES[name](axes).model
                start = model.start_from or model.encoder
                assert start == f"runs/{RECIPES[earlier].run_name(at)}"
                with_data(RECIPES[name](axes)).check(processes=8)
    large, plain = (
        RECIPES["kl-vae"](Axes(latent, resolution=512, scale=scale)),
        RECIPES["kl-vae"].run_name(  # type: ignore[arg-type]
            Axes(latent, scale=scale)  # type: ignore[arg-type]
        ),
    )
    assert large.model.start_from == f"runs/{plain}"


def test_names_of_runs() -> None:
    """Two experiments share a folder, or a guide's name is another."""
    assert RECIPES["distillation"].run_name(Axes("f16c4", "B", 512)) == "f16c4-B-512-distillation"
    assert RECIPES["finetuning"].run_name(Axes(scale="gpu", decoder="M", resolution=512)) == "gpu-M-512-finetuning"
    assert RECIPES["tiny-encoder"].run_name() == "tiny-encoder"
    assert RECIPES["demo"].run_name() == "demo"


@pytest.mark.parametrize(
    ("stage", "axes", "resolution", "scale", "rate", "epochs", "encoder"),
    [
        ("encoder", Axes("f16c4"), 128, 2.0, 1e-4, 300, True),
        ("pretraining", Axes("f16c4", "S"), 128, 2.0, 8e-4, 300, False),
        ("pretraining", Axes("f8c4", "H"), 128, 2.0, 3e-4, 300, False),
        ("finetuning", Axes("f32c64", "XL", 512), 512, 1.0, 1e-4, 100, False),
        ("distillation", Axes("f8c4", "B", 256), 256, 1.0, 1e-4, 10, False),
    ],
)
def test_recipes_are_the_papers(
    stage: str, axes: Axes, resolution: int, scale: float, rate: float, epochs: int, encoder: bool
) -> None:
    """A row of the paper's table of stages is mistyped."""
    config: Any = RECIPES[stage](axes)
    assert (config.data.resolution, config.data.scale) == (resolution, scale)
    assert (config.total_images, config.batch_size) == (epochs * EPOCH, 256)
    optimizer, loss = config.optimizer, config.loss
    assert (optimizer.name, optimizer.learning_rate) == ("schedule-free-radam", rate)
    assert (optimizer.clip, optimizer.weight_decay, optimizer.warmup_images) == (0.1, 1e-2, 0)
    assert (loss.flow, loss.lpips, loss.repa, loss.lpips_network) == (1.0, 0.5, 0.25, "vgg")
    assert 0.5 ** (256 / config.average.halflife_images) == pytest.approx(0.999, abs=1e-6)
    assert config.average.from_images == 50_000 * 256
    assert config.precision == "bf16"
    assert config.parallel == ("fsdp" if axes.decoder == "H" else "ddp")
    if stage == "distillation":
        assert config.teacher_steps == 12
        return
    assert config.model.train_encoder is encoder
    assert (loss.kl, loss.adversarial) == (1e-6, 0.0)
    if encoder:
        assert (config.model.decoder, config.model.encoder) == ("M", axes.latent)
