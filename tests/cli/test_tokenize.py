"""``ssdd tokenize`` and ``ssdd tokenize verify``: what they print, their exit status, one line for what is wrong."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ssdd.tokenization import LatentDataset

Ssdd = Callable[..., Any]


@pytest.fixture
def photos(tmp_path: Path, picture: Callable[..., np.ndarray]) -> Path:
    for i, name in enumerate(("a/0.png", "a/1.png", "b/2.png")):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(40, 50, i)).save(tmp_path / "photos" / name)
    return tmp_path / "photos"


@pytest.fixture
def options(tiny_model: Path) -> tuple[object, ...]:
    here = ("--processes", "1", "--workers", "0", "--device", "cpu")
    return ("photos", "--model", tiny_model, "--size", "32", "--out", "latents", *here)


def test_tokenize_again_and_verify(ssdd: Ssdd, photos: Path, options: tuple[object, ...], tmp_path: Path) -> None:
    result = ssdd("tokenize", *options, "--flips", "--shard-images", "2")
    assert result.status == 0, result.err
    assert "6 latents (4, 4, 4) of 3 images in 2 shards (2 made now, 0 there before)" in result.out
    assert "img/s" in result.err, "no progress bar"
    assert LatentDataset(tmp_path / "latents").classes == ["a", "b"]
    again = ssdd("tokenize", *options, "--flips", "--shard-images", "2")
    assert "(0 made now, 2 there before)" in again.out
    result = ssdd("tokenize", "verify", "latents")
    assert result.status == 0, result.err
    assert "6 latents in 2 shards, all as" in result.out
    os.truncate(tmp_path / "latents" / "shard-000001.tar", 1024)
    result = ssdd("tokenize", "verify", "latents")
    assert result.status == 1
    assert "wrong: latents/shard-000001.tar: expected" in result.err


def test_skipped_images_are_named_and_in_the_status(ssdd: Ssdd, photos: Path, options: tuple[object, ...]) -> None:
    (photos / "a" / "1.png").write_bytes(b"no image")
    for attempt in ("first", "second"):
        result = ssdd("tokenize", *options)
        assert result.status == 3, attempt
        assert result.err.splitlines()[-1] == "expected at most 1% of the images to be skipped, found 1", attempt
        for most in ("1", "34%"):
            assert ssdd("tokenize", *options, "--max-skipped", most).status == 0, attempt
        (line,) = result.skipped()
        assert line.startswith("skipped photos/a/1.png: expected an image"), attempt


def test_one_line_for_what_is_wrong(ssdd: Ssdd, photos: Path, options: tuple[object, ...], tmp_path: Path) -> None:
    assert "expected a folder or a tar file of images" in ssdd("tokenize", "nothing", "--out", "x").error_line()
    assert "multiple of 8" in ssdd("tokenize", *options, "--size", "33").error_line()
    assert "multiple of 8, as" in ssdd("tokenize", *options, "--buckets", "32:4").error_line()
    assert "SIZE:STEP like 1024:64, found '32'" in ssdd("tokenize", *options, "--buckets", "32").error_line()
    assert "a part K/N" in ssdd("tokenize", *options, "--part", "2/2").error_line()
    assert "a number or a share like 1%" in ssdd("tokenize", *options, "--max-skipped", "x").error_line()
    assert "expected a folder that ssdd tokenize began" in ssdd("tokenize", "finish", "nothing").error_line()
    assert "one crop at scale 1" in ssdd("tokenize", *options, "--crops", "2").error_line()
    assert "expected a manifest, found none" in ssdd("tokenize", "verify", "photos").error_line()
    assert not (tmp_path / "x").exists()
    assert not (tmp_path / "latents").exists()
    assert ssdd("tokenize", *options, "--shard-images", "2").status == 0
    assert "shard_images is 2 there, 1024 here" in ssdd("tokenize", *options).err


def test_parts_and_finish(ssdd: Ssdd, photos: Path, options: tuple[object, ...], tmp_path: Path) -> None:
    first = ssdd("tokenize", *options, "--shard-images", "1", "--part", "0/2")
    assert first.status == 0, first.err
    assert (
        "part 0/2 of latents: all its shards are there (2 made now, 0 there before); 1 of all 3 are missing"
        in first.out
    )
    second = ssdd("tokenize", *options, "--shard-images", "1", "--part", "1/2")
    assert "3 latents (4, 4, 4) of 3 images in 3 shards (1 made now, 0 there before)" in second.out
    (tmp_path / "latents" / "manifest.json").unlink()
    assert "3 latents (4, 4, 4) of 3 images in 3 shards: latents" in ssdd("tokenize", "finish", "latents").out
    assert ssdd("tokenize", "verify", "latents").status == 0


def test_what_only_rounding_depends_on(
    ssdd: Ssdd, photos: Path, options: tuple[object, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Another batch size goes on with a warning, and each shard says what it was made by; --strict refuses."""
    assert ssdd("tokenize", *options, "--shard-images", "2").status == 0
    (tmp_path / "latents" / "shard-000001.json").unlink()
    refused = ssdd("tokenize", *options, "--shard-images", "2", "--batch-size", "3", "--strict")
    assert "batch_size is 16 there, 3 here" in refused.error_line()
    went_on = ssdd("tokenize", *options, "--shard-images", "2", "--batch-size", "3")
    assert went_on.status == 0
    assert "batch_size is 16 there, 3 here: the last digits of its latents may differ" in caplog.text
    made_by = [json.loads((tmp_path / "latents" / f"shard-00000{k}.json").read_text())["made_by"] for k in range(2)]
    assert [entry["batch_size"] for entry in made_by] == [16, 3]
