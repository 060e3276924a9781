"""``ssdd generate``: from pictures to samples with the embedded tokenizer, and one line where that cannot be."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image

from ssdd.checkpoints.identity import identify
from ssdd.cli.generate import Train
from ssdd.cli.parse import parse
from ssdd.evaluation.features import Extractor
from ssdd.generation.model import build_dit
from ssdd.generation.result import Generator, load_generator, save_generator
from ssdd.recipes.generation import GENERATION_RECIPES
from ssdd.training import loop
from tests.generation.test_shared import save_random_generator

Ssdd = Callable[..., Any]


@pytest.fixture
def latents(tmp_path: Path, picture: Callable[..., np.ndarray], ssdd: Ssdd) -> Path:
    """Six pictures in two folders, tokenized at 32 px."""
    for name in ("cats", "dogs"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(picture(40, 36, i)).save(tmp_path / "photos" / name / f"{i}.png")
    result = ssdd("tokenize", tmp_path / "photos", "--out", tmp_path / "latents", "--size", 32)
    assert result.status == 0, result.err
    return tmp_path / "latents"


class Colours(Extractor):
    """Mean colours: three numbers, no weights."""

    preprocessing = "none"

    def __init__(self, name: str = "colours") -> None:
        super().__init__(name, torch.nn.Identity(), 3, Path(__file__), "cpu")

    def _features(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().mean((2, 3))


def test_from_pictures_to_samples(
    ssdd: Ssdd,
    latents: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tree: Callable[[Path], dict[str, bytes]],
    tiny_model: Path,
) -> None:
    other_model = tiny_model  # of as many channels and the same factor
    monkeypatch.setattr(loop, "peak_flops", lambda *_, **__: 1e12)
    small = ("--total-images", 16, "--batch-size", 4, "--workers", 0, "--log.sample-images", 0)
    trained = ssdd("generate", "train", latents, "--out", "run", *small)
    assert trained.status == 0, trained.err
    assert "trained model in run/model" in trained.out
    facts = json.loads((tmp_path / "run" / "model" / "generation.json").read_text())
    assert facts["classes"] == ["cats", "dogs"]
    assert facts["latent_shape"] == [4, 4, 4]
    assert facts["tokenizer"]["spatial_factor"] == 8

    assert facts["tokenizer"] == msgspec.to_builtins(identify("ssdd-f8c4-demo"))
    assert ssdd("generate", "classes", "run").out == "0\tcats\n1\tdogs\n"

    quick = ("--steps", 2, "--batch-size", 3)
    sampled = ssdd("generate", "sample", "run", "--classes", "dogs", 0, "--count", 4, "--out", "out", *quick)
    assert sampled.status == 0, sampled.err
    names = [".lock", "000000.png", "000001.png", "000002.png", "000003.png", "grid.png", "samples.json"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == names
    first = tree(tmp_path / "out")
    (tmp_path / "out" / "000002.png").unlink()
    (tmp_path / "out" / "grid.png").unlink()
    goes_on = ssdd("generate", "sample", "run", "--classes", "dogs", 0, "--count", 4, "--out", "out", *quick)
    assert "3 samples were there before" in goes_on.err
    assert tree(tmp_path / "out") == first, "a sample depends on the others"
    assert Image.open(tmp_path / "out" / "000000.png").size == (32, 32)
    told = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert told["labels"] == [1, 0, 1, 0]
    assert (told["sampling"]["steps"], told["sampling"]["guidance"]) == (2, 4.0)
    again = ssdd("generate", "sample", "run", "--count", 4, "--out", "out", *quick)
    assert "made with another labels ([1, 0, 1, 0] instead of [0, 1, 0, 1])" in again.error_line()
    in_two = ("generate", "sample", "run", "--classes", "dogs", 0, "--count", 4, "--decoding-steps", 2, *quick)
    assert "made with another decoding_steps (null instead of 2)" in ssdd(*in_two, "--out", "out").error_line()
    assert ssdd(*in_two, "--out", "in-two").status == 0
    assert json.loads((tmp_path / "in-two" / "samples.json").read_text())["decoding_steps"] == 2
    assert not np.array_equal(*(np.asarray(Image.open(tmp_path / out / "000000.png")) for out in ("out", "in-two")))
    npz = ssdd("generate", "sample", "run", "--count", 4, "--out", "npz", "--format", "npz", *quick)
    assert npz.status == 0, npz.err
    with np.load(tmp_path / "npz" / "samples.npz") as found:
        assert found["arr_0"].shape == (4, 32, 32, 3)
        assert found["arr_1"].tolist() == [0, 1, 0, 1]
    whole = tree(tmp_path / "npz")
    (tmp_path / "npz" / "samples.npz").write_bytes(b"damaged")
    in_npz = ("generate", "sample", "run", "--count", 4, "--out", "npz", "--format", "npz", *quick)
    assert "samples.npz: expected 4 samples, found a damaged file: remove it" in ssdd(*in_npz).error_line()
    (tmp_path / "npz" / "samples.npz").unlink()
    assert "4 samples as npz" in ssdd(*in_npz).out
    assert tree(tmp_path / "npz").keys() == whole.keys(), "grid.png was taken for the sign that all is done"
    with np.load(tmp_path / "npz" / "samples.npz") as found:
        assert found["arr_0"].shape == (4, 32, 32, 3)

    monkeypatch.setattr("ssdd.cli.evaluate.load_extractors", lambda *arguments: [Colours()])
    measure = ("--data", tmp_path / "photos", "--count", 4, "--guidance", 1, 2, "--workers", 0)
    measured = ssdd("generate", "evaluate", "run", *measure, "--only", "cats/*", "--out", "numbers.json", *quick)
    assert measured.status == 0, measured.err
    told = json.loads((tmp_path / "numbers.json").read_text())
    assert [row["guidance"] for row in told["rows"]] == [1.0, 2.0]
    assert Image.open(tmp_path / "numbers.png").width > 400
    cats = ("generate", "evaluate", "run", *measure, "--only", "cats/*", "--out", "numbers.json")
    longer = ssdd(*cats, *quick, "--guidance", 2, 4, "--json")
    assert longer.status == 0, longer.err
    rows = json.loads((tmp_path / "numbers.json").read_text())["rows"]
    assert json.loads(longer.out)["rows"] == rows
    assert [row["guidance"] for row in rows] == [1.0, 2.0, 4.0]
    assert rows[:2] == told["rows"], "a row that was done was measured again, or is lost"
    other = ssdd(*cats, "--steps", 3)
    assert "rows with another sampling (steps (2 instead of 3)" in other.error_line()
    by_share = ssdd("generate", "evaluate", "run", *measure, "--shares", "data", *quick)
    assert "samples: 4, 2 classes, as the photographs" in by_share.out
    assert all(np.isfinite(row["distances"]["colours"]["frechet"]) for row in told["rows"])
    assert told["reference"]["crops"] == 3
    assert "3 crops" in measured.out
    assert (
        "expected names like 'birds/*'"
        in ssdd("generate", "evaluate", "run", *measure, "--only", "birds/*").error_line()
    )

    for arguments, message in (
        (("sample", "run", "--classes", "2"), "expected classes from 0 to 1, found 2"),
        (("sample", "run", "--classes", "birds"), "numbers or names of classes, found 'birds'"),
        (("export", "run", "--out", "photos"), "photos is not empty"),
        (("export", "run", "--decoding-steps", 1001), "expected from 1 to 1000 decoding steps, found 1001"),
        (("sample", "run", "--decoder", "nowhere"), "nowhere: expected"),
        (("sample", "photos"), "photos: expected a trained generator"),
        (("sample", "run", "--decoder", other_model), "a decoder of the encoder that made the latents, ssdd-f8c4-demo"),
        (("evaluate", "run"), "or their statistics, --reference; found neither"),
        (
            ("evaluate", "run", "--data", "photos", "--guidance", "1", "-1"),
            "expected a guidance of at least 0, found -1",
        ),
    ):
        assert message in ssdd("generate", *arguments).error_line()


@pytest.fixture
def generator(tmp_path: Path, tiny_model: Path) -> Path:
    """Folder of a generator with random weights."""
    return save_random_generator(tmp_path / "generator", tiny_model)


def test_guide_is_checked_before_the_work(ssdd: Ssdd, generator: Path, tmp_path: Path) -> None:
    """What was refused left a samples.json, which refused the next command with it."""
    shutil.copytree(generator, tmp_path / "others")
    facts = json.loads((generator / "generation.json").read_text())
    (tmp_path / "others" / "generation.json").write_text(json.dumps(facts | {"classes": ["dogs", "cats"]}))
    square = build_dit("tiny/2", (4, 4, 4), 2, "diffusers")
    save_generator(Generator(square, load_generator(generator).facts), tmp_path / "square")
    sample = ("generate", "sample", generator, "--count", 2, "--steps", 1, "--out", "out", "--guide")
    assert "expected a guide with the generator's classes" in ssdd(*sample, "others").error_line()
    assert "expected 32 x 32 px, all that diffusers' DiT takes" in ssdd(*sample, "square", "--height", 64).error_line()
    assert not (tmp_path / "out").exists()


def test_search_loses_nothing_that_is_there(
    ssdd: Ssdd, generator: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ssdd.cli.evaluate.load_extractors", lambda *arguments: [Colours()])
    search = ("generate", "evaluate", generator, "--data", photos, "--count", 4, "--steps", 1, "--workers", 0)
    assert ssdd(*search, "--guidance", 2, "--out", "numbers.json").status == 0
    numbers = (tmp_path / "numbers.json").read_bytes()
    monkeypatch.setattr("ssdd.generation.evaluation.measure_reference", None)  # refused before the photographs
    for options, message in (
        (("--out", "numbers.png"), "numbers.png: expected --out NAME.json"),
        (("--out", "numbers.json", "--classes", 1, 0), "holds rows with another labels_sha256"),
        (("--out", "numbers.json", "--overwrite", "--guide", "nowhere"), "nowhere: expected a trained generator"),
    ):
        assert message in ssdd(*search, *options).error_line()
    (tmp_path / "numbers.png").write_bytes(b"of something else")
    assert "numbers.png exists already" in ssdd(*search, "--out", "numbers.json", "--guidance", 2, 3).error_line()
    monkeypatch.setattr("ssdd.cli.evaluate.load_extractors", lambda *arguments: [Colours("others")])
    assert "holds rows with another extractors" in ssdd(*search, "--out", "numbers.json").error_line()
    assert (tmp_path / "numbers.json").read_bytes() == numbers
    assert (tmp_path / "numbers.png").read_bytes() == b"of something else"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--interval", "0.5"), "--interval"),
        (("--interval", "0", "2"), "expected --interval of at most 1, found 0.0 2.0"),
        (("--batch-size", "0"), "expected --batch-size of at least 1, found 0"),
        (("--count", "0"), "expected --count of at least 1, found 0"),
        (("--guidance", "a"), "expected a number, found 'a'"),
    ],
)
def test_values_out_of_range(ssdd: Ssdd, option: tuple[str, ...], message: str) -> None:
    """They are refused before a run is looked for."""
    result = ssdd("generate", "sample", "nowhere", *option)
    assert result.status == 2
    assert message in result.err


def test_missing_latents(ssdd: Ssdd, tmp_path: Path) -> None:
    assert "ssdd tokenize" in ssdd("generate", "train", "--out", "run").error_line()
    assert "nowhere" in ssdd("generate", "train", "nowhere", "--out", "run").error_line()
    assert list(tmp_path.iterdir()) == [], "a run that cannot start left a folder"


@pytest.mark.parametrize("name", GENERATION_RECIPES)
def test_recipes_are_complete(name: str) -> None:
    """Nothing but the latents is missing, and nothing but what is typed changes a recipe."""
    options = parse(["generate", "train", "here", "--recipe", name])
    assert isinstance(options, Train)
    assert options.recipe.latents == "here"
    options.recipe.check()
    drawn = parse(["generate", "train", "here", "--recipe", name, "--decoder", "ssdd-f8c4-demo"])
    assert isinstance(drawn, Train)
    recipe = GENERATION_RECIPES[name]()
    assert vars(drawn.recipe) | {"latents": "", "decoder": None} == vars(recipe)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (("--log.sample-images", "5"), "log.sample_images 5 has no effect: no decoder draws the sample grids"),
        (
            ("--optimizer.name", "schedule-free-radam", "--optimizer.decay-images", "5"),
            "optimizer.decay_images 5 has no effect: schedule-free has no decay",
        ),
    ],
)
def test_typed_settings_without_effect(ssdd: Ssdd, typed: tuple[str, ...], message: str) -> None:
    """Somebody types it, and believes that it has worked."""
    result = ssdd("generate", "train", "here", *typed)
    assert result.status == 2
    assert message in result.err
    plain = parse(["generate", "train", "here", "--optimizer.name", "schedule-free-radam"])
    assert isinstance(plain, Train)
    plain.recipe.check()


def test_wrong_usage(ssdd: Ssdd) -> None:
    assert ssdd("generate").status == 2
    assert ssdd("generate", "draw").status == 2
    result = ssdd("generate", "train", "here", "--log.sample-count", "-1")
    assert result.status == 2
    assert "expected log.sample_count of at least 0, found -1" in result.err
    result = ssdd("generate", "train", "here", "--recipe", "gpus")
    assert result.status == 2
    assert "did you mean gpu?" in result.err
