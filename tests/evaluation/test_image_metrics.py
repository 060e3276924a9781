"""Metrics by image against scikit-image and by hand; the table's means, intervals and rankings."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from ssdd.evaluation import image_metrics
from ssdd.evaluation.image_metrics import (
    BatchMetrics,
    psnr,
    rounded,
    squared_and_absolute_error,
    ssim_gaussian,
    ssim_uniform,
)
from ssdd.evaluation.protocols import CropKey
from ssdd.evaluation.tables import ImageMetricTable, bootstrap_means
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


def key(image: int, crop: int = 0) -> CropKey:
    return CropKey(image, crop, f"{image}.png")


def table_of(**columns: list[float]) -> ImageMetricTable:
    """One crop an image, one pixel a crop unless told."""
    count = len(columns["mse"])
    table = ImageMetricTable()
    table.add([key(i) for i in range(count)], {"pixels": np.ones(count)} | {n: np.array(v) for n, v in columns.items()})
    return table


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
    assert set(together) == {"pixels", "mse", "mae", "psnr", "ssim_uniform_7", "ssim_gaussian_11"}, "other metrics"
    assert all(v.dtype == np.float64 and v.shape == (5,) for v in together.values()), "another type or shape"
    assert together["pixels"].tolist() == [1200] * 5, "images count by another number than that of their pixels"


def test_metrics_are_left_out_where_they_are_undefined(picture: Picture) -> None:
    for size, names in (((6, 90), set()), ((90, 10), {"ssim_uniform_7"})):
        image = picture(*size)[None]
        found = BatchMetrics()(image, image)
        assert set(found) - {"pixels", "mse", "mae", "psnr"} == names, f"{size}: a number without meaning, or none"
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
    metrics = BatchMetrics(["squeeze"])
    found = metrics(rounded(x).images, rounded(y).images)["lpips_squeeze"]
    assert found.mean() == pytest.approx(0.1008, abs=5e-4), "not LPIPS: range, order of channels, or network"
    alone = metrics(rounded(x[3:4]).images, rounded(y[3:4]).images)["lpips_squeeze"]
    assert alone[0] == pytest.approx(found[3], abs=1e-6), "LPIPS depends on the batch"
    with torch.autocast("cpu", torch.bfloat16):
        cast = metrics(rounded(x[3:4]).images, rounded(y[3:4]).images)["lpips_squeeze"]
    assert cast[0] == alone[0], "autocast around the evaluation changes its precision"


def test_nan_is_counted_and_never_averaged(picture: Picture) -> None:
    """From the decoder's output to the table: one bad value makes its image invalid, and that one alone."""
    originals = np.stack([picture(16, 16, seed) for seed in range(4)])
    x = torch.from_numpy(originals).permute(0, 3, 1, 2).float() / 127.5 - 1
    x[1, 2, 5, 5], x[3, 0, 0, 0] = math.nan, -math.inf
    result = rounded(x)
    assert result.valid.tolist() == [True, False, True, False], "NaN or infinity goes unnoticed"
    assert np.array_equal(result.images[[0, 2]], originals[[0, 2]]), "a bad image changes the good ones"
    table = ImageMetricTable()
    table.add([key(i) for i in range(4)], BatchMetrics()(originals, result.images, result.valid))
    assert table.invalid == [key(1), key(3)], "other images are invalid"
    assert table.keys == [key(0), key(2)], "an invalid image is averaged, or a valid one is not"
    summary = table.summary(resamples=10)
    assert summary["ssim_uniform_7"].mean == pytest.approx(1), "an invalid image is averaged"
    assert summary["mse"].count == 2, "an invalid image is counted"
    table = table_of(mse=[0.1, 0.2], lpips_vgg=[math.nan, 0.5])
    assert (table.invalid, table.pooled_psnr) == ([key(0)], pytest.approx(10 * math.log10(5))), "NaN in one metric"


def test_pooled_and_mean_psnr_by_hand() -> None:
    """MSE 0.01 and 0.0001 are 20 and 40 dB: 30 on average, but 22.97 from their mean, and less with larger images."""
    table = table_of(mse=[0.01, 0.0001], psnr=[20, 40])
    assert table.summary()["psnr"].mean == pytest.approx(30), "not the mean over images"
    assert table.pooled_psnr == pytest.approx(-10 * math.log10(0.00505)), "not from the mean of the MSE"
    assert table.summary()["pooled_psnr"].mean == pytest.approx(table.pooled_psnr), "two numbers under one name"
    sized = table_of(mse=[0.01, 0.0001], pixels=[300, 100])
    for found in (sized.pooled_psnr, sized.summary()["pooled_psnr"].mean):
        assert found == pytest.approx(-10 * math.log10(0.007525)), "pixels of large images count less"


def test_equal_images_are_not_averaged_but_counted() -> None:
    summary = table_of(mse=[0, 0.01, 0.001], psnr=[math.inf, 20, 30]).summary()
    psnr_of_all = summary["psnr"]
    assert (psnr_of_all.mean, psnr_of_all.count, psnr_of_all.infinite) == (25, 2, 1), "infinity spoils the mean"
    assert 20 <= psnr_of_all.low <= psnr_of_all.high <= 30, "infinity spoils the interval"
    assert summary["pooled_psnr"].mean == pytest.approx(-10 * math.log10(0.011 / 3)), "equal images are left out of MSE"
    perfect = table_of(mse=[0, 0], psnr=[math.inf] * 2).summary()
    assert perfect["pooled_psnr"].mean == math.inf, "only equal images, and a finite PSNR"
    assert math.isnan(perfect["psnr"].mean), "a mean of nothing"


def test_a_metric_is_averaged_where_it_is_defined() -> None:
    table = table_of(mse=[0.1, 0.1])
    table.add([key(2)], {"pixels": np.ones(1), "mse": np.array([0.1]), "lpips_alex": np.array([0.7])})
    estimate = table.summary()["lpips_alex"]
    assert (estimate.mean, estimate.count, table.invalid) == (0.7, 1, []), "undefined is taken for zero, or for NaN"
    assert math.isnan(table.column("lpips_alex")[0]), "undefined has a value"
    assert (estimate.low, estimate.high) == pytest.approx((0.7, 0.7)), "resamples without a value are in the interval"


def test_interval_covers_the_mean_and_is_the_same_each_time() -> None:
    """Of 200 sets of 60 values, about 95 % of the intervals hold the mean that they were drawn from."""
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        estimate = table_of(mse=random.exponential(0.02, 60).tolist()).summary(resamples=300)["mse"]
        covered += estimate.low <= 0.02 <= estimate.high
    assert 174 <= covered <= 198, f"{covered} of 200 intervals of 95 % hold the mean"
    values = random.normal(0.5, 0.1, 400).tolist()
    first, again, other = (table_of(mse=values).summary(seed) for seed in (0, 0, 1))
    assert first == again, "the same numbers have two intervals"
    assert first["mse"] != other["mse"], "the seed changes nothing"
    width = first["mse"].high - first["mse"].low
    assert width == pytest.approx(2 * 1.96 * 0.1 / math.sqrt(400), rel=0.15), "not an interval of 95 %"
    low, high = first["pooled_psnr"].low, first["pooled_psnr"].high
    expected = [float(psnr(np.array(first["mse"].high))), float(psnr(np.array(first["mse"].low)))]
    assert [low, high] == pytest.approx(expected, abs=1e-9), "the pooled PSNR has another interval than its MSE"


def test_crops_of_one_image_are_drawn_together() -> None:
    """Eight equal crops an image tell no more than one: the same interval, not one of an eighth of the variance."""
    values = np.random.default_rng(0).normal(0.5, 0.1, 50)
    crops = ImageMetricTable()
    crops.add([key(i, c) for i in range(50) for c in range(8)], {"pixels": np.ones(400), "mse": values.repeat(8)})
    one, many = (t.summary()["mse"] for t in (table_of(mse=values.tolist()), crops))
    assert (many.low, many.high) == pytest.approx((one.low, one.high)), "crops of an image count as independent"
    drawn = bootstrap_means(np.eye(3), np.ones((3, 3)), np.array([0, 0, 1]), seed=0, resamples=50)
    assert np.array_equal(drawn[:, 0], drawn[:, 1]), "members of a group are drawn apart"


def test_order_of_arrival_does_not_matter() -> None:
    values = np.random.default_rng(0).random(30)
    keys = [key(i // 3, i % 3) for i in range(30)]
    rows = {"pixels": np.ones(30), "mse": values, "ssim_uniform_7": values[::-1]}
    tables = []
    for order in (range(30), np.random.default_rng(1).permutation(30)):
        table, other = ImageMetricTable(), ImageMetricTable()
        for start, part in ((0, table), (15, other)):
            for i in order[start : start + 15]:
                part.add([keys[i]], {name: column[[i]] for name, column in rows.items()})
        table.merge(other)
        tables.append(table)
    for table in tables:
        assert table.keys == keys, "another order than the set's"
        assert np.array_equal(table.column("mse"), values), "a value under another image's name"
    assert tables[0].summary() == tables[1].summary(), "numbers depend on which process was faster"
    for wrong in (lambda: tables[0].merge(tables[1]), lambda: tables[0].add([keys[4]], {"mse": values[:1]})):
        with pytest.raises(ValueError, match=r"expected every crop once, found \d\.png#\d again"):
            wrong()  # a sampler that fills up its last batch would count images twice


@pytest.mark.parametrize(
    ("name", "values", "order"),
    [
        ("psnr", [20, math.inf, 10, 30], [2, 0, 3, 1]),
        ("ssim_uniform_7", [0.5, 0.9, 0.4, 0.6], [2, 0, 3, 1]),
        ("lpips_alex", [0.3, 0.1, 0.4, 0.2], [2, 0, 3, 1]),
        ("high_frequency_ratio", [0.6, 1.0, 1.5, 1.3], [2, 0, 3, 1]),
        ("colour_shift_red", [-3, 0, 4, 1], [2, 0, 3, 1]),
    ],
)
def test_worst_and_best(name: str, values: list[float], order: list[int]) -> None:
    """Low similarity is bad, so is a high distance, and a shift or a change of detail to either side."""
    table = table_of(mse=[0.1] * 4, **{name: values})
    expected = [(key(i), values[i]) for i in order]
    assert table.worst(name) == expected, f"{name}: a good image among the worst"
    assert table.best(name, 2) == expected[::-1][:2], f"{name}: a bad image among the best"


def test_an_empty_table() -> None:
    table = ImageMetricTable()
    assert (table.keys, table.invalid, table.worst("psnr")) == ([], [], []), "rows out of nothing"
    assert math.isnan(table.pooled_psnr), "a PSNR of nothing"
    assert set(table.summary()) == {"pooled_psnr"}, "metrics out of nothing"
    assert math.isnan(table.summary()["pooled_psnr"].mean), "a PSNR of nothing"


def test_detail_is_that_of_all_crops() -> None:
    """A smooth crop has next to no detail to lose: the ratio of its rounding must not decide the mean."""
    table = table_of(mse=[0.1] * 3, high_frequency_ratio=[9.0, 0.5, math.inf], high_frequency_energy=[0.001, 2.0, 0.0])
    found = table.summary()
    assert "high_frequency_energy" not in found, "an amount is no metric"
    assert found["high_frequency_ratio"].mean == pytest.approx((9 * 0.001 + 0.5 * 2) / 2.001)


def test_differences_are_of_the_same_crops() -> None:
    """Means over two sets of crops would differ by the crops; and the spread of crops would hide a constant shift."""
    values = np.linspace(20, 40, 12)
    one, other = (
        table_of(mse=[0.1] * 12, psnr=values.tolist()),
        table_of(mse=[0.1] * 11, psnr=(values - 1).tolist()[:11]),
    )
    change = one.minus(other)["psnr"]
    assert (change.mean, change.low, change.high, change.count) == pytest.approx((1, 1, 1, 11))
    wide = one.summary()["psnr"]
    assert wide.high - wide.low > 5, "the shift would be lost in this interval"


def test_lpips_of_large_images(monkeypatch: pytest.MonkeyPatch, picture: Callable[..., np.ndarray]) -> None:
    """A panorama would need tens of gigabytes, or have another number than the same picture in one piece."""
    metrics = BatchMetrics()

    class MeanDifference(torch.nn.Module):
        """A distance whose mean over tiles, by area, is that of the whole."""

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            assert a.shape[-1] * a.shape[-2] <= 40 * 40, "a tile is too large"
            return (a - b).abs().mean((1, 2, 3))

    metrics._lpips = {"alex": MeanDifference()}  # type: ignore[dict-item]
    monkeypatch.setattr(image_metrics, "LPIPS_LARGEST", 40 * 40)
    monkeypatch.setattr(image_metrics, "_LPIPS_TILE", 40)
    x, y = picture(101, 97, 0)[None], picture(101, 97, 1)[None]
    expected = np.abs(x.astype(float) - y).mean() / 127.5
    assert metrics(x, y)["lpips_alex"][0] == pytest.approx(expected, rel=1e-5)
