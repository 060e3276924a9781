"""``ssdd train`` as a user meets it before anything is trained: its options, and settings that cannot work."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ssdd.cli.parse import parse
from ssdd.recipes import RECIPES, Axes
from ssdd.training.config import FlowConfig, KLVAEConfig, to_json

Ssdd = Callable[..., Any]


def test_help_lists_the_recipes(ssdd: Ssdd) -> None:
    result = ssdd("train", "--help")
    assert result.status == 0
    for name in ("tiny-encoder", "demo", "--latent", "--scale", "export", "Exit status", "torchrun"):
        assert name in result.out, f"{name} is not mentioned"
    assert len(result.out.splitlines()) < 60, "hundreds of lines instead of an overview"


def test_mistyped_recipe_is_told_a_near_one(ssdd: Ssdd) -> None:
    result = ssdd("train", "tiny-pretrianing")
    assert result.status == 2
    assert "did you mean tiny-pretraining" in result.err


def test_encoder_has_a_short_name() -> None:
    """``--encoder`` is what the guides say."""
    short, long = (parse(["train", "tiny-pretraining", o, "x"]).recipe for o in ("--encoder", "--model.encoder"))
    assert short == long
    assert short.model.encoder == "x"


@pytest.mark.parametrize("recipe", ["encoder", "tiny-kl-vae", "demo", "finetune"])
def test_help_of_a_recipe(ssdd: Ssdd, recipe: str) -> None:
    result = ssdd("train", recipe, "--help")
    assert result.status == 0, f"ssdd train {recipe} --help fails: {result.err}"
    for option in ("--out", "--data.paths", "--model.encoder", "--optimizer.learning-rate", "--total-images", "--seed"):
        assert option in result.out, f"{option} is not listed"


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_alone_is_the_recipe(recipe: str) -> None:
    """Nothing but what is typed changes a recipe, and the run has a folder of its own."""
    options = parse(["train", recipe])
    assert options.recipe == RECIPES[recipe](), "the command line changes the recipe"
    assert options.out == Path("runs") / RECIPES[recipe].run_name(), "the run's folder is another"


def test_axes_choose_the_experiment(ssdd: Ssdd) -> None:
    """Latent, decoder, resolution and scale are not followed, wherever they stand among the options."""
    typed = ["pretraining", "--latent", "f16c4", "--seed", "3", "--decoder", "B", "--scale", "gpu"]
    options = parse(["train", *typed])
    expected = RECIPES["pretraining"](Axes("f16c4", "B", scale="gpu"))
    assert options.recipe == dataclasses.replace(expected, seed=3)
    assert options.out == Path("runs/gpu-f16c4-B-pretraining")
    assert options.recipe.model.encoder == "runs/gpu-f16c4-encoder"
    assert ssdd("train", "pretraining", "--scale", "huge").status == 2
    assert "--latent" in ssdd("train", "tiny-encoder", "--latent", "f8c4").err, (
        "a fixed recipe takes an axis in silence"
    )


def test_settings_are_overridden() -> None:
    options = parse(["train", "demo", "--out", "here", "--data.paths", "a", "b.tar", "--batch-size", "8"])
    expected = RECIPES["demo"]()
    data = dataclasses.replace(expected.data, paths=("a", "b.tar"))
    assert options.recipe == dataclasses.replace(expected, data=data, batch_size=8), "other settings were changed"
    assert options.out == Path("here"), "--out is not followed"


def test_settings_of_a_recipe_that_have_no_effect_any_more() -> None:
    """Whoever switches LPIPS off would have to take back its network too, which he never chose."""
    options = parse(["train", "tiny-encoder", "--loss.lpips", "0", "--encoder", "runs/x", "--data", "a"])
    assert options.recipe.loss.lpips_network == "vgg", "the default"
    options.recipe.check()
    free = parse(["train", "tiny-encoder", "--optimizer.name", "schedule-free-radam", "--data", "a"])
    assert free.recipe.optimizer.decay_images == 0
    free.recipe.check()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tiny-kl-vae", "--one-step-share", "0.5"), "--one-step-share has no effect in the stage kl-vae"),
        (("tiny-kl-vae", "--loss.flow=1"), "--loss.flow has no effect in the stage kl-vae"),
        (("kl-vae", "--decoder", "L"), "--decoder has no effect here: a KL-VAE's is as wide as its encoder"),
        (("tiny-encoder", "--teacher_steps", "8"), "--teacher-steps has no effect in the stage flow"),
        (("tiny-distillation", "--loss.kl", "0"), "--loss.kl has no effect in the stage distillation"),
        (
            ("tiny-encoder", "--loss.repa-network", "mine"),
            "stage flow: loss.repa_network mine has no effect: loss.repa is 0",
        ),
        (
            ("tiny-encoder", "--optimizer.name", "schedule-free-radam", "--optimizer.decay-images", "5"),
            "stage flow: optimizer.decay_images 5 has no effect: schedule-free has no decay",
        ),
        (("tiny-pretraining", "--loss.kl", "1"), "stage flow: loss.kl 1.0 has no effect: the encoder is frozen"),
    ],
)
def test_typed_settings_without_effect(ssdd: Ssdd, arguments: tuple[str, ...], message: str) -> None:
    """Somebody types it, and believes that it has worked."""
    result = ssdd("train", *arguments)
    assert result.status == 2
    assert message in result.err


def test_recipe_of_ones_own(ssdd: Ssdd, tmp_path: Path) -> None:
    """A file's function or a run's config.json could not be trained, or its settings could not be overridden."""
    (tmp_path / "mine.py").write_text(
        "from ssdd.training.config import *\n"
        "def small(): return FlowConfig(batch_size=4, seed=5)\n"
        "ready = KLVAEConfig(batch_size=8)\n"
        "def wrong(): return 3\n"
    )
    options = parse(["train", f"{tmp_path}/mine.py:small", "--seed", "6"])
    assert options.recipe == FlowConfig(batch_size=4, seed=6)
    assert options.out == Path("runs/mine-small")
    assert parse(["train", f"{tmp_path}/mine.py:ready"]).recipe == KLVAEConfig(batch_size=8)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(to_json(options.recipe))
    again = parse(["train", "--config", f"{tmp_path}/run/config.json", "--batch-size", "2"])
    assert again.recipe == FlowConfig(batch_size=2, seed=6)
    assert again.out == Path("runs/run")
    assert "returns one of FlowConfig, DistillationConfig, KLVAEConfig, found int" in (
        ssdd("train", "mine.py:wrong").error_line()
    )
    assert "nowhere.json" in ssdd("train", "--config", "nowhere.json").error_line()
    (tmp_path / "broken.py").write_text("def recipe():\n    raise KeyError('x')\n")
    line = ssdd("train", "broken.py:recipe", "--data", "photos").error_line()
    assert "broken.py:recipe: expected a function that returns a config, found KeyError: 'x'" in line


def test_missing_data(ssdd: Ssdd, tmp_path: Path) -> None:
    line = ssdd("train", "demo", "--data.paths", "nowhere", "--out", "run").error_line()
    assert "nowhere: expected a folder or a tar file" in line, f"the path is not named: {line}"
    line = ssdd("train", "demo", "--out", "run").error_line()
    assert "--data.paths" in line, f"no path at all: the option is not named: {line}"
    assert list(tmp_path.iterdir()) == [], "a run that cannot start left a folder"


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("demos",),
        ("demo", "--batch-size", "many"),
        *(("demo", f"--log.{name}", "-1") for name in ("sample-count", "sample-images", "milestone-images")),
        *(("demo", f"--{name}", "-1") for name in ("seed", "data.workers")),
        *(("demo", f"--{name}", "nan") for name in ("optimizer.learning-rate", "loss.flow")),
        ("demo", "--log.stats-images", "0"),
    ],
)
def test_wrong_usage(ssdd: Ssdd, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """No recipe, an unknown one, a word for a number, a number out of its range."""
    assert ssdd("train", *arguments).status == 2, "wrong usage is not told from failed work"
    assert list(tmp_path.iterdir()) == [], "something was written"


def test_other_files_in_the_folder_are_kept(ssdd: Ssdd, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("precious")
    line = ssdd("train", "demo", "--data.paths", "photos", "--out", "thesis").error_line()
    assert "choose another --out" in line, f"the way out is not told: {line}"
    assert [p.name for p in (tmp_path / "thesis").iterdir()] == ["chapter.txt"], "a run was put among other files"
