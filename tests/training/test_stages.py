"""What each stage minimises, and what of it is trained and saved."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from ssdd import AutoencoderSSDD
from ssdd.objectives.perceptual import backbone_path
from ssdd.training.config import TrainConfig
from ssdd.training.loop import train
from ssdd.training.random import BatchRandom
from ssdd.training.stages.flow import TrainingPoint
from tests.training.runs import newest, stats

Small = Callable[..., TrainConfig]

squeeze = pytest.mark.skipif(not backbone_path("squeeze").is_file(), reason="needs LPIPS' SqueezeNet in TORCH_HOME")


def draws(count: int) -> BatchRandom:
    return BatchRandom(0, 0, count, torch.device("cpu"))


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small random DINOv2."""
    transformers = pytest.importorskip("transformers", reason="REPA needs transformers")
    folder = tmp_path_factory.mktemp("dino")
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    transformers.Dinov2Model(config).save_pretrained(folder)
    return folder


def test_flow_loss_is_the_papers(small: Small) -> None:
    """L = mean (v - v_hat)^2 + 1e-6 KL at t = sigmoid(n), with z drawn from the posterior."""
    torch.manual_seed(0)
    stage = small().build_stage()
    images = torch.rand(3, 3, 16, 16) * 2 - 1
    found = stage.losses(stage.model, images, draws(3), seen=0)
    random, model = draws(3), stage.model
    t, noise, posterior_noise = torch.sigmoid(random.normal()), random.normal(3, 16, 16), random.normal(4, 4, 4)
    with torch.no_grad():
        mean, logvar = model.encoder(images).chunk(2, dim=1)
        z = mean + (0.5 * logvar).exp() * posterior_noise
        s = t[:, None, None, None]
        velocity = model.decoder((1 - s) * images + s * noise, t, z)
        flow = (images - noise - velocity).square().mean()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(dim=(1, 2, 3)).mean()
    torch.testing.assert_close(found.terms["flow"].detach(), flow)
    torch.testing.assert_close(found.terms["kl"].detach(), kl)
    torch.testing.assert_close(found.total.detach(), flow + 1e-6 * kl)


@squeeze
def test_lpips_compares_with_the_predicted_image_at_every_time(small: Small) -> None:
    stage = small("--loss.lpips", "0.5", "--loss.no-lpips-shift", "--data.resolution", "32").build_stage()
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    found = stage.losses(stage.model, images, draws(2), seen=0)
    random = draws(2)
    t, noise, posterior_noise = torch.sigmoid(random.normal()), random.normal(3, 32, 32), random.normal(4, 8, 8)
    with torch.no_grad():
        out = stage.model(images, None, TrainingPoint(images, t, noise, posterior_noise))
        predicted = out.x_t + t[:, None, None, None] * out.velocity
        expected = stage.frozen["images"].networks["lpips"](predicted, images).mean()
    torch.testing.assert_close(found.terms["lpips"].detach(), expected)
    total = found.terms["flow"] + 0.5 * expected + 1e-6 * found.terms["kl"]
    torch.testing.assert_close(found.total.detach(), total.detach())


def test_repa_trains_the_decoder_and_its_projection(small: Small, dino: Path, tmp_path: Path) -> None:
    """The features' network must stay frozen and out of checkpoints; the projection is trained, not exported."""
    config = small("--loss.repa", "0.25", "--loss.repa-network", str(dino), "--total-images", "8")
    stage = config.build_stage()
    before = {n: p.clone() for n, p in stage.frozen["features"].state_dict().items()}
    images = torch.rand(2, 3, 16, 24) * 2 - 1  # 2 x 3 tokens
    found = stage.losses(stage.model, images, draws(2), seen=0)
    assert 0 < float(found.terms["repa"].detach()) < 2
    total = found.terms["flow"] + 0.25 * found.terms["repa"] + 1e-6 * found.terms["kl"]
    torch.testing.assert_close(found.total, total)
    found.terms["repa"].backward()
    projection, first = stage.model.projection, stage.model.decoder.conv_in.weight
    assert all(p.grad.abs().sum() > 0 for p in projection.parameters())
    assert first.grad.abs().sum() > 0, "no gradient reaches the decoder"
    last = stage.model.decoder.middle.blocks[-1].attention.out.weight
    assert last.grad is None, "features of a later block than min(4, L / 2) are taken"
    assert all(p.grad is None for p in stage.frozen["features"].parameters())

    model = train(config, tmp_path / "run")
    names = newest(tmp_path / "run").keys()
    assert any("projection" in n for n in names), "a resumed run would begin with a random projection"
    assert not any("features" in n or "net." in n for n in names), "the frozen network is in the checkpoint"
    assert not any("projection" in n for n in AutoencoderSSDD.from_pretrained(model).state_dict())
    assert before.keys() == stage.frozen["features"].state_dict().keys()


@pytest.mark.parametrize("recipe", ["tiny-encoder", "tiny-kl-vae"])
def test_adversarial_loss_comes_in_when_it_is_time(small: Small, tmp_path: Path, recipe: str) -> None:
    """It is on from the start, never, or the discriminator does not learn."""
    options = ("--loss.adversarial", "0.5", "--loss.adversarial-from-images", "8", "--data.resolution", "32")
    train(small(*options, "--log.stats-images", "4", recipe=recipe), tmp_path / "run")
    lines = stats(tmp_path / "run")
    assert [("discriminator" in line) for line in lines] == [False, False, True, True, True, True]
    assert [("adversarial" in line) for line in lines] == [False, False, True, True, True, True]
    assert lines[2]["discriminator"] != lines[-1]["discriminator"]
    names = newest(tmp_path / "run").keys()
    assert any(n.startswith("adversary_optimizer") for n in names), "a resumed discriminator would begin anew"
    if recipe == "tiny-kl-vae":
        assert all(line["adaptive"] > 0 for line in lines[2:]), "no adaptive weight"


def test_generator_pass_leaves_the_discriminator_alone(small: Small) -> None:
    """The generator's loss would teach the discriminator to be fooled."""
    stage = small("--loss.adversarial", "0.5", "--data.resolution", "32", recipe="tiny-kl-vae").build_stage()
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    found = stage.losses(stage.model, images, draws(2), seen=3200)
    found.total.backward()
    assert all(p.grad is None for p in stage.adversary.parameters())
    assert found.discriminator_inputs is not None
    assert not found.discriminator_inputs.fake.requires_grad


def test_adversarial_term_pulls_as_hard_as_the_regression(small: Small) -> None:
    """The adaptive weight: equal gradients at the output layer, before the constant weight."""
    torch.manual_seed(0)
    stage = small("--loss.adversarial", "1", "--data.resolution", "32", recipe="tiny-kl-vae").build_stage()
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    found = stage.losses(stage.model, images, draws(2), seen=3200)
    output = stage.model.decoder.conv_out.weight
    pulls = [
        torch.autograd.grad(loss, output, retain_graph=True)[0].norm()
        for loss in (found.terms["l1"], found.terms["adaptive"] * found.terms["adversarial"])
    ]
    assert float(pulls[1]) == pytest.approx(float(pulls[0]), rel=0.02)


def test_frozen_encoder_gets_no_gradient_and_no_update(small: Small, tmp_path: Path) -> None:
    train(small("--total-images", "4"), tmp_path / "first")
    stage = small("--encoder", str(tmp_path / "first"), recipe="tiny-pretraining").build_stage()
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    found = stage.losses(stage.model, images, draws(2), seen=0)
    found.total.backward()
    assert "kl" not in found.terms, "a frozen encoder has no KL to pay"
    assert all(p.grad is None for p in stage.frozen["encoder"].parameters())
    assert not stage.frozen["encoder"].training
    assert stage.statistics.keys() == {"scaling_factor", "shift_factor", "latents_mean", "latents_std"}


class Pooling:
    """A user's own encoder: 4 x 4 means, three channels."""

    spatial_factor = 4
    latent_channels = 3

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.avg_pool2d(x, 4)


@pytest.mark.slow
def test_decoder_for_a_users_own_encoder(small: Small, photographs: Path, tmp_path: Path) -> None:
    """Its latents are measured; the result decodes them without the encoder; it can be fine-tuned again."""
    code = tmp_path / "mine.py"
    code.write_text(
        "import torch\n\nclass Pooling:\n    spatial_factor, latent_channels = 4, 3\n\n"
        "    def encode(self, x):\n        return torch.nn.functional.avg_pool2d(x, 4)\n"
    )
    options = ("--encoder", f"{code}:Pooling", "--validation.paths", str(photographs), "--validation.count", "2")
    model = train(small(*options, recipe="tiny-pretraining"), tmp_path / "run")
    ae = AutoencoderSSDD.from_pretrained(model)
    assert ae.encoder is None
    assert ae.spatial_factor == 4
    assert len(ae.config.latents_std) == 3, "nobody measured the latents"
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    assert ae.decode(Pooling().encode(x)).sample.shape == x.shape
    again = ("--model.start-from", str(tmp_path / "run"), "--encoder")
    train(small(*again, f"{code}:Pooling", recipe="tiny-finetuning"), tmp_path / "again")
    with pytest.raises(ValueError, match="has no encoder of its own: pass --encoder"):
        train(small(*again, "f4c4", recipe="tiny-finetuning"), tmp_path / "wrong")
    with pytest.raises(ValueError, match=r"expected an nn\.Module with parameters that require gradients to train"):
        train(small(*options), tmp_path / "wrong")


def test_decoder_for_a_kl_vae_keeps_its_scaling(small: Small, tmp_path: Path) -> None:
    """A drop-in decoder: the encoder and the constants that pipelines use are the KL-VAE's own."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=2,
        latent_channels=4,
        scaling_factor=0.13025,
        shift_factor=0.25,
    )
    vae.save_pretrained(tmp_path / "vae")
    options = ("--encoder", str(tmp_path / "vae"), "--total-images", "8")
    ae = AutoencoderSSDD.from_pretrained(train(small(*options, recipe="tiny-pretraining"), tmp_path / "run"))
    assert (ae.config.scaling_factor, ae.config.shift_factor) == (0.13025, 0.25)
    x = torch.rand(1, 3, 16, 24) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(ae.encode(x).latent_dist.parameters, vae.encode(x).latent_dist.parameters)
