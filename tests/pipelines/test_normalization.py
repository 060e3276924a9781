"""Raw latents reach ``decode``: what ``normalize_latents`` gave to a generative model is undone by its pipeline.

Shapes: c = 4 latent channels, h x w = 4 x 4 latent grid. The generative model of each pipeline is made to give a known
latent at its last step; what arrives at ``decode`` is compared.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.models.autoencoders.vae import DecoderOutput
from torch import Tensor

from ssdd import AutoencoderSSDD
from ssdd.autoencoder.normalization import channel_statistics
from ssdd.data.pixels import image_to_tensor
from tests.images import photo
from tests.pipelines.components import BATCH_NORM, BUILDERS, build, flux2_vae, generate, kl_vae

RAW = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(3)) * 2 + 0.5
EVERY = {
    "scaling_factor": 0.5,
    "shift_factor": 0.25,
    "latents_mean": (0.1, -0.2, 0.3, 0.8),
    "latents_std": (1.0, 2.0, 0.5, 3.0),
}
MEAN, STD = (torch.tensor(EVERY[name]).view(1, 4, 1, 1) for name in ("latents_mean", "latents_std"))


def scale(z: Tensor) -> Tensor:
    return z / 0.5


def shift(z: Tensor) -> Tensor:
    return z / 0.5 + 0.25


def channel(z: Tensor) -> Tensor:
    return z * STD / 0.5 + MEAN


def patches(z: Tensor) -> Tensor:
    raw = z.clone()
    for place in range(4):
        mean, var = (torch.tensor(BATCH_NORM[f"batch_norm_{name}"][place::4]) for name in ("mean", "var"))
        y, x = divmod(place, 2)
        std = (var + BATCH_NORM["batch_norm_eps"]).sqrt()
        raw[:, :, y::2, x::2] = z[:, :, y::2, x::2] * std.view(4, 1, 1) + mean.view(4, 1, 1)
    return raw


FORMULAS: dict[str, Callable[[Tensor], Tensor]] = {
    "DiT": scale,
    "SD": scale,
    "SD img2img": scale,
    "SDXL": channel,
    "SD3": shift,
    "FLUX": shift,
    "FLUX.2": patches,
    "PixArt": scale,
}
"""The table of docs/drop-in.md."""


class _Step(tuple[Tensor]):
    """What a scheduler's step gives, as a tuple or with ``prev_sample``."""

    @property
    def prev_sample(self) -> Tensor:
        return self[0]


def end_with(z: Tensor, pipeline: Any, patch: pytest.MonkeyPatch) -> None:
    """Make the normalised latent ``z`` the last word of the generative model."""
    word = z
    if isinstance(pipeline, diffusers.FluxPipeline):
        word = pipeline._pack_latents(z, *z.shape)
    if isinstance(pipeline, diffusers.Flux2Pipeline):
        word = pipeline._pack_latents(pipeline._patchify_latents(z))

    def step(model_output: Tensor, t: Tensor, sample: Tensor, **options: Any) -> _Step:
        return _Step((word.expand_as(sample).to(sample.dtype),))

    patch.setattr(pipeline.scheduler, "step", step)


def arrives(pipeline: Any, z: Tensor, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """What is decoded where the generative model's last word is the normalised latent ``z``."""
    found: list[Tensor] = []

    def decode(self: Any, z: Tensor, return_dict: bool = True, **options: Any) -> Any:
        found.append(z)
        image = z.new_zeros(1, 3, 32, 32)
        return DecoderOutput(sample=image) if return_dict else (image,)

    with monkeypatch.context() as patch:
        end_with(z, pipeline, patch)
        patch.setattr(type(pipeline.vae), "decode", decode)
        generate(pipeline, output_type="pt")
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("name", BUILDERS)
def test_formula_of_each_pipeline(ae: AutoencoderSSDD, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All four statistics are set to something: which of them counts, and how, is the pipeline's affair."""
    ae.register_to_config(**EVERY)
    z = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(arrives(build(name, ae), z, monkeypatch), FORMULAS[name](z))


@pytest.mark.parametrize(
    ("normalization", "name"),
    [
        *(("scale", name) for name in BUILDERS if name != "FLUX.2"),
        ("shift", "SD3"),
        ("shift", "FLUX"),
        ("channel", "SDXL"),
    ],
)
def test_a_pipeline_undoes_the_normalisation(
    ae: AutoencoderSSDD, normalization: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ae.use_normalization(normalization)
    z = ae.normalize_latents(RAW)
    torch.testing.assert_close(ae.denormalize_latents(z), RAW)
    torch.testing.assert_close(arrives(build(name, ae), z, monkeypatch), RAW)


@pytest.mark.parametrize(
    ("stated", "name"),
    [
        ({"scaling_factor": 0.5, "latents_mean": EVERY["latents_mean"], "latents_std": EVERY["latents_std"]}, "SDXL"),
        ({"scaling_factor": 0.13025}, "SDXL"),
        ({"scaling_factor": 0.18215}, "SD"),
        ({"scaling_factor": 0.3611, "shift_factor": 0.1159}, "FLUX"),
        ({"scaling_factor": 1.5305, "shift_factor": 0.0609}, "SD3"),
    ],
    ids=["Playground", "SDXL", "SD", "FLUX", "SD3"],
)
def test_constants_of_a_kl_vae_mean_what_they_mean_in_its_pipeline(
    stated: dict[str, Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With our decoder in the place of its own, the same raw latents arrive, and ``normalize_latents`` agrees."""
    kl = kl_vae(block_out_channels=(32, 32, 32, 32), **{"shift_factor": 0.0, **stated})
    ours = AutoencoderSSDD.from_kl_vae(kl, decoder="XXS")
    z = ours.normalize_latents(RAW)
    torch.testing.assert_close(arrives(build(name, kl), z, monkeypatch), RAW)
    torch.testing.assert_close(arrives(build(name, ours), z, monkeypatch), RAW)


def test_batch_norm_means_what_it_means_in_its_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The decoder of ours gets the raw latents of FLUX.2, and ``normalize_latents`` makes what was trained on."""
    theirs = flux2_vae()
    ours = AutoencoderSSDD.from_kl_vae(theirs, decoder="XXS")
    z = ours.normalize_latents(RAW)
    torch.testing.assert_close(ours.denormalize_latents(z), RAW)
    patchify = diffusers.Flux2Pipeline._patchify_latents
    torch.testing.assert_close(patchify(z), theirs.bn(patchify(RAW)))
    torch.testing.assert_close(ours.bn(patchify(RAW)), theirs.bn(patchify(RAW)))
    for vae in (theirs, ours):
        torch.testing.assert_close(arrives(build("FLUX.2", vae), z, monkeypatch), RAW)
    odd = torch.ones(1, 4, 3, 5)
    torch.testing.assert_close(ours.denormalize_latents(odd), patches(torch.ones(1, 4, 4, 6))[:, :, :3, :5])
    with pytest.raises(ValueError, match="expected latents without a batch norm"):
        ours.use_normalization("scale")
    with pytest.raises(AttributeError, match="bn"):
        _ = AutoencoderSSDD.from_kl_vae(kl_vae(), decoder="XXS").bn


def test_statistics_of_channels(ae: AutoencoderSSDD) -> None:
    """Pooled over the places of a patch, they are those of latents that a batch norm or constants normalise."""
    z = torch.randn(64, 4, 64, 64, generator=torch.Generator().manual_seed(5))
    for config in ({**EVERY, "latents_convention": "pipeline"}, {"latents_mean": None}, BATCH_NORM):
        ae.register_to_config(**config)
        raw = ae.denormalize_latents(z).double().transpose(0, 1).flatten(1)
        mean, std = (torch.tensor(values) for values in channel_statistics(ae.config, 4) or ())
        torch.testing.assert_close(mean.double(), raw.mean(1), atol=0.02, rtol=0)
        torch.testing.assert_close(std.double(), raw.std(1), atol=0, rtol=0.01)
    assert channel_statistics(AutoencoderSSDD.from_preset("f8c4", "XXS", encoder_width=32).config, 4) is None


def test_entries_of_each_normalisation(ae: AutoencoderSSDD, tmp_path: Path) -> None:
    """Measured statistics give unit variance per channel, each named normalisation its own map, also when saved."""
    ae.register_to_config(**EVERY)
    torch.testing.assert_close(ae.normalize_latents(RAW), (RAW - MEAN) / STD)
    ae.save_pretrained(tmp_path / "measured")
    expected = {"scale": RAW * 0.5, "shift": (RAW - 0.25) * 0.5, "channel": (RAW - MEAN) / STD}
    for name, z in expected.items():
        model = AutoencoderSSDD.from_pretrained(tmp_path / "measured")
        model.use_normalization(name)  # type: ignore[arg-type]
        model.save_pretrained(tmp_path / name)
        saved = AutoencoderSSDD.from_pretrained(tmp_path / name)
        assert saved.config.latents_convention == "pipeline"
        torch.testing.assert_close(saved.normalize_latents(RAW), z)
        torch.testing.assert_close(saved.denormalize_latents(z), RAW)


def test_wrong_normalisations(ae: AutoencoderSSDD) -> None:
    before = dict(ae.config)
    with pytest.raises(ValueError, match=r"^expected a normalisation, one of scale, shift, channel; found 'pixel'"):
        ae.use_normalization("pixel")  # type: ignore[arg-type]
    ae.register_to_config(latents_std=None)
    with pytest.raises(ValueError, match=r"^expected latents_mean and latents_std, found none: measure them"):
        ae.use_normalization("channel")
    ae.register_to_config(latents_std=before["latents_std"])
    assert dict(ae.config) == before, "half of it was done"
    ae.use_normalization("scale")
    with pytest.raises(ValueError, match=r"^expected measured latent statistics, found the constants of a pipeline"):
        ae.use_normalization("shift")
    with pytest.raises(ValueError, match=r"^expected latents_convention measured or pipeline, found 'guessed'"):
        AutoencoderSSDD(latents_convention="guessed")  # type: ignore[arg-type]


def test_the_embedded_decoder_of_flux2(monkeypatch: pytest.MonkeyPatch) -> None:
    """FLUX.2's pipeline hands it what TAEF2 makes of a picture, as it is, and the picture comes out."""
    ae = AutoencoderSSDD.from_pretrained("ssdd-flux2-demo").eval().requires_grad_(False)
    image = image_to_tensor(photo(32, 32))[None]
    z = ae.encode(image).latent_dist.mode()
    pipeline = build("FLUX.2", ae)
    torch.testing.assert_close(arrives(pipeline, z, monkeypatch), z)
    end_with(z, pipeline, monkeypatch)
    shown = generate(pipeline, output_type="pt")
    torch.testing.assert_close(shown, (ae.decode(z).sample / 2 + 0.5).clamp(0, 1))
    error, to_mirrored = ((shown - (x / 2 + 0.5)).square().mean() for x in (image, image.flip(3)))
    assert error < to_mirrored / 5, f"it is another picture: {float(error)}, {float(to_mirrored)}"
