"""Figures of an evaluation: which there are, what they plot, and that they disturb nobody's matplotlib."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from ssdd.evaluation import figures
from ssdd.evaluation.figures import (
    compression,
    draw_figures,
    figure_style,
    headline,
    plain_label,
    row_style,
    save_figure,
    sorted_crops,
    spectrum,
    speed_and_quality,
    step_sweep,
)
from ssdd.evaluation.metrics import Metric
from ssdd.evaluation.results import Evaluation
from tests.evaluation.results import LABELS, OWN_METRIC, make_evaluation


@pytest.fixture
def evaluation(tmp_path: Path) -> Evaluation:
    return make_evaluation(tmp_path)


@pytest.fixture(autouse=True)
def in_style() -> Iterator[None]:
    with figure_style():
        yield


def markers(axes: Axes) -> list[Line2D]:
    """Return the points of rows, without the lines that join them."""
    return [line for line in axes.get_lines() if line.get_marker() != "None"]


def test_which_figures_there_are(evaluation: Evaluation) -> None:
    names = ["speed-quality", "step-sweep", "spectrum", "compression", "sorted-crops"]
    figures = draw_figures(evaluation)
    assert list(figures) == names
    assert all(b"<svg" in figure and b"<script" not in figure for figure in figures.values())
    evaluation.rows = evaluation.rows[:1]  # no other number of steps, no other size of latents
    assert list(draw_figures(evaluation)) == ["speed-quality", "spectrum", "sorted-crops"]


def test_settings_stay_as_they_are(evaluation: Evaluation) -> None:
    """Somebody's notebook would change its looks."""
    import matplotlib

    matplotlib.rcParams["font.size"] = 31.0
    before = dict(matplotlib.rcParams)
    draw_figures(evaluation)
    assert dict(matplotlib.rcParams) == before


def test_a_model_has_one_color() -> None:
    one, two, other = row_style(0, 0), row_style(0, 1), row_style(1, 0)
    assert one["color"] == two["color"] != other["color"]
    assert one["marker"] != two["marker"]
    assert one["linestyle"] != two["linestyle"]
    assert row_style(7, 0)["marker"] != one["marker"], "colors repeat after seven models"


def test_spectrum_shows_the_ratio(evaluation: Evaluation) -> None:
    figure = spectrum(evaluation)
    assert figure is not None
    upper, lower = figure.axes
    for k, line in enumerate(lower.get_lines()[:3]):
        ratio = np.array(line.get_ydata())
        assert ratio[np.isfinite(ratio)] == pytest.approx(1 / (k + 1))
    assert upper.get_lines()[0].get_ydata() == pytest.approx(evaluation.spectrum, nan_ok=True)
    assert [line.get_xdata()[0] for line in upper.get_lines()[4:]] == [0.25, 0.5], "half of Nyquist is not marked"


def test_step_sweep_shows_means_and_intervals(evaluation: Evaluation) -> None:
    figure = step_sweep(evaluation)
    assert figure is not None
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == [
        "PSNR pooled ↑", "PSNR mean ↑", "SSIM 7x7 ↑", "SSIM 11x11 ↑", f"{OWN_METRIC.heading} ↓", "detail → 1",
        "weave → 1", "FID-8 ↓", "KID Inception ↓",
    ]  # fmt: skip
    axes = figure.axes[0]
    (line,) = axes.get_lines()
    estimates = [row.image_metrics["pooled_psnr"] for row in evaluation.rows[:2]]
    assert list(line.get_xdata()) == [1, 2]
    assert list(line.get_ydata()) == [estimate.mean for estimate in estimates]
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (min(e.low for e in estimates), max(e.high for e in estimates))


def test_quality_is_what_all_rows_have(evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch) -> None:
    assert headline(evaluation).heading == "PSNR pooled", "a distance of eight images says little"
    monkeypatch.setattr(figures, "MANY_CROPS", 8)
    assert headline(evaluation).heading == "FID-8"
    evaluation.rows[2].distances = {}
    assert headline(evaluation).heading == "PSNR pooled"
    evaluation.rows[0].values["lpips_alex"] = evaluation.rows[0].values["mse"]
    evaluation.metrics["lpips_alex"] = Metric("lpips_alex", "LPIPS-alex", 3, "lower", "")
    assert headline(evaluation).heading == "LPIPS-alex"


def test_speed_is_that_of_the_rows(evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "MANY_CROPS", 8)
    evaluation.rows[1].costs = {"decode_rate": None}
    figure = speed_and_quality(evaluation)
    assert figure is not None
    (axes,) = figure.axes
    points = [line.get_xydata()[0].tolist() for line in markers(axes)]
    assert points[0] == [40, 12.345]
    assert np.isnan(points[1][0]), "without a speed"
    assert points[2] == pytest.approx([40 / 3, 14.345])
    assert "FID-8" in axes.get_ylabel()
    assert axes.get_xscale() == "log"
    save_figure(figure, "svg")
    shown = [text.get_text().replace(r"\$", "$") for text in figure.legends[0].get_texts()]
    assert shown == LABELS


def test_close_speeds_have_numbers(evaluation: Evaluation) -> None:
    """No power of two lies between them."""
    for row, rate in zip(evaluation.rows, (5.0, 5.2, 5.5), strict=True):
        row.costs = {"decode_rate": rate}
    figure = speed_and_quality(evaluation)
    assert figure is not None
    (axes,) = figure.axes
    low, high = axes.get_xlim()
    assert sum(low <= tick <= high for tick in axes.get_xticks()) > 1


def test_compression_needs_two_sizes(evaluation: Evaluation) -> None:
    figure = compression(evaluation)
    assert figure is not None
    tokens, bits = figure.axes
    assert [line.get_xdata()[0] for line in markers(tokens)] == [64, 64, 16]
    assert [line.get_xdata()[0] for line in markers(bits)] == [1, 1, 0.5]
    evaluation.rows[2].latent_shape = None
    figure = compression(evaluation)
    assert figure is not None
    assert len(figure.axes) == 1, "one number of tokens only"
    evaluation.rows = evaluation.rows[:2]
    assert compression(evaluation) is None


def test_crops_are_sorted_from_the_worst(evaluation: Evaluation) -> None:
    figure = sorted_crops(evaluation)
    assert figure is not None
    for row, line in zip(evaluation.rows, figure.axes[0].get_lines(), strict=True):
        values = row.values["psnr"]
        assert line.get_ydata() == pytest.approx(np.sort(values[np.isfinite(values)])), "without NaN and infinity"


def test_names_are_only_names() -> None:
    assert plain_label("x" * 100, 30) == "x" * 14 + "…" + "x" * 15
    assert not plain_label("_hidden").startswith("_"), "matplotlib leaves such a label out of a legend"
    assert plain_label("a\nb") == r"'a\nb'"
    assert plain_label("$x$") == r"\$x\$", "matplotlib reads it as mathematics"
