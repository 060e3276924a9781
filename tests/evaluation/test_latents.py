"""Latents over a set: independent of batches and workers, with errors of chance that are those of other samples."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ssdd.data.sources import open_source
from ssdd.evaluation.autoencoders import load_autoencoder
from ssdd.evaluation.latents import (
    MeasuredLatents,
    as_dict,
    as_text,
    latent_statistics,
    save_statistics,
    saved_folder,
)
from ssdd.evaluation.protocols import EvaluationSet, Protocol

RANDOM = Protocol("test-random", "random", 32, crops=2)
NATIVE = Protocol("test-native", "native", 8)


class Means:
    """The latent is the mean of 8 x 8 pixels, NaN where they are white."""

    name, parameters, decoder_parameters, spatial_factor = "means", 0, 0, 8

    def describe(self) -> dict[str, Any]:
        return {"kind": "test", "steps": None}

    def encode(self, images: Tensor) -> Tensor:
        z = torch.nn.functional.avg_pool2d(images, 8)
        return torch.where(z > 0.99, torch.nan, z)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory, picture: Callable[..., np.ndarray]) -> Path:
    """Six pictures of several sizes, one of them too small for 32 pixels, and a broken file."""
    folder = tmp_path_factory.mktemp("photographs")
    for i, size in enumerate([(40, 48), (33, 64), (64, 40), (50, 50), (20, 60), (48, 40)]):
        Image.fromarray(picture(*size, i)).save(folder / f"{i}.png")
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder


def measure(autoencoder: Any, folder: Path, protocol: Protocol = RANDOM, **options: Any) -> MeasuredLatents:
    return latent_statistics(autoencoder, EvaluationSet(open_source([folder]), protocol), **{"workers": 0, **options})


def values(measured: MeasuredLatents) -> np.ndarray:
    found = as_dict(measured)
    return np.array([v for part in ("channels", "global") for v in found[part].values()], dtype=object)


@pytest.mark.parametrize("protocol", [RANDOM, NATIVE], ids=lambda p: p.rule)
def test_statistics_are_numpys_on_all_latents(photographs: Path, protocol: Protocol) -> None:
    """Every position counts the same, also where images are of different sizes."""
    found = measure(Means(), photographs, protocol, batch_size=3)
    source = EvaluationSet(open_source([photographs]), protocol)
    positions = []
    for item in (source[i] for i in range(len(source))):
        for crop in getattr(item, "crops", ()):
            pixels = crop.pixels.astype(np.float64) / 127.5 - 1
            height, width = (side // 8 for side in pixels.shape[:2])
            positions.append(pixels.reshape(height, 8, width, 8, 3).mean((1, 3)).reshape(-1, 3))
    everything = np.concatenate(positions)
    assert found.statistics.count == len(everything)
    np.testing.assert_allclose(found.statistics.mean.numpy(), everything.mean(0), atol=1e-6)
    np.testing.assert_allclose(found.statistics.std.numpy(), everything.std(0), atol=1e-6)
    np.testing.assert_allclose(found.statistics.global_std, everything.std(), atol=1e-6)


def test_batch_size_and_workers_change_nothing(photographs: Path, tiny_model: Path) -> None:
    model = load_autoencoder(str(tiny_model))
    whole = measure(model, photographs)
    for options in ({"batch_size": 1}, {"batch_size": 3, "workers": 2}):
        other = measure(model, photographs, **options)
        assert other.census.fingerprint() == whole.census.fingerprint(), "other crops"
        for a, b in zip(values(whole), values(other), strict=True):
            np.testing.assert_allclose(np.float64(b), np.float64(a), rtol=1e-4, atol=1e-6)


def test_standard_errors_are_the_spread_over_samples(tmp_path: Path) -> None:
    """Over many samples of images, means and deviations vary as much as the errors of one sample say.

    Images differ in brightness, so that all their positions move together; twice as many crops of one image tell
    nothing new of it.
    """
    random = np.random.default_rng(0)
    found = []
    for trial in range(40):
        folder = tmp_path / str(trial)
        folder.mkdir()
        for i, level in enumerate(random.uniform(20, 200, 25)):
            noise = random.integers(-15, 15, (40, 40, 3))
            Image.fromarray((level + noise).clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")
        found.append(measure(Means(), folder, batch_size=50))
    for name in ("mean", "std"):
        spread = np.std([getattr(m.statistics, name).numpy() for m in found], axis=0)
        stated = np.mean([getattr(m.errors, name) for m in found], axis=0)
        np.testing.assert_allclose(stated, spread, rtol=0.3, err_msg=f"the error of the {name} is not its spread")
        spread = np.std([getattr(m.statistics, f"global_{name}") for m in found])
        stated = np.mean([getattr(m.errors, f"global_{name}") for m in found])
        np.testing.assert_allclose(
            stated, spread, rtol=0.3, err_msg=f"the error of the global {name} is not its spread"
        )


def test_one_image_has_no_error_of_chance(photographs: Path) -> None:
    measured = measure(Means(), photographs, limit=1)
    found = as_dict(measured)
    assert found["channels"]["std_standard_error"] == [None] * 3, "a standard error from a single image"
    assert found["global"]["mean_standard_error"] is None
    assert "nan" not in as_text(measured)


def test_limit_draws_the_same_images_every_time(photographs: Path) -> None:
    """The first ones of a sorted folder are of one class; another sample each time is no protocol."""
    found = [measure(Means(), photographs, NATIVE, limit=4) for _ in range(2)]
    described = found[0].census.describe()
    assert described == found[1].census.describe()
    assert described["images"] + described["skipped_images"] == 4
    assert as_dict(found[0])["limit"] == 4
    whole = measure(Means(), photographs, NATIVE)
    assert measure(Means(), photographs, NATIVE, limit=99).census.fingerprint() == whole.census.fingerprint()
    first = measure(Means(), photographs, NATIVE, limit=1).census.fingerprint()
    alone = [measure(Means(), photographs, Protocol("t", "native", 8, seed=s), limit=1) for s in range(6)]
    assert any(m.census.fingerprint() != first for m in alone), "always the same image, whatever the seed"
    with pytest.raises(ValueError, match="expected a limit of at least 1 image, found 0"):
        measure(Means(), photographs, limit=0)


def test_what_cannot_be_measured(photographs: Path, tmp_path: Path) -> None:
    Image.fromarray(np.full((40, 40, 3), 255, np.uint8)).save(tmp_path / "white.png")
    with pytest.raises(ValueError, match=r"^means, .*white\.png#0: expected a finite latent, found NaN or infinity"):
        measure(Means(), tmp_path)
    for name in ("jpeg:2000", "bicubic:8"):
        with pytest.raises(ValueError, match="expected a model with a latent tensor, found none"):
            measure(load_autoencoder(name), photographs)
    (tmp_path / "white.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"expected usable images, found none: 1 skipped; .*white\.png"):
        measure(Means(), tmp_path)


def test_report(photographs: Path, tiny_model: Path) -> None:
    measured = measure(load_autoencoder(str(tiny_model)), photographs)
    found = json.loads(json.dumps(as_dict(measured), allow_nan=False))
    assert found["protocol"]["protocol"] == "test-random"
    assert found["model"]["kind"] == "AutoencoderSSDD"
    assert [len(found["channels"][k]) for k in found["channels"]] == [4] * 6
    text = as_text(measured)
    for part in (*found["config"], "all", "10 crops of 5 images", "2 skipped", measured.census.fingerprint()):
        assert part in text, f"{part} is not said"
    saved = {"scaling_factor": (0.18215, 0.5), "latents_mean": (None, [1.0, 2.0])}
    text = as_text(measured, saved)
    assert "scaling_factor      0.18215  ->  0.5" in text
    assert "latents_mean        none  ->  [1, 2]" in text


# ---- config.json ---------------------------------------------------------------------------------------------------


def config_folder(folder: Path, kind: str, **entries: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"_class_name": kind, **entries}))
    return folder


ENTRIES = {"scaling_factor": 0.5, "shift_factor": 0.25, "latents_mean": (1.0, 2.0), "latents_std": (3.0, 4.0)}


def test_save_keeps_everything_else(tmp_path: Path) -> None:
    before = {"zebra": 1, "scaling_factor": 0.18215, "act_fn": "silu", "shift_factor": None}
    folder = config_folder(tmp_path / "ours", "AutoencoderSSDD", **before)
    changes = save_statistics(saved_folder(str(folder)), ENTRIES)
    assert {name: before for name, (before, _) in changes.items()} == {
        "scaling_factor": 0.18215,
        "shift_factor": None,
        "latents_mean": None,
        "latents_std": None,
    }
    found = json.loads((folder / "config.json").read_text())
    names = ["_class_name", "zebra", "scaling_factor", "act_fn", "shift_factor", "latents_mean", "latents_std"]
    assert list(found) == names, "another order: the change cannot be read in a diff"
    assert (found["zebra"], found["act_fn"], found["latents_std"]) == (1, "silu", [3.0, 4.0])
    assert [p.name for p in folder.iterdir()] == ["config.json"], "a temporary file is left"


def test_what_is_saved_is_what_its_readers_make_of_it(tmp_path: Path) -> None:
    """Statistics by channel in a KL-VAE are applied on top of its scaling factor, and a pipeline's constants are not
    what was measured: the latents would be normalised twice."""
    folder = config_folder(tmp_path / "kl", "AutoencoderKL", latents_mean=[0.0, 0.0], latents_std=[1.0, 1.0])
    changes = save_statistics(folder, ENTRIES)
    found = json.loads((folder / "config.json").read_text())
    assert (found["scaling_factor"], found["shift_factor"]) == (0.5, 0.25)
    assert (found["latents_mean"], found["latents_std"]) == (None, None)
    assert changes["latents_std"] == ([1.0, 1.0], None)
    folder = config_folder(tmp_path / "ours", "AutoencoderSSDD", latents_convention="pipeline")
    save_statistics(folder, ENTRIES)
    assert json.loads((folder / "config.json").read_text())["latents_convention"] == "measured"


def test_where_statistics_can_be_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = config_folder(tmp_path / "run" / "model", "AutoencoderSSDD").parent
    vae = config_folder(tmp_path / "pipeline" / "vae", "AutoencoderKL").parent
    assert saved_folder(str(run)) == run / "model"
    assert saved_folder(str(vae)) == vae / "vae"
    tiny = config_folder(tmp_path / "tiny", "AutoencoderTiny")
    with pytest.raises(ValueError, match=r"expected AutoencoderSSDD or AutoencoderKL .* found AutoencoderTiny"):
        saved_folder(str(tiny))
    flux = config_folder(tmp_path / "flux", "AutoencoderSSDD", batch_norm_mean=[0.0] * 16)
    with pytest.raises(ValueError, match="expected a model without a batch norm"):
        saved_folder(str(flux))
    for name in ("ssdd-f8c4-demo", "somebody/model", "jpeg:2000"):
        with pytest.raises(ValueError, match=rf"^{name}: expected the folder of a model .* save_pretrained"):
            saved_folder(name)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(PermissionError, match="found one that is read-only"):
        saved_folder(str(run))
