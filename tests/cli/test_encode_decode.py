"""``ssdd encode`` and ``ssdd decode``: a way there and back, and latent files that cannot be decoded."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ssdd.cli.decode import find_latents
from ssdd.codec import EncodedImage, load_encoded, save_encoded

Ssdd = Callable[..., Any]
Tree = Callable[[Path], dict[str, bytes]]
Picture = Callable[..., np.ndarray]


@pytest.fixture
def run(ssdd: Ssdd, tiny_model: Path) -> Ssdd:
    """A command with the tiny model on the CPU."""
    return lambda *arguments: ssdd(*arguments, "--model", tiny_model, "--device", "cpu")


def latent(height: int = 12, width: int = 20, factor: int = 8, channels: int = 4) -> EncodedImage:
    grid = (channels, -(-height // factor), -(-width // factor))
    mean = torch.randn(grid, generator=torch.Generator().manual_seed(height))
    return EncodedImage(mean, torch.zeros(grid), height, width, factor, "a-model")


@pytest.mark.parametrize("options", [(), ("--dtype", "bf16")])
def test_encode_then_decode_is_reconstruct(
    run: Ssdd, tmp_path: Path, tree: Tree, picture: Picture, options: tuple[str, ...]
) -> None:
    """The latent file holds all that the decoder needs: the images are the same, byte for byte."""
    for name, size in (("a.png", (37, 53)), ("a.jpg", (24, 24)), ("sub.dir/b.v2.png", (1, 1))):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(*size)).save(path)
    before = tree(tmp_path / "in")
    assert run("encode", tmp_path / "in", "--out", tmp_path / "latents", *options).status == 0
    assert sorted(tree(tmp_path / "latents")) == [
        "a.jpg.safetensors",
        "a.png.safetensors",
        "sub.dir",
        "sub.dir/b.v2.safetensors",
    ], "latent files have other names"
    assert run("decode", tmp_path / "latents", "--out", tmp_path / "out", *options).status == 0
    assert run("reconstruct", tmp_path / "in", "--out", tmp_path / "direct", "--no-sheets", *options).status == 0
    direct = tree(tmp_path / "direct")
    del direct["metrics.csv"]
    assert len(direct) == 4, "reconstruct did not do its part"
    assert tree(tmp_path / "out") == direct, "decoding a latent file gives another image than reconstructing"
    assert {p.name for p in tmp_path.iterdir()} == {"in", "latents", "out", "direct"}, "written outside --out"
    assert tree(tmp_path / "in") == before, "the photographs were changed"


def test_encode_records_the_image(run: Ssdd, tmp_path: Path, picture: Picture, tiny_model: Path) -> None:
    Image.fromarray(picture(10, 30)).save(tmp_path / "a.png")
    assert run("encode", tmp_path / "a.png", "--out", tmp_path / "out").status == 0
    encoded = load_encoded(tmp_path / "out" / "a.safetensors")
    assert (encoded.height, encoded.width, encoded.factor) == (10, 30, 8), "the size is not the photograph's"
    assert encoded.mean.shape == encoded.logvar.shape == (4, 2, 4), "the grid does not cover the photograph"
    assert encoded.model == str(tiny_model), "the file does not say which model it belongs to"


@pytest.mark.parametrize("command", ["encode", "decode"])
def test_second_run(run: Ssdd, tmp_path: Path, tree: Tree, picture: Picture, command: str) -> None:
    """Results are replaced with --overwrite only."""
    if command == "encode":
        path, other = tmp_path / "a.png", tmp_path / "b.png"
        Image.fromarray(picture(16, 16)).save(path)
        Image.fromarray(picture(16, 16)).save(other)
    else:
        path, other = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
        save_encoded(path, latent())
        save_encoded(other, latent())
    out = tmp_path / "out"
    assert run(command, path, "--out", out).status == 0
    (written,) = out.iterdir()
    written.write_bytes(b"precious")
    result = run(command, path, other, "--out", out)
    assert result.status == 1, "a result that was not written is not in the status"
    (line,) = result.skipped()
    assert str(path) in line, "the input is not named"
    assert "pass --overwrite" in line, "the way out is not told"
    assert written.read_bytes() == b"precious", "a result was replaced without --overwrite"
    assert len(tree(out)) == 2, "the other input was not done, or something else was left behind"
    assert run(command, path, other, "--out", out, "--overwrite").status == 0, "--overwrite fails"
    assert written.read_bytes() != b"precious", "--overwrite kept the old result"


def test_encode_skips_bad_files(run: Ssdd, tmp_path: Path, picture: Picture) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(picture(16, 16)).save(tmp_path / "in" / "good.png")
    (tmp_path / "in" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    result = run("encode", tmp_path / "in", "--out", tmp_path / "out")
    assert result.status == 1, "a failure is not in the status"
    assert ["bad.png" in line for line in result.skipped()] == [True], "the bad file is not named"
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["good.safetensors"], "the good file was not done"


def test_decode_skips_what_it_cannot_decode(run: Ssdd, tmp_path: Path) -> None:
    """Latents of another model, broken numbers, broken files: each is named, and the good one is decoded."""
    folder = tmp_path / "in"
    save_encoded(folder / "good.safetensors", latent())
    save_encoded(folder / "factor.safetensors", latent(factor=16))
    save_encoded(folder / "channels.safetensors", latent(channels=16))
    broken = latent()
    broken.mean[0, 0, 0] = float("nan")
    save_encoded(folder / "nan.safetensors", broken)
    huge = latent()
    huge.mean.fill_(3e38)
    save_encoded(folder / "huge.safetensors", huge)
    whole = (folder / "good.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[:-7])
    (folder / "random.safetensors").write_bytes(np.random.default_rng(0).bytes(1000))
    (folder / "empty.safetensors").touch()
    result = run("decode", folder, "--out", tmp_path / "out")
    bad = ["factor", "channels", "nan", "huge", "cut", "random", "empty"]
    assert result.status == 1, "a failure is not in the status"
    for name in bad:
        lines = [line for line in result.skipped() if str(folder / f"{name}.safetensors") in line]
        assert len(lines) == 1, f"{name}: not one line that names it: {result.err}"
    assert f"decoded 1 of 8 files; {len(bad)} failed" in result.err, "the failures are not counted"
    lines = "\n".join(result.skipped())
    assert "expected latents of f8c4" in lines
    assert "found f16c4 of a-model" in lines, "another factor: not said clearly"
    assert "found f8c16 of a-model" in lines, "other channels: not said clearly"
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["good.png"], "half a result was left, or the good one not"
    with Image.open(tmp_path / "out" / "good.png") as image:
        assert image.size == (20, 12), "the padding was not cut off"


def test_steps(run: Ssdd, tmp_path: Path) -> None:
    save_encoded(tmp_path / "a.safetensors", latent())
    for steps in ("1", "2"):
        assert run("decode", tmp_path / "a.safetensors", "--out", tmp_path / steps, "--steps", steps).status == 0
    one, two = ((tmp_path / s / "a.png").read_bytes() for s in ("1", "2"))
    assert one != two, "--steps has no effect"
    for steps in ("0", "-3"):
        result = run("decode", tmp_path / "a.safetensors", "--out", tmp_path / "none", "--steps", steps)
        assert result.status == 1, f"--steps {steps} passes"
        assert f"positive whole number of steps, found {steps}" in result.err, f"--steps {steps}: not said clearly"


def test_decode_names(tmp_path: Path) -> None:
    """Below a folder by suffix, hidden ones not; a given file as it is called; each once."""
    for name in ("a.safetensors", "sub/b.v2.safetensors", ".tmp-a.safetensors", ".old/c.safetensors", "d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "sub" / "e.safetensors").mkdir()
    assert [stem for _, stem in find_latents([tmp_path])] == ["a", "sub/b.v2"], "other files, or other names"
    found = find_latents([tmp_path, tmp_path / "sub" / "b.v2.safetensors", tmp_path / "d.txt"])
    assert [stem for _, stem in found] == ["a", "sub/b.v2", "d.txt"], "a file is there twice, or under another name"
    assert all(path.is_file() for path, _ in found), "the path of a file leads elsewhere"
    with pytest.raises(FileNotFoundError, match=r"nowhere: expected a latent file or a folder"):
        find_latents([tmp_path / "nowhere"])


def test_decode_names_stay_in_the_output_folder(run: Ssdd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs by ``..`` and absolute paths, and a hidden name: all results lie in --out."""
    (tmp_path / "here").mkdir()
    save_encoded(tmp_path / "up.safetensors", latent())
    save_encoded(tmp_path / "far" / "...safetensors", latent())
    monkeypatch.chdir(tmp_path / "here")
    paths = ("../up.safetensors", tmp_path / "far" / "...safetensors")
    assert run("decode", *paths, "--out", "out").status == 0
    written = {os.path.relpath(p, tmp_path) for p in tmp_path.rglob("*.png")}
    assert written == {"here/out/up.png", "here/out/...png"}, "a result lies outside --out, or has another name"


def test_decode_of_equal_names_loses_nothing(run: Ssdd, tmp_path: Path) -> None:
    """Two files of one name from two folders: one image would replace the other."""
    for folder in ("one", "two"):
        save_encoded(tmp_path / folder / "a.safetensors", latent())
    line = run("decode", tmp_path / "one", tmp_path / "two", "--out", tmp_path / "out", "--overwrite").error_line()
    assert "a.png: expected one result of this name, found two" in line, f"not said clearly: {line}"
    assert not (tmp_path / "out").exists(), "one of the two was written"


def test_decode_without_latents(run: Ssdd, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "expected latent files in" in run("decode", tmp_path / "empty", "--out", tmp_path / "out").error_line()
    assert "nowhere" in run("decode", tmp_path / "nowhere", "--out", tmp_path / "out").error_line(), "path not named"
    assert not (tmp_path / "out").exists(), "a failed command left its folder behind"
