"""Encoders that are not ours: those of other classes of diffusers, by folder, and single files of whole models."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ssdd import AutoencoderSSDD
from ssdd.checkpoints.adapters import DiffusersEncoder, adapt_encoder
from ssdd.checkpoints.encoders import encoder_digest, find_encoder, load_encoder, load_encoder_of
from ssdd.checkpoints.identity import identify
from ssdd.checkpoints.kl_vae import SAME_NETWORK, KLEncoder
from ssdd.checkpoints.layout import CheckpointError
from ssdd.checkpoints.own_code import ForeignEncoder, save_own_encoder
from ssdd.training.encoders import choose_encoder
from tests.evaluation.models import CONFIGS, LATENTS, images, model_class
from tests.evaluation.test_autoencoders import to_ldm
from tests.pipelines.components import BATCH_NORM, flux2_vae, kl_vae

ADAPTED = [kind for kind in CONFIGS if kind not in SAME_NETWORK]
VIDEO = ("AutoencoderKLHunyuanImageRefiner", "AutoencoderKLQwenImage", "AutoencoderKLQwenImage21", "AutoencoderKLWan")
X = images(2, 32, 32)


def saved(kind: str, folder: Path, **config: Any) -> Any:
    """Save a model of the class with random weights; return it."""
    if (cls := model_class(kind)) is None:
        pytest.skip(f"this release of diffusers has no {kind}")
    torch.manual_seed(0)
    model = cls(**CONFIGS[kind] | config).eval().requires_grad_(False)
    model.save_pretrained(folder)
    return model


def expected_moments(model: Any) -> tuple[Tensor, Tensor | None]:
    """What diffusers' own encode gives for ``X``, by the definition of each class's input."""
    kind, x = type(model).__name__, X
    if kind == "AutoencoderRAE":
        x = (x + 1) / 2
    if kind == "AutoencoderKLQwenImage21":
        x = torch.cat([x, torch.ones(2, 1, 32, 32)], dim=1)
    encoded = model.encode(x[:, :, None] if kind in VIDEO else x)
    if not hasattr(encoded, "latent_dist"):
        return encoded[0], None
    mean, logvar = encoded.latent_dist.mean, encoded.latent_dist.logvar
    return (mean[:, :, 0], logvar[:, :, 0]) if kind in VIDEO else (mean, logvar)


@pytest.mark.parametrize("kind", ADAPTED)
def test_moments_are_those_of_diffusers(kind: str, tmp_path: Path) -> None:
    """A decoder would be trained on other latents than those that the class gives."""
    model = saved(kind, tmp_path)
    encoder = load_encoder_of(str(tmp_path))
    assert isinstance(encoder, ForeignEncoder)
    assert (encoder.latent_channels, encoder.spatial_factor) == LATENTS[kind]
    mean, logvar = encoder(X).chunk(2, dim=1)
    expected, spread = expected_moments(model)
    torch.testing.assert_close(mean, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logvar, torch.full_like(mean, -30) if spread is None else spread, atol=1e-5, rtol=1e-5)
    assert not any(p.requires_grad for p in encoder.parameters())
    choice = choose_encoder(str(tmp_path))
    assert choice.foreign
    assert isinstance(choice.module, ForeignEncoder)
    torch.testing.assert_close(choice.module(X), encoder(X))


@pytest.mark.parametrize("kind", ADAPTED)
def test_digest_is_that_of_the_encoder(kind: str, tmp_path: Path) -> None:
    """Latents of two encoders would be taken for one another's, or of one for two."""
    saved(kind, tmp_path)
    before = identify(str(tmp_path))
    assert (before.latent_channels, before.spatial_factor) == LATENTS[kind]
    weights = next(tmp_path.glob("*.safetensors"))
    state = load_file(weights)
    for part, same in (("decoder", True), ("encoder", False)):
        name = next(n for n, t in state.items() if n.startswith(part) and t.is_floating_point() and t.numel() > 1)
        save_file(state | {name: state[name] + 1}, weights)
        assert before.same_encoder(identify(str(tmp_path))) == same, name


def test_statistics_that_come_with_them(tmp_path: Path) -> None:
    """A generative model would be trained on a scale that is none of these latents'."""
    mean, std = [0.5] * 6, [2.0] * 6
    saved("AutoencoderKLWan", tmp_path / "wan", latents_mean=mean, latents_std=std)
    assert choose_encoder(str(tmp_path / "wan")).statistics == {
        "latents_mean": tuple(mean),
        "latents_std": tuple(std),
        "latents_convention": "pipeline",
    }
    saved("AutoencoderDC", tmp_path / "dc", scaling_factor=0.41407)
    assert choose_encoder(str(tmp_path / "dc")).statistics == {
        "scaling_factor": 0.41407,
        "latents_convention": "pipeline",
    }
    assert identify(str(tmp_path / "dc")).scaling_factor == 0.41407
    saved("AutoencoderRAE", tmp_path / "rae", latents_mean=[[[0.5]]] * 64, latents_std=[[[2.0]]] * 64)
    assert choose_encoder(str(tmp_path / "rae")).statistics == {}, "its encode has applied them"
    assert identify(str(tmp_path / "rae")).scaling_factor is None


def test_one_size_alone(tmp_path: Path) -> None:
    saved("AutoencoderRAE", tmp_path)
    encoder = load_encoder_of(str(tmp_path))
    with pytest.raises(ValueError, match=r"^AutoencoderRAE: expected images of 32 x 32 pixels, the only size"):
        encoder(images(1, 32, 64))


def test_trained_encoder(tmp_path: Path) -> None:
    """The weights of a trained encoder of another class lie beside the decoder, as those of own code do."""
    saved("AutoencoderTiny", tmp_path / "tiny")
    name = str(tmp_path / "tiny")
    encoder = choose_encoder(name, trainable=True).module
    encoder.train()
    encoder(X).square().mean().backward()
    assert all(p.grad is not None for n, p in encoder.named_parameters() if ".encoder." in n)
    with torch.no_grad():
        for p in encoder.parameters():
            p += 0.01
    (tmp_path / "model").mkdir()
    config = {"block_out_channels": [8, 8, 8], "latent_channels": 4}
    untrained = load_encoder(name, "a decoder", config, tmp_path / "model")
    save_own_encoder(encoder, tmp_path / "model")
    loaded = load_encoder(name, "a decoder", config, tmp_path / "model")
    assert encoder_digest(loaded) == encoder_digest(encoder) != encoder_digest(untrained)


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("AutoencoderKLMochi", "AutoencoderKLMochi, an autoencoder of videos;"),
        ("AutoencoderKLLTX2Audio", "AutoencoderKLLTX2Audio, an autoencoder of sound;"),
        ("UNet2DConditionModel", "UNet2DConditionModel;"),
    ],
)
def test_what_encodes_no_images(kind: str, found: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": kind}))
    for read in (find_encoder, choose_encoder, load_encoder_of):
        with pytest.raises(CheckpointError, match=f"^{tmp_path}: expected one of AutoencoderSSDD, .*, found {found}"):
            read(str(tmp_path))


def test_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A class of diffusers by its id, here in the hub's cache; the hub itself is out of reach."""
    cache, commit = tmp_path / "hub", "0123456789" * 4
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    repository = cache / "models--somebody--dc-ae"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    model = saved("AutoencoderDC", repository / "snapshots" / commit)
    with torch.no_grad():
        torch.testing.assert_close(load_encoder_of("somebody/dc-ae")(X)[:, :8], model.encode(X).latent)
    (repository / "snapshots" / commit / "config.json").write_text('{"_class_name": "AutoencoderKLMochi"}')
    with pytest.raises(CheckpointError, match=r"^somebody/dc-ae: expected one of .*, an autoencoder of videos"):
        choose_encoder("somebody/dc-ae")


def test_the_largest_factor(tmp_path: Path) -> None:
    """DC-AE has one of 128."""
    levels = 8
    saved(
        "AutoencoderDC",
        tmp_path,
        **{f"{part}_{name}": value for part in ("encoder", "decoder") for name, value in {
            "block_types": ("ResBlock",) * levels,
            "block_out_channels": (8,) * levels,
            "layers_per_block": (1,) * levels,
            "qkv_multiscales": ((),) * levels,
        }.items()},
    )  # fmt: skip
    assert load_encoder_of(str(tmp_path)).spatial_factor == 128


# ---- single files ----------------------------------------------------------------------------------------------------

SD3 = {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}


def to_flux2(state: dict[str, Tensor], levels: int) -> dict[str, Tensor]:
    """Rename an AutoencoderKLFlux2's tensors as in its own file, where the 1x1 convolutions are within the networks."""
    names = {"quant_conv.": "encoder.quant_conv.", "post_quant_conv.": "decoder.post_quant_conv."}
    return {
        next((new + n.removeprefix(old) for old, new in names.items() if n.startswith(old)), n): tensor
        for n, tensor in to_ldm(state, levels).items()
    }


FILES: dict[str, tuple[Callable[..., Any], dict[str, Any], str, Callable[..., dict[str, Tensor]]]] = {
    "SD": (kl_vae, {}, "first_stage_model.", to_ldm),
    "FLUX": (kl_vae, SD3, "", to_ldm),
    "SD3": (kl_vae, SD3, "first_stage_model.", to_ldm),
    "FLUX.2": (flux2_vae, {}, "", to_flux2),
}


@pytest.mark.parametrize("name", FILES)
def test_single_file(name: str, tmp_path: Path) -> None:
    """A file in the layout of LDM, alone or of a whole model, is the same encoder as the folder."""
    make, config, prefix, convert = FILES[name]
    vae = make(**config)
    vae.save_pretrained(tmp_path / "folder")
    converted = convert(vae.state_dict(), len(vae.config.block_out_channels))
    state = {prefix + key: tensor.contiguous() for key, tensor in converted.items() if "num_batches" not in key}
    path = str(tmp_path / "model.safetensors")
    save_file(state | ({"model.diffusion_model.out.weight": torch.zeros(1)} if prefix else {}), path)

    found, folder = find_encoder(path), find_encoder(str(tmp_path / "folder"))
    assert isinstance(found, KLEncoder)
    assert isinstance(folder, KLEncoder)
    assert found.foreign
    assert identify(path).same_encoder(identify(str(tmp_path / "folder")))
    with torch.no_grad():
        torch.testing.assert_close(found.build()(X), vae.encode(X).latent_dist.parameters, atol=1e-5, rtol=1e-5)

    size = {"block_out_channels": found.size.channels, "latent_channels": found.size.latent_channels}
    assert encoder_digest(load_encoder(path, "a decoder", size, tmp_path)) == identify(path).encoder_sha256
    choice, ae = choose_encoder(path), AutoencoderSSDD.from_kl_vae(path, decoder="XXS")
    assert (choice.module.spatial_factor, choice.module.latent_channels, choice.foreign) == (
        ae.spatial_factor,
        ae.latent_channels,
        True,
    )
    torch.testing.assert_close(ae.encode(X).latent_dist.parameters, choice.module(X))
    if name == "FLUX.2":
        assert torch.equal(ae.bn.running_var, torch.tensor(BATCH_NORM["batch_norm_var"]))
        assert ae.config.decoder_latents_mean is not None
        return
    assert choice.statistics == {"force_upcast": True}, "a single file states no scale"
    assert (ae.config.scaling_factor, ae.config.decoder_latents_mean) == (1.0, None)
    known = AutoencoderSSDD.from_kl_vae(path, decoder="XXS", scaling_factor=0.5, shift_factor=0.25)
    assert known.config.decoder_latents_mean == (0.25,) * ae.latent_channels
    assert known.config.decoder_latents_std == (2.0,) * ae.latent_channels


def test_file_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=f"^{path}: expected a KL-VAE in the layout of LDM in this file, found"):
        AutoencoderSSDD.from_kl_vae(path)
    with pytest.raises(CheckpointError, match=f"^{path}: "):
        find_encoder(str(path))


def test_adapter_keeps_no_decoder(tmp_path: Path) -> None:
    """A decoder of billions of weights would lie in memory, and in every copy of the encoder."""
    saved("AutoencoderKLQwenImage", tmp_path)
    encoder = adapt_encoder("qwen", tmp_path)
    assert isinstance(encoder, DiffusersEncoder)
    assert not [name for name in encoder.state_dict() if "decoder" in name or "post_quant_conv" in name]
    assert isinstance(encoder.model, diffusers.AutoencoderKLQwenImage)
