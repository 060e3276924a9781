"""The crops of a report: truly the worst and the best, and just what each autoencoder makes of them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ssdd.data.sources import open_source
from ssdd.evaluation.compare import Entry, Row, compare
from ssdd.evaluation.contestants import Bicubic, Jpeg
from ssdd.evaluation.image_metrics import rounded
from ssdd.evaluation.protocols import EvaluationSet, Protocol
from ssdd.evaluation.report.pictures import choose_crops, enlarged, redraw, worst_window
from ssdd.evaluation.report.view import View

from .conftest import Compared, photographs

Picture = Callable[..., np.ndarray]


def errors(compared: Compared, row: Row) -> dict[Any, float]:
    """Mean squared error by crop, by the plain formula, decoded by the crop's own number."""
    found = {}
    protocol = compared.evaluation_set.protocol
    for key in row.table.keys:
        pixels = compared.evaluation_set[key.image].crops[key.crop].pixels  # type: ignore[union-attr]
        contestant = row.entry.contestant
        latent = contestant.encode(torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1)
        decoded = contestant.decode(latent, row.entry.steps, protocol.seed, [2 * key.image + key.crop])
        found[key] = float(np.square(rounded(decoded).images[0] / 255 - pixels / 255).mean())
    return found


def test_the_worst_and_best_are_shown(compared: Compared) -> None:
    """A gallery of other crops would show a model better or worse than its numbers."""
    view = View(compared.comparison)
    choices = choose_crops(view, count=3)
    of_first = errors(compared, compared.comparison.rows[0])
    order = sorted(of_first, key=lambda key: -of_first[key])
    assert [c.key for c in choices[:3]] == order[:3], "not the worst of the first row, the worst first"
    assert [c.key for c in choices[-3:]] == order[-3:], "not the best of the first row, the best last"
    assert choices[0].reasons[0] == f"worst of {view.rows[0].label} by MSE"
    assert choices[-1].reasons[0] == f"best of {view.rows[0].label} by MSE"
    for v in view.rows[2:]:
        of_row = errors(compared, v.row)
        named = [c.key for c in choices if f"worst of {v.label} by MSE" in c.reasons]
        assert named == [max(of_row, key=lambda key: of_row[key])], f"the worst of {v.label}"


class Backwards:
    """The better, the larger."""

    name, sha256, preprocessing = "backwards", "0" * 64, "none"

    def __call__(self, original: torch.Tensor, reconstruction: torch.Tensor) -> np.ndarray:
        return 1 - ((original.float() - reconstruction.float()) / 255).square().mean((1, 2, 3)).numpy()


def test_lpips_ranks_where_there_is_one(tmp_path: Path, picture: Picture) -> None:
    evaluation_set = photographs(tmp_path, picture, [(64, 64)] * 4)
    comparison = compare([Entry(Bicubic(8))], evaluation_set, workers=0, other_metrics={"lpips_alex": Backwards()})
    mse = comparison.rows[0].table
    assert View(comparison).ranking == "lpips_alex"
    assert choose_crops(View(comparison), 1)[0].key == mse.best("mse", 1)[0][0], "ranked by another metric"


def test_pictures_are_what_the_autoencoders_make(compared: Compared) -> None:
    """A picture with other noise, or of another crop, would not belong to the number below it."""
    rows = compared.comparison.rows
    keys = rows[0].table.keys
    for shown in redraw(compared.comparison, compared.evaluation_set, keys, batch_size=3):
        crop = compared.evaluation_set[shown.key.image].crops[shown.key.crop].pixels  # type: ignore[union-attr]
        assert np.array_equal(shown.original, crop), "another crop"
        for row, picture in zip(rows, shown.reconstructions, strict=True):
            if picture is None:
                assert shown.key in row.table.invalid, f"{row.entry.label} has a number for what has no picture"
                continue
            measured = row.table.column("mse")[row.table.keys.index(shown.key)]
            found = np.square(picture / 255 - shown.original / 255).mean()
            # batches of another size move single pixels across the edge of a level
            assert found == pytest.approx(measured, rel=2e-3), f"{row.entry.label}: another picture than was measured"
    image = torch.from_numpy(crop).permute(2, 0, 1)[None].float() / 127.5 - 1
    for k in (2, 3):
        contestant: Any = rows[k].entry.contestant
        same = rounded(contestant.decode(contestant.encode(image))).images[0]
        assert np.array_equal(shown.reconstructions[k], same), f"{contestant.name}: not bit for bit"


def test_the_noise_is_that_of_the_crop(compared: Compared) -> None:
    """The last crop's picture is not the one that the first crop's noise gives."""
    comparison = compared.comparison
    key = comparison.rows[0].table.keys[-1]
    shown = redraw(comparison, compared.evaluation_set, [key])[0]
    model = comparison.rows[0].entry.contestant
    latent = model.encode(torch.from_numpy(shown.original).permute(2, 0, 1)[None].float() / 127.5 - 1)
    with_number = {n: rounded(model.decode(latent, 1, 0, [n])).images[0] for n in (0, 2 * key.image + key.crop)}
    assert np.array_equal(shown.reconstructions[0], with_number[2 * key.image + key.crop])
    assert not np.array_equal(shown.reconstructions[0], with_number[0]), "the noise makes no difference to this test"


def test_another_rows_encoder_is_used(tmp_path: Path, picture: Picture) -> None:
    """A row that decodes another one's latents must not be shown with its own."""
    evaluation_set = photographs(tmp_path, picture, [(64, 64)])
    coarse, fine = Bicubic(16), Bicubic(4)
    fine.encode = coarse.encode  # type: ignore[method-assign]  # what the row must not call
    entry = Entry(fine, encoder=Bicubic(4))
    comparison = compare([entry], evaluation_set, workers=0)
    shown = redraw(comparison, evaluation_set, comparison.rows[0].table.keys)[0]
    assert shown.reconstructions[0] is not None
    assert shown.reconstructions[0].shape == (64, 64, 3), "decoded from the latent of its own encoder"


def test_what_is_not_finite_has_no_picture(compared: Compared) -> None:
    choices = choose_crops(View(compared.comparison))
    failed = [c for c in choices if any("not finite" in reason for reason in c.reasons)]
    assert [(c.key.image, c.key.crop) for c in failed] == [(1, 1)], "the crop that a row failed on is not shown"
    shown = redraw(compared.comparison, compared.evaluation_set, [failed[0].key])[0]
    assert [picture is None for picture in shown.reconstructions] == [False] * 5 + [True]


def test_the_number_of_crops_is_bounded(tmp_path: Path, picture: Picture) -> None:
    """Twenty rows that are each worst on another crop."""
    evaluation_set = photographs(tmp_path, picture, [(64, 64)] * 24)
    comparison = compare([Entry(Bicubic(8))], evaluation_set, workers=0)
    keys = comparison.rows[0].table.keys
    rows = []
    for k in range(20):
        contestant: Any = SimpleNamespace(name=f"model {k}", describe=lambda: {})
        row = Row(entry=Entry(contestant), size=(64, 64))
        mse = np.array([1.0 if i == k else 0.001 * (i + 1) for i in range(len(keys))])
        row.table.add(keys, {"mse": mse, "pixels": np.ones(len(keys))})
        rows.append(row)
    many = replace(comparison, rows=rows)
    choices = choose_crops(View(many))
    assert len(choices) == 12, "the report grows with the number of rows"
    assert len({c.key for c in choices}) == 12, "a crop is shown twice"
    assert sum("worst of model 0 " in c.reasons[0] for c in choices) == 4
    assert sum("best of model 0 " in c.reasons[0] for c in choices) == 4


def test_data_that_changed_are_refused(tmp_path: Path, picture: Picture) -> None:
    evaluation_set = photographs(tmp_path, picture, [(64, 64)])
    comparison = compare([Entry(Jpeg(2000))], evaluation_set, workers=0)
    (tmp_path / "0.png").write_bytes(b"gone")
    again = EvaluationSet(open_source([tmp_path]), Protocol("test-v1", "random", 64))
    with pytest.raises(ValueError, match=r"expected the crop that was compared, found .*0\.png"):
        redraw(comparison, again, comparison.rows[0].table.keys)


@pytest.mark.parametrize("place", [(0, 0), (37, 50), (96, 160)])
def test_the_window_finds_the_error(place: tuple[int, int]) -> None:
    original = np.full((128, 192, 3), 100, np.uint8)
    wrong = original.copy()
    wrong[place[0] : place[0] + 32, place[1] : place[1] + 32] = 130
    window = worst_window(original, wrong)
    assert window == (*place, 32)
    assert (window.cut(wrong) == 130).all()


@pytest.mark.parametrize(("size", "side"), [((128, 128), 32), ((256, 300), 64), ((2048, 3000), 128), ((20, 50), 20)])
def test_the_window_is_a_quarter(size: tuple[int, int], side: int) -> None:
    """Within bounds, and in the middle of a perfect reconstruction."""
    image = np.zeros((*size, 3), np.uint8)
    assert worst_window(image, image) == ((size[0] - side) // 2, (size[1] - side) // 2, side)


def test_enlarging_repeats_pixels() -> None:
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    large = enlarged(image, least=5)
    assert large.shape == (6, 6, 3)
    assert all((large[3 * r : 3 * r + 3, 3 * c : 3 * c + 3] == image[r, c]).all() for r in (0, 1) for c in (0, 1))
    assert enlarged(large, least=5) is not None
    assert enlarged(large, least=5).shape == (6, 6, 3), "large enough already"
