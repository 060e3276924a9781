"""The report: complete, made from the saved result alone, and harmless whatever the data are called."""

import base64
import io
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from ssdd.evaluation.metrics import COSTS, IMAGE_METRICS
from ssdd.evaluation.report import Table, check_report, farthest_part, verdict, write_report
from ssdd.evaluation.results import Estimate, Evaluation
from tests.evaluation.results import EXTRACTOR, HOSTILE, OWN_METRIC, make_evaluation, make_row

NAN = float("nan")
_VOID = {"meta", "img"}


class Page(HTMLParser):
    """Elements with their attributes, and the text between them. Fails where tags do not match."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.source = path.read_text()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(self.source)
        self.close()
        assert not self._open, f"left open: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> does not close what is open"

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def best(self) -> list[str]:
        """What stands in cells that are marked as the best."""
        starts = self.source.split('<td class="best">')[1:]
        return [start.partition("<")[0] for start in starts]

    def pictures(self, alt: str, kind: str = "png") -> list[np.ndarray]:
        """Pictures whose description ends so."""
        head = f"data:image/{kind};base64,"
        sources = [a["src"] for tag, a in self.elements if tag == "img" and a["alt"].endswith(alt)]
        files = (io.BytesIO(base64.b64decode(source.removeprefix(head))) for source in sources)
        return [np.asarray(Image.open(file)) for file in files]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("result")
    make_evaluation(folder).save(folder)
    return folder


@pytest.fixture(scope="module")
def evaluation(folder: Path) -> Evaluation:
    return Evaluation.load(folder)


@pytest.fixture(scope="module")
def page(evaluation: Evaluation, folder: Path) -> Page:
    return Page(write_report(evaluation, folder))


@pytest.fixture(autouse=True)
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the page that most tests share has figures: they take seconds."""
    monkeypatch.setattr("ssdd.evaluation.report.draw_figures", lambda evaluation: {})


def test_names_cannot_do_harm(page: Page) -> None:
    """A file of a downloaded data set must not run anything in the reader's browser."""
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "iframe", "object", "embed", "link", "base", "form", "svg"}, "an element that acts"
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")], f"<{tag}> has a handler"
        assert attributes.get("src", "data:image/").startswith("data:image/"), "a picture from elsewhere"
        assert attributes.get("href", "#").startswith("#"), "a link to elsewhere"
        assert "url(" not in attributes.get("style", ""), "a style that loads something"
    style = next(word for word in page.words if ":root" in word)
    assert "url(" not in style
    assert "@import" not in style
    assert "http:" not in page.source
    assert "https:" not in page.source
    assert "<script" not in page.source
    assert page.text.count(HOSTILE) > 10, "the name is not on the page"


def test_a_policy_forbids_all_loading(page: Page) -> None:
    policy = next(a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_names_that_do_not_print_are_shown_by_their_codes(folder: Path, tmp_path: Path) -> None:
    evaluation = make_evaluation(tmp_path)
    evaluation.add(make_row("caf\udce9\n", 2, evaluation))
    assert r"'caf\udce9\n'" in Page(write_report(evaluation, tmp_path)).text


def test_everything_is_on_the_page(evaluation: Evaluation, page: Page) -> None:
    for row in evaluation.rows:
        assert page.text.count(row.label) > 4, f"{row.label} is missing from tables"
        for name, estimate in row.image_metrics.items():
            metric = evaluation.metrics[name]
            interval = f"{metric.format(estimate.low)} … {metric.format(estimate.high)}"
            assert f"{metric.format(estimate.mean)} {interval}" in page.text, f"{name} of {row.label}"
        for name, metric in COSTS.items():
            assert metric.format(row.costs[name]) in page.text, f"{name} of {row.label}"
    for heading in (f"{OWN_METRIC.heading} ↓", "detail → 1", "PSNR pooled ↑", "decode/s ↑", "bytes bits/px"):
        assert heading in page.text, f"no column {heading}"
    for metric in (*evaluation.metrics.values(), *COSTS.values()):
        assert metric.description in page.text, f"{metric.name} is not explained"
    assert "Intervals from 4 images are rough." in page.text
    assert f"1 skipped, no number is about them: 9{HOSTILE}.jpg: expected an image" in page.text
    figures = ["speed-quality", "step-sweep", "spectrum", "compression", "sorted-crops"]
    assert [a["id"] for tag, a in page.elements if tag == "figure"] == [f"figure-{name}" for name in figures]
    assert "1 smaller than the crops and enlarged" in page.text
    assert f"{HOSTILE}: 1 not finite, and left out of all its numbers: 1{HOSTILE}.png#1" in page.text
    assert "demo, 1 step: 1 equal to their originals" in page.text
    for part in ("test-v1", "the middle <i>", "cd" * 32, "model.safetensors: " + "ef" * 32, "torch", "4 × 8 × 8"):
        assert part in page.text, f"no {part}"


def test_differences_say_what_their_intervals_say(page: Page) -> None:
    """The second row is worse than the first by every error; of a ratio that is best at one nothing is said."""
    assert "Differences to demo, 1 step" in page.text
    table = page.text.partition("Differences to demo, 1 step")[2].partition("Distances of sets")[0]
    line = table.partition("demo, 2 steps")[2].partition(HOSTILE)[0]
    assert line.count(" worse") == 4, "of PSNR, two SSIM and the user's own metric"
    assert " better" not in line
    assert "What lower precision costs" not in page.text


def test_lower_precision_has_a_table(tmp_path: Path) -> None:
    evaluation = make_evaluation(tmp_path)
    first = evaluation.rows[0]
    row = make_row("demo, bfloat16, 1 step", 0, evaluation, precision_of=first.label)
    row.values["ssim_uniform_7"] = first.values["ssim_uniform_7"] + 0.001
    evaluation.add(row)
    text = Page(write_report(evaluation, tmp_path)).text
    table = text.partition("What lower precision costs")[2].partition("Distances of sets")[0]
    assert "demo, bfloat16, 1 step minus demo, 1 step" in table
    assert "0.001 0.001 … 0.001 better" in table
    assert "no clear difference" in table
    assert "Shift of red" in table


def test_distances_are_shown_with_what_they_are_of(page: Page) -> None:
    table = page.text.partition("Distances of sets: Inception")[2].partition("Cost")[0]
    for part in ("FID-8 ↓", "12.35", "0.00125 ± 0.00050", "0.811", "0.722", "0.933", "0.644"):
        assert part in table, f"no {part}"
    for part in ("FID-8: of 8 images", "100 subsets of 7", "k = 5"):
        assert part in table, f"no {part}"
    for part in (EXTRACTOR["sha256"], EXTRACTOR["preprocessing"]):
        assert str(part) in page.text


def test_the_best_are_marked(evaluation: Evaluation, page: Page) -> None:
    first, second, _ = evaluation.rows
    for name in ("pooled_psnr", "psnr", "ssim_uniform_7", "mse", OWN_METRIC.name):
        assert evaluation.metrics[name].format(first.image_metrics[name].mean) in page.best, f"{name} is best there"
    detail = evaluation.metrics["high_frequency_ratio"]
    assert detail.format(second.image_metrics[detail.name].mean) in page.best, "nearest to one"
    assert "12.35" in page.best
    assert "0.811" not in page.best, "all rows are equal"


@pytest.mark.parametrize(
    ("name", "means", "best"),
    [
        ("psnr", [20.0, 30.0, NAN, 30.0], {"1", "3"}),
        ("mse", [0.2, 0.1], {"1"}),
        ("high_frequency_ratio", [0.2, 1.1, 2.0], {"1"}),
        ("colour_shift_red", [-0.1, 0.5], {"0"}),
        ("psnr", [20.0, 20.0], set()),
        ("psnr", [NAN, NAN], set()),
        ("latent_bytes", [1.0, 2.0], set()),  # a fact is no merit
    ],
)
def test_the_best_of_a_column(name: str, means: list[float], best: set[str]) -> None:
    metric = (IMAGE_METRICS | COSTS)[name]
    lines = {str(i): {name: Estimate(mean, NAN, NAN, 1, 0)} for i, mean in enumerate(means)}
    assert Table([metric], lines, mark_best=True).best(metric) == best
    assert Table([metric], lines).best(metric) == set()


def test_pictures_are_the_crops(evaluation: Evaluation, folder: Path, page: Page) -> None:
    """The frame is around the square where the first row is wrong, which is enlarged below."""
    files = evaluation.pictures[0].files
    original, made = (np.asarray(Image.open(folder / files[label])) for label in ("", "demo, 1 step"))
    assert np.array_equal(page.pictures("#1, Original")[0], original)
    assert np.array_equal(page.pictures("#1, demo, 1 step")[0], made)
    assert np.array_equal(page.pictures("#1, demo, 1 step, enlarged part")[0], made[20:52, 10:42])
    change = page.pictures("#1, demo, 1 step, difference × 4")[0]
    assert (change[20:52, 10:42] == 40).all()
    assert change.sum() == 40 * 32 * 32 * 3
    frame = next(a["style"] for tag, a in page.elements if tag == "i")
    assert frame == "left:15.625%;top:31.25%;width:50.0%;height:50.0%"
    assert len(page.pictures("Original")) == 2
    for part in ("worst of demo, 1 step by MSE", "MSE 0.00", "PSNR 3", "detail 0.", "64 × 64 pixels"):
        assert part in page.text


def test_what_is_not_finite_has_a_placeholder(page: Page) -> None:
    assert page.text.count("not finite: no picture") == 1
    assert len(page.pictures(HOSTILE)) == 1, "of the other crop"


def test_large_crops_are_scaled_down_but_not_their_parts(tmp_path: Path) -> None:
    evaluation = make_evaluation(tmp_path)
    for file in evaluation.pictures[1].files.values():
        Image.fromarray(np.zeros((300, 1024, 3), np.uint8)).save(tmp_path / file)
    page = Page(write_report(evaluation, tmp_path))
    assert page.pictures("0.png#0, Original")[0].shape == (150, 512, 3)
    assert page.pictures("0.png#0, Original, enlarged part")[0].shape == (75, 75, 3)


def test_one_row(tmp_path: Path) -> None:
    """The least there can be: nothing to compare, no extractor, no picture."""
    evaluation = make_evaluation(tmp_path)
    evaluation.rows, evaluation.extractors, evaluation.pictures = evaluation.rows[:1], [], []
    evaluation.rows[0].distances = {}
    text = Page(write_report(evaluation, tmp_path)).text
    assert "1 row on the same 8 crops of 4 images" in text
    assert "Differences to" not in text
    assert "Distances of sets" not in text
    assert "No crop to show." in text


def test_nothing_finite_at_all(tmp_path: Path) -> None:
    """A model that gives nothing but NaN still gets its report: of that."""
    evaluation = make_evaluation(tmp_path)
    broken = make_row("broken", 3, evaluation, valid=np.zeros(8, bool), distances={})
    broken.values = {name: np.full(8, NAN) for name in broken.values}
    broken.spectrum = [NAN] * len(broken.spectrum)
    evaluation.rows = []
    evaluation.add(broken)
    page = Page(write_report(evaluation, tmp_path))
    assert "broken: 8 not finite" in page.text
    assert "Not defined on these crops." in page.text
    assert page.text.count("not finite: no picture") == 2
    assert page.best == []


@pytest.mark.parametrize(
    ("low", "mean", "high", "expected"),
    [
        (0.6, 0.75, 0.9, "Smoothed: 25.0 % of the detail energy is lost"),
        (1.1, 1.4, 1.6, "More detail energy than the original, by 40.0 %"),
        (0.9, 1.2, 1.6, "Indistinguishable from the original at this sample of 7 crops"),
        (1.0, 1.2, 1.6, "Indistinguishable"),
        (NAN, NAN, NAN, "Not defined"),
    ],
)
def test_verdict_follows_the_interval(low: float, mean: float, high: float, expected: str) -> None:
    assert verdict(Estimate(mean, low, high, 7, 0)).startswith(expected)


@pytest.mark.parametrize("place", [(0, 0), (37, 50), (96, 160)])
def test_the_part_is_where_the_error_is(place: tuple[int, int]) -> None:
    original = np.full((128, 192, 3), 100, np.uint8)
    wrong = original.copy()
    wrong[place[0] : place[0] + 32, place[1] : place[1] + 32] = 130
    part = farthest_part(original, wrong)
    assert part == (*place, 32)
    assert (part.cut(wrong) == 130).all()


@pytest.mark.parametrize(("size", "side"), [((128, 128), 32), ((256, 300), 64), ((2048, 3000), 128), ((20, 50), 20)])
def test_the_part_is_a_quarter(size: tuple[int, int], side: int) -> None:
    """Within bounds, and in the middle of a perfect reconstruction."""
    image = np.zeros((*size, 3), np.uint8)
    assert farthest_part(image, image) == ((size[0] - side) // 2, (size[1] - side) // 2, side)


@pytest.mark.parametrize("package", ["jinja2", "matplotlib.figure"])
def test_it_says_what_to_install(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluation = make_evaluation(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    name = package.partition(".")[0]
    for call in (check_report, lambda: write_report(evaluation, tmp_path)):
        with pytest.raises(ImportError, match=rf"need.* {name}: pip install 'ssdd\[eval\]'"):
            call()
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"], "something is left behind"
