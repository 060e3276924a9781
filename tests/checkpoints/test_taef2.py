"""The encoder inside the package: found by its name, and by the digest in the config of a model that decodes it."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from ssdd import AutoencoderSSDD
from ssdd.checkpoints.config import read_config
from ssdd.checkpoints.embedded import TAEF2, TAEF2_SHA256, embedded_folder, embedded_names
from ssdd.checkpoints.encoders import encoder_digest, load_encoder_of
from ssdd.checkpoints.layout import CheckpointError
from ssdd.data.pixels import image_to_tensor
from ssdd.training.config import ModelConfig
from ssdd.training.starting import start_flow

from ..images import photo


@pytest.fixture
def decoder(tmp_path: Path) -> Path:
    """Folder of a model without an encoder, of these latents."""
    model = AutoencoderSSDD.from_preset("f8c32", "XXS", has_encoder=False, encoder_sha256=TAEF2_SHA256)
    model.save_pretrained(tmp_path / "decoder")
    return tmp_path / "decoder"


def test_the_encoder_itself() -> None:
    """Its digest is what finds it; its licence travels with it; it is no model that decodes."""
    encoder, folder = load_encoder_of(TAEF2), embedded_folder(TAEF2)
    assert folder is not None
    assert encoder_digest(encoder) == TAEF2_SHA256
    assert "Copyright (c) 2023 Ollin Boer Bohan" in (folder / "LICENSE").read_text()
    assert TAEF2 not in embedded_names()
    with pytest.raises(CheckpointError, match="taef2: expected an AutoencoderSSDD, found TAEF2Encoder"):
        AutoencoderSSDD.from_pretrained(folder)
    z = encoder(image_to_tensor(photo(64, 48))[None])[:, :32]
    assert z.shape == (1, 32, 8, 6)
    assert 0.3 < float(z.std()) < 1.5, "the statistics in its config are of other latents"


def test_a_model_that_decodes_its_latents_has_it(decoder: Path) -> None:
    """It only decoded, until its user had found an encoder that this package has."""
    ae, x = AutoencoderSSDD.from_pretrained(decoder), image_to_tensor(photo(64, 48))[None]
    with torch.no_grad():
        z: Tensor = ae.encode(x).latent_dist.mode()
        torch.testing.assert_close(z, load_encoder_of(TAEF2)(x)[:, :32])
        assert ae.decode(z).sample.shape == x.shape
    assert not any(name.startswith("encoder") for name in ae.state_dict())


def test_training_on_it() -> None:
    """Its latents come with the batch norm of FLUX.2's pipelines, and enter the decoder normalised."""
    start = start_flow(ModelConfig(encoder=TAEF2, decoder="XXS", train_encoder=False), train_encoder=False)
    assert start.normalize
    stated = start.encoder.statistics
    assert {len(stated["batch_norm_mean"]), len(stated["batch_norm_var"])} == {128}
    folder = embedded_folder(TAEF2)
    assert folder is not None
    assert stated["batch_norm_var"] == tuple(read_config(folder)["batch_norm_var"])
