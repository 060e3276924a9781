"""Metrics by image against scikit-image and by hand."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from ssdd.evaluation import image_metrics
from ssdd.evaluation.image_metrics import (
    colour_shift,
    lpips,
    psnr,
    rounded,
    squared_and_absolute_error,
    ssim_gaussian,
    ssim_uniform,
)
from ssdd.evaluation.metrics import BatchMetrics, lpips_metric
from ssdd.objectives.perceptual import backbone_path

Picture = Callable[..., np.ndarray]
SIZES = [(11, 11), (16, 33), (47, 31), (64, 64), (101, 40)]
needs_squeeze = pytest.mark.skipif(
    not backbone_path("squeeze").is_file(), reason="no LPIPS-squeeze backbone in the torch hub cache (TORCH_HOME)"
)


def noisy(image: np.ndarray, amount: int, seed: int = 1) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(-amount, amount, image.shape, endpoint=True)
    return (image.astype(int) + noise).clip(0, 255).astype(np.uint8)


def pairs(picture: Picture, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Photograph-like and hard ones: flat, bright and dark, black on white. uint8 (5, H, W, 3) twice."""
    y, x = np.mgrid[:height, :width]
    board = ((x // 5 + y // 5) % 2 * 255).astype(np.uint8)[..., None].repeat(3, -1)
    flat = [np.full((height, width, 3), level, np.uint8) for level in (0, 254)]
    originals = np.stack([picture(height, width), picture(height, width, 1), board, *flat])
    return originals, np.stack([noisy(o, amount) for o, amount in zip(originals, (3, 60, 10, 1, 1), strict=True)])


@pytest.mark.parametrize("size", [(7, 7), (8, 200), *SIZES], ids=str)
def test_uniform_ssim_is_that_of_scikit_image(picture: Picture, size: tuple[int, int]) -> None:
    reference = pytest.importorskip("skimage.metrics").structural_similarity
    originals, reconstructions = pairs(picture, *size)
    found = ssim_uniform(originals, reconstructions)
    for i, (a, b) in enumerate(zip(originals, reconstructions, strict=True)):
        expected = reference(a, b, channel_axis=-1, data_range=255)
        assert found[i] == pytest.approx(expected, abs=1e-6), f"pair {i}: not the number of the paper's protocol"
        of_one = reference(a / 255, b / 255, channel_axis=-1, data_range=1)
        assert found[i] == pytest.approx(of_one, abs=1e-6), f"pair {i}: another number for values in [0, 1]"


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_gaussian_ssim_is_that_of_scikit_image(picture: Picture, size: tuple[int, int]) -> None:
    reference = pytest.importorskip("skimage.metrics").structural_similarity
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    originals, reconstructions = pairs(picture, *size)
    found = ssim_gaussian(originals, reconstructions)
    for i, (a, b) in enumerate(zip(originals, reconstructions, strict=True)):
        expected = reference(a, b, channel_axis=-1, data_range=255, **window)
        assert found[i] == pytest.approx(expected, abs=1e-9), f"pair {i}: a number that nobody else gets"


def test_ssim_in_chunks_is_the_same(picture: Picture, monkeypatch: pytest.MonkeyPatch) -> None:
    originals, reconstructions = pairs(picture, 40, 30)
    whole = [measure(originals, reconstructions) for measure in (ssim_uniform, ssim_gaussian)]
    for chunk in (1, 13 * 30, 2 * 40 * 30, 7 * 40 * 30):
        monkeypatch.setattr("ssdd.evaluation.image_metrics._CHUNK", chunk)
        for measure, expected in zip((ssim_uniform, ssim_gaussian), whole, strict=True):
            found = measure(originals, reconstructions)
            assert found == pytest.approx(expected, abs=1e-12), "planes are mixed, or windows between strips are lost"


def test_errors_by_hand(picture: Picture) -> None:
    """Per image, over all pixels and channels; PSNR is 20 log10(255 / 10) for ten levels everywhere."""
    a = np.stack([np.full((20, 30, 3), 100, np.uint8), picture(20, 30)])
    b = np.stack([np.full((20, 30, 3), 110, np.uint8), noisy(picture(20, 30), 50)])
    mse, mae = squared_and_absolute_error(a, b)
    difference = (a.astype(float) - b) / 255
    assert mse == pytest.approx((difference**2).mean((1, 2, 3)), rel=1e-12), "another MSE than that of [0, 1]"
    assert mae == pytest.approx(abs(difference).mean((1, 2, 3)), rel=1e-12), "another MAE than that of [0, 1]"
    assert psnr(mse)[0] == pytest.approx(20 * math.log10(25.5), abs=1e-9), "not the PSNR of 8-bit images"
    assert psnr(np.array([0.0, 1.0])).tolist() == [math.inf, 0], "equal images, or black against white"


def test_batch_metrics_are_those_of_each_image_alone(picture: Picture) -> None:
    originals, reconstructions = pairs(picture, 40, 30)
    metrics = BatchMetrics()
    together = metrics(originals, torch.from_numpy(reconstructions))
    for i in range(len(originals)):
        alone = metrics(originals[i : i + 1], reconstructions[i : i + 1])
        for name, values in together.items():
            assert values[i] == pytest.approx(alone[name][0], rel=1e-12), f"{name} depends on the batch"
    assert {"mse", "mae", "psnr", "ssim_uniform_7", "ssim_gaussian_11", "high_frequency_ratio"} <= set(together)
    assert all(v.dtype == np.float64 and v.shape == (5,) for v in together.values()), "another type or shape"


def test_metrics_are_left_out_where_they_are_undefined(picture: Picture) -> None:
    for size, names in (((6, 90), set()), ((90, 10), {"ssim_uniform_7"})):
        image = picture(*size)[None]
        found = BatchMetrics()(image, image)
        assert {n for n in found if n.startswith("ssim")} == names, f"{size}: a number without meaning, or none"
    with pytest.raises(ValueError, match="at least 7 pixels, found 6 x 90"):
        ssim_uniform(picture(6, 90)[None], picture(6, 90)[None])


@pytest.mark.filterwarnings("error")
def test_any_array_is_taken(picture: Picture) -> None:
    """Read-only ones, as from Pillow, and views that torch refuses: without a warning on the user's terminal."""
    image = picture(16, 16)[None]
    mirrored, frozen = image[:, :, ::-1], image.copy()
    frozen.flags.writeable = False
    assert BatchMetrics()(frozen, mirrored)["mse"] == BatchMetrics()(image, mirrored.copy())["mse"], "other pixels"


def test_other_images_are_refused(picture: Picture) -> None:
    good = picture(16, 16)[None]
    for other in (picture(16, 17)[None], good.astype(np.float32), good[0], good[..., :1]):
        with pytest.raises(ValueError, match="expected two batches of images of one size"):
            BatchMetrics()(good, other)


@needs_squeeze
def test_lpips_of_torchmetrics_documented_example() -> None:
    """Seed 123, ten pairs of uniform noise: 0.1008, to the third digit also when rounded to 8 bits."""
    generator = torch.Generator().manual_seed(123)
    x, y = (torch.rand(10, 3, 100, 100, generator=generator) * 2 - 1 for _ in range(2))
    metrics = BatchMetrics(others=[lpips_metric("squeeze")])
    found = metrics(rounded(x).images, rounded(y).images)["lpips_squeeze"]
    assert found.mean() == pytest.approx(0.1008, abs=5e-4), "not LPIPS: range, order of channels, or network"
    alone = metrics(rounded(x[3:4]).images, rounded(y[3:4]).images)["lpips_squeeze"]
    assert alone[0] == pytest.approx(found[3], abs=1e-6), "LPIPS depends on the batch"
    with torch.autocast("cpu", torch.bfloat16):
        cast = metrics(rounded(x[3:4]).images, rounded(y[3:4]).images)["lpips_squeeze"]
    assert cast[0] == alone[0], "autocast around the evaluation changes its precision"


def test_nan_is_seen(picture: Picture) -> None:
    """One bad value makes its image invalid, and that one alone."""
    originals = np.stack([picture(16, 16, seed) for seed in range(4)])
    x = torch.from_numpy(originals).permute(0, 3, 1, 2).float() / 127.5 - 1
    x[1, 2, 5, 5], x[3, 0, 0, 0] = math.nan, -math.inf
    result = rounded(x)
    assert result.valid.tolist() == [True, False, True, False], "NaN or infinity goes unnoticed"
    assert np.array_equal(result.images[[0, 2]], originals[[0, 2]]), "a bad image changes the good ones"


def test_colour_shift_of_a_known_offset(picture: Picture) -> None:
    """In 8-bit levels, with its sign, per channel and image."""
    image = picture(21, 34).clip(10, 240)
    changed = (image + np.array([3, 0, -7])).astype(np.uint8)
    found = colour_shift(np.stack([image, image]), np.stack([changed, image]))
    assert found.tolist() == [[3, 0, -7], [0, 0, 0]], "another shift than the one that was made"
    half = image.copy()
    half[:7] += 3
    assert colour_shift(image[None], half[None])[0] == pytest.approx([1, 1, 1], abs=1e-12), "not the mean over pixels"
    with pytest.raises(ValueError, match="of one size, uint8"):
        colour_shift(picture(8, 9)[None], picture(9, 8)[None])


def test_lpips_of_large_images(monkeypatch: pytest.MonkeyPatch, picture: Callable[..., np.ndarray]) -> None:
    """A panorama would need tens of gigabytes, or have another number than the same picture in one piece."""

    class MeanDifference(torch.nn.Module):
        """A distance whose mean over tiles, by area, is that of the whole."""

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            assert a.shape[-1] * a.shape[-2] <= 40 * 40, "a tile is too large"
            return (a - b).abs().mean((1, 2, 3))

    monkeypatch.setattr(image_metrics, "LPIPS_LARGEST", 40 * 40)
    monkeypatch.setattr(image_metrics, "_LPIPS_TILE", 40)
    x, y = picture(101, 97, 0)[None], picture(101, 97, 1)[None]
    expected = np.abs(x.astype(float) - y).mean() / 127.5
    found = lpips(MeanDifference(), torch.from_numpy(x), torch.from_numpy(y))  # type: ignore[arg-type]
    assert found[0] == pytest.approx(expected, rel=1e-5)
