"""``--encoder``: the five commands that encode, on a model that was trained on a user's own encoder."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ssdd import AutoencoderSSDD
from ssdd.checkpoints.encoders import encoder_digest
from ssdd.checkpoints.own_code import OWN_ENCODER, load_own_encoder, save_own_encoder
from ssdd.data.images import read_image
from ssdd.data.pixels import image_to_tensor
from ssdd.tokenization import LatentDataset
from tests.training.runs import SMALL, in_processes

Ssdd = Callable[..., Any]

CODE = """
import torch
from torch import nn


class Encoder(nn.Module):
    spatial_factor, latent_channels = 8, 4

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 8, stride=8)
        with torch.no_grad():
            self.conv.weight.copy_(torch.arange(4.0)[:, None, None, None].expand(4, 3, 8, 8) / 192)
            self.conv.bias.zero_()

    def encode(self, x):
        return self.conv(x)


class Coarse(Encoder):
    spatial_factor = 16


class Wide(Encoder):
    latent_channels = 6
"""
OWN = "mine.py:Encoder"
HERE = ("--device", "cpu")
EVALUATION = ("--data", "photos", "--protocol", "paper-128-v1", "--workers", "0", "--device", "cpu")
TOKENS = ("photos", "--size", "32", "--processes", "1", "--workers", "0", "--device", "cpu")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run whose result only decodes, and the user's code."""
    (tmp_path / "mine.py").write_text(CODE)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoencoderSSDD.from_preset("f8c4", "XXS", has_encoder=False, sample_size=64)
    model.save_pretrained(tmp_path / "run" / "model")
    return tmp_path / "run"


def train_encoder(run: Path) -> None:
    """Put weights of a trained encoder beside the decoder."""
    encoder = load_own_encoder(OWN, run)
    with torch.no_grad():
        encoder.source.conv.bias.add_(1.0)
    save_own_encoder(encoder, run / "model")


def own_latent(photo: Path, bias: float) -> torch.Tensor:
    """What the user's encoder makes of a photograph (4, h, w), by its definition."""
    cells = torch.nn.functional.avg_pool2d(image_to_tensor(read_image(photo)), 8).sum(0)
    return torch.arange(4.0)[:, None, None] / 3 * cells + bias


@pytest.mark.parametrize("bias", [0.0, 1.0], ids=["as the code makes it", "trained"])
def test_encode_and_reconstruct(ssdd: Ssdd, photos: Path, run: Path, tmp_path: Path, bias: float) -> None:
    """The result of a training on own code could not be used, or with weights that were not trained."""
    if bias:
        train_encoder(run)
    result = ssdd("encode", photos, "--out", "latents", "--model", run, "--encoder", OWN, *HERE)
    assert result.status == 0, result.err
    for i in range(2):
        mean = load_file(tmp_path / "latents" / f"{i}.safetensors")["mean"]
        torch.testing.assert_close(mean, own_latent(photos / f"{i}.png", bias), atol=1e-5, rtol=1e-5)
    result = ssdd("decode", "latents", "--out", "decoded", "--model", run, *HERE)
    assert result.status == 0, result.err
    result = ssdd("reconstruct", photos, "--out", "out", "--model", run, "--encoder", OWN, *HERE)
    assert result.status == 0, result.err
    assert (read_image(tmp_path / "out" / "0.png") == read_image(tmp_path / "decoded" / "0.png")).all()
    with (tmp_path / "out" / "metrics.csv").open() as file:
        assert [row["image"] for row in csv.DictReader(file)] == ["0.png", "1.png"]


@pytest.mark.parametrize("bias", [0.0, 1.0], ids=["as the code makes it", "trained"])
def test_statistics(ssdd: Ssdd, photos: Path, run: Path, bias: float) -> None:
    """A generative model on the latents of own code has no constants to normalise them by."""
    if bias:
        train_encoder(run)
    result = ssdd("statistics", run, "--encoder", OWN, "--save", *EVALUATION)
    assert result.status == 0, result.err
    config = json.loads((run / "model" / "config.json").read_text())
    assert config["latents_mean"][0] == pytest.approx(bias, abs=1e-6), "channel 0 is the bias alone"


def test_tokenize(ssdd: Ssdd, photos: Path, run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Latents of own code could not be stored, or shards of two encoders would be taken for one set."""
    command = ("tokenize", *TOKENS, "--model", run, "--encoder", OWN)
    assert ssdd(*command, "--out", "latents").status == 0
    first = LatentDataset(tmp_path / "latents")
    assert first.manifest["model"]["encoder"] == OWN
    assert first[0]["mean"][0].abs().max() == 0, "channel 0 is the bias alone"
    assert "(0 made now, 1 there before)" in ssdd(*command, "--out", "latents").out
    assert ssdd("tokenize", "verify", "latents").status == 0

    train_encoder(run)
    assert "was begun with other settings: model.encoder_sha256" in ssdd(*command, "--out", "latents").error_line()
    assert ssdd(*command, "--out", "trained").status == 0
    second = LatentDataset(tmp_path / "trained")
    assert second[0]["mean"][0].eq(1).all(), "not the trained weights"
    (tmp_path / "mine.py").write_text(CODE + "# changed\n")
    assert "model.encoder_sha256" in ssdd(*command, "--out", "trained").error_line()

    (tmp_path / "mine.py").write_text("raise RuntimeError('code was run for a manifest')\n")
    decoded = ssdd("decode", "trained", "--out", "images", *HERE)
    assert decoded.status == 0, decoded.err
    assert "unchecked" in caplog.text, "this model does not say whose latents it decodes"
    assert len(list((tmp_path / "images").iterdir())) == 2


@pytest.mark.parametrize("bias", [0.0, 1.0], ids=["as the code makes it", "trained"])
def test_evaluate(ssdd: Ssdd, photos: Path, run: Path, tiny_model: Path, tmp_path: Path, bias: float) -> None:
    """A decoder on own code could not be compared with other models, or its encoder is not in the record."""
    if bias:
        train_encoder(run)
    result = ssdd("evaluate", run, tiny_model, "bicubic:8", "--encoder", OWN, "--out", "out", *EVALUATION)
    assert result.status == 0, result.err
    rows = json.loads((tmp_path / "out" / "evaluation.json").read_text())["rows"]
    assert [row["model"].get("encoder") for row in rows] == [OWN, None, None]
    assert rows[0]["model"]["sha256"][OWN] == encoder_digest(load_own_encoder(OWN, run / "model"))
    decoder = sum(t.numel() for t in load_file(run / "model" / "diffusion_pytorch_model.safetensors").values())
    assert round(1e6 * rows[0]["costs"]["parameters"]) == decoder + 4 * 3 * 64 + 4


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["tiny-encoder", "tiny-pretraining"], ids=["trained", "frozen"])
def test_after_a_training(ssdd: Ssdd, photos: Path, tmp_path: Path, recipe: str) -> None:
    """What a training on own code leaves is not what the commands read."""
    (tmp_path / "mine.py").write_text(CODE)
    data = ("--data.paths", "photos", "--encoder", OWN)
    ended = in_processes(["train", recipe, "--out", "run", *data, *SMALL], 1)
    assert ended.statuses == [0], ended.output
    model = tmp_path / "run" / "model"
    assert (model / OWN_ENCODER).is_file() == (recipe == "tiny-encoder")
    result = ssdd("encode", photos, "--out", "latents", "--model", "run", "--encoder", OWN, *HERE)
    assert result.status == 0, result.err
    mean = load_file(tmp_path / "latents" / "0.safetensors")["mean"]
    pixels = image_to_tensor(read_image(photos / "0.png"))[None]
    expected = load_own_encoder(OWN, model)(pixels)[0, :4]
    torch.testing.assert_close(mean, expected)
    unchanged = torch.allclose(mean, own_latent(photos / "0.png", 0.0), atol=1e-5)
    assert unchanged == (recipe == "tiny-pretraining")


def commands(model: object, *encoder: str) -> list[tuple[object, ...]]:
    """Each of the five commands on a model."""
    return [
        ("encode", "photos", "--out", "x", "--model", model, *encoder, *HERE),
        ("reconstruct", "photos", "--out", "x", "--model", model, *encoder, *HERE),
        ("statistics", model, *encoder, *EVALUATION),
        ("tokenize", *TOKENS, "--out", "x", "--model", model, *encoder),
        ("evaluate", model, *encoder, *EVALUATION),
    ]


@pytest.mark.slow
def test_a_wrong_encoder_or_none(ssdd: Ssdd, photos: Path, run: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Latents of another layout would be decoded to noise, or an option would be ignored in silence."""
    for encoder, expected in (
        (("--encoder", "mine.py:Coarse"), f"mine.py:Coarse: expected an encoder of f8c4 for {run}, found f16c4"),
        (("--encoder", "mine.py:Wide"), f"mine.py:Wide: expected an encoder of f8c4 for {run}, found f8c6"),
        (("--encoder", "no-such"), "no-such: expected code of yours (file.py:NAME), a single file of "),
        ((), f"{run}: expected a model with an encoder, found one that only decodes: pass --encoder"),
    ):
        for command in commands(run, *encoder):
            assert expected in ssdd(*command).error_line(), command[0]
    for command in commands(tiny_model, "--encoder", OWN):
        line = ssdd(*command).error_line()
        assert "expected a model without an encoder for --encoder, found" in line, command[0]
        assert tiny_model.name in line, command[0]
    assert not (tmp_path / "x").exists()


def test_an_encoder_of_ours(ssdd: Ssdd, photos: Path, run: Path, tiny_model: Path, tmp_path: Path) -> None:
    """A decoder without encoder, as the authors' files can be, could not be used with the encoder that it is for."""
    for model, out in ((run, "a"), (tiny_model, "b")):
        encoder = ("--encoder", tiny_model) if model is run else ()
        assert ssdd("encode", photos, "--out", out, "--model", model, *encoder, *HERE).status == 0
    mean = [load_file(tmp_path / out / "0.safetensors")["mean"] for out in "ab"]
    torch.testing.assert_close(*mean)
    result = ssdd("tokenize", *TOKENS, "--out", "latents", "--model", run, "--encoder", tiny_model)
    assert result.status == 0, result.err
    again = ssdd("tokenize", *TOKENS, "--out", "latents", "--model", tiny_model)
    assert "(0 made now, 1 there before)" in again.out, "the same encoder has another digest"
