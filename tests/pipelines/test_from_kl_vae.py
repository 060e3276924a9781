"""An SSDD decoder for the latents of a pipeline that exists: encoder and constants are the KL-VAE's."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import retrieve_latents
from PIL import Image
from safetensors.torch import load_file, save_file

from ssdd import AutoencoderSSDD
from ssdd.checkpoints.identity import identify
from ssdd.checkpoints.layout import CheckpointError
from ssdd.checkpoints.names import DIFFUSERS_ENCODER, rename
from ssdd.training.encoders import choose_encoder
from tests.pipelines.components import BATCH_NORM, build, flux2_vae, generate, kl_vae

X = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1


FLUX = {
    "latent_channels": 16,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "force_upcast": True,
}
SDXL = {
    "scaling_factor": 0.5,
    "latents_mean": (0.1, -0.2, 0.3, 0.8),
    "latents_std": (1.0, 2.0, 0.5, 3.0),
    "force_upcast": False,
}


@pytest.mark.parametrize("source", ["object", "folder", "pipeline"])
@pytest.mark.parametrize("config", [{}, FLUX, SDXL], ids=["SD", "FLUX", "SDXL"])
def test_same_encoder_and_constants(config: dict[str, Any], source: str, tmp_path: Path) -> None:
    vae = kl_vae(**config)
    if source != "object":
        vae.save_pretrained(tmp_path / "vae")
    given = {"object": vae, "folder": tmp_path / "vae", "pipeline": str(tmp_path)}[source]
    ae = AutoencoderSSDD.from_kl_vae(given, decoder="XXS").requires_grad_(False)
    for name in ("scaling_factor", "latents_mean", "latents_std", "latent_channels", "force_upcast"):
        assert ae.config[name] == vae.config[name], name
    assert ae.config.shift_factor == (vae.config.shift_factor or 0.0)
    ours, theirs = ae.encode(X).latent_dist, vae.encode(X).latent_dist
    torch.testing.assert_close(ours.mean, theirs.mean, atol=1e-6, rtol=1e-5)  # float rounding: the sums are ordered
    torch.testing.assert_close(ours.logvar, theirs.logvar, atol=1e-6, rtol=1e-5)  # differently in attention
    for mode in ("sample", "argmax"):
        one, two = (retrieve_latents(m.encode(X), torch.Generator().manual_seed(5), mode) for m in (ae, vae))
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)
    if source != "object":
        stated = choose_encoder(str(given)).statistics
        assert {name: ae.config[name] for name in stated} == stated, "the result of training has other constants"
        assert stated["latents_convention"] == "pipeline"
    assert not ae.training
    assert ae.decode(ours.mode()).sample.shape == X.shape


def test_weights_bit_for_bit() -> None:
    """Every tensor of the KL-VAE's encoder, and none besides; its own stay as they are, in half precision too."""
    vae = kl_vae().half()
    before = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    ae = AutoencoderSSDD.from_kl_vae(vae, decoder="XXS")
    assert ae.dtype == torch.float32
    theirs = {rename(name, DIFFUSERS_ENCODER): tensor for name, tensor in ae.encoder.state_dict().items()}
    assert theirs.keys() == {name for name in before if name.startswith(("encoder.", "quant_conv."))}
    assert all(torch.equal(tensor, before[name].float()) for name, tensor in theirs.items())
    with torch.no_grad():
        for parameter in ae.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in vae.state_dict().items()), "weights are shared"


@pytest.mark.parametrize("quant_conv", [True, False])
@pytest.mark.parametrize("source", ["object", "folder", "half precision", "shards"])
def test_flux2(source: str, quant_conv: bool, tmp_path: Path) -> None:
    """The same network as an AutoencoderKL's; its batch norm goes with it, also through a file of ours."""
    vae = flux2_vae(use_quant_conv=quant_conv)
    if source == "half precision":
        vae.half().save_pretrained(tmp_path / "vae", variant="fp16")
        vae.float()
    elif source != "object":
        vae.save_pretrained(tmp_path / "vae", max_shard_size="200KB" if source == "shards" else "10GB")
        assert (source == "shards") == (len(list((tmp_path / "vae").glob("*.safetensors"))) > 1)
    given = vae if source == "object" else tmp_path
    ae = AutoencoderSSDD.from_kl_vae(given, decoder="XXS").requires_grad_(False)
    ours, theirs = ae.encode(X).latent_dist, vae.encode(X).latent_dist
    torch.testing.assert_close(ours.mean, theirs.mean, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(ours.logvar, theirs.logvar, atol=1e-6, rtol=1e-5)
    assert not ae.config.force_upcast
    ae.save_pretrained(tmp_path / "ours")
    for model in (ae, AutoencoderSSDD.from_pretrained(tmp_path / "ours")):
        assert model.config.batch_norm_eps == vae.config.batch_norm_eps
        assert torch.equal(model.bn.running_mean, vae.bn.running_mean)
        assert torch.equal(model.bn.running_var, vae.bn.running_var)
        assert not any(name.startswith("bn") for name in model.state_dict())
    for folder in (given, tmp_path / "ours") if source != "object" else ():
        assert identify(str(folder)).same_encoder(identify(str(tmp_path / "ours"))), "their latents are told apart"
        stated = choose_encoder(str(folder)).statistics
        assert [stated[name] for name in BATCH_NORM] == [ae.config[name] for name in BATCH_NORM]


def test_latents_enter_the_decoder_normalised(tmp_path: Path) -> None:
    """The scale of somebody else's latents is not left to a new decoder; ``decode`` takes them raw all the same."""
    for vae, mean, std in (
        (kl_vae(**FLUX), (0.1159,) * 16, (1 / 0.3611,) * 16),
        (kl_vae(**SDXL), SDXL["latents_mean"], tuple(2 * s for s in SDXL["latents_std"])),
        (kl_vae(), (0.0,) * 4, (1 / 0.18215,) * 4),
    ):
        ae = AutoencoderSSDD.from_kl_vae(vae, decoder="XXS").requires_grad_(False)
        assert ae.config.decoder_latents_mean == pytest.approx(mean)
        assert ae.config.decoder_latents_std == pytest.approx(std)
        z = torch.randn(1, ae.latent_channels, 4, 4)
        plain = AutoencoderSSDD.from_kl_vae(vae, decoder="XXS", decoder_latents_mean=None, decoder_latents_std=None)
        plain.load_state_dict(ae.state_dict())
        normalized = (z - ae.decoder.latents_mean) / ae.decoder.latents_std
        torch.testing.assert_close(ae.decode(z).sample, plain.requires_grad_(False).decode(normalized).sample)
    ae.save_pretrained(tmp_path)
    torch.testing.assert_close(AutoencoderSSDD.from_pretrained(tmp_path).decode(z).sample, ae.decode(z).sample)


def test_further_arguments() -> None:
    ae = AutoencoderSSDD.from_kl_vae(kl_vae(), decoder="XS", num_inference_steps=8, force_upcast=False)
    assert (ae.config.num_inference_steps, ae.config.force_upcast) == (8, False)
    assert ae.config.decoder_channels == AutoencoderSSDD.from_preset("f8c4", "XS").config.decoder_channels
    with pytest.raises(ValueError, match="expected a decoder size"):
        AutoencoderSSDD.from_kl_vae(kl_vae(), decoder="XXXL")


def test_in_the_pipeline_of_the_kl_vae() -> None:
    """Image to image: the pipeline starts from the same latents, and only what is shown is another decoder's."""
    pipeline = build("SD img2img", kl_vae())
    latents = generate(pipeline, output_type="latent")
    pipeline.vae = AutoencoderSSDD.from_kl_vae(pipeline.vae, decoder="XXS").requires_grad_(False)
    torch.testing.assert_close(generate(pipeline, output_type="latent"), latents, atol=1e-4, rtol=0)
    assert generate(pipeline, output_type="pt").shape == (1, 3, 32, 32)


def test_flux2_in_its_pipeline() -> None:
    """Editing an image: the pipeline has the same latents of it, and only what is shown is another decoder's."""
    pipeline = build("FLUX.2", flux2_vae())
    image = Image.new("RGB", (64, 64), (200, 100, 50))
    latents = generate(pipeline, image=image, output_type="latent")
    pipeline.vae = AutoencoderSSDD.from_kl_vae(pipeline.vae, decoder="XXS").requires_grad_(False)
    torch.testing.assert_close(generate(pipeline, image=image, output_type="latent"), latents, atol=1e-4, rtol=0)
    assert generate(pipeline, image=image, output_type="pt").shape == (1, 3, 32, 32)


@pytest.mark.parametrize("wrong", ["nan", "negative", "missing", "patch", "eps"])
def test_damaged_flux2(wrong: str, tmp_path: Path) -> None:
    """Statistics of a hostile or damaged file would be every pixel's."""
    vae = flux2_vae()
    if wrong in ("nan", "negative"):
        vae.bn.running_var[3] = torch.nan if wrong == "nan" else -1
    vae.save_pretrained(tmp_path)
    weights, config = tmp_path / "diffusion_pytorch_model.safetensors", tmp_path / "config.json"
    if wrong == "missing":
        save_file({n: t for n, t in load_file(weights).items() if n != "bn.running_mean"}, weights)
    if wrong in ("patch", "eps"):
        change = {"patch": {"patch_size": [1, 1]}, "eps": {"batch_norm_eps": None}}[wrong]
        config.write_text(json.dumps(json.loads(config.read_text()) | change))
    match = {
        "nan": r"expected batch_norm_var as 16 finite numbers \(four per channel\), found",
        "negative": r"expected batch_norm_var as 16 finite numbers",
        "missing": r"1 differences from the expected layout: no bn\.running_mean",
        "patch": r"expected patch_size \[2, 2\] as in ours, found \[1, 1\]",
        "eps": r"expected batch_norm_eps as a number above zero, found None",
    }[wrong]
    with pytest.raises(CheckpointError, match=match):
        AutoencoderSSDD.from_kl_vae(tmp_path)


def test_what_is_no_kl_vae(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"^expected an AutoencoderKL, a model folder .*, found AutoencoderTiny$"):
        AutoencoderSSDD.from_kl_vae(AutoencoderTiny())
    with pytest.raises(CheckpointError, match="expected mid_block_add_attention True as in ours, found False"):
        AutoencoderSSDD.from_kl_vae(kl_vae(mid_block_add_attention=False))
    AutoencoderTiny().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="expected an AutoencoderKL, found AutoencoderTiny"):
        AutoencoderSSDD.from_kl_vae(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere: expected a model folder"):
        AutoencoderSSDD.from_kl_vae(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"^expected an AutoencoderKL with its weights in memory"):
        AutoencoderSSDD.from_kl_vae(kl_vae().to("meta"))
