"""The page: complete, the same each time, and harmless whatever the data are called."""

import base64
import html
import io
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from ssdd.data.sources import open_source
from ssdd.evaluation.compare import Entry, compare
from ssdd.evaluation.contestants import Bicubic, Jpeg
from ssdd.evaluation.protocols import EvaluationSet, Protocol
from ssdd.evaluation.report import gallery, render_report, write_report
from ssdd.evaluation.report.html import number, text
from ssdd.evaluation.report.tables import verdict
from ssdd.evaluation.report.view import View, metric
from ssdd.evaluation.tables import Estimate
from ssdd.files import OutputExists

from .conftest import HOSTILE, Compared, Flawed, changed, photographs

pytest.importorskip("matplotlib")

Picture = Callable[..., np.ndarray]
_VOID = {"meta", "img"}


class Page(HTMLParser):
    """Elements with their attributes, and the text between them. Fails where tags do not match."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(source)
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

    def pictures(self, kind: str) -> list[bytes]:
        head = f"data:image/{kind};base64,"
        sources = (attributes["src"] for tag, attributes in self.elements if tag == "img")
        return [base64.b64decode(source.removeprefix(head)) for source in sources if source.startswith(head)]


@pytest.fixture(scope="module")
def source(compared: Compared) -> str:
    return render_report(compared.comparison, compared.evaluation_set)


@pytest.fixture(scope="module")
def page(source: str) -> Page:
    return Page(source)


def test_names_cannot_do_harm(page: Page, source: str) -> None:
    """A file of a downloaded data set must not run anything in the reader's browser."""
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "iframe", "object", "embed", "link", "base", "form", "svg"}, "an element that acts"
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")], f"<{tag}> has a handler"
        assert attributes.get("src", "data:image/").startswith("data:image/"), "a picture from elsewhere"
        assert attributes.get("href", "#").startswith("#"), "a link to elsewhere"
        assert "url(" not in attributes.get("style", ""), "a style that loads something"
    style = page.words[page.words.index(next(word for word in page.words if ":root" in word))]
    assert "url(" not in style
    assert "@import" not in style
    assert "http:" not in source
    assert "https:" not in source
    assert source.count(html.escape(HOSTILE)) > 10, "the name is not on the page"
    assert "<script" not in source


def test_a_policy_forbids_all_loading(page: Page) -> None:
    policy = next(a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_everything_is_on_the_page(compared: Compared, page: Page) -> None:
    view = View(compared.comparison)
    for v in view.rows:
        assert page.text.count(v.label) > 4, f"{v.label} is missing from tables"
        for name, estimate in v.estimates.items():
            digits = metric(name).digits
            assert str(number(estimate.mean, digits)) in page.text, f"{name} of {v.label}"
            assert f"{number(estimate.low, digits)} … {number(estimate.high, digits)}" in page.text, f"{name}, interval"
        assert str(number(v.decode_rate, 2 if v.decode_rate < 100 else 0)) in page.text, "no throughput"
    for name in view.image_metrics:
        heading = metric(name).heading
        assert (heading in page.text) or heading.startswith("Shift of"), f"{name} has no column"
    census = compared.comparison.census
    assert census.fingerprint() in page.text
    for skipped in census.skipped:
        assert skipped.reason in page.text, "a skipped image is not named"
    assert f"{HOSTILE}: 1 not finite, and left out of all its numbers" in page.text
    for value in compared.comparison.protocol.describe().values():
        assert str(text(value)) in html.escape(page.text), f"{value} of the protocol is not said"
    for word in ("Red", "Green", "Blue", "torch", "GFLOP at 64 × 64", "4 × 8 × 8", "model.safetensors"):
        assert word in page.text, f"no {word}"


def test_distances_are_shown_with_their_extractor(compared: Compared) -> None:
    values = {"frechet": 12.345, "kid": 0.00125, "kid_standard_error": 0.0005, "precision": 0.811, "recall": 0.722}
    values |= {"density": 0.933, "coverage": 0.644}
    rows = [
        changed(row, distances={"inception-torch-fidelity": {**values, "frechet_reliable": k > 0}})
        for k, row in enumerate(compared.comparison.rows[2:])
    ]
    extractor = SimpleNamespace(
        name="inception-torch-fidelity", width=2048, sha256="ab" * 32, preprocessing="299 x 299 <b>"
    )
    comparison = replace(compared.comparison, rows=rows, extractors=[extractor])
    found = Page(render_report(comparison, compared.evaluation_set)).text
    for part in ("FID", "12.35*", "0.00125", "± 0.00050", "0.811", "0.722", "0.933", "0.644", "ab" * 32):
        assert part in found, f"no {part}"
    assert found.count("12.35*") == 1, "reliable distances are marked too, or the others not"
    assert "299 x 299 <b>" in found
    assert "8 crops are too few for a Fréchet distance on the 2048 numbers" in found


def test_a_metric_by_a_network_is_named_with_its_weights(compared: Compared) -> None:
    """DreamSim of two kinds cannot be compared, and nobody would see it."""
    network = SimpleNamespace(name="dreamsim-clip_vitb32", sha256="cd" * 32, preprocessing="224 x 224 <i>")
    comparison = replace(compared.comparison, other_metrics={"dreamsim": network})
    found = Page(render_report(comparison, compared.evaluation_set)).text
    for part in ("DreamSim", "dreamsim-clip_vitb32", "cd" * 32, "224 x 224 <i>"):
        assert part in found, f"no {part}"


def test_pictures_are_the_crops(compared: Compared, page: Page) -> None:
    """The first picture is the original of the worst crop, without loss; below it the enlarged part of it."""
    key, _ = compared.comparison.rows[0].table.worst("mse", 1)[0]
    crop = compared.evaluation_set[key.image].crops[key.crop].pixels  # type: ignore[union-attr]
    first, part, reconstruction, *_ = (np.asarray(Image.open(io.BytesIO(d))) for d in page.pictures("png"))
    assert np.array_equal(first, crop)
    frame = next(a["style"] for tag, a in page.elements if tag == "i")
    left, top = (float(pair.split(":")[1][:-1]) / 100 * 64 for pair in frame.split(";")[:2])
    window = crop[round(top) : round(top) + 32, round(left) : round(left) + 32]
    assert np.array_equal(part, window.repeat(7, 0).repeat(7, 1)), "the frame is not around what is enlarged"
    assert reconstruction.shape == (64, 64, 3)
    assert len(page.pictures("svg+xml")) == 4
    assert "not finite: no picture" in page.text


def test_the_same_comparison_gives_the_same_bytes(compared: Compared, source: str, tmp_path: Path) -> None:
    path = tmp_path / "out" / "report.html"
    write_report(compared.comparison, compared.evaluation_set, path)
    assert path.read_bytes() == source.encode()
    assert [other.name for other in path.parent.iterdir()] == ["report.html"], "something is left behind"


def test_a_file_is_not_replaced_by_accident(tmp_path: Path, picture: Picture) -> None:
    evaluation_set = photographs(tmp_path, picture, [(64, 64)])
    comparison = compare([Entry(Bicubic(8))], evaluation_set, workers=0)
    path = tmp_path / "report.html"
    path.write_text("mine")
    with pytest.raises(OutputExists):
        write_report(comparison, evaluation_set, path)
    assert path.read_text() == "mine"
    write_report(comparison, evaluation_set, path, overwrite=True)
    assert path.read_text().startswith("<!DOCTYPE html>")


def test_native_crops_of_many_sizes(tmp_path: Path, picture: Picture) -> None:
    for i, size in enumerate([(70, 310), (64, 64), (330, 100)]):
        Image.fromarray(picture(*size, i)).save(tmp_path / f"{i}.png")
    evaluation_set = EvaluationSet(open_source([tmp_path]), Protocol("native-test-v1", "native", 32))
    comparison = compare([Entry(Bicubic(8)), Entry(Jpeg(4000))], evaluation_set, workers=0)
    page = Page(render_report(comparison, evaluation_set))
    for part in ("288 × 64 pixels", "64 × 64 pixels", "96 × 320 pixels", "Whole crops are JPEG of high quality"):
        assert part in page.text, f"no {part}"
    sizes = {Image.open(io.BytesIO(data)).size for data in page.pictures("jpeg")}
    assert sizes == {(288, 64), (64, 64), (96, 320)}, "not in proportion"


def test_large_pictures_are_scaled_to_a_budget(
    tmp_path: Path, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation_set = photographs(tmp_path, picture, [(600, 700)] * 3)
    native = EvaluationSet(evaluation_set.source, Protocol("native-test-v1", "native", 32))
    comparison = compare([Entry(Bicubic(8))], native, workers=0)
    whole = render_report(comparison, native)
    monkeypatch.setattr(gallery, "BUDGET", 900_000)
    small = render_report(comparison, native)
    assert "scaled to a width" not in Page(whole).text
    assert "scaled to a width of at most" in Page(small).text, "the reader is not told"
    pictures = sum(len(data) for data in [*Page(small).pictures("jpeg"), *Page(small).pictures("png")])
    assert pictures <= 900_000, "over the budget"


def test_one_row_on_one_crop(tmp_path: Path, picture: Picture) -> None:
    """The least there can be: nothing to compare, no interval worth the name."""
    evaluation_set = photographs(tmp_path, picture, [(64, 64)])
    page = Page(render_report(compare([Entry(Bicubic(1))], evaluation_set, workers=0), evaluation_set))
    assert "1 row on the same 1 crops of 1 images" in page.text
    assert "Differences to" not in page.text
    assert "1 equal to their originals" in page.text, "an infinite PSNR is left out in silence"


def test_nothing_finite_at_all(tmp_path: Path, picture: Picture) -> None:
    """A model that gives nothing but NaN still gets its report: of that."""
    evaluation_set = photographs(tmp_path, picture, [(64, 64)] * 2)
    comparison = compare([Entry(Flawed("broken", {0, 1})), Entry(Bicubic(8))], evaluation_set, workers=0)
    page = Page(render_report(comparison, evaluation_set))
    assert "broken: 2 not finite" in page.text
    assert "Not defined on these crops." in page.text
    alone = compare([Entry(Flawed("broken", {0, 1}))], evaluation_set, workers=0)
    assert "not finite: no picture" in Page(render_report(alone, evaluation_set)).text


@pytest.mark.parametrize(
    ("low", "mean", "high", "expected"),
    [
        (0.6, 0.75, 0.9, "Smoothed: 25.0 % of the detail energy is lost"),
        (1.1, 1.4, 1.6, "More detail energy than the original, by 40.0 %"),
        (0.9, 1.2, 1.6, "Indistinguishable from the original at this sample of 7 crops"),
        (1.0, 1.2, 1.6, "Indistinguishable"),
        (float("nan"), float("nan"), float("nan"), "Not defined"),
    ],
)
def test_verdict_follows_the_interval(low: float, mean: float, high: float, expected: str) -> None:
    assert verdict(Estimate(mean, low, high, 7, 0)).startswith(expected)


def test_text_is_one_harmless_line() -> None:
    assert text('<a b="c">&\n') == html.escape(repr('<a b="c">&\n'))
    text("caf\udce9").encode()
    assert text("ß 日本") == "ß 日本"
