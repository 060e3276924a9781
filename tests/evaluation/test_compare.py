"""A comparison: the same numbers however the crops are batched, and nothing averaged in silence."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ssdd.data.sources import open_source
from ssdd.evaluation.compare import Comparison, Entry, compare
from ssdd.evaluation.contestants import Bicubic, load_contestant
from ssdd.evaluation.feature_sets import FeatureSet
from ssdd.evaluation.protocols import EvaluationSet, Protocol
from ssdd.evaluation.results import as_dict, as_text, precision_reference

PROTOCOL = Protocol("test-v1", "random", 32, crops=2)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory, picture: Callable[..., np.ndarray]) -> Path:
    """Five pictures of several sizes, one of them too small for the crops, and a broken file."""
    folder = tmp_path_factory.mktemp("photographs")
    for i, size in enumerate([(40, 48), (33, 64), (64, 40), (50, 50), (20, 60)]):
        Image.fromarray(picture(*size, i)).save(folder / f"{i}.png")
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder


def run(entries: list[Entry], photographs: Path, **options: Any) -> Comparison:
    return compare(entries, EvaluationSet(open_source([photographs]), PROTOCOL), **{"workers": 0, **options})


def numbers(comparison: Comparison) -> list[dict[str, Any]]:
    """Rows without what depends on the clock."""
    return [{k: v for k, v in row.items() if "second" not in k} for row in as_dict(comparison)["rows"]]


def test_batch_size_and_workers_change_nothing(tiny_model: Path, photographs: Path) -> None:
    """A published number that nobody else gets, because the noise or the mean depends on how crops are batched."""
    model = load_contestant(str(tiny_model))
    entries = [Entry(model, 1), Entry(model, 2), Entry(Bicubic(8))]
    whole = run(entries, photographs, batch_size=16)
    for options in ({"batch_size": 1}, {"batch_size": 3, "workers": 2}):
        other = run(entries, photographs, **options)
        assert other.census.fingerprint() == whole.census.fingerprint(), "other crops"
        for a, b in zip(numbers(whole), numbers(other), strict=True):
            assert a["crops"]["key"] == b["crops"]["key"], "another order"
            for name in ("psnr", "ssim_uniform_7", "high_frequency_ratio"):
                # a value that rounding puts on the other side of an 8-bit level moves the last digits
                assert b["crops"][name] == pytest.approx(a["crops"][name], rel=2e-3), name


def test_broken_images_do_not_move_the_noise(tiny_model: Path, photographs: Path, tmp_path: Path) -> None:
    """One photograph that cannot be read would change every number after it."""
    entry = Entry(load_contestant(str(tiny_model)))
    folder = Path(shutil.copytree(photographs, tmp_path / "photographs"))
    before = run([entry], folder).rows[0].table
    (folder / "0.png").write_bytes(b"no image any more")
    after = run([entry], folder).rows[0].table
    kept = [i for i, key in enumerate(before.keys) if key in after.keys]
    assert len(kept) == 6
    assert after.column("mse") == pytest.approx(before.column("mse")[kept], rel=1e-3)


def test_features_come_in_the_sets_order(photographs: Path) -> None:
    """KID and coverage use the first features: several processes must keep the same ones."""
    extractor = Means()
    options = {"extractors": [extractor], "batch_size": 3}
    whole = run([Entry(Bicubic(8))], photographs, **options)
    found = as_dict(whole)["rows"][0]["distances"]["means"]
    assert found["frechet"] > 0
    assert not found["frechet_reliable"] or whole.census.describe()["crops"] > extractor.width
    sets = [FeatureSet(extractor) for _ in range(3)]
    batches = [torch.full((2, 4, 4, 3), level, dtype=torch.uint8) for level in (10, 20, 30)]
    for batch, own in zip(batches, sets, strict=True):
        own.add(extractor, batch)  # type: ignore[arg-type]
    first, second, third = sets
    first.merge(second)
    first.merge(third)
    assert first.kept[:, 0].tolist() == [10, 10, 20, 20, 30, 30]
    assert first.statistics.count == 6


class Means:
    """Mean of each channel, as an extractor."""

    name, width, device, identity, sha256, preprocessing = "means", 3, torch.device("cpu"), "means", "0" * 64, "none"

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().mean((1, 2))


def test_lower_precision_decodes_the_same_latents(tiny_model: Path, photographs: Path) -> None:
    """The loss would be the encoder's too, or hidden in the spread over images."""
    full, half = (load_contestant(str(tiny_model), dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    comparison = run([Entry(full, 1), Entry(half, 1, full)], photographs)
    assert [row.entry.label for row in comparison.rows][1].endswith("1 step, bfloat16")
    assert precision_reference(comparison, comparison.rows[1]) is comparison.rows[0]
    row = as_dict(comparison)["rows"][1]
    assert (row["encoder_dtype"], row["model"]["dtype"]) == ("float32", "bfloat16")
    loss = row["minus_first_row"]["psnr"]
    a, b = (np.array(r.table.column("psnr")) for r in comparison.rows)
    assert loss["mean"] == pytest.approx((b - a).mean())
    assert loss["low"] <= loss["mean"] <= loss["high"]
    assert abs(loss["mean"]) < 0.1, "bf16 costs a tenth of a decibel and more: is it the same latent?"
    assert abs(b - a).max() > 0, "both are float32"
    assert "minus" in as_text(comparison)
    assert "colour, 8-bit levels" in as_text(comparison)


def test_cost_is_that_of_the_rows_steps(tiny_model: Path, photographs: Path) -> None:
    model = load_contestant(str(tiny_model))
    one, five = as_dict(run([Entry(model, 1), Entry(model, 5)], photographs))["rows"]
    assert five["decode_flops"] == 5 * one["decode_flops"]
    assert five["encode_flops"] == one["encode_flops"] > 0
    assert one["latent_shape"] == [4, 4, 4]
    assert one["latent_bytes"] == 128


def test_what_cannot_be_used_is_counted(photographs: Path) -> None:
    comparison = run([Entry(Bicubic(8))], photographs)
    found = as_dict(comparison)["data"]
    assert (found["images"], found["crops"], found["skipped_images"]) == (4, 8, 2)
    assert any("broken.jpg" in reason for reason in found["skipped"])
    assert any("4.png" in reason for reason in found["skipped"]), "the small image is not named"
    assert "2 skipped" in as_text(comparison)


class Broken:
    """Gives NaN for some crops."""

    name, parameters, decoder_parameters, spatial_factor = "broken", 0, 0, 8

    def describe(self) -> dict[str, Any]:
        return {"kind": "test", "dtype": "none", "steps": None}

    def latent_bytes(self, height: int, width: int) -> int:
        return 1

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return images

    def decode(self, latent: torch.Tensor, *_: Any) -> torch.Tensor:
        result = latent.clone()
        result[::2] = float("nan")
        return result

    def flops(self, height: int, width: int, steps: int | None = None) -> None:
        return None


def test_nan_is_named_and_left_out(photographs: Path) -> None:
    """A model that fails on some images must not get a fine mean over the others without a word, nor a NaN."""
    comparison = run([Entry(Broken())], photographs, batch_size=2)  # type: ignore[arg-type]
    row = as_dict(comparison)["rows"][0]
    assert len(row["invalid"]) == 4
    assert row["image_metrics"]["mse"]["mean"] == pytest.approx(0, abs=1e-9), "the others are perfect"
    assert "4 reconstructions are not finite" in as_text(comparison)
    json.dumps(as_dict(comparison), allow_nan=False)


def test_nothing_to_evaluate(tmp_path: Path) -> None:
    """An empty mean would be a number."""
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "small.png")
    with pytest.raises(ValueError, match=r"expected usable images, found none: 1 skipped; .*small\.png"):
        run([Entry(Bicubic(8))], tmp_path)


def test_text_names_every_choice(tiny_model: Path, photographs: Path) -> None:
    text = as_text(run([Entry(load_contestant(str(tiny_model)), 2)], photographs))
    for part in ("2 steps", "PSNR pooled", "SSIM 7x7", "test-v1", "not resized", "rounded", "fingerprint", "seed: 0"):
        assert part in text, f"{part} is not said"
