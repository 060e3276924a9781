"""``ssdd decode`` of the folder of ``ssdd tokenize``: an image a latent, by the model that its manifest names."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from PIL import Image

from ssdd import AutoencoderSSDD

Ssdd = Callable[..., Any]
Tree = Callable[[Path], dict[str, bytes]]

NAMES = ("a/0.png", "a/1.png", "b/2.png")
KEYS = ("000000000-c0-0", "000000001-c0-1", "000000002-c0-2")


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.fixture
def latents(ssdd: Ssdd, model: Path, tmp_path: Path, picture: Callable[..., np.ndarray]) -> Callable[..., Path]:
    """``latents("--format", "parquet")``: the folder of ``ssdd tokenize`` with these options."""

    def make(*options: object) -> Path:
        for i, name in enumerate(NAMES):
            (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture(32, 32, i)).save(tmp_path / "photos" / name)
        how = ("--size", "32", "--workers", "0", "--processes", "1", "--device", "cpu")
        assert ssdd("tokenize", "photos", "--model", model, *how, "--out", "latents", *options).status == 0
        return tmp_path / "latents"

    return make


@pytest.mark.parametrize("container", ["tar", "parquet"])
def test_images_are_those_of_the_model(
    ssdd: Ssdd, latents: Callable[..., Path], tmp_path: Path, model: Path, container: str
) -> None:
    if container == "parquet":
        pytest.importorskip("pyarrow", reason="needs the extra: pip install 'ssdd[parquet]'")
    result = ssdd("decode", latents("--format", container), "--out", "images", "--device", "cpu")
    assert result.status == 0, result.err
    assert sorted(p.name for p in (tmp_path / "images").iterdir()) == [f"{key}.png" for key in KEYS]
    assert ssdd("encode", "photos", "--out", "files", "--model", model, "--device", "cpu").status == 0
    assert ssdd("decode", "files", "--out", "direct", "--model", model, "--device", "cpu").status == 0
    for key, name in zip(KEYS, NAMES, strict=True):
        found, expected = (np.asarray(Image.open(p)) for p in (f"images/{key}.png", f"direct/{name}"))
        assert found.shape == (32, 32, 3)
        assert np.abs(found.astype(int) - expected).max() <= 3, "more than the rounding of fp16"


def test_again_only_and_overwrite(ssdd: Ssdd, latents: Callable[..., Path], tmp_path: Path, tree: Tree) -> None:
    decode = ("decode", latents(), "--out", "images", "--device", "cpu")
    assert ssdd(*decode, "--only", "00000000[02]-*").status == 0
    assert sorted(tree(tmp_path / "images")) == [f"{KEYS[0]}.png", f"{KEYS[2]}.png"]
    kept, other = tmp_path / "images" / f"{KEYS[0]}.png", tmp_path / "images" / f"{KEYS[2]}.png"
    kept.write_bytes(b"precious")
    written = other.stat().st_mtime_ns
    result = ssdd(*decode)
    assert result.status == 3, "a file of somebody else passes for an image"
    assert "decoded 1 file into images (1 was there before)" in result.out
    assert kept.read_bytes() == b"precious"
    assert other.stat().st_mtime_ns == written, "it was decoded again"
    assert len(tree(tmp_path / "images")) == 3
    one_step = other.read_bytes()
    assert ssdd(*decode, "--overwrite", "--steps", "2").status == 0
    assert kept.read_bytes() != b"precious"
    assert other.read_bytes() != one_step, "--steps has no effect"
    assert "expected keys like 'dog*' (--only), found none" in ssdd(*decode, "--only", "dog*").error_line()


def test_which_model(ssdd: Ssdd, latents: Callable[..., Path], model: Path, tiny_model: Path, tmp_path: Path) -> None:
    decode = ("decode", latents(), "--out", "images", "--device", "cpu")
    other = AutoencoderSSDD.from_pretrained(model)
    other.encoder.conv_in.bias.data[0] += 1  # type: ignore[union-attr]
    other.save_pretrained(model)
    assert "found another encoder under that name" in ssdd(*decode).error_line()
    shutil.rmtree(model)
    line = ssdd(*decode).error_line()
    assert f"the latents are of {model} (encoder " in line
    assert "which cannot decode them here" in line
    assert line.endswith("pass the model that made them, or a decoder of the same encoder")
    assert not (tmp_path / "images").exists()
    assert ssdd(*decode, "--model", tiny_model).status == 0


def test_a_manifest_of_somebody_else(
    ssdd: Ssdd, latents: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No download for its sake, and no decoder of a model whose encoder is another."""
    folder, asked = latents(), []

    def ask_the_hub(*arguments: object, local_files_only: bool, **options: object) -> None:
        if not local_files_only:
            asked.append(arguments)
        raise LocalEntryNotFoundError("not in the cache")

    monkeypatch.setattr("ssdd.checkpoints.places.hf_hub_download", ask_the_hub)
    monkeypatch.setattr(AutoencoderSSDD, "from_pretrained", lambda *a, **_: asked.append(a))
    manifest = json.loads((folder / "manifest.json").read_text())
    decode = ("decode", folder, "--out", "images", "--device", "cpu")

    def line(**changes: str) -> str:
        changed = manifest | {"model": manifest["model"] | changes}
        (folder / "manifest.json").write_text(json.dumps(changed))
        return ssdd(*decode).error_line()

    for name in ("attacker/repo", "attacker/repo/inside"):
        told = f"they are of {name}, which is not on this machine: pass {name} yourself if you trust it"
        assert line(name=name).endswith(told)
    assert "found another encoder under that name" in line(name="ssdd-f8c4-demo")
    assert "which cannot decode them here" in line(name="/dev/zero")
    assert "which cannot decode them here" in line(name="https://example.org/model")
    assert not asked
    assert not (tmp_path / "images").exists()


def test_what_is_no_such_folder(ssdd: Ssdd, latents: Callable[..., Path], tmp_path: Path) -> None:
    folder = latents()
    assert "one folder of ssdd tokenize alone" in ssdd("decode", folder, "photos", "--out", "x").error_line()
    assert (
        "expected a folder of ssdd tokenize for --only" in ssdd("decode", "p", "--only", "a", "--out", "x").error_line()
    )
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["model"]["spatial_factor"] = "8"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert "expected" in ssdd("decode", folder, "--out", "x").error_line()
    assert not (tmp_path / "x").exists()
