"""``ssdd train`` as a user meets it before anything is trained: its options, and settings that cannot work."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ssdd.cli import train
from ssdd.recipes import RECIPES

Ssdd = Callable[..., Any]


SOME = [name for name in RECIPES if name.startswith(("tiny", "demo"))] + ["f8c4-encoder", "f16c4-S-256-distillation"]


def test_help_lists_the_recipes(ssdd: Ssdd) -> None:
    result = ssdd("train", "--help")
    assert result.status == 0
    for name in ("tiny-encoder", "demo-gpu", "LATENT-SIZE-pretraining", "f16c16", "Exit status", "torchrun"):
        assert name in result.out, f"{name} is not mentioned"
    assert len(result.out.splitlines()) < 40, "hundreds of lines instead of an overview"


def test_mistyped_recipe_is_told_a_near_one(ssdd: Ssdd) -> None:
    result = ssdd("train", "f8c4-S-pretrianing")
    assert result.status == 2
    assert "did you mean f8c4-S-pretraining" in result.err


def test_encoder_has_a_short_name() -> None:
    """``--encoder`` is what the guides say."""
    short, long = (train.parse(["tiny-pretraining", o, "x"]).recipe for o in ("--encoder", "--model.encoder"))
    assert short == long
    assert short.model.encoder == "x"


@pytest.mark.parametrize("recipe", SOME)
def test_help_of_a_recipe(ssdd: Ssdd, recipe: str) -> None:
    result = ssdd("train", recipe, "--help")
    assert result.status == 0, f"ssdd train {recipe} --help fails: {result.err}"
    for option in ("--out", "--data.paths", "--model.encoder", "--optimizer.learning-rate", "--total-images", "--seed"):
        assert option in result.out, f"{option} is not listed"


@pytest.mark.parametrize("recipe", SOME)
def test_a_recipe_alone_is_the_recipe(recipe: str) -> None:
    """Nothing but what is typed changes a recipe, and the run has a folder of its own."""
    options = train.parse([recipe])
    assert options.recipe == RECIPES[recipe](), "the command line changes the recipe"
    assert options.out == Path("runs") / recipe, "the run's folder is another"


def test_settings_are_overridden() -> None:
    options = train.parse(["demo-encoder", "--out", "here", "--data.paths", "a", "b.tar", "--batch-size", "8"])
    expected = RECIPES["demo-encoder"]()
    data = dataclasses.replace(expected.data, paths=("a", "b.tar"))
    assert options.recipe == dataclasses.replace(expected, data=data, batch_size=8), "other settings were changed"
    assert options.out == Path("here"), "--out is not followed"


def test_missing_data(ssdd: Ssdd, tmp_path: Path) -> None:
    line = ssdd("train", "demo-encoder", "--data.paths", "nowhere", "--out", "run").error_line()
    assert "nowhere: expected a folder or a tar file" in line, f"the path is not named: {line}"
    line = ssdd("train", "demo-encoder", "--out", "run").error_line()
    assert "--data.paths" in line, f"no path at all: the option is not named: {line}"
    assert list(tmp_path.iterdir()) == [], "a run that cannot start left a folder"


@pytest.mark.parametrize("arguments", [(), ("demo",), ("demo-encoder", "--batch-size", "many")])
def test_wrong_usage(ssdd: Ssdd, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """No recipe, an unknown one, a word for a number."""
    assert ssdd("train", *arguments).status == 2, "wrong usage is not told from failed work"
    assert list(tmp_path.iterdir()) == [], "something was written"


def test_other_files_in_the_folder_are_kept(ssdd: Ssdd, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("precious")
    line = ssdd("train", "demo-encoder", "--data.paths", "photos", "--out", "thesis").error_line()
    assert "choose another --out" in line, f"the way out is not told: {line}"
    assert [p.name for p in (tmp_path / "thesis").iterdir()] == ["chapter.txt"], "a run was put among other files"
