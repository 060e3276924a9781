"""Files of samples, and the numbers that compare them with photographs."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ssdd import AutoencoderSSDD
from ssdd.data.sources import open_source
from ssdd.evaluation.features import Extractor
from ssdd.evaluation.protocols import EvaluationSet
from ssdd.files import OutputExists
from ssdd.generation.evaluation import (
    as_dict,
    as_text,
    balanced_labels,
    best,
    image_side,
    measure_reference,
    measure_samples,
    reference_protocol,
)
from ssdd.generation.output import write_npz, write_pngs
from ssdd.generation.result import Generator
from ssdd.generation.sampling import Sampling

BATCHES = [np.random.default_rng(i).integers(0, 256, (n, 8, 8, 3), np.uint8) for i, n in enumerate((3, 3, 1))]


class Means(Extractor):
    """Mean colours of quarters: twelve numbers, no weights."""

    preprocessing = "none"

    def __init__(self) -> None:
        weights = Path(__file__)
        super().__init__("means", torch.nn.Identity(), 12, weights, "cpu")

    def _features(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, 2).flatten(1)


def test_npz_is_the_adm_evaluators(tmp_path: Path) -> None:
    """It reads arr_0, uint8 NHWC, and arr_1, the classes, as ``np.savez`` writes them."""
    page = write_npz(tmp_path / "s.npz", BATCHES, [0, 1, 2, 0, 1, 2, 0], side=8)
    with np.load(tmp_path / "s.npz", allow_pickle=False) as found:
        assert found.files == ["arr_0", "arr_1"]
        assert found["arr_0"].dtype == np.uint8
        np.testing.assert_array_equal(found["arr_0"], np.concatenate(BATCHES))
        assert found["arr_1"].dtype == np.int64
        assert found["arr_1"].tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert page.draw().shape == (8, 7 * 8 + 6 * 4, 3)
    with pytest.raises(OutputExists):
        write_npz(tmp_path / "s.npz", BATCHES, [0] * 7, side=8)
    with pytest.raises(ValueError, match="expected 8 images for as many labels, found 7"):
        write_npz(tmp_path / "other.npz", BATCHES, [0] * 8, side=8)
    assert [p.name for p in tmp_path.iterdir()] == ["s.npz"], "half of a file is left"


def test_npz_without_classes_has_images_alone(tmp_path: Path) -> None:
    write_npz(tmp_path / "s.npz", BATCHES, [None] * 7, side=8)
    with np.load(tmp_path / "s.npz") as found:
        assert found.files == ["arr_0"]


def test_pngs_are_the_images(tmp_path: Path) -> None:
    many = [np.full((20, 8, 8, 3), 10 * i, np.uint8) for i in range(4)]
    page = write_pngs(tmp_path, [*many, *BATCHES])
    assert len(list(tmp_path.glob("*.png"))) == 87
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "000086.png")), BATCHES[2][0])
    assert page.draw().shape == (8 * 12 - 4, 8 * 12 - 4, 3), "a page of thousands"


def test_labels_are_balanced() -> None:
    assert balanced_labels([4, 2], 5) == [4, 2, 4, 2, 4]
    assert balanced_labels([], 2) == [None, None]


def test_guidance_search_and_its_protocol(
    generator: Generator, tmp_path: Path, picture: Callable[..., np.ndarray]
) -> None:
    """Rows differ by guidance alone; what was compared with what is told beside the numbers."""
    for i in range(8):
        Image.fromarray(picture(40, 40, i)).save(tmp_path / f"{i}.png")
    decoder = AutoencoderSSDD.from_preset(encoder="f8c4", decoder="XXS", encoder_width=32, encoder_groups=8).eval()
    protocol = reference_protocol(image_side(generator, decoder))
    assert (protocol.name, protocol.size) == ("centre-32-v1", 32)
    assert reference_protocol(256).name == "paper-256-v1"
    reference = measure_reference(EvaluationSet(open_source([tmp_path]), protocol), [Means()], workers=0)
    labels = balanced_labels([0, 1], 8)
    sampling = Sampling(steps=3, sampler="heun", interval=(0.1, 0.9), seed=3)
    results = measure_samples(generator, decoder, labels, sampling, [1.0, 3.0], reference, batch_size=4)
    assert [r.sampling for r in results] == [replace(sampling, guidance=g) for g in (1.0, 3.0)]
    (name,) = results[0].distances
    assert {"frechet", "kid", "precision", "recall", "density", "coverage"} <= results[0].distances[name].keys()
    assert results[0].distances != results[1].distances
    smaller = min(results, key=lambda r: r.distances[name]["frechet"])
    assert best(results, name) is smaller

    text = as_text(results, reference, labels)
    for part in (
        "FD",
        "KID",
        "samples: 8, 2 classes in turn",
        "heun, 3 steps (5 calls)",
        "t from 0.1 to 0.9",
        "seed 3",
    ):
        assert part in text, f"{part} is not told"
    assert f"best guidance by FD {name}: {smaller.sampling.guidance:g}" in text
    assert "FD-8 means: of 8 images" in text
    assert "k = 3" in text
    content = as_dict(results, reference, labels, {"generator": "g"})
    assert [row["guidance"] for row in content["rows"]] == [1.0, 3.0]
    assert content["reference"]["crops"] == 8
    assert content["rows"][1]["distances"] == results[1].distances
    assert torch.__version__ == content["software"]["torch"]
