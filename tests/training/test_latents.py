"""The latents of somebody else's frozen encoder, whatever their scale, enter the decoder normalised."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ssdd import AutoencoderSSDD, flow
from ssdd.training import tokenizer
from ssdd.training.checkpoint import newest_checkpoint, read_checkpoint
from ssdd.training.config import TrainConfig
from ssdd.training.loop import train
from tests.evaluation.models import CONFIGS, model_class
from tests.training.runs import newest

Small = Callable[..., TrainConfig]

CODE = """
import torch

class Loud:
    spatial_factor, latent_channels = 4, 3

    def encode(self, x):
        return 40 * torch.nn.functional.avg_pool2d(x, 4) + 100
"""


@pytest.fixture(params=["AutoencoderKL", "AutoencoderKLFlux2", "AutoencoderKLQwenImage", "own code"])
def foreign(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The name of an encoder whose latents are tens of times larger than ours."""
    if request.param == "own code":
        (tmp_path / "loud.py").write_text(CODE)
        return f"{tmp_path}/loud.py:Loud"
    kl = {
        "block_out_channels": (32, 32, 32),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "layers_per_block": 2,
        "latent_channels": 4,
        "norm_num_groups": 8,
    }
    torch.manual_seed(0)
    vae = model_class(request.param)(**(CONFIGS[request.param] if request.param == "AutoencoderKLQwenImage" else kl))
    vae.quant_conv.weight.data *= 500
    vae.save_pretrained(tmp_path / "vae")
    return str(tmp_path / "vae")


@pytest.mark.slow
def test_foreign_latents_enter_normalised(
    foreign: str, small: Small, stopped: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decoder sees latents of another scale than it was made for, when it is trained, resumed or exported."""
    options = ("--encoder", foreign)
    run, recipe = tmp_path / "run", "tiny-pretraining"
    train(small(*options, recipe=recipe), tmp_path / "whole")
    stopped(run, *options, recipe=recipe)
    known = json.loads((run / "latents.json").read_text())
    monkeypatch.setattr(tokenizer, "LATENT_CROPS", None)  # measuring again would fail
    config = small(*options, recipe=recipe)
    ae = AutoencoderSSDD.from_pretrained(train(config, run))
    assert newest(run) == newest(tmp_path / "whole"), "it does not go on exactly"
    for name in ("mean", "std"):
        assert ae.config[f"decoder_latents_{name}"] == pytest.approx(known[f"latents_{name}"], rel=1e-6)

    stage = config.build_stage()
    encoder = stage.frozen["encoder"]
    x = torch.rand(4, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        z = encoder(x).chunk(2, dim=1)[0]
    assert float(z.abs().mean()) > 5, "this encoder is of no use here"
    if "batch_norm_var" in stage.statistics:
        assert ae.bn.running_var.eq(1).all(), "FLUX.2's pipelines do not find their batch norm"
    if ae.encoder is not None:
        torch.testing.assert_close(ae.encode(x).latent_dist.mode(), z, atol=1e-3, rtol=1e-4)  # raw, as ever

    # The model in training, and what is exported of it, make the same image.
    stage.normalize_latents(known["latents_mean"], known["latents_std"])
    folder = newest_checkpoint(run)
    assert folder is not None
    stage.model.load_state_dict(read_checkpoint(folder)[0]["average"])
    noise = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        expected = flow.euler_sample(lambda x_t, t: stage.model.decoder(x_t, t, z), noise, 2)
        torch.testing.assert_close(ae.decode(z, num_inference_steps=2, noise=noise).sample, expected)
        z_of_one = (z - torch.tensor(known["latents_mean"])[:, None, None]) / torch.tensor(known["latents_std"])[
            :, None, None
        ]
        stage.model.decoder.normalize_latents([0.0] * z.shape[1], [1.0] * z.shape[1])
        raw = flow.euler_sample(lambda x_t, t: stage.model.decoder(x_t, t, z_of_one), noise, 2)
    torch.testing.assert_close(raw, expected)


def test_our_latents_stay_raw(small: Small, small_model: Callable[[int], Path], tmp_path: Path) -> None:
    """A decoder for an encoder of ours is normalised by what a handful of crops say."""
    options = ("--encoder", str(small_model(0)), "--total-images", "4")
    ae = AutoencoderSSDD.from_pretrained(train(small(*options, recipe="tiny-pretraining"), tmp_path / "run"))
    assert not (tmp_path / "run" / "latents.json").exists()
    assert ae.config.decoder_latents_mean is None
    assert ae.decoder.latents_mean is None
