"""``ssdd statistics``: the embedded model's latents, saved in a copy of it; one line where something cannot be."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ssdd import AutoencoderSSDD
from ssdd.checkpoints.embedded import embedded_folder
from ssdd.data.images import read_image
from ssdd.data.pixels import image_to_tensor
from ssdd.data.transforms import centre_crop

Ssdd = Callable[..., Any]
DEMO = "ssdd-f8c4-demo"
OPTIONS = ("--data", "photos", "--protocol", "paper-128-v1", "--workers", "0")


@pytest.fixture
def photos(tmp_path: Path, picture: Callable[..., np.ndarray]) -> Path:
    (tmp_path / "photos").mkdir()
    for i in range(5):
        Image.fromarray(picture(140, 130 + 10 * i, i)).save(tmp_path / "photos" / f"{i}.png")
    return tmp_path / "photos"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A finished run with a copy of the embedded model."""
    folder = embedded_folder(DEMO)
    assert folder is not None
    return Path(shutil.copytree(folder, tmp_path / "run" / "model")).parent


def test_saved_statistics_normalise_the_latents(ssdd: Ssdd, photos: Path, model: Path) -> None:
    before = json.loads((model / "model" / "config.json").read_text())
    result = ssdd("statistics", model, *OPTIONS, "--save")
    assert result.status == 0, result.err
    after = json.loads((model / "model" / "config.json").read_text())
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"scaling_factor", "shift_factor", "latents_mean", "latents_std"}
    assert list(after) == list(before), "another order"
    assert f"{before['scaling_factor']:.5g}  ->  {after['scaling_factor']:.5g}" in result.out

    ae = AutoencoderSSDD.from_pretrained(model / "model").eval()
    crops = [image_to_tensor(centre_crop(read_image(path), 128)) for path in sorted(photos.iterdir())]
    with torch.no_grad():
        raw = ae.encode(torch.stack(crops)).latent_dist.mode()
        z = ae.normalize_latents(raw).double()
    assert z.mean((0, 2, 3)).tolist() == pytest.approx([0] * 4, abs=1e-3)
    assert z.std((0, 2, 3), correction=0).tolist() == pytest.approx([1] * 4, abs=1e-3)
    overall = (raw.double() - ae.config.shift_factor) * ae.config.scaling_factor
    assert (overall.mean().item(), overall.std(correction=0).item()) == pytest.approx((0, 1), abs=1e-3)


def test_file_and_table(ssdd: Ssdd, photos: Path, tmp_path: Path, tree: Callable[[Path], dict[str, bytes]]) -> None:
    folder = embedded_folder(DEMO)
    assert folder is not None
    before = tree(folder)
    result = ssdd("statistics", DEMO, *OPTIONS, "--out", "out/latents.json", "--batch-size", "2", "--limit", "3")
    assert result.status == 0, result.err
    assert tree(folder) == before, "the embedded model was changed"
    found = json.loads((tmp_path / "out" / "latents.json").read_text())
    assert found["data"]["images"] == found["limit"] == 3
    assert found["protocol"]["protocol"] == "paper-128-v1"
    assert f"{found['config']['scaling_factor']:.5g}" in result.out
    assert found["data"]["fingerprint"] in result.out
    again = ssdd("statistics", DEMO, *OPTIONS, "--out", "out/latents.json")
    assert "exists already; pass --overwrite" in again.error_line()
    as_json = ssdd("statistics", DEMO, *OPTIONS, "--limit", "3", "--json")
    assert json.loads(as_json.out)["data"] == found["data"]


def test_skipped_images_are_named_and_in_the_status(ssdd: Ssdd, photos: Path) -> None:
    (photos / "2.png").write_bytes(b"no image")
    result = ssdd("statistics", DEMO, *OPTIONS)
    assert result.status == 3
    (line,) = result.skipped()
    assert "2.png" in line
    assert "4 crops of 4 images, 1 skipped" in result.out


def test_latents_that_are_not_finite(ssdd: Ssdd, photos: Path, model: Path) -> None:
    """A NaN in the config would be noticed when the generative model gives black images."""
    weights = model / "model" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["encoder.conv_in.bias"][0] = 3e38  # finite, or it would not be loaded; its square is not
    save_file(tensors, weights)
    config = (model / "model" / "config.json").read_bytes()
    result = ssdd("statistics", model, *OPTIONS, "--save")
    assert result.status == 1
    assert "0.png#0: expected a finite latent, found NaN or infinity" in result.err.splitlines()[-1]
    assert (model / "model" / "config.json").read_bytes() == config


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((DEMO,), "pass --data"),
        ((DEMO, "--data", "photos", "--protocol", "paper"), "expected a protocol"),
        ((DEMO, "--data", "nothing"), "nothing"),
        ((DEMO, "--data", "empty"), "expected images in empty, found none"),
        ((DEMO, "--data", "broken", "--workers", "0"), "expected usable images, found none: 1 skipped"),
        ((DEMO, "--data", "photos", "--save"), f"{DEMO}: expected the folder of a model or of a finished run"),
        (("jpeg:2000", "--data", "photos", "--workers", "0"), "expected a model with a latent tensor, found none"),
    ],
)
def test_what_cannot_be_measured(
    ssdd: Ssdd, photos: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"no image")
    result = ssdd("statistics", *arguments)
    assert result.status == 1
    assert message in result.err.splitlines()[-1]
    assert "Traceback" not in result.err


def test_a_read_only_folder_is_refused_before_the_work(
    ssdd: Ssdd, photos: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    access = os.access  # the superuser may write anywhere, so permissions alone would prove nothing

    def read_only(path: Any, mode: int) -> bool:
        return not (mode & os.W_OK and Path(path) == model / "model") and access(path, mode)

    monkeypatch.setattr("os.access", read_only)
    result = ssdd("statistics", model, *OPTIONS, "--save")
    assert "model: expected a folder that may be written to, found one that is read-only" in result.error_line()
