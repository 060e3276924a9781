"""Means, intervals and rankings of crops' numbers; what a result keeps."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from ssdd.evaluation.image_metrics import psnr
from ssdd.evaluation.metrics import DETAIL_WEIGHT, IMAGE_METRICS, Metric
from ssdd.evaluation.results import (
    Crops,
    Estimate,
    Evaluation,
    Row,
    as_text,
    bootstrap_means,
    differences,
    ranked,
    summarize,
)
from tests.evaluation.results import make_evaluation

METRICS = {**IMAGE_METRICS, "lpips_alex": Metric("lpips_alex", "LPIPS-alex", 3, "lower", "")}


def row_of(valid: list[bool] | None = None, **columns: list[float]) -> Row:
    count = len(columns["mse"])
    values = {name: np.array(column, float) for name, column in columns.items()}
    keep = np.ones(count, bool) if valid is None else np.array(valid)
    return Row("row", "row", 0, None, None, {}, None, {}, values, keep, [])


def crops_of(count: int, images: np.ndarray | None = None, **columns: list[float]) -> Crops:
    """One crop an image, one pixel a crop by default."""
    images = np.arange(count) if images is None else images
    own = {"pixels": np.ones(count), DETAIL_WEIGHT: np.ones(count)} | {n: np.array(c) for n, c in columns.items()}
    return Crops(images, np.zeros(count, int), [f"{i}.png" for i in range(count)], own)


def summary(crops: Crops | None = None, valid: list[bool] | None = None, **columns: list[float]) -> dict[str, Estimate]:
    return summarize(row_of(valid, **columns), crops or crops_of(len(columns["mse"])), METRICS)


def test_pooled_and_mean_psnr_by_hand() -> None:
    """MSE 0.01 and 0.0001 are 20 and 40 dB: 30 on average, but 22.97 from their mean, and less with larger images."""
    found = summary(mse=[0.01, 0.0001], psnr=[20, 40])
    assert found["psnr"].mean == pytest.approx(30), "not the mean over images"
    assert found["pooled_psnr"].mean == pytest.approx(-10 * math.log10(0.00505)), "not from the mean of the MSE"
    sized = summary(crops_of(2, pixels=[300, 100]), mse=[0.01, 0.0001])
    assert sized["pooled_psnr"].mean == pytest.approx(-10 * math.log10(0.007525)), "pixels of large images count less"


def test_invalid_crops_are_left_out() -> None:
    found = summary(valid=[True, False], mse=[0.1, 0.9])
    assert (found["mse"].mean, found["mse"].count) == (0.1, 1)


def test_equal_images_are_not_averaged_but_counted() -> None:
    found = summary(mse=[0, 0.01, 0.001], psnr=[math.inf, 20, 30])
    psnr_of_all = found["psnr"]
    assert (psnr_of_all.mean, psnr_of_all.count, psnr_of_all.infinite) == (25, 2, 1), "infinity spoils the mean"
    assert 20 <= psnr_of_all.low <= psnr_of_all.high <= 30, "infinity spoils the interval"
    assert found["pooled_psnr"].mean == pytest.approx(-10 * math.log10(0.011 / 3)), "equal images are left out of MSE"
    perfect = summary(mse=[0, 0], psnr=[math.inf] * 2)
    assert perfect["pooled_psnr"].mean == math.inf, "only equal images, and a finite PSNR"
    assert math.isnan(perfect["psnr"].mean), "a mean of nothing"


def test_a_metric_is_averaged_where_it_is_defined() -> None:
    estimate = summary(mse=[0.1] * 3, lpips_alex=[math.nan, math.nan, 0.7])["lpips_alex"]
    assert (estimate.mean, estimate.count) == (0.7, 1), "undefined is taken for zero, or for NaN"
    assert (estimate.low, estimate.high) == pytest.approx((0.7, 0.7)), "resamples without a value are in the interval"


def test_interval_covers_the_mean_and_is_the_same_each_time() -> None:
    """Of 100 sets of 60 values, about 95 % of the intervals hold the mean that they were drawn from."""
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(100):
        estimate = summary(mse=random.exponential(0.02, 60).tolist())["mse"]
        covered += estimate.low <= 0.02 <= estimate.high
    assert 86 <= covered <= 99, f"{covered} of 100 intervals of 95 % hold the mean"
    values = random.normal(0.5, 0.1, 400).tolist()
    first, again = (summary(mse=values) for _ in range(2))
    assert first == again, "the same numbers have two intervals"
    width = first["mse"].high - first["mse"].low
    assert width == pytest.approx(2 * 1.96 * 0.1 / math.sqrt(400), rel=0.15), "not an interval of 95 %"
    low, high = first["pooled_psnr"].low, first["pooled_psnr"].high
    expected = [float(psnr(np.array(first["mse"].high))), float(psnr(np.array(first["mse"].low)))]
    assert [low, high] == pytest.approx(expected, abs=1e-9), "the pooled PSNR has another interval than its MSE"


def test_crops_of_one_image_are_drawn_together() -> None:
    """Eight equal crops an image tell no more than one: the same interval, not one of an eighth of the variance."""
    values = np.random.default_rng(0).normal(0.5, 0.1, 50)
    one = summary(mse=values.tolist())["mse"]
    many = summary(crops_of(400, np.arange(50).repeat(8)), mse=values.repeat(8).tolist())["mse"]
    assert (many.low, many.high) == pytest.approx((one.low, one.high)), "crops of an image count as independent"
    drawn = bootstrap_means(np.eye(3), np.ones((3, 3)), np.array([4, 4, 9]))
    assert np.array_equal(drawn[:, 0], drawn[:, 1]), "members of a group are drawn apart"


def test_detail_is_that_of_all_crops() -> None:
    """A smooth crop has next to no detail to lose: the ratio of its rounding must not decide the mean."""
    crops = crops_of(3, **{DETAIL_WEIGHT: [0.001, 2.0, 0.0]})
    found = summary(crops, mse=[0.1] * 3, high_frequency_ratio=[9.0, 0.5, math.inf])
    assert found["high_frequency_ratio"].mean == pytest.approx((9 * 0.001 + 0.5 * 2) / 2.001)


def test_differences_are_of_the_same_crops() -> None:
    """Means over two sets of crops would differ by the crops; and the spread of crops would hide a constant shift."""
    values = np.linspace(20, 40, 12)
    one = row_of(mse=[0.1] * 12, psnr=values.tolist())
    other = row_of([True] * 11 + [False], mse=[0.1] * 12, psnr=(values - 1).tolist())
    change = differences(one, other, crops_of(12), METRICS)["psnr"]
    assert (change.mean, change.low, change.high, change.count) == pytest.approx((1, 1, 1, 11))
    wide = summary(mse=[0.1] * 12, psnr=values.tolist())["psnr"]
    assert wide.high - wide.low > 5, "the shift would be lost in this interval"


@pytest.mark.parametrize(
    ("name", "values", "order"),
    [
        ("psnr", [20, 40, 10, 30], [2, 0, 3, 1]),
        ("ssim_uniform_7", [0.5, 0.9, 0.4, 0.6], [2, 0, 3, 1]),
        ("lpips_alex", [0.3, 0.1, 0.4, 0.2], [2, 0, 3, 1]),
        ("high_frequency_ratio", [0.6, 1.0, 1.5, 1.3], [2, 0, 3, 1]),
        ("colour_shift_red", [-3, 0, 4, 1], [2, 0, 3, 1]),
    ],
)
def test_worst_first(name: str, values: list[float], order: list[int]) -> None:
    """Low similarity is bad, so is a high distance, and a shift or a change of detail to either side."""
    found = ranked(row_of(mse=[0.1] * 4, **{name: values}), METRICS[name])
    assert found == order, f"{name}: a good image among the worst"


def test_round_trip(tmp_path: Path) -> None:
    evaluation = make_evaluation(tmp_path)
    evaluation.save(tmp_path)
    loaded = Evaluation.load(tmp_path)
    assert loaded.as_dict() == evaluation.as_dict()
    assert as_text(loaded) == as_text(evaluation)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 2}', '{"rows": []}', '{"format": 3, "rows": []}'])
def test_other_files_are_refused_in_one_line(tmp_path: Path, content: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"found no evaluation\.json in it"):
        Evaluation.load(tmp_path)
    (tmp_path / "evaluation.json").write_text(content)
    with pytest.raises(ValueError, match="expected a result of format 2, found") as error:
        Evaluation.load(tmp_path)
    assert "\n" not in str(error.value)


def test_a_result_is_replaced_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between its two files, a result would have the crops of another one."""
    evaluation = make_evaluation(tmp_path)
    evaluation.save(tmp_path)
    before = Evaluation.load(tmp_path).as_dict()
    evaluation.rows[0].values["mse"] = evaluation.rows[0].values["mse"] + 1
    with monkeypatch.context() as killed:
        killed.setattr("ssdd.evaluation.results.json.dumps", _killed)
        with pytest.raises(KeyboardInterrupt):
            evaluation.save(tmp_path)
    loaded = Evaluation.load(tmp_path)
    assert loaded.as_dict() == before
    assert loaded.rows[0].values["mse"].max() < 1
    evaluation.save(tmp_path)
    assert len(list(tmp_path.glob("crops-*.npz"))) == 1, "old crops are never removed"


def _killed(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("place", ["../../secret.png", "/etc/passwd", "pictures/../../x.png", "pictures/a\\n.png", 5])
def test_pictures_of_other_folders_are_not_read(tmp_path: Path, place: object) -> None:
    """A result from the internet would put a file of the reader's disk into the page."""
    make_evaluation(tmp_path).save(tmp_path)
    found = json.loads((tmp_path / "evaluation.json").read_text())
    found["pictures"][0]["files"][""] = place
    (tmp_path / "evaluation.json").write_text(json.dumps(found))
    with pytest.raises(ValueError, match="expected a result of format 2"):
        Evaluation.load(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "no mask"])
def test_damaged_numbers_are_refused_in_one_line(tmp_path: Path, damage: str) -> None:
    make_evaluation(tmp_path).save(tmp_path)
    path = next(tmp_path.glob("crops-*.npz"))
    with np.load(path) as stored:
        arrays = dict(stored)
    if damage == "no mask":
        del arrays["valid/0"]
    np.savez_compressed(path, **arrays)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="expected a result of format 2, found") as error:
        Evaluation.load(tmp_path)
    assert "\n" not in str(error.value)


def test_missing_crops_are_named(tmp_path: Path) -> None:
    make_evaluation(tmp_path).save(tmp_path)
    next(tmp_path.glob("crops-*.npz")).unlink()
    with pytest.raises(ValueError, match=r"crops-\w+\.npz"):
        Evaluation.load(tmp_path)
    json.loads((tmp_path / "evaluation.json").read_text())
