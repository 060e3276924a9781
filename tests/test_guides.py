"""A reader who pastes the Python of a page, block by block, gets through.

What a page takes for given (photographs, a trained model) is made here, tiny, in a folder of its own.
"""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ssdd.checkpoints.embedded import embedded_folder
from ssdd.cli import main
from ssdd.generation.config import GenerationConfig
from ssdd.generation.task import train_generator
from ssdd.tokenization import CropProtocol, TokenizeJob, tokenize
from ssdd.training import loop
from ssdd.training.config import LogConfig
from tests.guides import PAGES, run_blocks
from tests.pipelines.components import build, flux2_vae, kl_vae

pytestmark = pytest.mark.slow

ELSEWHERE = {"docs/export.md"}
"""Pages whose blocks another test runs: tests/export compares what they compute."""

CLASSES = ["bonsai", "ibis", "ketch", "lotus", "panda", "rooster", "stegosaurus", "tench"]

MonkeyPatch = pytest.MonkeyPatch


def save_photographs(folder: Path) -> None:
    """Save two small pictures of each class, and one beside the classes."""
    random = np.random.default_rng(0)
    for i, name in enumerate([*CLASSES, *CLASSES, "."]):
        (folder / name).mkdir(parents=True, exist_ok=True)
        cells = Image.fromarray(random.integers(0, 256, (3, 4, 3), dtype=np.uint8))
        picture = cells.resize((64, 48), Image.Resampling.BICUBIC)
        picture.save(folder / name / ("mine.jpg" if name == "." else f"{i}.png"))


def before_readme(patch: MonkeyPatch) -> None:
    shutil.copy("photos/mine.jpg", "photo.jpg")


def before_drop_in(patch: MonkeyPatch) -> None:
    build("SD", kl_vae(block_out_channels=(32, 32, 32, 32))).save_pretrained("my-pipeline")
    build("FLUX.2", flux2_vae()).save_pretrained("my-flux2")


def before_finetuning(patch: MonkeyPatch) -> None:
    folder = embedded_folder("ssdd-f8c4-demo")
    assert folder is not None
    shutil.copytree(folder, "runs/finetune/best")


def before_generation(patch: MonkeyPatch) -> None:
    tokenize(TokenizeJob(("photos/",), "ssdd-f8c4-demo", CropProtocol(size=32)), "latents")
    config = GenerationConfig(
        latents="latents",
        size="tiny/2",
        log=LogConfig(sample_images=0),
        total_images=8,
        batch_size=4,
        workers=0,
        precision="fp32",
    )
    patch.setattr(loop, "peak_flops", lambda *_, **__: 1e12)
    train_generator(config, Path("runs/dit"), torch.device("cpu"))
    assert main.run(["generate", "export", "runs/dit", "--out", "pipeline"]) == 0


def before_tokenization(patch: MonkeyPatch) -> None:
    tokenize(TokenizeJob(("photos/",), "ssdd-f8c4-demo"), "latents")
    tokenize(TokenizeJob(("photos/",), "ssdd-f8c4-demo", CropProtocol(size=64), container="parquet"), "columns")


def before_training(patch: MonkeyPatch) -> None:
    def train_little(config: Any, run: Path) -> Path:
        assert config.total_images == 320
        loss = replace(config.loss, lpips=0.0, lpips_network="vgg")  # the default network, for none has an effect
        data = replace(config.data, resolution=16, workers=0)
        return train(replace(config, loss=loss, data=data, total_images=8, batch_size=4), run)

    train = loop.train
    patch.setattr(loop, "train", train_little)
    patch.setattr(loop, "peak_flops", lambda *_, **__: 1e12)


BEFORE: dict[str, Callable[[MonkeyPatch], None]] = {
    "README.md": before_readme,
    "docs/drop-in.md": before_drop_in,
    "docs/finetuning.md": before_finetuning,
    "docs/generation.md": before_generation,
    "docs/tokenization.md": before_tokenization,
    "docs/training.md": before_training,
}
"""What has to be there before the blocks of a page run."""


@pytest.mark.parametrize("page", [page for page in PAGES if page not in ELSEWHERE])
def test_python_of_a_page_runs(page: str, tmp_path: Path, monkeypatch: MonkeyPatch, no_compiler: None) -> None:
    monkeypatch.chdir(tmp_path)
    save_photographs(Path("photos"))
    BEFORE.get(page, lambda patch: None)(monkeypatch)
    run_blocks(page)
