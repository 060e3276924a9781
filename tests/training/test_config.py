"""The configuration: stable as JSON, differences named, bad settings refused."""

from dataclasses import replace
from pathlib import Path

import pytest

from ssdd.recipes import RECIPES
from ssdd.training.config import DataConfig, TrainConfig, check, differences, to_json


def test_differences_are_named_and_harmless_ones_are_not() -> None:
    config = TrainConfig(data=DataConfig(paths=("a",), workers=1))
    assert differences(config, to_json(config)) == []
    moved = replace(config, data=DataConfig(paths=("b",), workers=4), log_images=1)
    assert differences(moved, to_json(config)) == []
    other = replace(config, seed=1, batch_size=8)
    assert differences(other, to_json(config)) == ["batch_size: 256 -> 8", "seed: 0 -> 1"]


def test_bad_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"pass --data\.paths"):
        check(TrainConfig())
    with pytest.raises(ValueError, match="nowhere: expected a folder or a tar file"):
        check(TrainConfig(data=DataConfig(paths=("nowhere",))))
    good = TrainConfig(data=DataConfig(paths=(str(tmp_path),)))
    check(good)
    with pytest.raises(ValueError, match="at least 1"):
        check(replace(good, batch_size=0))


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_documented_configs(name: str) -> None:
    """`ssdd train --help` shows the docstring of each recipe."""
    assert isinstance(RECIPES[name](), TrainConfig)
    assert RECIPES[name].__doc__
