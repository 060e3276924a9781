"""The KL-VAE on a given encoder, frozen or trained, and with a decoder of another width."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL

from ssdd import AutoencoderSSDD
from ssdd.nn.kl_baseline import AutoencoderKLBaseline
from ssdd.training.config import TrainConfig
from ssdd.training.loop import train
from tests.training.runs import compare, newest

Small = Callable[..., TrainConfig]
Model = Callable[[int], Path]

SHORT = ("--total-images", "8", "--loss.adversarial", "0", "--loss.adversarial-from-images", "0")


def first_convolution(model: Any) -> torch.Tensor:
    return model.encoder.conv_in.weight.detach()


@pytest.mark.parametrize("frozen", [True, False])
def test_encoder_of_a_model_of_ours(small: Small, small_model: Model, tmp_path: Path, frozen: bool) -> None:
    """The baseline on a shared encoder has another one, or trains the one that is to stay."""
    options = (*SHORT, "--encoder", str(small_model(0)), *(("--model.no-train-encoder",) if frozen else ()))
    vae = AutoencoderKL.from_pretrained(
        train(small(*options, recipe="tiny-kl-vae"), tmp_path / "run"), low_cpu_mem_usage=False
    )
    given = AutoencoderSSDD.from_pretrained(small_model(0))
    assert torch.equal(first_convolution(vae), first_convolution(given)) is frozen
    if frozen:
        x = torch.rand(2, 3, 16, 24) * 2 - 1
        with torch.no_grad():
            torch.testing.assert_close(vae.encode(x).latent_dist.mean, given.encode(x).latent_dist.mean)
        assert not any("encoder" in name for name in newest(tmp_path / "run")), "the frozen encoder is in checkpoints"


def test_decoder_of_another_width(small: Small, small_model: Model, tmp_path: Path) -> None:
    """A baseline of equal operations could not be trained, saved, loaded or trained on."""
    options = (*SHORT, "--encoder", str(small_model(0)), "--model.no-train-encoder", "--model.decoder-width", "16")
    folder = train(small(*options, recipe="tiny-kl-vae"), tmp_path / "run")
    wide = AutoencoderKLBaseline.from_pretrained(folder, low_cpu_mem_usage=False)
    assert wide.config.decoder_block_out_channels[0] == 16
    x = torch.rand(2, 3, 16, 24) * 2 - 1
    with torch.no_grad():
        latents = wide.encode(x).latent_dist.mode()
        assert wide.decode(latents).sample.shape == x.shape
        given = AutoencoderSSDD.from_pretrained(small_model(0))
        torch.testing.assert_close(latents, given.encode(x).latent_dist.mode())
    assert wide.config.scaling_factor != 1.0, "nobody measured the latents"
    again = (*SHORT, "--model.start-from", str(tmp_path / "run"), "--encoder", "None", "--optimizer.learning-rate", "0")
    folder = train(small(*again, recipe="tiny-kl-vae"), tmp_path / "again")
    same = AutoencoderKLBaseline.from_pretrained(folder, low_cpu_mem_usage=False)
    assert all(torch.equal(v, wide.state_dict()[k]) for k, v in same.state_dict().items())


def test_recomputed_activations_are_the_same(small: Small, tmp_path: Path) -> None:
    """The decoder cannot recompute, or its second pass is another one."""
    options = ("--total-images", "8", "--loss.adversarial-from-images", "0", "--data.resolution", "32")
    train(small(*options, recipe="tiny-kl-vae"), tmp_path / "kept")
    train(small(*options, "--recompute", recipe="tiny-kl-vae"), tmp_path / "recomputed")
    compare(tmp_path / "kept", tmp_path / "recomputed", 1e-4)


def test_own_code_is_refused(small: Small, tmp_path: Path) -> None:
    """The result could not be an AutoencoderKL."""
    (tmp_path / "mine.py").write_text(
        "class Mine:\n    spatial_factor, latent_channels = 4, 3\n    def encode(self, x): ...\n"
    )
    options = (*SHORT, "--encoder", f"{tmp_path}/mine.py:Mine", "--model.no-train-encoder")
    with pytest.raises(ValueError, match="expected an encoder of the KL-VAE's architecture"):
        train(small(*options, recipe="tiny-kl-vae"), tmp_path / "run")
