"""Photographs, a small model and what it takes to run commands on them in a second."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssdd.autoencoder import AutoencoderSSDD
from ssdd.autoencoder.codec import encode_image, save_encoded
from ssdd.data.find import find_images
from ssdd.data.images import read_image
from tests.reliability.commands import Inputs, write_authors_file


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory, picture: Callable[..., np.ndarray]) -> Path:
    """Folder of two pictures of 24 x 32."""
    folder = tmp_path_factory.mktemp("photographs")
    for i in range(2):
        Image.fromarray(picture(24, 32, i)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(autouse=True)
def no_weights_of_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The same results with and without LPIPS and feature extractors in the user's cache."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "no-torch-home"))
    monkeypatch.delenv("SSDD_TRACEBACK", raising=False)


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory, photographs: Path, tiny_model: Path) -> Inputs:
    folder = tmp_path_factory.mktemp("inputs")
    write_authors_file(folder / "authors.safetensors")
    model = AutoencoderSSDD.from_pretrained(tiny_model).eval()
    for file in find_images([photographs]):
        save_encoded(folder / "latents" / f"{file.output_stem}.safetensors", encode_image(model, read_image(file.path)))
    return Inputs(photographs, tiny_model, folder / "authors.safetensors", folder / "latents")
