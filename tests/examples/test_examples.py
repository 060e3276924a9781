"""Every example runs, with little data and few steps, and makes what it says (onnx_runtime.py: tests/export)."""

import json
import runpy
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ssdd.training import loop
from ssdd.training.config import FlowConfig

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"

Run = Callable[..., str]


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], picture: Any, no_compiler: None
) -> Run:
    """``run("name.py", "argument")``: the output of an example, in a folder with ``photo.jpg`` and ``photos/``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    Image.fromarray(picture(60, 92)).save("photo.jpg")
    Path("photos").mkdir()
    for i in range(4):
        Image.fromarray(picture(48, 64, seed=i)).save(f"photos/{i}.png")

    def start(script: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
        return capsys.readouterr().out

    return start


def test_reconstruct_photo(run: Run) -> None:
    out = run("reconstruct_photo.py", "photo.jpg")
    assert "latent of 4x8x12" in out
    assert Image.open("reconstructed.png").size == (92, 60)
    difference = np.asarray(Image.open("reconstructed.png"), float) - np.asarray(Image.open("photo.jpg"), float)
    assert np.abs(difference).mean() < 20, "another picture"
    gray = np.linspace(0, 65535, 60 * 92).reshape(60, 92).astype(np.uint16)
    Image.fromarray(gray).save("deep.png")
    run("reconstruct_photo.py", "deep.png")
    difference = np.asarray(Image.open("reconstructed.png"), float) - gray[:, :, None] / 257
    assert np.abs(difference).mean() < 20, "16 bits are cut off at 255"


def test_diffusers_pipeline(run: Run) -> None:
    out = run("diffusers_pipeline.py", "--steps", "2")
    assert "32 x 32 pixels, decoded by AutoencoderSSDD" in out
    assert float(out.split("at most ")[1].split()[0]) < 1e-3, "another encoder"


def test_train_and_evaluate(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def train_little(config: FlowConfig, folder: Path) -> Path:
        data = replace(config.data, resolution=16, workers=0)
        return train(replace(config, data=data, batch_size=4), folder)

    train = loop.train
    monkeypatch.setattr(loop, "train", train_little)
    monkeypatch.setattr(loop, "peak_flops", lambda *_, **__: 1e12)
    monkeypatch.setenv("TORCH_HOME", "no-torch-home")
    out = run("train_and_evaluate.py", "photos", "photos", "--images", "8", "--lpips", "0")
    assert "4 photographs, 8 step(s): ImageMetrics(psnr=" in out
    assert Path("runs/example/model/config.json").is_file()


def test_train_on_latents(run: Run) -> None:
    out = run("train_on_latents.py", "photos/", "--size", "32", "--steps", "3")
    assert "8 samples after 3 updates on 4 latents" in out
    assert Image.open("flow/samples.png").height > 32


def test_notebook(run: Run) -> None:
    """Its code cells, but for the one that installs: nbclient and ipykernel would bring twenty packages for it."""
    cells = json.loads((EXAMPLES / "ssdd_quickstart.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    code = [source for source in code if "%pip" not in source]
    assert len(code) == len([cell for cell in cells if cell["cell_type"] == "code"]) - 1
    names: dict[str, Any] = {}
    for number, source in enumerate(code):
        exec(compile(source, f"cell {number}", "exec"), names)
    assert names["z"].shape == (1, 4, 32, 40)
    assert Path("ssdd_quickstart.png").stat().st_size > 10_000
    assert Path("my-tokenizer/config.json").is_file()


def test_table_has_every_example() -> None:
    table = (EXAMPLES / "README.md").read_text()
    examples = [path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")]
    assert [name for name in examples if f"]({name})" not in table] == []


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_scripts_are_short(script: Path) -> None:
    assert len(script.read_text().splitlines()) <= 60
