"""The encoder of a diffusers KL-VAE under our names computes the same posterior."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from ssdd.checkpoints.kl_vae import read_kl_encoder
from ssdd.checkpoints.layout import CheckpointError
from ssdd.nn.encoder import Encoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=2,
        latent_channels=6,
    )
    path = tmp_path_factory.mktemp("vae")
    vae.save_pretrained(path)
    return path


def test_same_posterior(folder: Path) -> None:
    """A tensor under a wrong name, or an encoder that computes something else than diffusers'."""
    read = read_kl_encoder(folder)
    encoder = Encoder(read.size)
    encoder.load_state_dict(read.state)
    x = torch.rand(2, 3, 32, 48) * 2 - 1
    with torch.no_grad():
        expected = AutoencoderKL.from_pretrained(folder, low_cpu_mem_usage=False).encode(x).latent_dist.parameters
        torch.testing.assert_close(encoder(x), expected, atol=1e-5, rtol=1e-5)


def test_other_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"found no config\.json"):
        read_kl_encoder(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderTiny"}')
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="expected an AutoencoderKL, found AutoencoderTiny"):
        read_kl_encoder(tmp_path)
