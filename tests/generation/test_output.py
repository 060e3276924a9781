"""Files of samples, and the numbers that compare them with photographs."""

import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ssdd import AutoencoderSSDD
from ssdd.data.sources import open_source
from ssdd.evaluation.decoders import LatentDecoder
from ssdd.evaluation.features import Extractor
from ssdd.evaluation.protocols import EvaluationSet
from ssdd.evaluation.results import describe_extractor
from ssdd.generation.evaluation import (
    GuidedResult,
    SearchFile,
    as_text,
    balanced_labels,
    best,
    describe,
    describe_labels,
    image_side,
    measure_reference,
    measure_samples,
    photograph_classes,
    proportional_labels,
    published_reference,
    reference_protocol,
)
from ssdd.generation.output import FACTS, FILES, NPZ, Format, SampleFiles, begin, draw_page
from ssdd.generation.result import Generator
from ssdd.generation.sampling import Sampling
from ssdd.runtime.files import OutputExists, only_one
from tests.generation.latents import NOBODY

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3), np.uint8)
LABELS: list[int | None] = [0, 1, 2, 0, 1, 2, 0]


class Means(Extractor):
    """Mean colours of quarters: twelve numbers, no weights."""

    preprocessing = "none"

    def __init__(self) -> None:
        weights = Path(__file__)
        super().__init__("means", torch.nn.Identity(), 12, weights, "cpu")

    def _features(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, 2).flatten(1)


def make(kind: Format, out: Path, labels: list[int | None] = LABELS, part_size: int = 3) -> SampleFiles:
    """Write all parts of seven samples."""
    files = FILES[kind](out, labels, part_size)
    for part in files.parts:
        numbers = files.missing(part)
        if numbers:
            files.write(part, [(number, IMAGES[number]) for number in numbers])
    return files


def test_npz_is_the_adm_evaluators(tmp_path: Path) -> None:
    """It reads arr_0, uint8 NHWC, and arr_1, the classes, as ``np.savez`` writes them."""
    files = make("npz", tmp_path)
    files.finish()
    with np.load(tmp_path / NPZ, allow_pickle=False) as found:
        assert found.files == ["arr_0", "arr_1"]
        assert found["arr_0"].dtype == np.uint8
        np.testing.assert_array_equal(found["arr_0"], IMAGES)
        assert found["arr_1"].dtype == np.int64
        assert found["arr_1"].tolist() == LABELS
    assert [p.name for p in tmp_path.iterdir()] == [NPZ], "parts are left"
    assert not any(files.missing(part) for part in files.parts), "it would be made once more"
    np.testing.assert_array_equal(files.read(5), IMAGES[:5])
    whole = (tmp_path / NPZ).read_bytes()
    for damaged in (whole[:-100], b""):
        (tmp_path / NPZ).write_bytes(damaged)
        with pytest.raises(ValueError, match=r"samples\.npz: expected 7 samples, found a damaged file: remove it"):
            files.missing(files.parts[0])


def test_npz_is_finished_once_more(tmp_path: Path) -> None:
    """A command that was killed before its grid could not end: "samples.npz exists already"."""
    files = make("npz", tmp_path)
    parts = {path: path.read_bytes() for path in tmp_path.glob("*/*.npy")}
    assert parts
    files.finish()
    whole = (tmp_path / NPZ).read_bytes()
    files.finish()
    for path, content in parts.items():  # killed before they were removed
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    files.finish()
    assert [p.name for p in tmp_path.iterdir()] == [NPZ]
    assert (tmp_path / NPZ).read_bytes() == whole


def test_npz_without_classes_has_images_alone(tmp_path: Path) -> None:
    make("npz", tmp_path, [None] * 7).finish()
    with np.load(tmp_path / NPZ) as found:
        assert found.files == ["arr_0"]


def test_pngs_are_the_images(tmp_path: Path) -> None:
    files = make("png", tmp_path)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "000006.png")), IMAGES[6])
    (tmp_path / "000004.png").unlink()
    assert [list(files.missing(part)) for part in files.parts] == [[], [4], []]
    np.testing.assert_array_equal(files.read(3), IMAGES[:3])


def test_tars_are_webdatasets(tmp_path: Path) -> None:
    files = make("tar", tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"shard-00000{i}.tar" for i in range(3)]
    with tarfile.open(tmp_path / "shard-000001.tar") as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    assert list(members) == [f"0000000{i}.{kind}" for i in (3, 4, 5) for kind in ("png", "cls")]
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(members["00000004.png"]))), IMAGES[4])
    assert members["00000005.cls"] == b"2"
    np.testing.assert_array_equal(files.read(5), IMAGES[:5])


@pytest.mark.parametrize("kind", FILES)
def test_part_that_fails_is_not_there(kind: Format, tmp_path: Path) -> None:
    files = FILES[kind](tmp_path, LABELS, 3)

    def samples() -> object:
        yield 0, IMAGES[0]
        raise RuntimeError("a fault on the way")

    with pytest.raises(RuntimeError):
        files.write(files.parts[0], samples())  # type: ignore[arg-type]
    assert list(files.missing(files.parts[0])) == ([1, 2] if kind == "png" else [0, 1, 2])


@pytest.mark.parametrize("kind", FILES)
def test_other_samples_are_neither_mixed_nor_lost(kind: Format, tmp_path: Path) -> None:
    files = FILES[kind](tmp_path, LABELS, 3)
    begin(files, {"seed": 0, "decoder": "a"}, overwrite=False)
    make(kind, tmp_path)
    begin(files, {"seed": 0, "decoder": "the same weights elsewhere"}, overwrite=False)
    with pytest.raises(OutputExists, match="made with another seed"):
        begin(files, {"seed": 1}, overwrite=False)
    assert not files.missing(files.parts[0])
    (tmp_path / FACTS).unlink()
    with pytest.raises(ValueError, match=f"no {FACTS} says how it was made"):
        begin(files, {"seed": 0}, overwrite=False)
    begin(FILES[kind](tmp_path / "new", LABELS, 3), {"seed": 0}, overwrite=True)
    (tmp_path / FACTS).write_text('{"seed": 0}')
    begin(files, {"seed": 1}, overwrite=True)
    assert len(files.missing(files.parts[0])) == 3
    assert json.loads((tmp_path / FACTS).read_text()) == {"seed": 1}


def test_overwriting_leaves_nothing_of_the_earlier_set(tmp_path: Path) -> None:
    """A glob, or the distance to a folder, would take the old ones along."""
    begin(FILES["png"](tmp_path, LABELS, 3), {"format": "png", "labels": LABELS}, overwrite=False)
    make("png", tmp_path)
    begin(FILES["tar"](tmp_path, [0], 3), {"format": "tar", "labels": [0]}, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == [FACTS]


def test_overwriting_leaves_no_part_of_an_earlier_npz(tmp_path: Path) -> None:
    """The parts of one that was killed were looked for in another size, and all but the first stayed."""
    begin(FILES["npz"](tmp_path, LABELS, 3), {"format": "npz", "labels": LABELS}, overwrite=False)
    make("npz", tmp_path)
    assert len(list((tmp_path / ".parts").iterdir())) == 3
    begin(FILES["png"](tmp_path, LABELS, 3), {"format": "png", "labels": LABELS}, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == [FACTS]


def test_other_settings_are_told_with_their_values(tmp_path: Path) -> None:
    files = FILES["png"](tmp_path, LABELS, 3)
    begin(files, {"count": 7, "sampling": {"steps": 2, "seed": 0}}, overwrite=False)
    with pytest.raises(OutputExists, match=r"another count \(7 instead of 8\), sampling \(steps \(2 instead of 5\)\)"):
        begin(files, {"count": 8, "sampling": {"steps": 5, "seed": 0}}, overwrite=False)


def test_page_of_many() -> None:
    assert draw_page(list(IMAGES)).shape == (8, 7 * 8 + 6 * 4, 3)
    assert draw_page([IMAGES[0]] * 64).shape == (8 * 12 - 4, 8 * 12 - 4, 3)


def test_labels_are_balanced_or_as_the_photographs() -> None:
    assert balanced_labels([4, 2], 5) == [4, 2, 4, 2, 4]
    assert balanced_labels([], 2) == [None, None]
    labels = proportional_labels(Counter({0: 50, 3: 30, 5: 21}), 10, seed=0)
    assert Counter(labels) == {0: 5, 3: 3, 5: 2}
    assert labels != sorted(labels, key=lambda label: label or 0), "classes one after the other"
    assert labels == proportional_labels(Counter({5: 21, 0: 50, 3: 30}), 10, seed=0)


def test_classes_of_photographs_are_their_folders(tmp_path: Path, picture: Callable[..., np.ndarray]) -> None:
    for name in ("a/0", "a/1", "b/0", "c/0"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(picture(8, 8)).save(tmp_path / f"{name}.png")
    assert photograph_classes(open_source([tmp_path]), ("b", "a")) == {1: 2, 0: 1}
    with pytest.raises(ValueError, match="folders named by a class, such as 'x'"):
        photograph_classes(open_source([tmp_path]), ("x",))
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        for name in ("a", "b", "c"):
            tar.add(tmp_path / name, name)
    with tarfile.open(tmp_path / "of-tars.tar", "w") as tar:
        for name in ("a", "b"):
            with tarfile.open(tmp_path / f"{name}.tar", "w") as inner:
                for path in (tmp_path / name).iterdir():
                    inner.add(path, path.name)
            tar.add(tmp_path / f"{name}.tar", f"{name}.tar")
    assert photograph_classes(open_source([tmp_path / "set.tar"]), ("b", "a")) == {1: 2, 0: 1}
    assert photograph_classes(open_source([tmp_path / "of-tars.tar"]), ("b", "a")) == {1: 2, 0: 1}


@pytest.fixture(scope="module")
def decoder() -> LatentDecoder:
    model = AutoencoderSSDD.from_preset(encoder="f8c4", decoder="XXS", encoder_width=32, encoder_groups=8).eval()
    return LatentDecoder(model, NOBODY)


def test_guidance_search_and_its_protocol(
    generator: Generator, decoder: LatentDecoder, tmp_path: Path, picture: Callable[..., np.ndarray]
) -> None:
    """Rows differ by guidance alone, and stay when they are done; what was compared is told beside the numbers."""
    (tmp_path / "photos").mkdir()
    for i in range(8):
        Image.fromarray(picture(40, 40, i)).save(tmp_path / "photos" / f"{i}.png")
    protocol = reference_protocol(image_side(generator))
    assert (protocol.name, protocol.size) == ("centre-32-v1", 32)
    assert reference_protocol(256).name == "paper-256-v1"
    reference = measure_reference(EvaluationSet(open_source([tmp_path / "photos"]), protocol), [Means()], workers=0)
    labels, shares = balanced_labels([0, 1], 8), "the chosen classes in turn"
    sampling = Sampling(steps=3, sampler="heun", interval=(0.1, 0.9), seed=3)
    samplings = [replace(sampling, guidance=guidance) for guidance in (1.0, 3.0)]
    results = [measure_samples(generator, decoder, labels, s, reference, batch_size=4) for s in samplings]
    assert None not in results
    (name,) = results[0].distances
    assert {"frechet", "kid", "precision", "recall", "density", "coverage"} <= results[0].distances[name].keys()
    assert results[0].distances != results[1].distances
    smaller = min(results, key=lambda r: r.distances[name]["frechet"])
    assert best(results, name) is smaller

    text = as_text(results, reference, labels, shares)
    for part in (
        "FD",
        "KID",
        "samples: 8, 2 classes, the chosen classes in turn",
        "heun, 3 steps (6 calls)",
        "t from 0.1 to 0.9",
        "seed 3",
    ):
        assert part in text, f"{part} is not told"
    assert f"best guidance by FD {name}: {smaller.sampling.guidance:g}" in text
    assert "FD-8 means: of 8 images" in text
    assert "k = 3" in text

    search = SearchFile(tmp_path / "search.json", describe(reference, labels, shares, {"generator": "g"}))
    assert search.kept() == []
    search.write(results[:1])
    assert search.kept() == results[:1]
    search.write(results)
    content = json.loads((tmp_path / "search.json").read_text())
    assert [row["guidance"] for row in content["rows"]] == [1.0, 3.0]
    assert content["reference"]["crops"] == 8
    assert content["rows"][1]["distances"] == results[1].distances
    assert torch.__version__ == content["software"]["torch"]
    assert Image.open(tmp_path / "search.png").width > 400
    with pytest.raises(ValueError, match=r'holds rows with another generator \("g" instead of "h"\)'):
        SearchFile(tmp_path / "search.json", {"generator": "h"}).kept()


def result(guidance: float) -> GuidedResult:
    """A row of a search."""
    return GuidedResult(Sampling(guidance=guidance), {"means": {"frechet": guidance}})


def test_rows_of_other_classes_are_not_gone_on_with(tmp_path: Path) -> None:
    """As many samples of as many classes, and the rows of the former ones were taken for theirs."""
    path = tmp_path / "search.json"
    labels: list[int | None] = [0, 1, 0, 1]
    SearchFile(path, describe_labels(labels, "in turn")).write([result(1)])
    assert SearchFile(path, describe_labels(list(np.array(labels)), "in turn")).kept() == [result(1)]
    for others in ([2, 3, 2, 3], [1, 0, 1, 0]):
        with pytest.raises(ValueError, match="holds rows with another labels_sha256"):
            SearchFile(path, describe_labels(others, "in turn")).kept()


def test_rows_of_two_searches_at_once_are_all_kept(tmp_path: Path) -> None:
    """The second one wrote the rows that it knew of, and those of the first were gone."""
    first, second = (SearchFile(tmp_path / "search.json", {"generator": "g"}) for _ in range(2))
    assert first.kept() == second.kept() == []
    with only_one(tmp_path):  # as the run whose numbers these are, while it trains on
        assert first.write([result(1)]) == [result(1)]
    assert second.write([result(2)]) == [result(1), result(2)]
    assert first.write([result(1), result(3)]) == first.kept() == [result(1), result(2), result(3)]
    assert (tmp_path / "search.png").exists()


def test_rows_are_replaced_when_the_first_new_one_is_done(tmp_path: Path) -> None:
    """Before that, --overwrite has lost nothing."""
    path = tmp_path / "search.json"
    SearchFile(path, {"generator": "g"}).write([result(1), result(2)])
    search = SearchFile(path, {"generator": "h"}, overwrite=True)
    search.check([Sampling(guidance=guidance) for guidance in (3, 4)])
    assert search.kept() == []
    assert len(json.loads(path.read_text())["rows"]) == 2
    assert search.write([result(3)]) == search.kept() == [result(3)]
    assert search.write([result(3), result(4)]) == search.kept() == [result(3), result(4)]


def test_plot_replaces_no_other_picture(tmp_path: Path) -> None:
    path, picture = tmp_path / "search.json", tmp_path / "search.png"
    picture.write_bytes(b"of something else")
    search = SearchFile(path, {"generator": "g"})
    two = [Sampling(guidance=guidance) for guidance in (1, 2)]
    search.check(two[:1])  # without a plot
    with pytest.raises(OutputExists, match=r"search\.png exists already, where the plot of search\.json would be"):
        search.check(two)
    search.write([result(1)])
    with pytest.raises(OutputExists, match=r"search\.png exists already"):
        search.write([result(1), result(2)])
    assert picture.read_bytes() == b"of something else"
    assert search.kept() == [result(1), result(2)], "what was measured is lost"
    picture.unlink()
    for rows in ([result(1), result(2)], [result(3)]):  # its own
        search.check(two)
        search.write(rows)
    picture.write_bytes(b"of something else")
    SearchFile(path, {"generator": "h"}, overwrite=True).write([result(1), result(2)])
    assert Image.open(picture).width > 400


def test_rows_of_other_extractors_are_seen_before_the_photographs(tmp_path: Path) -> None:
    """The name of a distance has the number of photographs, which is not known by then."""

    def facts(extractor: Extractor, images: int) -> dict[str, object]:
        return {"extractors": [describe_extractor(extractor, images)]}

    other = Means()
    other.sha256 = "0" * 64
    SearchFile(tmp_path / "search.json", facts(Means(), 8)).write([result(1)])
    assert SearchFile(tmp_path / "search.json", facts(Means(), 10)).kept() == [result(1)]
    with pytest.raises(ValueError, match="holds rows with another extractors"):
        SearchFile(tmp_path / "search.json", facts(other, 8)).kept()


def test_published_statistics_give_the_frechet_distance_alone(
    generator: Generator, decoder: LatentDecoder, tmp_path: Path
) -> None:
    np.savez(tmp_path / "adm.npz", mu=np.full(12, 0.5), sigma=np.eye(12) / 100)
    reference = published_reference(tmp_path / "adm.npz", Means())
    result = measure_samples(generator, decoder, [0, 1, 0], Sampling(steps=2), reference)
    assert result is not None
    distances = result.distances["means"]
    assert distances["frechet"] > 0
    assert "kid" not in distances
    assert "mean and covariance of" in as_text([result], reference, [0, 1, 0], "")
    np.savez(tmp_path / "other.npz", mu=np.full(12, 0.4), sigma=np.eye(12) / 100)
    assert published_reference(tmp_path / "other.npz", Means()).facts["sha256"] != reference.facts["sha256"]


@pytest.mark.parametrize(
    ("mu", "sigma"),
    [
        (np.full(12, np.nan), np.eye(12)),
        (np.zeros(12), -np.eye(12)),
        (np.zeros(12), np.triu(np.ones((12, 12)))),
        (np.zeros(12, complex), np.eye(12)),
        (np.zeros(12), np.full((12, 12), np.inf)),
    ],
    ids=["not a number", "negative", "not symmetric", "complex", "infinite"],
)
def test_statistics_that_are_none(mu: np.ndarray, sigma: np.ndarray, tmp_path: Path) -> None:
    """The first two gave a distance of 0, as of a perfect generator."""
    np.savez(tmp_path / "adm.npz", mu=mu, sigma=sigma)
    with pytest.raises(ValueError, match=r"adm\.npz: expected (mu|an \.npz with mu)"):
        published_reference(tmp_path / "adm.npz", Means())


def test_decoder_is_known_by_its_weights(decoder: LatentDecoder) -> None:
    """Samples and rows of two decoders under one name would be mixed."""
    same = LatentDecoder(decoder.model, NOBODY)
    assert same.sha256 == decoder.sha256
    model = AutoencoderSSDD.from_preset(encoder="f8c4", decoder="XXS", encoder_width=32, encoder_groups=8).eval()
    assert LatentDecoder(model, NOBODY).sha256 != decoder.sha256


def test_decoder_is_known_by_how_latents_enter() -> None:
    """The same weights on latents of another mean are another decoder."""
    plain = {"encoder": "f8c4", "decoder": "XXS", "encoder_width": 32, "encoder_groups": 8}
    digests = set()
    for mean, std in ((None, None), ([0.0] * 4, (1.0,) * 4), ((0.5,) * 4, (1.0,) * 4), ((0.0,) * 4, (2.0,) * 4)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = AutoencoderSSDD.from_preset(**plain, decoder_latents_mean=mean, decoder_latents_std=std)
        digests.add(LatentDecoder(model, NOBODY).sha256)
    assert len(digests) == 4
