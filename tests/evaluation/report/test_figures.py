"""Figures of a report: which there are, what they plot, and that they disturb nobody's matplotlib."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ssdd.evaluation.compare import Comparison
from ssdd.evaluation.report import write_report
from ssdd.evaluation.report.view import View

from .conftest import Compared, changed

matplotlib = pytest.importorskip("matplotlib")

from ssdd.evaluation.report import plots  # noqa: E402
from ssdd.evaluation.report.canvas import label_points, new_figure, short, style_of, styled  # noqa: E402
from ssdd.evaluation.report.figures import draw_figures  # noqa: E402


@pytest.fixture(autouse=True)
def in_style() -> Iterator[None]:
    with styled():
        yield


def with_distances(comparison: Comparison, reliable: bool) -> Comparison:
    """The comparison as if features of an extractor had been compared."""
    rows = [
        changed(row, distances={"inception-torch-fidelity": {"frechet": 1.5 + k, "frechet_reliable": reliable}})
        for k, row in enumerate(comparison.rows)
    ]
    extractor = SimpleNamespace(name="inception-torch-fidelity", width=2048, sha256="67" * 32, preprocessing="none")
    return replace(comparison, rows=rows, extractors=[extractor])  # type: ignore[list-item]


def test_which_figures_there_are(compared: Compared) -> None:
    """One model has two numbers of steps; bicubic's small images are no tensors, so one latent shape."""
    names = [figure.name for figure in draw_figures(View(compared.comparison))]
    assert names == ["speed-quality", "step-sweep", "spectrum", "sorted-crops"]
    no_steps = replace(compared.comparison, rows=compared.comparison.rows[2:])
    assert [f.name for f in draw_figures(View(no_steps))] == ["speed-quality", "spectrum", "sorted-crops"]


def test_figures_are_the_same_each_time(compared: Compared) -> None:
    first, second = (draw_figures(View(compared.comparison)) for _ in range(2))
    assert first == second, "ids or dates of the file depend on chance"
    assert all(b"<script" not in figure.data for figure in first)
    png = draw_figures(View(compared.comparison), "png")
    assert all(figure.data.startswith(b"\x89PNG") for figure in png)


def test_settings_stay_as_they_are(compared: Compared) -> None:
    """Somebody's notebook would change its looks, or its looks the report."""
    matplotlib.rcParams["font.size"] = 31.0
    before = dict(matplotlib.rcParams)
    odd = [figure.data for figure in draw_figures(View(compared.comparison))]
    assert dict(matplotlib.rcParams) == before
    matplotlib.rcParams["font.size"] = 10.0
    assert odd == [figure.data for figure in draw_figures(View(compared.comparison))]


def test_a_model_has_one_colour(compared: Compared) -> None:
    one, two, *others = (style_of(v) for v in View(compared.comparison).rows)
    assert one.colour == two.colour, "steps of one model look like two models"
    assert (one.marker, one.dashes) != (two.marker, two.dashes), "they cannot be told apart"
    assert len({style.colour for style in (one, *others)}) == 5, "two models share a colour"


def test_spectrum_shows_the_ratio(compared: Compared) -> None:
    comparison = compared.comparison
    power = comparison.original_spectrum.power
    quarter = SimpleNamespace(frequency=comparison.original_spectrum.frequency, power=power / 4)
    found = [comparison.original_spectrum, quarter]
    rows = [changed(row, spectrum=spectrum) for row, spectrum in zip(comparison.rows, found, strict=False)]
    figure = plots.spectrum(View(replace(comparison, rows=rows)))
    assert figure is not None
    upper, lower = figure.axes
    finite = np.isfinite(power)
    for line, ratio in zip(lower.get_lines(), (1.0, 0.25), strict=False):
        assert line.get_xdata() == pytest.approx(comparison.original_spectrum.frequency[finite])
        assert line.get_ydata() == pytest.approx(ratio)
    assert upper.get_lines()[0].get_ydata() == pytest.approx(power[finite])
    assert [line.get_xdata()[0] for line in upper.get_lines()[3:]] == [0.25, 0.5], "half of Nyquist is not marked"


def test_step_sweep_shows_means_and_intervals(compared: Compared) -> None:
    view = View(compared.comparison)
    figure = plots.step_sweep(view)
    assert figure is not None
    axes = figure.axes[0]
    (line,) = axes.get_lines()
    found = [view.rows[k].estimate("pooled_psnr") for k in (0, 1)]
    assert list(line.get_xdata()) == [1, 2]
    assert list(line.get_ydata()) == [estimate.mean for estimate in found]
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (min(e.low for e in found), max(e.high for e in found))
    assert list(axes.get_xticks()) == [1, 2], "other ticks than the numbers of steps"


@pytest.mark.parametrize("reliable", [True, False])
def test_quality_is_a_distance_only_if_reliable(compared: Compared, reliable: bool) -> None:
    """An FID of eight crops is no measure of quality."""
    view = View(with_distances(compared.comparison, reliable))
    assert view.headline == (("frechet", "inception-torch-fidelity") if reliable else ("pooled_psnr", None))
    figure = plots.speed_and_quality(view)
    assert figure is not None
    shown = figure.axes[0].get_ylabel()
    assert shown.startswith("FID" if reliable else "PSNR"), shown
    assert ("lower is better ↓" if reliable else "higher is better ↑") in shown


def test_speed_is_that_of_the_rows(compared: Compared) -> None:
    view = View(compared.comparison)
    figure = plots.speed_and_quality(view)
    assert figure is not None
    axes = figure.axes[0]
    points = {tuple(line.get_xydata()[0]) for line in axes.get_lines() if line.get_marker() != "None"}
    assert points == {(v.decode_rate, v.estimate("pooled_psnr").mean) for v in view.rows}
    assert [text.get_text() for text in axes.texts] == [short(v.label) for v in view.rows]


def test_compression_needs_latents_of_two_shapes(compared: Compared) -> None:
    first, second, third, *_ = compared.comparison.rows
    rows = [first, changed(second, latent_shapes={(16, 4, 4)}), third]
    view = View(replace(compared.comparison, rows=rows))
    figure = plots.compression(view)
    assert figure is not None
    tokens, bits = figure.axes
    assert [line.get_xdata()[0] for line in tokens.get_lines()] == [64, 16], "of rows with a latent, 8 x 8 and 4 x 4"
    assert [line.get_xdata()[0] for line in bits.get_lines()] == [1.0, 1.0, 8 * 1500 / 64**2]
    native = replace(compared.comparison.protocol, rule="native", crops=1)
    assert plots.compression(View(replace(compared.comparison, rows=rows, protocol=native))) is None


def test_labels_keep_apart() -> None:
    """Twelve points, half of them nearly at one place."""
    figure = new_figure(5.6, 4)
    axes = figure.subplots()
    random = np.random.default_rng(0)
    x = np.concatenate([random.uniform(1, 10, 6), random.uniform(4, 4.4, 6)])
    y = np.concatenate([random.uniform(0, 1, 6), random.uniform(0.5, 0.55, 6)])
    axes.plot(x, y, "o")
    axes.margins(0.25)
    label_points(axes, x.tolist(), y.tolist(), [f"model {k}, 2 steps" for k in range(12)])
    figure.canvas.draw()
    boxes = [text.get_window_extent().extents for text in axes.texts]
    for i, a in enumerate(boxes):
        for b in boxes[i + 1 :]:
            sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
            covered = sides.clip(0).prod() / (a[2:] - a[:2]).prod()
            assert covered < 0.1, "a label covers another"


def test_names_are_only_names() -> None:
    assert short("x" * 100, 30) == "x" * 14 + "…" + "x" * 15
    assert not short("_hidden").startswith("_"), "matplotlib leaves such a label out of a legend"


def test_without_matplotlib_it_says_what_to_install(
    compared: Compared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"need matplotlib: pip install 'ssdd\[eval\]'"):
        write_report(compared.comparison, compared.evaluation_set, tmp_path / "report.html")
    assert not list(tmp_path.iterdir()), "something is left behind"
