"""``ssdd demo`` with one's own pictures: a sheet, the reconstructions and a table."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ssdd.autoencoder import AutoencoderSSDD
from ssdd.autoencoder.codec import decode_image, encode_image
from ssdd.data.images import read_image
from ssdd.evaluation.pairs import ImageComparison, bicubic_baseline, mean_metrics

Ssdd = Callable[..., Any]
Tree = Callable[[Path], dict[str, bytes]]
Picture = Callable[..., np.ndarray]


@pytest.fixture
def demo(ssdd: Ssdd, tiny_model: Path) -> Ssdd:
    return lambda *arguments: ssdd("demo", *arguments, "--model", tiny_model, "--device", "cpu")


def test_sheet_and_table(demo: Ssdd, tmp_path: Path, tree: Tree, picture: Picture, tiny_model: Path) -> None:
    images = {"cat": picture(24, 40), "dog": picture(32, 16, 1)}
    for name, image in images.items():
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / "in" / f"{name}.png")
    before = tree(tmp_path)
    result = demo(tmp_path / "in", "--out", tmp_path / "out")
    assert result.status == 0, f"the demo fails: {result.err}"
    after = tree(tmp_path)
    written = {name for name in after if name not in before}
    assert written == {"out", "out/demo.png", "out/cat.png", "out/dog.png"}, "other files were written"
    assert {n: after[n] for n in before} == before, "the photographs were changed"

    # The pictures are of one step, the first row of the table is measured on them.
    model = AutoencoderSSDD.from_pretrained(tiny_model).eval()
    compare = ImageComparison()
    pairs = []
    for name, image in images.items():
        saved = read_image(tmp_path / "out" / f"{name}.png")
        assert np.array_equal(saved, decode_image(model, encode_image(model, image), 1)), f"{name}: not of one step"
        pairs.append((image, saved))
    one = mean_metrics([compare(a, b) for a, b in pairs])
    small = mean_metrics([compare(image, bicubic_baseline(image, 8)) for image in images.values()])
    for label, mean in (("1 step", one), ("bicubic / 8", small)):
        row = re.search(rf"^{label} +([\d.]+) +(-?[\d.]+) +(\S+) +(\S+)$", result.out, re.MULTILINE)
        assert row, f"no row {label!r} in the table: {result.out}"
        assert row[1] == f"{mean.psnr:.2f}", f"{label}: the table has another PSNR"
        assert row[2] == f"{mean.ssim:.3f}", f"{label}: the table has another SSIM"
        assert row[3] == "-", f"{label}: LPIPS without a network"
    assert re.search(r"^8 steps ", result.out, re.MULTILINE), "no row of 8 steps"
    numbers = 4 * (3 * 5 + 4 * 2)  # channels times grid cells
    assert f"latents: {numbers * 2:,} bytes" in result.out, "the weight of the latents is another"
    assert f"{24 * 40 * 3 + 32 * 16 * 3:,} bytes of pixels" in result.out, "the weight of the pixels is another"
    assert f"sheet: {tmp_path / 'out' / 'demo.png'}" in result.out, "the user does not learn where the sheet is"
    page = read_image(tmp_path / "out" / "demo.png")
    assert page.shape[1] == 12 + 4 * (360 + 12), "the sheet has not four columns"


def test_second_run(demo: Ssdd, tmp_path: Path, tree: Tree, picture: Picture) -> None:
    Image.fromarray(picture(16, 16)).save(tmp_path / "a.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").write_bytes(b"precious")
    before = tree(tmp_path)
    line = demo(tmp_path / "a.png", "--out", tmp_path / "out").error_line()
    assert "exists already; pass --overwrite" in line, f"the way out is not told: {line}"
    assert tree(tmp_path) == before, "something was written all the same"
    assert demo(tmp_path / "a.png", "--out", tmp_path / "out", "--overwrite").status == 0
    assert (tmp_path / "out" / "a.png").read_bytes() != b"precious", "--overwrite kept the old result"


def test_results_in_the_folder_of_photographs(demo: Ssdd, tmp_path: Path, tree: Tree, picture: Picture) -> None:
    """Results replace the photographs, or the second run takes its own results for photographs."""
    photos = tmp_path / "photos"
    photos.mkdir()
    (tmp_path / "link").symlink_to(photos)
    Image.fromarray(picture(16, 16)).save(photos / "a.png")
    before = tree(tmp_path)
    line = demo(photos, "--out", tmp_path / "link", "--overwrite").error_line()
    assert f"{photos / 'a.png'}: expected a folder where no result replaces this photograph" in line
    assert tree(tmp_path) == before, "a photograph was replaced"
    assert demo(photos, "--out", photos / "out").status == 0
    after = tree(tmp_path)
    assert demo(photos, "--out", tmp_path / "link" / "out", "--overwrite").status == 0
    assert tree(tmp_path).keys() == after.keys(), "the sheet and the reconstructions were reconstructed"


def test_picture_called_as_the_sheet(demo: Ssdd, tmp_path: Path, picture: Picture) -> None:
    Image.fromarray(picture(16, 16)).save(tmp_path / "Demo.png")
    line = demo(tmp_path / "Demo.png", "--out", tmp_path / "out", "--overwrite").error_line()
    assert "expected one result of this name" in line, f"not said clearly: {line}"
    assert not (tmp_path / "out").exists(), "the sheet replaced the picture, or the other way round"


def test_bad_pictures(demo: Ssdd, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_text("no image")
    for path, told in ((tmp_path / "bad.jpg", "bad.jpg"), (tmp_path / "nowhere", "nowhere")):
        assert told in demo(path, "--out", tmp_path / "out").error_line(), "the picture is not named"
    assert not (tmp_path / "out").exists(), "a failed demo left its folder behind"


def test_sample_photographs(monkeypatch: pytest.MonkeyPatch, ssdd: Ssdd, tmp_path: Path) -> None:
    """Without scikit-image the user learns which extra brings the photographs; with it all four are there."""
    from ssdd.cli.demo import _images

    monkeypatch.setitem(sys.modules, "skimage", None)
    assert 'pip install "ssdd[demo]"' in ssdd("demo", "--out", tmp_path / "out").error_line(), "the extra is not named"
    monkeypatch.undo()
    pytest.importorskip("skimage")
    files = _images((), Path("out"))
    assert [read_image(f.path).shape[2] for f in files] == [3, 3, 3, 3], "a sample photograph is missing"


def test_embedded_models(
    ssdd: Ssdd, tmp_path: Path, picture: Picture, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without --model all models of the package are on the sheet, those after the first in one step."""
    other = tmp_path / "other"
    model = AutoencoderSSDD.from_pretrained(tiny_model).eval()
    torch.nn.init.zeros_(model.decoder.conv_out.weight)
    model.save_pretrained(other)
    monkeypatch.setattr("ssdd.cli.demo.embedded_names", lambda: [str(tiny_model), str(other)])
    image = picture(24, 40)
    Image.fromarray(image).save(tmp_path / "a.png")
    result = ssdd("demo", tmp_path / "a.png", "--out", tmp_path / "out", "--device", "cpu")
    assert result.status == 0, f"the demo fails: {result.err}"
    expected = ImageComparison()(image, decode_image(model, encode_image(model, image), 1))
    assert re.findall(r"(\S+), (\d) steps?\b", result.out) == [
        (str(tiny_model), "1"),
        (str(tiny_model), "8"),
        (str(other), "1"),
    ], "other rows"
    row = re.search(rf"^{re.escape(str(other))}, 1 step +([\d.]+) ", result.out, re.MULTILINE)
    assert row, "no row of the second model"
    assert row[1] == f"{expected.psnr:.2f}", "the second row is not of the second model"
    assert f"{other}, latents: {4 * 3 * 5 * 2:,} bytes" in result.out, "the second model's latents have no line"
    page = read_image(tmp_path / "out" / "demo.png")
    assert page.shape[1] == 12 + 5 * (360 + 12), "the sheet has not five columns"
