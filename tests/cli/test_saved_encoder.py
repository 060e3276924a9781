"""``--encoder``: a decoder on the encoder of another class of diffusers, or of a single file, trained and used."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ssdd import AutoencoderSSDD
from ssdd.checkpoints.embedded import TAEF2, TAEF2_SHA256
from ssdd.checkpoints.encoders import encoder_digest, find_encoder
from ssdd.checkpoints.own_code import ForeignEncoder
from ssdd.checkpoints.taef2 import TAEF2Encoder
from ssdd.data.images import read_image
from ssdd.data.pixels import image_to_tensor
from ssdd.tokenization import LatentDataset
from tests.cli.test_own_encoder import EVALUATION, HERE, TOKENS
from tests.evaluation.models import CONFIGS, model_class
from tests.evaluation.test_autoencoders import to_ldm
from tests.pipelines.components import kl_vae
from tests.training.runs import SMALL, in_processes

Ssdd = Callable[..., Any]


def qwen(folder: Path) -> Any:
    """Save a small AutoencoderKLQwenImage with random weights; return it."""
    torch.manual_seed(0)
    model = model_class("AutoencoderKLQwenImage")(**CONFIGS["AutoencoderKLQwenImage"]).eval().requires_grad_(False)
    model.save_pretrained(folder)
    return model


def check_commands(
    ssdd: Ssdd, photos: Path, encoder: str, model: str, expected: Callable[..., torch.Tensor], found: bool = False
) -> None:
    """Run every command that encodes with this encoder on a model that only decodes; compare the latents.

    found: the encoder is found without being named.
    """
    here, named = photos.parent, () if found else ("--encoder", encoder)
    for command in (
        ("encode", "photos", "--out", "latents", "--model", model, *named, *HERE),
        ("decode", "latents", "--out", "decoded", "--model", model, *HERE),
        ("reconstruct", "photos", "--out", "images", "--model", model, *named, *HERE),
        ("statistics", model, *named, *EVALUATION),
        ("tokenize", *TOKENS, "--out", "tokens", "--model", model, *named),
        ("decode", "tokens", "--out", "of-tokens", "--model", model, *HERE),
        ("evaluate", model, "bicubic:4", *named, "--out", "out", *EVALUATION),
    ):
        result = ssdd(*command)
        assert result.status == 0, (command[0], result.err)
    mean = load_file(here / "latents" / "0.safetensors")["mean"]
    pixels = image_to_tensor(read_image(photos / "0.png"))[None]
    torch.testing.assert_close(mean, expected(pixels)[0], atol=1e-5, rtol=1e-5)
    assert (read_image(here / "images" / "0.png") == read_image(here / "decoded" / "0.png")).all()
    read = find_encoder(encoder)
    digest = encoder_digest(read.build() if not isinstance(read, torch.nn.Module) else ForeignEncoder(read, encoder))
    tokens = LatentDataset(here / "tokens").manifest["model"]
    assert (tokens.get("encoder"), tokens["encoder_sha256"]) == (None if found else encoder, digest)
    rows = json.loads((here / "out" / "evaluation.json").read_text())["rows"]
    assert rows[0]["model"]["sha256"][encoder] == digest


@pytest.mark.slow
def test_another_class(ssdd: Ssdd, photos: Path, tmp_path: Path) -> None:
    """Somebody's decoder on Qwen-Image's encoder could not be trained, or its latents could not be stored."""
    vae = qwen(tmp_path / "qwen")
    data = ("--data.paths", "photos", "--encoder", "qwen")
    ended = in_processes(["train", "tiny-pretraining", "--out", "run", *data, *SMALL], 1)
    assert ended.statuses == [0], ended.output
    config = AutoencoderSSDD.from_pretrained(tmp_path / "run" / "model").config
    assert (config.has_encoder, config.latent_channels, config.latents_convention) == (False, 6, "pipeline")
    assert config.decoder_latents_std is not None, "the decoder has to learn the scale"
    check_commands(ssdd, photos, "qwen", "run", lambda x: vae.encode(x[:, :, None]).latent_dist.mean[:, :, 0])


def test_its_own_latents(ssdd: Ssdd, photos: Path, tmp_path: Path) -> None:
    """Latents of a class of diffusers are stored, and decoded by the model that made them."""
    qwen(tmp_path / "qwen")
    assert ssdd("tokenize", *TOKENS, "--out", "tokens", "--model", "qwen").status == 0
    decoded = ssdd("decode", "tokens", "--out", "images", *HERE)
    assert decoded.status == 0, decoded.err
    assert len(list((tmp_path / "images").iterdir())) == 2


def test_a_single_file(ssdd: Ssdd, photos: Path, tmp_path: Path) -> None:
    """The file of a whole Stable Diffusion is an encoder to train on, and one for a decoder without."""
    vae = kl_vae()
    state = {f"first_stage_model.{name}": t.contiguous() for name, t in to_ldm(vae.state_dict(), 3).items()}
    save_file(state | {"model.diffusion_model.out.weight": torch.zeros(1)}, tmp_path / "sd.safetensors")
    data = ("--data.paths", "photos", "--encoder", "sd.safetensors")
    ended = in_processes(["train", "tiny-pretraining", "--out", "run", *data, *SMALL], 1)
    assert ended.statuses == [0], ended.output
    ae = AutoencoderSSDD.from_pretrained(tmp_path / "run" / "model").requires_grad_(False)
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(ae.encode(x).latent_dist.mean, vae.encode(x).latent_dist.mean, atol=1e-5, rtol=1e-5)
    assert (ae.config.latents_convention, ae.config.force_upcast) == ("measured", True)
    assert ae.config.latents_std is not None, "nobody knows the scale"
    assert ae.config.decoder_latents_std is not None

    torch.manual_seed(0)
    alone = AutoencoderSSDD.from_preset("f4c4", "XXS", has_encoder=False, sample_size=64)
    alone.save_pretrained(tmp_path / "decoder")
    check_commands(ssdd, photos, "sd.safetensors", "decoder", lambda x: vae.encode(x).latent_dist.mean)


def test_the_one_in_the_package(ssdd: Ssdd, photos: Path, tmp_path: Path) -> None:
    """Its user would have to name it for each command, although the decoder's config says which it is."""
    torch.manual_seed(0)
    model = AutoencoderSSDD.from_preset("f8c32", "XXS", has_encoder=False, encoder_sha256=TAEF2_SHA256, sample_size=64)
    model.save_pretrained(tmp_path / "flux2")
    check_commands(ssdd, photos, TAEF2, "flux2", TAEF2Encoder().encode, found=True)
