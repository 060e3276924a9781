"""``ssdd encode`` and ``ssdd decode``: a way there and back, and latent files that cannot be decoded."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image

from ssdd.autoencoder.codec import EncodedImage, load_encoded, save_encoded
from ssdd.cli import common
from ssdd.cli.decode import find_latents
from ssdd.data.images import read_image

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
    """The latent file holds all that the decoder needs: the images are the same."""
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
    direct = sorted((tmp_path / "direct").rglob("*.png"))
    assert len(direct) == 3, "reconstruct did not do its part"
    for path in direct:
        decoded = read_image(tmp_path / "out" / path.relative_to(tmp_path / "direct"))
        np.testing.assert_array_equal(read_image(path), decoded, "decoding a latent file gives another image")
    assert {p.name for p in tmp_path.iterdir()} == {"in", "latents", "out", "direct"}, "written outside --out"
    assert tree(tmp_path / "in") == before, "the photographs were changed"


def test_many_images_go_at_full_speed(
    ssdd: Ssdd, tmp_path: Path, picture: Picture, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody gets the speed that ``optimize`` brings, or the latents lose digits by it, or the images are seen to."""
    for name, size in (("a.png", (72, 56)), ("b.png", (40, 64))):
        Image.fromarray(picture(*size)).save(tmp_path / name)
    monkeypatch.setattr(common, "MANY_IMAGES", 2)
    caplog.set_level("INFO", "ssdd")
    for way, options in (("quick", ()), ("plain", ("--optimize", "off"))):
        encoded = ssdd("encode", "a.png", "b.png", "--out", f"{way}-latents", *options)
        decoded = ssdd("decode", "plain-latents" if way == "plain" else "quick-latents", "--out", way, *options)
        assert (encoded.status, decoded.status) == (0, 0)
        assert caplog.text.count("made ready for full speed") == (2 if way == "quick" else 0)
        caplog.clear()
    for name in ("a", "b"):
        quick, plain = (load_encoded(tmp_path / f"{way}-latents/{name}.safetensors").mean for way in ("quick", "plain"))
        torch.testing.assert_close(quick, plain, atol=1e-3, rtol=1e-4)
        images = [np.asarray(Image.open(tmp_path / way / f"{name}.png")).astype(float) for way in ("quick", "plain")]
        assert np.square(images[0] - images[1]).mean() < 255**2 / 10**4.5, "below 45 dB, with rounding to 8 bits"
    one = ssdd("decode", "plain-latents/a.safetensors", "--out", "one")
    assert (one.status, "full speed" in caplog.text) == (0, False)


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
    line = result.error_line() if command == "encode" else result.skipped()[0]
    assert str(written) in line, "the file is not named"
    assert "pass --overwrite" in line, "the way out is not told"
    if command == "encode":
        assert len(tree(out)) == 1, "something was written"
    else:
        assert (result.status, result.out) == (3, f"decoded 1 file into {out}\n")
        assert len(tree(out)) == 2, "the other input was not done, or something else was left behind"
    assert written.read_bytes() == b"precious", "a result was replaced without --overwrite"
    assert run(command, path, other, "--out", out, "--overwrite").status == 0, "--overwrite fails"
    assert written.read_bytes() != b"precious", "--overwrite kept the old result"


def test_goes_on_where_it_was_stopped(run: Ssdd, tmp_path: Path, tree: Tree, picture: Picture) -> None:
    """What is there is kept, with the same model; with another it is no set any more."""
    for name in ("a", "b"):
        Image.fromarray(picture(16, 16, ord(name))).save(tmp_path / f"{name}.png")
    encode = ("encode", tmp_path / "*.png", "--out", tmp_path / "out")
    assert run(*encode).out == f"encoded 2 files into {tmp_path / 'out'}\n"
    before = tree(tmp_path / "out")
    (tmp_path / "out" / "a.safetensors").unlink()
    again = run(*encode)
    assert (again.status, again.out) == (0, f"encoded 1 file into {tmp_path / 'out'} (1 was there before)\n")
    after = tree(tmp_path / "out")
    assert (after.keys(), after["b.safetensors"]) == (before.keys(), before["b.safetensors"])
    (tmp_path / "out" / "a.safetensors").unlink()
    kept = tmp_path / "out" / "b.safetensors"
    other = load_encoded(kept)
    assert other.identity is not None
    identity = msgspec.structs.replace(other.identity, encoder_sha256="0" * 64)
    save_encoded(kept, dataclasses.replace(other, identity=identity), overwrite=True)
    line = run(*encode).error_line()
    assert "exists already, by" in line
    assert "choose another --out, or --overwrite" in line
    assert len(tree(tmp_path / "out")) == 1


def test_latent_of_another_photograph(run: Ssdd, tmp_path: Path, picture: Picture) -> None:
    """A photograph that was replaced, or has its name in another folder, passes for the one that was encoded."""
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        Image.fromarray(picture(16, 16, len(folder) + ord(folder[0]))).save(tmp_path / folder / "a.png")
    assert run("encode", tmp_path / "one" / "a.png", "--out", tmp_path / "out").status == 0
    line = run("encode", tmp_path / "two" / "a.png", "--out", tmp_path / "out").error_line()
    assert f"exists already, of another file than {tmp_path / 'two' / 'a.png'}: choose another --out" in line


def test_latent_of_another_precision(run: Ssdd, tmp_path: Path, tree: Tree, picture: Picture) -> None:
    """Latents of float32 and of bfloat16 get into one set."""
    Image.fromarray(picture(16, 16)).save(tmp_path / "a.png")
    encode = ("encode", tmp_path / "a.png", "--out", tmp_path / "out")
    assert run(*encode).status == 0
    before = tree(tmp_path)
    line = run(*encode, "--dtype", "bf16").error_line()
    assert "a.safetensors exists already, encoded in fp32 instead of bf16: choose another --out, or --overwrite" in line
    assert tree(tmp_path) == before
    assert run(*encode, "--dtype", "fp32").out.endswith("(1 was there before)\n"), "fp32 is what auto is"
    of_earlier_version = tmp_path / "out" / "a.safetensors"
    save_encoded(of_earlier_version, dataclasses.replace(load_encoded(of_earlier_version), dtype=None), overwrite=True)
    assert run(*encode, "--dtype", "bf16").status == 0


def test_images_that_were_decoded_otherwise_are_not_kept(run: Ssdd, tmp_path: Path, tree: Tree) -> None:
    """Images of one step, or from other noise, pass for those that are asked for."""
    for name in ("a", "b"):
        save_encoded(tmp_path / "in" / f"{name}.safetensors", latent())
    decode = ("decode", tmp_path / "in", "--out", tmp_path / "out", "--steps", 2)
    assert run(*decode, "--seed", 3).status == 0
    before = tree(tmp_path / "out")
    (tmp_path / "out" / "a.png").unlink()
    again = run(*decode, "--seed", 3)
    assert (again.status, again.out) == (0, f"decoded 1 file into {tmp_path / 'out'} (1 was there before)\n")
    assert tree(tmp_path / "out") == before
    for asked in (decode, (*decode[:-1], 1, "--seed", 3)):
        result = run(*asked)
        assert (result.status, len(result.skipped())) == (1, 2)
        assert "noise seed 3, steps 2; choose another --out, or pass --overwrite" in result.skipped()[0]
        assert tree(tmp_path / "out") == before
    assert run(*decode, "--overwrite").status == 0
    assert tree(tmp_path / "out") != before, "another seed leads to the same image"
    other = latent()
    other.mean.mul_(2)
    save_encoded(tmp_path / "in" / "a.safetensors", other, overwrite=True)
    kept = run(*decode)
    assert (kept.status, len(kept.skipped())) == (3, 1), "the image of an earlier latent passes for this one's"
    cut = (tmp_path / "out" / "b.png").read_bytes()[:-20]
    (tmp_path / "out" / "b.png").write_bytes(cut)
    assert "b.png exists already; choose another" in run(*decode).skipped()[1], "half a file passes for an image"


def test_encode_skips_bad_files(run: Ssdd, tmp_path: Path, picture: Picture) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(picture(16, 16)).save(tmp_path / "in" / "good.png")
    (tmp_path / "in" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    result = run("encode", tmp_path / "in", "--out", tmp_path / "out")
    assert result.status == 3, "a failure is not in the status"
    assert "encoded 1 of 2 files; 1 failed" in result.err
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
    assert result.status == 3, "a failure is not in the status"
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
    for steps, found in (("0", "at least 1, found 0"), ("-3", "at least 1, found -3"), ("two", "number, found 'two'")):
        result = run("decode", tmp_path / "a.safetensors", "--out", tmp_path / "none", "--steps", steps)
        assert result.status == 2, f"--steps {steps} passes"
        assert found in result.err, f"--steps {steps}: not said clearly"


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
