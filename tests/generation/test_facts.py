"""``generation.json``: it may be anybody's, and wrong numbers in it make wrong pictures."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

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


def test_damaged_networks_are_told_in_one_line(saved: Path, tmp_path: Path) -> None:
    """Some ended with a traceback, and missing weights were drawn by chance."""
    config = json.loads((saved / "config.json").read_text())
    weights = saved / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    name = min(tensors)
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, tmp_path / "less")
    for number, (file, content, message) in enumerate(
        (
            ("config.json", b"{}", "expected a network, LatentTransformer"),
            ("config.json", b"[]", "expected a JSON object"),
            ("config.json", json.dumps(config | {"num_layers": "x"}).encode(), "expected a generator, found damaged"),
            (weights.name, weights.read_bytes()[:-100], "expected a generator, found damaged files"),
            (weights.name, (tmp_path / "less").read_bytes(), f"expected all weights of a generator, found no {name}"),
        )
    ):
        folder = tmp_path / str(number)
        shutil.copytree(saved, folder)
        (folder / file).write_bytes(content)
        with pytest.raises(ValueError, match=message) as caught:
            load_generator(folder)
        assert str(folder) in str(caught.value)
        assert "\n" not in str(caught.value)
