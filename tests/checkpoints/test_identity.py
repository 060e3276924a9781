"""Whose latents: a digest that names, precisions and folders do not change, and decoders that are refused by it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from msgspec import structs
from PIL import Image
from safetensors.torch import save_file

from ssdd import AutoencoderSSDD
from ssdd.autoencoder.codec import load_encoded
from ssdd.checkpoints.identity import LatentIdentity, OtherEncoderError, check_decoder, find_decoder, identify
from ssdd.evaluation.decoders import load_decoder, load_decoder_of
from ssdd.nn.decoder import Decoder
from ssdd.nn.encoder import Encoder
from ssdd.nn.presets import decoder_size, encoder_size
from tests.checkpoints.test_original import authors_tensors
from tests.evaluation.test_autoencoders import to_ldm

Ssdd = Callable[..., Any]


@pytest.fixture(scope="module")
def kl_vae() -> AutoencoderKL:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
        return AutoencoderKL(**blocks, block_out_channels=(32,) * 4, layers_per_block=2, scaling_factor=0.5).eval()


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another f8c4 model: factor and channels cannot tell it from ``tiny_model``."""
    folder = tmp_path_factory.mktemp("other-model")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        AutoencoderSSDD.from_preset(encoder="f8c4", decoder="XXS", encoder_width=32).save_pretrained(folder)
    return folder


def new_decoder(model: Path, folder: Path) -> Path:
    """Save another decoder of a model's encoder."""
    changed = AutoencoderSSDD.from_pretrained(model)
    torch.nn.init.normal_(changed.decoder.conv_out.weight)
    changed.save_pretrained(folder)
    return folder


def test_digest_is_of_the_encoder_alone(tiny_model: Path, other_model: Path, tmp_path: Path) -> None:
    identity = identify(str(tiny_model))
    assert (identity.spatial_factor, identity.latent_channels) == (8, 4)
    assert identity.same_encoder(identify(str(new_decoder(tiny_model, tmp_path / "new"))))
    assert not identity.same_encoder(identify(str(other_model)))


def test_scale_and_shift_are_the_config_s(kl_vae: AutoencoderKL, tmp_path: Path) -> None:
    kl_vae.save_pretrained(tmp_path / "kl")
    identity = identify(str(tmp_path / "kl"))
    assert (identity.scaling_factor, identity.shift_factor) == (0.5, None)


def test_kl_vae_by_folder_pipeline_and_single_file(kl_vae: AutoencoderKL, tmp_path: Path) -> None:
    """One digest, and the KL-VAE's own images, however it is given."""
    kl_vae.save_pretrained(tmp_path / "pipeline" / "vae")
    save_file(to_ldm(kl_vae.state_dict(), levels=4), tmp_path / "vae.safetensors")
    z = torch.randn(2, 4, 4, 4)
    with torch.no_grad():
        expected = kl_vae.decode(z).sample
    for name in ("pipeline/vae", "pipeline", "vae.safetensors"):
        decoder = load_decoder(str(tmp_path / name))
        assert decoder.identity.same_encoder(identify(str(tmp_path / "pipeline")))
        torch.testing.assert_close(decoder.decode(z).sample, expected, atol=1e-5, rtol=1e-4)
        assert load_decoder(str(tmp_path / name), dtype=torch.bfloat16).decode(z).sample.dtype == torch.float32


def test_single_file_in_diffusers_layout(kl_vae: AutoencoderKL, tmp_path: Path) -> None:
    kl_vae.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="found diffusers' layout: pass the folder that holds it"):
        load_decoder(str(tmp_path / "diffusion_pytorch_model.safetensors"))


@pytest.mark.parametrize("upcast", [True, False])
def test_force_upcast_is_honoured(kl_vae: AutoencoderKL, tmp_path: Path, upcast: bool) -> None:
    kl_vae.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"force_upcast": upcast}))
    found = load_decoder(str(tmp_path), dtype=torch.float16)
    assert next(found.model.model.parameters()).dtype == (torch.float32 if upcast else torch.float16)  # type: ignore[union-attr]


def test_force_upcast_is_honoured_of_a_single_file(kl_vae: AutoencoderKL, tmp_path: Path) -> None:
    """Such a file has no config: diffusers takes force_upcast for true there, and SDXL's overflows in float16."""
    half = {name: tensor.half() for name, tensor in kl_vae.state_dict().items()}
    save_file(to_ldm(half, levels=4), tmp_path / "vae.safetensors")
    found = load_decoder(str(tmp_path / "vae.safetensors"), dtype=torch.float16)
    assert next(found.model.model.parameters()).dtype == torch.float32  # type: ignore[union-attr]


@pytest.fixture
def authors_file(tmp_path: Path) -> Path:
    """A single file of ours with its encoder, in the layout of the authors."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        tensors = authors_tensors(Decoder(decoder_size("XXS"), 4), Encoder(encoder_size("f8c4", 32)))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "f8c4.safetensors")
    return tmp_path / "f8c4.safetensors"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_single_file_of_the_authors_is_a_decoder_of_ours(authors_file: Path, dtype: torch.dtype) -> None:
    """It was called as somebody else's: no steps to choose, and one image at a time."""
    decoder = load_decoder(str(authors_file), dtype=dtype)
    assert decoder.identity.same_encoder(identify(str(authors_file)))
    decoder.set_steps(2)
    z = torch.randn(2, 4, 4, 4)
    model = AutoencoderSSDD.from_original(authors_file).to(dtype)
    with torch.no_grad():
        torch.testing.assert_close(decoder.decode(z).sample, model.decode(z, num_inference_steps=2).sample.float())


def test_single_file_of_the_authors_without_an_encoder(kl_vae: AutoencoderKL, tmp_path: Path) -> None:
    """Those for the SD-VAE's latents: to decode takes no encoder."""
    tensors = authors_tensors(Decoder(decoder_size("XXS"), 4), None)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "decoder.safetensors")
    kl_vae.save_pretrained(tmp_path / "kl")
    decoder = load_decoder_of(identify(str(tmp_path / "kl")), str(tmp_path / "decoder.safetensors"))
    assert decoder.decode(torch.randn(1, 4, 2, 2), 1).sample.shape == (1, 3, 16, 16)


def test_images_do_not_depend_on_their_batch(tiny_model: Path) -> None:
    z = torch.randn(3, 4, 4, 4)
    decoder = load_decoder(str(tiny_model))
    whole = decoder.decode(z, 2).sample
    torch.testing.assert_close(decoder.decode(z[2:], 2).sample, whole[2:], atol=1e-5, rtol=1e-4)
    direct = AutoencoderSSDD.from_pretrained(tiny_model).eval().decode(z, num_inference_steps=2).sample
    torch.testing.assert_close(whole, direct)


def test_decoder_of_the_same_encoder_fits(tiny_model: Path, other_model: Path, tmp_path: Path) -> None:
    latents = identify(str(tiny_model))
    new = new_decoder(tiny_model, tmp_path / "new")
    assert load_decoder_of(latents, None).identity.same_encoder(latents)
    assert load_decoder_of(latents, str(new)).identity.name == str(new)
    with pytest.raises(OtherEncoderError, match=r"tiny-model.*found .*other-model.*--force"):
        load_decoder_of(latents, str(other_model))
    assert load_decoder_of(latents, str(other_model), force=True).identity.name == str(other_model)


def test_other_layout_is_refused_by_force_too() -> None:
    latents, decoder = LatentIdentity("a", "0" * 64, 8, 4), LatentIdentity("b", "1" * 64, 16, 4)
    with pytest.raises(ValueError, match=r"f16c4.*found f8c4 of a"):
        check_decoder(latents, decoder, force=True)


def test_default_decoder_is_the_model_that_made_them(tiny_model: Path, other_model: Path, tmp_path: Path) -> None:
    """By name if it is there and still the same: a folder may hold another model by now."""
    folder = tmp_path / "model"
    AutoencoderSSDD.from_pretrained(tiny_model).save_pretrained(folder)
    latents = identify(str(folder))
    assert find_decoder(latents) == str(folder)
    AutoencoderSSDD.from_pretrained(other_model).save_pretrained(folder)
    with pytest.raises(OtherEncoderError, match="another encoder under that name"):
        find_decoder(latents)
    with pytest.raises(ValueError, match=r"acme/vae, which is not on this machine: pass acme/vae yourself"):
        find_decoder(LatentIdentity("acme/vae", "0" * 64, 8, 4))
    with pytest.raises(ValueError, match="found none that do"):
        find_decoder(LatentIdentity("", None, 8, 4))


def test_default_decoder_is_a_single_file(authors_file: Path, kl_vae: AutoencoderKL, tmp_path: Path) -> None:
    """Latents of a downloaded file were said to be of nothing on this machine."""
    save_file(to_ldm(kl_vae.state_dict(), levels=4), tmp_path / "vae.safetensors")
    for file in (authors_file, tmp_path / "vae.safetensors"):
        latents = identify(str(file))
        assert load_decoder_of(latents, None).identity == latents
    authors_file.write_bytes((tmp_path / "vae.safetensors").read_bytes())
    with pytest.raises(OtherEncoderError, match="another encoder under that name"):
        find_decoder(structs.replace(latents, name=str(authors_file), encoder_sha256="0" * 64))


def test_default_decoder_lies_in_the_cache_of_the_hub(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was downloaded to tokenize is there to decode, at the very commit."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    entry, commit = tmp_path / "models--acme--vae", "0123456789" * 4
    (entry / "refs").mkdir(parents=True)
    (entry / "refs" / "main").write_text(commit)
    snapshot = shutil.copytree(tiny_model, entry / "snapshots" / commit)
    latents = structs.replace(identify(str(tiny_model)), name="acme/vae")
    assert find_decoder(latents) == str(snapshot)
    (snapshot / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"acme/vae, which is not on this machine: pass acme/vae yourself"):
        find_decoder(latents)


def test_decode_of_files_takes_their_model(ssdd: Ssdd, other_model: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Files of two models: each by its own, and no model for the other's."""
    picture = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    for name, model in (("one", tiny_model), ("two", other_model)):
        assert ssdd("encode", "a.png", "--model", model, "--out", f"latents/{name}").status == 0
    assert load_encoded(tmp_path / "latents/one/a.safetensors").identity == identify(str(tiny_model))
    assert ssdd("decode", "latents", "--out", "images").status == 0
    for name, model in (("one", tiny_model), ("two", other_model)):
        assert ssdd("decode", f"latents/{name}", "--model", model, "--out", f"expected/{name}").status == 0
        image, expected = (np.asarray(Image.open(tmp_path / f / name / "a.png")) for f in ("images", "expected"))
        np.testing.assert_array_equal(image, expected)
    refused = ssdd("decode", "latents/two", "--model", tiny_model, "--out", "refused")
    assert refused.status == 1
    (line,) = refused.skipped()
    assert all(part in line for part in (str(tiny_model), str(other_model), "--force"))
    forced = ssdd("decode", "latents/two", "--model", tiny_model, "--out", "refused", "--force")
    assert forced.status == 0
    assert (tmp_path / "refused" / "a.png").is_file()
