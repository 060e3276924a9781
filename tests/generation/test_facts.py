"""``generation.json``: it may be anybody's, and wrong numbers in it make wrong pictures."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ssdd.generation.result import load_generator
from tests.generation.test_shared import save_random_generator


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    return save_random_generator(tmp_path_factory.mktemp("facts") / "model", tiny_model)


@pytest.mark.parametrize(
    "statistics",
    [
        {"scaling_factor": None},
        {"scaling_factor": "x"},
        {"scaling_factor": -1.0},
        {"shift_factor": "far"},
        {"latents_convention": "junk"},
        {"latents_mean": [0.0] * 4},
        {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 3},
        {"latents_mean": [0.0] * 4, "latents_std": [1.0, 1.0, 0.0, 1.0]},
        {"latents_mean": [0.0] * 4, "latents_std": "1111"},
    ],
    ids=str,
)
def test_impossible_statistics(saved: Path, tmp_path: Path, statistics: dict[str, Any]) -> None:
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    facts = json.loads((folder / "generation.json").read_text())
    facts["statistics"] |= statistics
    (folder / "generation.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match=r"generation\.json: expected a generator's") as caught:
        load_generator(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["[]", "5", "[" * 100_000, "{", '{"format": "ssdd-generation-1"}'])
def test_something_else(saved: Path, tmp_path: Path, content: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    (folder / "generation.json").write_text(content)
    with pytest.raises(ValueError, match=r"generation\.json: expected a generator's"):
        load_generator(folder)


def test_digest_covers_the_statistics(saved: Path, tmp_path: Path) -> None:
    """Samples of two maps would be mixed."""
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    assert load_generator(folder).digest == load_generator(saved).digest
    facts = json.loads((folder / "generation.json").read_text())
    facts["statistics"]["scaling_factor"] = 0.7
    (folder / "generation.json").write_text(json.dumps(facts))
    assert load_generator(folder).digest != load_generator(saved).digest
