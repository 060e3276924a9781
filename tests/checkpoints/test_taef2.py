"""The encoder inside the package: found by its name, and by the digest in the config of a model that decodes it."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from ssdd import AutoencoderSSDD
from ssdd.checkpoints.embedded import TAEF2, TAEF2_FOLDER, TAEF2_SHA256
from ssdd.checkpoints.encoders import encoder_digest
from ssdd.checkpoints.own_code import ForeignEncoder
from ssdd.checkpoints.taef2 import TAEF2Encoder
from ssdd.data.pixels import image_to_tensor
from ssdd.training.config import ModelConfig, TeacherConfig
from ssdd.training.starting import start_flow

from ..images import photo


@pytest.fixture
def decoder(tmp_path: Path) -> Path:
    """Folder of a model without an encoder, of these latents."""
    model = AutoencoderSSDD.from_preset("f8c32", "XXS", has_encoder=False, encoder_sha256=TAEF2_SHA256)
    model.save_pretrained(tmp_path / "decoder")
    return tmp_path / "decoder"


def test_the_encoder_itself() -> None:
    """Its digest is what finds it, its licence travels with it, and its latents are normalised already."""
    encoder = ForeignEncoder(TAEF2Encoder(), TAEF2)
    assert encoder_digest(encoder) == TAEF2_SHA256
    assert "Copyright (c) 2023 Ollin Boer Bohan" in (TAEF2_FOLDER / "LICENSE").read_text()
    z = encoder(image_to_tensor(photo(64, 48))[None])[:, :32]
    assert z.shape == (1, 32, 8, 6)
    assert 0.3 < float(z.std()) < 1.5


def test_a_model_that_decodes_its_latents_has_it(
    decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It only decoded, until its user had found an encoder that this package has."""
    (tmp_path / TAEF2).mkdir()  # a folder of this name is not it
    monkeypatch.chdir(tmp_path)
    ae, x = AutoencoderSSDD.from_pretrained(decoder), image_to_tensor(photo(64, 48))[None]
    with torch.no_grad():
        z: Tensor = ae.encode(x).latent_dist.mode()
        torch.testing.assert_close(z, TAEF2Encoder().encode(x))
        assert ae.decode(z).sample.shape == x.shape
    assert not any(name.startswith("encoder") for name in ae.state_dict())


def test_training_on_it(decoder: Path) -> None:
    """The batch norm of FLUX.2's pipelines has been applied; a decoder of these latents is trained further on them."""
    start = start_flow(ModelConfig(encoder=TAEF2, decoder="XXS", train_encoder=False), train_encoder=False)
    assert start.normalize
    config = AutoencoderSSDD(**start.encoder_config(), **start.encoder.statistics).config
    z = torch.randn(1, 32, 4, 6)
    torch.testing.assert_close(AutoencoderSSDD(**config).normalize_latents(z), z)
    again = start_flow(TeacherConfig(start_from=str(decoder)), train_encoder=False)
    assert again.given is again.decoder, "what it has learned was thrown away"
    assert again.encoder.module.latent_channels == 32
