"""A run: the same numbers however the crops are batched, nothing averaged in silence, nothing finished lost."""

import io
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ssdd import AutoencoderSSDD
from ssdd.data.sources import open_source
from ssdd.evaluation.autoencoders import Bicubic, Jpeg, load_autoencoder
from ssdd.evaluation.distances import read_statistics
from ssdd.evaluation.metrics import BatchMetrics
from ssdd.evaluation.protocols import EvaluationSet, Protocol
from ssdd.evaluation.results import Evaluation, Row, as_text
from ssdd.evaluation.run import Entry, Run, numbered
from ssdd.evaluation.saved_images import SavedImages, reconstruction_name

PROTOCOL = Protocol("test-v1", "random", 32, crops=2)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory, picture: Callable[..., np.ndarray]) -> Path:
    """Five pictures of several sizes, one of them too small for the crops, and a broken file."""
    folder = tmp_path_factory.mktemp("photographs")
    for i, size in enumerate([(40, 48), (33, 64), (64, 40), (50, 50), (20, 60)]):
        Image.fromarray(picture(*size, i)).save(folder / f"{i}.png")
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder


class Means:
    """Mean of each channel, as an extractor."""

    name, title, width, device, identity = "means", "Means", 3, torch.device("cpu"), "means"
    sha256, preprocessing = "0" * 64, "none"

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().mean((1, 2))

    def frechet_name(self, count: int | None) -> str:
        return "FD Means" if count is None else f"FD-{count} Means"


def evaluation_set(photographs: Path, protocol: Protocol = PROTOCOL) -> EvaluationSet:
    return EvaluationSet(open_source([photographs]), protocol)


def new_run(photographs: Path, protocol: Protocol = PROTOCOL, **options: Any) -> Run:
    return Run(evaluation_set(photographs, protocol), BatchMetrics(), workers=0, **options)


def run(*groups: list[Entry], photographs: Path, workers: int = 0, **options: Any) -> Evaluation:
    work = Run(evaluation_set(photographs), BatchMetrics(), workers=workers, **options)
    for entries in groups:
        work.add(entries)
    assert work.evaluation is not None
    return work.evaluation


def same_numbers(a: Row, b: Row, tolerance: float) -> None:
    # a value that rounding puts on the other side of an 8-bit level moves the last digits
    for name in ("psnr", "ssim_uniform_7", "high_frequency_ratio"):
        assert b.values[name] == pytest.approx(a.values[name], rel=tolerance), name


def test_batch_size_and_workers_change_nothing(tiny_model: Path, photographs: Path) -> None:
    """A published number that nobody else gets, because the noise or the mean depends on how crops are batched."""
    model = load_autoencoder(str(tiny_model))
    entries = [Entry(model, 1), Entry(model, 2), Entry(Bicubic(8))]
    whole = run(entries, photographs=photographs, batch_size=16)
    for options in ({"batch_size": 1}, {"batch_size": 3, "workers": 2}):
        other = run(entries, photographs=photographs, **options)
        assert other.data["fingerprint"] == whole.data["fingerprint"], "other crops"
        assert other.crops.name == whole.crops.name, "another order"
        for a, b in zip(whole.rows, other.rows, strict=True):
            same_numbers(a, b, 2e-3)


def test_one_model_after_the_other_is_all_at_once(tiny_model: Path, photographs: Path) -> None:
    model = load_autoencoder(str(tiny_model))
    together = run([Entry(Bicubic(8)), Entry(model, 1)], photographs=photographs, extractors=[Means()])
    apart = run([Entry(Bicubic(8))], [Entry(model, 1)], photographs=photographs, extractors=[Means()])
    for a, b in zip(together.rows, apart.rows, strict=True):
        same_numbers(a, b, 1e-12)
        assert b.distances == a.distances
        assert b.minus_first_row.keys() == a.minus_first_row.keys()
    assert apart.rows[1].minus_first_row


def test_broken_images_do_not_move_the_noise(tiny_model: Path, photographs: Path, tmp_path: Path) -> None:
    """One photograph that cannot be read would change every number after it."""
    entry = Entry(load_autoencoder(str(tiny_model)))
    folder = Path(shutil.copytree(photographs, tmp_path / "photographs"))
    before = run([entry], photographs=folder)
    (folder / "0.png").write_bytes(b"no image any more")
    after = run([entry], photographs=folder)
    kept = [i for i, image in enumerate(before.crops.image) if image in after.crops.image]
    assert len(kept) == 6
    assert after.rows[0].values["mse"] == pytest.approx(before.rows[0].values["mse"][kept], rel=1e-3)


def test_lower_precision_decodes_the_same_latents(tiny_model: Path, photographs: Path) -> None:
    """The loss would be the encoder's too, or hidden in the spread over images."""
    full, half = (load_autoencoder(str(tiny_model), dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    noisy = [Entry(full, 1, latent_noise=0.1), Entry(half, 1, full, 0.1)]
    evaluation = run([Entry(full, 1), Entry(half, 1, full), *noisy], photographs=photographs)
    first, row, *others = evaluation.rows
    assert others[1].precision_of == others[0].label, "the loss is that of the noise too"
    assert row.label == f"{tiny_model.name}, 1 step, bfloat16"
    assert row.precision_of == first.label
    assert (first.model["dtype"], row.model["dtype"]) == ("float32", "bfloat16")
    loss = row.minus_precision["psnr"]
    difference = row.values["psnr"] - first.values["psnr"]
    assert loss.mean == pytest.approx(difference.mean())
    assert loss.low <= loss.mean <= loss.high
    assert abs(loss.mean) < 0.1, "bf16 costs a tenth of a decibel and more: is it the same latent?"
    assert abs(difference).max() > 0, "both are float32"
    assert f"{row.label} minus {first.label}: PSNR" in as_text(evaluation)
    assert "colour, 8-bit levels" in as_text(evaluation)


def test_cost_is_that_of_the_rows_steps(tiny_model: Path, photographs: Path) -> None:
    model = load_autoencoder(str(tiny_model))
    one, five = run([Entry(model, 1), Entry(model, 5)], photographs=photographs).rows
    assert five.costs["decode_gflop"] == pytest.approx(5 * (one.costs["decode_gflop"] or 0))
    assert one.costs["encode_gflop"] == five.costs["encode_gflop"]
    assert (one.costs["encode_gflop"] or 0) > 0
    assert one.latent_shape == [4, 4, 4]
    assert (one.costs["latent_bytes"], one.costs["bits_per_pixel"]) == (128, 1.0)
    assert all((row.costs[name] or 0) > 0 for row in (one, five) for name in ("encode_rate", "decode_rate"))


def test_a_row_is_known_by_its_steps(tiny_model: Path, photographs: Path) -> None:
    """Typed or the model's own: the same row would be measured twice."""
    model = load_autoencoder(str(tiny_model))
    model.steps = 1
    (row,) = run([Entry(model, 1)], photographs=photographs).rows
    assert [entry.same_as(row) for entry in (Entry(model, 1), Entry(model), Entry(model, 2))] == [True, True, False]


def test_two_models_of_one_name(tiny_model: Path, photographs: Path, tmp_path: Path) -> None:
    """A decoder with a choice of steps and one without, exported under one name, were one model in plots."""
    paths = [tmp_path / run / "exports" / "000000000064" for run in ("a", "b")]
    for path in paths:
        path.parent.mkdir(parents=True)
        shutil.copytree(tiny_model, path)
    a, b = (load_autoencoder(str(path)) for path in paths)
    assert (a.name, b.name) == ("a@64", "b@64")
    b.name, b.steps = a.name, None
    rows = run([Entry(a, 1), Entry(a, 2)], [Entry(b)], [Entry(b)], photographs=photographs).rows
    assert [row.name for row in rows] == ["a@64", "a@64", "a@64 (2)", "a@64 (3)"]
    assert [row.group for row in rows] == [0, 0, 1, 2]


def test_precisions_of_two_models_of_one_name(tiny_model: Path, photographs: Path, tmp_path: Path) -> None:
    """A precision is compared with another model's, or a model is measured again when the command goes on."""
    for run_name in ("a", "b"):
        shutil.copytree(tiny_model, tmp_path / run_name / "ck")
    other = AutoencoderSSDD.from_pretrained(tmp_path / "b" / "ck")
    other.decoder.conv_out.weight.data.mul_(2)
    other.save_pretrained(tmp_path / "b" / "ck")

    def group(folder: str) -> list[Entry]:
        path = str(tmp_path / folder / "ck")
        plain, half = load_autoencoder(path), load_autoencoder(path, dtype=torch.bfloat16)
        return [Entry(plain, 1), Entry(half, 1, plain)]

    groups = numbered([group("a"), group("b")], [])
    rows = run(*groups, photographs=photographs).rows
    assert [row.label for row in rows] == [
        "ck, 1 step",
        "ck, 1 step, bfloat16",
        "ck, 1 step (2)",
        "ck, 1 step, bfloat16 (2)",
    ]
    assert [row.precision_of for row in rows] == [None, "ck, 1 step", None, "ck, 1 step (2)"]
    change = float(np.nanmean(rows[3].values["psnr"] - rows[2].values["psnr"]))
    assert rows[3].minus_precision["psnr"].mean == pytest.approx(change, abs=1e-9)
    again = numbered([group("a"), group("b")], rows)
    assert all(any(entry.same_as(row) for row in rows) for entries in again for entry in entries)
    assert numbered([group("b")], rows[:1])[0][0].number == 2
    assert numbered([group("b")], rows[2:])[0][0].number == 2, "the same model under another label"


def test_what_cannot_be_used_is_counted(photographs: Path) -> None:
    evaluation = run([Entry(Bicubic(8))], photographs=photographs)
    data = evaluation.data
    assert (data["images"], data["crops"], data["skipped_images"]) == (4, 8, 2)
    assert any("broken.jpg" in reason for reason in data["skipped"])
    assert any("4.png" in reason for reason in data["skipped"]), "the small image is not named"
    assert "2 skipped" in as_text(evaluation)


class Broken(Bicubic):
    """Gives NaN for some crops."""

    def decode(self, latent: Any, steps: int | None = None, noise: Any = None) -> torch.Tensor:
        result = super().decode(latent, steps, noise)
        result[::2] = float("nan")
        return result


def test_nan_is_named_and_left_out(photographs: Path, tmp_path: Path) -> None:
    """A model that fails on some images must not get a fine mean over the others without a word, nor a NaN."""
    evaluation = run([Entry(Broken(1))], photographs=photographs, batch_size=2, out=tmp_path, extractors=[Means()])
    row = evaluation.rows[0]
    assert len(evaluation.invalid(row)) == 4
    assert row.image_metrics["mse"].mean == pytest.approx(0, abs=1e-9), "the others are perfect"
    assert "4 crops without a finite reconstruction are left out" in as_text(evaluation)
    assert row.distances["means"]["count"] == 4
    json.dumps(evaluation.as_dict(), allow_nan=False)
    failed = [p for p in evaluation.pictures if not row.valid[p.crop]]
    assert failed, "no picture shows a crop that it failed on"
    assert list(failed[0].files) == [""], "a picture of what is not finite"


def _jpeg(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=1)
    return stream.getvalue()


def test_jpeg_that_does_not_fit_is_left_out(photographs: Path) -> None:
    """One difficult crop would end the run, or the budget pass for the bytes of the files."""
    crops = [c for i in (0, 1, 2, 3) for c in evaluation_set(photographs)[i].crops]  # type: ignore[union-attr]
    least = sorted(len(_jpeg(crop.pixels)) for crop in crops)
    evaluation = run([Entry(Jpeg(least[4])), Entry(Jpeg(100_000))], photographs=photographs)
    small, large = evaluation.rows
    assert len(evaluation.invalid(small)) == sum(size > least[4] for size in least) > 0
    assert 0 < (small.costs["latent_bytes"] or 0) <= least[4]
    assert 0 < (large.costs["latent_bytes"] or 0) < 20_000, "the budget is reported"
    assert not evaluation.invalid(large)


def test_nothing_to_evaluate(tmp_path: Path) -> None:
    """An empty mean would be a number."""
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "small.png")
    with pytest.raises(ValueError, match=r"expected usable images, found none: 1 skipped; .*small\.png"):
        run([Entry(Bicubic(8))], photographs=tmp_path)


def test_text_names_every_choice(tiny_model: Path, photographs: Path) -> None:
    text = as_text(run([Entry(load_autoencoder(str(tiny_model)), 2)], photographs=photographs, extractors=[Means()]))
    parts = ("2 steps", "PSNR pooled", "SSIM 7x7", "test-v1", "not resized", "rounded", "fingerprint", "seed: 0")
    for part in (*parts, "FD-8 Means", "100 subsets of 8", "k = 5", "on 8 images of each set"):
        assert part in text, f"{part} is not said"


def test_latent_noise_costs_quality(tiny_model: Path, photographs: Path) -> None:
    model = load_autoencoder(str(tiny_model))
    entries = [Entry(model, 1), Entry(model, 1, latent_noise=0.01), Entry(model, 1, latent_noise=1.0)]
    none, little, much = run(entries, photographs=photographs).rows
    assert much.label == f"{tiny_model.name}, 1 step, latent noise 1"
    change = [abs(row.values["mse"] - none.values["mse"]).mean() for row in (little, much)]
    assert 0 < change[0] < change[1]


# ---- results live on -------------------------------------------------------------------------------------------------


def test_a_saved_result_is_the_result(tiny_model: Path, photographs: Path, tmp_path: Path) -> None:
    model = load_autoencoder(str(tiny_model))
    evaluation = run(
        [Entry(model, 1), Entry(model, 2)],
        [Entry(Broken(1))],
        photographs=photographs,
        out=tmp_path,
        extractors=[Means()],
    )
    loaded = Evaluation.load(tmp_path)
    assert as_text(loaded) == as_text(evaluation)
    assert loaded.as_dict() == evaluation.as_dict()
    for a, b in zip(evaluation.rows, loaded.rows, strict=True):
        for name, values in a.values.items():
            np.testing.assert_array_equal(b.values[name], values)
    assert (tmp_path / "evaluation.json").stat().st_size < 40_000, "crops are in the JSON"
    assert all((tmp_path / name).is_file() for picture in loaded.pictures for name in picture.files.values())


def test_rows_are_added_without_measuring_the_others(tiny_model: Path, photographs: Path, tmp_path: Path) -> None:
    model = load_autoencoder(str(tiny_model))
    whole = run([Entry(Bicubic(8))], [Entry(model, 1)], photographs=photographs, extractors=[Means()])
    run([Entry(Bicubic(8))], photographs=photographs, out=tmp_path, extractors=[Means()])
    work = new_run(photographs, extractors=[Means()], out=tmp_path, evaluation=Evaluation.load(tmp_path))
    assert work.reals is not None, "the originals' features are computed again"
    work.add([Entry(model, 1)])
    assert work.evaluation is not None
    added = Evaluation.load(tmp_path).rows[1]
    same_numbers(whole.rows[1], added, 1e-12)
    assert added.distances == whole.rows[1].distances
    assert added.minus_first_row["psnr"] == whole.rows[1].minus_first_row["psnr"]
    shown = work.evaluation.pictures[0].files
    assert set(shown) == {"", "bicubic:8", added.label}


def test_rows_of_other_crops_are_refused(photographs: Path, tmp_path: Path) -> None:
    run([Entry(Bicubic(8))], photographs=photographs, out=tmp_path)
    folder = Path(shutil.copytree(photographs, tmp_path / "photographs"))
    (folder / "0.png").unlink()
    work = new_run(folder, out=tmp_path, evaluation=Evaluation.load(tmp_path))
    with pytest.raises(ValueError, match="expected the crops of the rows that are there"):
        work.add([Entry(Bicubic(4))])


def test_kept_features_of_changed_files_are_not_used(photographs: Path, tmp_path: Path) -> None:
    """The same paths with other pixels would be compared with the features of the old ones."""
    folder = Path(shutil.copytree(photographs, tmp_path / "photographs"))

    def distance(cache: Path | None) -> float:
        work = new_run(folder, extractors=[Means()], cache=cache, sources=[str(folder)])
        work.add([Entry(Bicubic(8))])
        assert work.evaluation is not None
        return work.evaluation.rows[0].distances["means"]["frechet"]

    first = distance(tmp_path / "cache")
    assert distance(tmp_path / "cache") == first
    Image.fromarray(255 - np.asarray(Image.open(folder / "0.png"))).save(folder / "0.png")
    assert distance(tmp_path / "cache") == distance(None) != first


def test_distances_are_made_up_for_after_an_interruption(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure while distances are computed must not cost what the models made."""
    with monkeypatch.context() as broken:
        broken.setattr("ssdd.evaluation.run.set_distances", _fail)
        with pytest.raises(RuntimeError, match="no memory"):
            run([Entry(Bicubic(8))], photographs=photographs, out=tmp_path, extractors=[Means()])
    left = Evaluation.load(tmp_path)
    assert (left.finished, len(left.rows), left.rows[0].distances) == (False, 1, {})
    work = new_run(photographs, extractors=[Means()], out=tmp_path, evaluation=left)
    work.finish_distances()
    whole = run([Entry(Bicubic(8))], photographs=photographs, extractors=[Means()])
    assert Evaluation.load(tmp_path).rows[0].distances == whole.rows[0].distances


def _fail(*_: object) -> None:
    raise RuntimeError("no memory")


def test_published_statistics_stand_for_the_originals(photographs: Path, tmp_path: Path) -> None:
    """An FID to the statistics of a benchmark, where nobody has its images; no other distance can be had of them."""
    pixels = [c.pixels for i in range(4) for c in evaluation_set(photographs)[i].crops]  # type: ignore[union-attr]
    features = Means()(torch.from_numpy(np.stack(pixels))).double()
    np.savez(tmp_path / "reference.npz", mu=features.mean(0), sigma=torch.cov(features.T))
    reference = read_statistics(tmp_path / "reference.npz", Means())  # type: ignore[arg-type]
    work = new_run(photographs, extractors=[Means()], reference=reference)
    work.add([Entry(Bicubic(8))])
    assert work.evaluation is not None
    found = work.evaluation.rows[0].distances["means"]
    usual = run([Entry(Bicubic(8))], photographs=photographs, extractors=[Means()]).rows[0].distances["means"]
    assert found["frechet"] == pytest.approx(usual["frechet"], rel=1e-9)
    assert (found["count"], set(found)) == (8, {"count", "frechet"})
    assert "reference.npz, not to the originals" in as_text(work.evaluation)


@pytest.mark.parametrize("arrays", [{}, {"mu": np.zeros(3)}, {"mu": np.zeros(4), "sigma": np.eye(4)}])
def test_other_statistics_are_refused(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", **arrays)
    with pytest.raises(ValueError, match=r"other\.npz: expected .*mu"):
        read_statistics(tmp_path / "other.npz", Means())  # type: ignore[arg-type]


# ---- images that others wrote ----------------------------------------------------------------------------------------


def test_saved_reconstructions_are_a_row(tiny_model: Path, photographs: Path, tmp_path: Path) -> None:
    """What another program reconstructed gets the numbers that it has as a model."""
    model = load_autoencoder(str(tiny_model))
    protocol = Protocol("test-v2", "centre", 32)

    def rows(entries: Sequence[Entry], **options: Any) -> list[Row]:
        work = new_run(photographs, protocol, extractors=[Means()], **options)
        work.add(entries)
        assert work.evaluation is not None
        return work.evaluation.rows

    (by_model,) = rows([Entry(model, 1)], save_to=tmp_path / "made")
    folder = next((tmp_path / "made").iterdir())
    saved = SavedImages(str(folder), evaluation_set(photographs).source, protocol)
    assert saved.pairs == 5
    (by_files,) = rows([Entry(saved)])
    same_numbers(by_model, by_files, 1e-12)
    assert by_files.distances == by_model.distances
    assert by_files.costs["parameters"] == 0


def test_saved_crops_are_those_of_the_model(tmp_path: Path, picture: Callable[..., np.ndarray]) -> None:
    """Several crops an image, and names that cannot be a file's everywhere."""
    originals = tmp_path / "originals"
    originals.mkdir()
    for i, name in enumerate(("IMG (1).png", "b.png")):
        Image.fromarray(picture(40, 48, i)).save(originals / name)
    protocol = Protocol("test-v3", "random", 16, crops=3)
    options = {"extractors": [Means()], "save_to": tmp_path / "made"}
    work = new_run(originals, protocol, **options)
    work.add([Entry(Bicubic(8))])
    (folder,) = (tmp_path / "made").iterdir()
    saved = SavedImages(str(folder), open_source([originals]), protocol)
    assert (saved.pairs, saved.all_paired) == (2, True)
    work.add([Entry(saved)])
    assert work.evaluation is not None
    by_model, by_files = work.evaluation.rows
    same_numbers(by_model, by_files, 1e-12)
    assert by_files.distances == by_model.distances
    limited = new_run(originals, protocol, limit=1, extractors=[Means()])
    limited.add([Entry(saved)])
    assert limited.evaluation is not None
    assert limited.evaluation.rows[0].distances["means"]["count"] == 3
    whole = SavedImages(str(originals), open_source([originals]), protocol)
    limited.add([Entry(whole)])
    assert limited.evaluation.rows[1].values["mse"].tolist() == [0.0] * 3, "whole images are not cropped alike"


def test_two_originals_of_one_name(tmp_path: Path, picture: Callable[..., np.ndarray]) -> None:
    """Each reconstruction is to be of one of them."""
    for i in range(2):
        (tmp_path / str(i)).mkdir()
        Image.fromarray(picture(40, 40, i)).save(tmp_path / str(i) / "x.png")
    both = open_source([tmp_path / "0", tmp_path / "1"])
    with pytest.raises(ValueError, match="expected one original for each image, found 2 called x"):
        SavedImages(str(tmp_path / "0"), both, PROTOCOL)
    with pytest.raises(ValueError, match=r"expected a name for each, found x\.png for .*0/x\.png and .*1/x\.png"):
        Run(EvaluationSet(both, PROTOCOL), BatchMetrics(), save_to=tmp_path / "made")


def test_heading_of_sets_of_other_sizes(photographs: Path, tmp_path: Path) -> None:
    batch = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)
    np.savez(tmp_path / "samples.npz", batch)
    samples = Entry(SavedImages(str(tmp_path / "samples.npz"), evaluation_set(photographs).source, PROTOCOL))
    work = new_run(photographs, extractors=[Means()])
    for entry, heading in ((samples, "FD-6 Means"), (Entry(Bicubic(8)), "FD Means")):
        work.add([entry])
        assert work.evaluation is not None
        assert work.evaluation.extractors[0]["frechet_name"] == heading
    limited = new_run(photographs, extractors=[Means()], limit=2)
    with pytest.raises(ValueError, match="expected images that are all partners of originals for --limit"):
        limited.add([samples])


def test_images_without_partners_are_compared_as_a_set(photographs: Path, tmp_path: Path) -> None:
    batch = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3)).astype(np.uint8)
    np.savez(tmp_path / "samples.npz", batch)
    saved = SavedImages(str(tmp_path / "samples.npz"), evaluation_set(photographs).source, PROTOCOL)
    assert saved.pairs == 0
    row = run([Entry(saved)], photographs=photographs, extractors=[Means()]).rows[0]
    assert row.distances["means"]["frechet"] > 0
    assert not row.valid.any()
    assert np.isnan(row.image_metrics["psnr"].mean)


def test_names_of_reconstructions_stay_in_their_folder() -> None:
    names = ["a/../../b.png", "/etc/passwd", "..", "x.tar::../../y.jpg", "C:\\z.png", "a b\n.webp"]
    for name in names:
        path = reconstruction_name(name)
        assert path.endswith(".png")
        assert not path.startswith("/")
        assert ".." not in path.split("/")
