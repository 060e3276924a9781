"""One picture through several autoencoders, without a page: results, what is kept, files to take home."""

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ssdd.app.compare import (
    JPEG_LABEL,
    Comparison,
    Failure,
    Models,
    Region,
    Settings,
    check_model_name,
    compare,
    fit_picture,
    label_models,
    latent_channels,
)
from ssdd.app.downloads import command_snippet, write_files
from ssdd.app.folder import evaluate_folder
from ssdd.app.markup import metrics_table
from ssdd.autoencoder.codec import decode_image, load_encoded
from ssdd.checkpoints.embedded import embedded_names
from ssdd.evaluation.decoders import load_decoder
from tests.evaluation.models import CONFIGS, LATENTS, model_class

Picture = Callable[..., np.ndarray]
Ssdd = Callable[..., Any]


@pytest.fixture(autouse=True)
def no_lpips(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", os.fspath(tmp_path / "no-torch-home"))


@pytest.fixture
def models(tiny_model: Path) -> Models:
    return Models([str(tiny_model), "bicubic:8"])


@pytest.fixture
def comparison(picture: Picture) -> Comparison:
    return Comparison("photo.png", fit_picture(picture(64, 96), 1 << 20))


def test_a_picture_is_reduced_and_cut(picture: Picture) -> None:
    image = picture(70, 100)
    assert np.array_equal(fit_picture(image, 1 << 20), image[3:67, 2:98]), "it is not cut around its centre"
    height, width, _ = fit_picture(picture(400, 600), 40_000).shape
    assert (height % 32, width % 32) == (0, 0)
    assert 20_000 < height * width <= 40_000
    with pytest.raises(ValueError, match="at least 32 pixels, found 100 x 20"):
        fit_picture(picture(20, 100), 1 << 20)


def test_labels_tell_models_apart(tmp_path: Path) -> None:
    for name in ("a/same", "b/same", "run/model"):
        (tmp_path / name).mkdir(parents=True)
    first, second, run = (str(tmp_path / name) for name in ("a/same", "b/same", "run/model"))
    labels = label_models([first, second, run, run, "code/own.py:Code", "OWNER/NAME"])
    assert list(labels) == [first, second, "run", "own.py:Code", "OWNER/NAME", *embedded_names(), JPEG_LABEL]


def test_every_model_has_its_row(models: Models, comparison: Comparison, tiny_model: Path) -> None:
    labels = [JPEG_LABEL, tiny_model.name, "bicubic:8"]  # JPEG waits for the bytes, wherever it stands
    result = compare(models, comparison, labels, Settings(steps=2))
    network, bicubic, jpeg = result.reconstructions
    assert [r.label for r in result.results] == [tiny_model.name, "bicubic:8", JPEG_LABEL]
    assert (network.latent_shape, network.latent_bytes, network.steps) == ("4 x 8 x 12", 4 * 8 * 12 * 2, 2)
    assert (jpeg.name, jpeg.latent, jpeg.latent_shape, jpeg.steps) == ("jpeg:768", None, "file", None)
    assert 0 < jpeg.latent_bytes <= 768
    assert (bicubic.latent_shape, bicubic.latent) == ("3 x 8 x 12", None)
    assert bicubic.image.shape == comparison.picture.shape
    assert all(r.peak_bytes is None for r in result.reconstructions), "a CPU's memory is not measured"
    table = metrics_table(result, None, tiny_model.name)
    assert all(text in table for text in ("4 x 8 x 12", "768", tiny_model.name, "in their own way"))
    on_gpu = replace(result, results=(replace(network, peak_bytes=3 << 20),))
    assert "peak MiB" not in table
    assert "peak MiB</th>" in metrics_table(on_gpu, None, None)
    assert "<td>3</td></tr>" in metrics_table(on_gpu, None, None)


def test_other_settings_decode_the_same_latents(
    models: Models, comparison: Comparison, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    label = tiny_model.name
    plain = compare(models, comparison, [label], Settings())
    _, autoencoder = models.load(label)
    monkeypatch.setattr(autoencoder, "encode", None)
    noisy = compare(models, plain, [label], Settings(latent_noise=0.5, seed=3))
    again = compare(models, noisy, [label], Settings())
    latents = [r.reconstructions[0].latent for r in (plain, noisy)]
    error = float(torch.std(latents[1] - latents[0]))
    assert error == pytest.approx(0.5 * float(torch.std(latents[0])), rel=0.2)
    assert not np.array_equal(plain.reconstructions[0].image, noisy.reconstructions[0].image)
    assert np.array_equal(plain.reconstructions[0].image, again.reconstructions[0].image)


def test_a_failure_leaves_the_others(models: Models, comparison: Comparison, tiny_model: Path, tmp_path: Path) -> None:
    models.names["broken"] = str(tmp_path / "nothing")
    result = compare(models, comparison, ["broken", "/etc/passwd", tiny_model.name], Settings())
    broken, path, network = result.results
    assert isinstance(broken, Failure)
    assert "found none of them" in broken.reason
    assert isinstance(path, Failure)
    assert "models that the page was started with" in path.reason
    assert result.reconstructions == [network]
    table = metrics_table(Comparison("<b>", comparison.picture, {}, (Failure("<i>", "<u>"),)), None, None)
    assert not any(tag in table for tag in ("<b>", "<i>", "<u>")), "anybody's words become HTML"


def test_jpeg_needs_bytes_that_can_be(models: Models, comparison: Comparison) -> None:
    (alone,) = compare(models, comparison, [JPEG_LABEL], Settings()).results
    assert isinstance(alone, Failure)
    assert "choose one besides" in alone.reason
    models.names["small"] = "jpeg:100"
    (small,) = compare(models, comparison, ["small"], Settings()).results
    assert isinstance(small, Failure)
    assert "no JPEG file of 100 bytes" in small.reason


def test_names_are_checked_before_the_page_is_there(tiny_model: Path) -> None:
    for name in (str(tiny_model), "ssdd-f8c4-demo", "jpeg:100", "own.py:Code", "OWNER/NAME"):
        check_model_name(name)
    with pytest.raises(FileNotFoundError, match="found none of them"):
        check_model_name("no-such-model")


def test_regions_stay_inside() -> None:
    assert Region(50, 50, 4).box(64, 96) == (40, 24, 56, 40)
    assert Region(0, 100, 2).box(64, 96) == (0, 32, 32, 64)
    assert Region(100, 0, 1000).box(64, 96) == (88, 0, 96, 8)
    assert Region(30, 30, 0).box(64, 96) == (0, 0, 64, 64)


def test_channels_are_gray_pictures() -> None:
    latent = torch.stack([torch.full((2, 3), 5.0), torch.tensor([[0.0, 0, 0], [2, 2, 2]])])
    flat, halves = latent_channels(latent)
    assert flat[0].shape == (2, 3, 3)
    assert set(flat[0].flat) <= {127, 128}
    assert halves[0][0, 0, 0] < 128 < halves[0][1, 0, 0]
    assert halves[1] == "mean 1, std 1"


def test_files_reproduce_the_view(
    models: Models, comparison: Comparison, tiny_model: Path, tmp_path: Path, ssdd: Ssdd
) -> None:
    labels = [tiny_model.name, "bicubic:8", JPEG_LABEL]
    result = compare(models, comparison, labels, Settings(steps=2, latent_noise=0.2))
    shown = result.reconstructions[0]
    paths = write_files(tmp_path, result, shown, models)
    assert [path.name for path in paths] == [
        "picture.png", f"{shown.label}.png", f"{shown.label}.safetensors", "reproduce.py", "reproduce.sh"
    ]  # fmt: skip
    exec(compile((tmp_path / "reproduce.py").read_text(), "reproduce.py", "exec"), {})
    for number, reconstruction in enumerate(result.reconstructions):
        assert np.array_equal(np.asarray(Image.open(f"reconstruction-{number}.png")), reconstruction.image)
    encoded = load_encoded(paths[2])
    assert (encoded.height, encoded.width) == (64, 96)
    assert torch.equal(encoded.mean, shown.latent)
    load_decoder(str(tiny_model)).check(encoded.whose())
    view, _, measure = (tmp_path / "reproduce.sh").read_text().splitlines()
    (tmp_path / "original").mkdir()
    (tmp_path / "picture.png").rename(tmp_path / "original/picture.png")
    assert view == f"ssdd app picture.png --models {tiny_model} bicubic:8 --steps 2 --seed 0 --latent-noise 0.2"
    assert ssdd(*measure.split()[1:], "--workers", "0").status == 0
    (again,) = Path("reconstructions").glob(f"{tiny_model.name}*noise*/picture.png")
    assert np.array_equal(np.asarray(Image.open(again)), shown.image), "the command draws other noise"
    assert "draws seed 0" in command_snippet(compare(models, comparison, labels[:1], Settings(seed=1)), models)


def test_commands_have_what_the_page_was_started_with(picture: Picture, tiny_model: Path, tmp_path: Path) -> None:
    """Precision and size of the picture, and a run by its name, not by the folder that goes with the page."""
    models = Models(["runs/mine"], dtype=torch.bfloat16, folders={"runs/mine": str(tiny_model)})
    comparison = Comparison("photo.png", np.zeros((32, 1 << 16, 3), np.uint8))
    shown = compare(models, Comparison("photo.png", picture(32, 32)), ["runs/mine"], Settings()).reconstructions[0]
    result = replace(comparison, results=(shown,))
    view, _, measure = command_snippet(result, models).splitlines()
    assert "--models runs/mine --dtype bf16 " in view
    assert view.endswith(f"--pixels {32 << 16}")
    assert measure.startswith("ssdd evaluate runs/mine --dtype bf16 ")
    files = write_files(tmp_path, result, shown, models)
    assert not any(bytes(tiny_model) in path.read_bytes() for path in files), "somebody else's folder is told"


@pytest.mark.parametrize("kind", ["AutoencoderKL", "AutoencoderKLKVAE", "ConsistencyDecoderVAE"])
def test_others_decode_in_their_own_way(kind: str, comparison: Comparison, tmp_path: Path) -> None:
    config = CONFIGS[kind] | ({"layers_per_block": 2} if kind == "AutoencoderKL" else {})
    model_class(kind)(**config).save_pretrained(tmp_path / "other")
    models = Models([str(tmp_path / "other")])
    result = compare(models, comparison, ["other", JPEG_LABEL], Settings(steps=5, latent_noise=0.3))
    other, jpeg = result.reconstructions
    channels, factor = LATENTS[kind]
    assert other.steps is None
    assert other.latent_shape == f"{channels} x {64 // factor} x {96 // factor}"
    assert jpeg.name == f"jpeg:{other.latent_bytes}"
    latent = write_files(tmp_path, result, other, models)[2]
    if kind == "AutoencoderKL":  # without noise, so that the file is all that the image follows from
        decoded = decode_image(load_decoder(str(tmp_path / "other")), load_encoded(latent))
        assert np.array_equal(decoded, other.image)


def test_a_folder_is_evaluated(
    models: Models, picture: Picture, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = tmp_path / "photos", tmp_path / "out"
    folder.mkdir()
    for i in range(3):
        Image.fromarray(picture(40, 48, i)).save(folder / f"{i}.png")
    labels = [tiny_model.name, "bicubic:8", JPEG_LABEL]
    monkeypatch.setitem(sys.modules, "jinja2", None)  # the page of results has its own tests
    result = evaluate_folder(models, folder, labels, Settings(), "paper-128-v1", 2, out)
    assert all(name in result.text for name in (f"{tiny_model.name}, 1 step", "bicubic:8", "jpeg@2048B", "2 crops"))
    assert result.report is None
    assert "pip install 'ssdd[eval]'" in result.text
    assert (out / "evaluation.json").is_file()
    with pytest.raises(ValueError, match="choose some"):
        evaluate_folder(models, folder, [], Settings(), "paper-128-v1", 2, tmp_path)
    with pytest.raises(ValueError, match="expected a protocol"):
        evaluate_folder(models, folder, labels, Settings(), "../x", 2, tmp_path)


def test_the_command_says_what_is_missing(ssdd: Ssdd, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gradio", reason="the page needs gradio: pip install 'ssdd[app]'")
    assert "no-such-model: expected" in ssdd("app", "--models", "no-such-model").error_line()
    assert "expected --steps of at least 1, found 0" in ssdd("app", "--steps", 0).err
    monkeypatch.delitem(sys.modules, "ssdd.app.page", raising=False)
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert "pip install 'ssdd[app]'" in ssdd("app").error_line()
