"""Metrics of a reconstruction, against formulas and against another library."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ssdd.evaluation.metrics import BatchMetrics
from ssdd.evaluation.pairs import ImageComparison, ImageMetrics, bicubic_baseline, mean_metrics
from ssdd.objectives.perceptual import backbone_path

Picture = Callable[..., np.ndarray]


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ImageComparison:
    """Without LPIPS, whatever this machine has in its cache."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return ImageComparison()


def noisy(image: np.ndarray, amount: int, seed: int = 1) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(-amount, amount, image.shape, endpoint=True)
    return (image.astype(int) + noise).clip(0, 255).astype(np.uint8)


def test_metrics_are_those_of_a_batch_of_one(compare: ImageComparison, picture: Picture) -> None:
    """An SSIM whose window does not fit is left out."""
    for size in ((40, 60), (10, 400)):
        a, b = picture(*size), noisy(picture(*size), 40)
        expected = {name: float(value[0]) for name, value in BatchMetrics()(a[None], b[None]).items()}
        assert compare(a, b) == ImageMetrics(expected["psnr"], expected.get("ssim_gaussian_11"), None)


def test_identical_images(compare: ImageComparison, picture: Picture) -> None:
    metrics = compare(picture(32, 32), picture(32, 32))
    assert metrics.psnr == math.inf, "equal images have a finite PSNR"
    assert metrics.ssim == pytest.approx(1, abs=1e-6), "equal images are not similar"


def test_no_lpips_without_weights(compare: ImageComparison, picture: Picture) -> None:
    assert compare.lpips_network is None, "a network is announced that is not there"
    assert compare(picture(64, 64), picture(64, 64, 1)).lpips is None, "LPIPS without a network"


@pytest.mark.skipif(not backbone_path("squeeze").is_file(), reason="needs LPIPS' SqueezeNet in TORCH_HOME")
def test_lpips(picture: Picture) -> None:
    compare = ImageComparison()
    assert compare.lpips_network is not None
    image = picture(64, 64)
    equal, near, far = (compare(image, noisy(image, amount)).lpips for amount in (0, 10, 80))
    assert equal == pytest.approx(0, abs=1e-6), "equal images differ"
    assert equal < near < far, "more noise is not farther away"
    assert compare(picture(31, 64), picture(31, 64, 1)).lpips is None, "LPIPS of an image that the network swallows"


@pytest.mark.parametrize("size", [0, 100, 100_000, None])
def test_lpips_with_damaged_weights_is_left_out(
    size: int | None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    picture: Picture,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A photograph cannot be reconstructed for the sake of a number beside it. None: of another network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = backbone_path("squeeze")
    path.parent.mkdir(parents=True)
    torch.save({"weight": torch.zeros(30_000)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:size])
    compare = ImageComparison()
    assert compare.lpips_network is None
    assert compare(picture(40, 40), picture(40, 40)).lpips is None
    assert f"left out: LPIPS-squeeze: {path} is damaged" in caplog.text
    assert "delete it" in caplog.text


def test_images_of_two_sizes(compare: ImageComparison, picture: Picture) -> None:
    with pytest.raises(ValueError, match=r"one size, found \(8, 9, 3\) and \(9, 8, 3\)"):
        compare(picture(8, 9), picture(9, 8))


def test_mean_is_over_the_images_where_a_metric_is_defined() -> None:
    mean = mean_metrics([ImageMetrics(20, 0.5, None), ImageMetrics(30, None, None), ImageMetrics(40, 0.9, None)])
    assert mean == ImageMetrics(30, pytest.approx(0.7), None), "an undefined value counts, or a defined one does not"
    assert mean_metrics([ImageMetrics(math.inf, 1, 0), ImageMetrics(9, 1, 0)]).psnr == math.inf, "infinity is lost"


@pytest.mark.parametrize("size", [(16, 24), (37, 53), (1, 1), (7, 200)])
def test_bicubic_baseline_keeps_the_size(picture: Picture, size: tuple[int, int]) -> None:
    result = bicubic_baseline(picture(*size), 8)
    assert (result.shape, result.dtype) == ((*size, 3), np.uint8), f"{size} comes back as another kind of image"


def test_bicubic_baseline_keeps_colours_and_loses_detail() -> None:
    flat = np.full((24, 40, 3), (200, 100, 50), np.uint8)
    assert np.array_equal(bicubic_baseline(flat, 8), flat), "one colour comes back as another"
    board = np.indices((32, 32)).sum(0)[..., None].repeat(3, 2) % 2 * 200
    result = bicubic_baseline(board.astype(np.uint8), 8).astype(int)
    assert abs(result - 100).max() < 12, "single pixels are still to be seen: more is kept than a grid of 4 x 4 cells"
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    assert np.array_equal(bicubic_baseline(image, 1), image), "a factor of 1 changes pixels"
