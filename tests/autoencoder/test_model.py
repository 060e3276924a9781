"""AutoencoderSSDD: shapes, determinism, precision, saving and loading."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ssdd import AutoencoderSSDD
from ssdd.autoencoder.statistics import LatentStatistics
from ssdd.autoencoder.tiling import Span, _weights
from ssdd.evaluation.distances import kernel_distances

X = torch.rand(2, 3, 40, 56, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def ae() -> AutoencoderSSDD:
    torch.manual_seed(0)
    model = AutoencoderSSDD.from_preset("f8c4", "XXS", encoder_width=32, scaling_factor=0.5, shift_factor=0.25)
    return model.eval().requires_grad_(False)


def test_shapes_of_the_round_trip(ae: AutoencoderSSDD) -> None:
    posterior = ae.encode(X).latent_dist
    assert posterior.mode().shape == posterior.mean.shape == posterior.logvar.shape == (2, 4, 5, 7)
    assert posterior.sample().shape == (2, 4, 5, 7)
    assert ae.decode(posterior.mode()).sample.shape == X.shape
    assert ae(X).sample.shape == X.shape
    assert ae.decode(posterior.mode(), return_dict=False)[0].shape == X.shape
    assert ae.encode(X, return_dict=False)[0].mode().shape == (2, 4, 5, 7)


@pytest.mark.parametrize("encoder", ["f4c3", "f16c16", "f32c64"])
def test_other_factors(encoder: str) -> None:
    """Latent channels or the factor are fixed somewhere."""
    factor, channels = (int(n) for n in encoder[1:].split("c"))
    model = AutoencoderSSDD.from_preset(encoder, "XXS", encoder_width=32).eval()
    assert model.spatial_factor == factor
    with torch.no_grad():
        z = model.encode(torch.zeros(1, 3, 2 * factor, 3 * factor)).latent_dist.mode()
        assert z.shape == (1, channels, 2, 3)
        assert model.decode(z).sample.shape == (1, 3, 2 * factor, 3 * factor)


def test_decoding_is_deterministic_and_independent_of_the_batch(ae: AutoencoderSSDD) -> None:
    """Pipelines that pass no generator would get another image each time, or one that depends on its neighbours."""
    z = ae.encode(X).latent_dist.mode()
    torch.manual_seed(1)
    both = ae.decode(z).sample
    torch.manual_seed(2)
    assert torch.equal(ae.decode(z).sample, both), "the global generator matters"
    alone = ae.decode(z[1:]).sample
    torch.testing.assert_close(alone, both[1:], atol=1e-5, rtol=0)
    ae.enable_slicing()
    torch.testing.assert_close(ae.decode(z).sample, both, atol=1e-5, rtol=0)
    torch.testing.assert_close(ae.encode(X).latent_dist.mode(), z, atol=1e-5, rtol=0)


def test_default_noise_is_standard_normal_and_depends_on_seed_and_shape(ae: AutoencoderSSDD) -> None:
    noise = ae._noise((2, 3, 64, 64), None, torch.device("cpu"))
    assert torch.equal(noise[0], noise[1])
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02
    ae.register_to_config(noise_seed=1)
    assert not torch.equal(ae._noise((2, 3, 64, 64), None, torch.device("cpu")), noise)


def test_noise_and_generator_override_the_default(ae: AutoencoderSSDD) -> None:
    z = ae.encode(X).latent_dist.mode()
    noise = torch.randn(X.shape, generator=torch.Generator().manual_seed(7))
    given = ae.decode(z, noise=noise).sample
    drawn = ae.decode(z, generator=torch.Generator().manual_seed(7)).sample
    torch.testing.assert_close(given, drawn)
    assert not torch.allclose(given, ae.decode(z).sample, atol=1e-3)
    one_each = ae.decode(z, generator=[torch.Generator().manual_seed(s) for s in (3, 4)]).sample
    second = ae.decode(z[1:], generator=torch.Generator().manual_seed(4)).sample
    torch.testing.assert_close(one_each[1:], second, atol=1e-5, rtol=0)


def test_default_device_of_the_caller(ae: AutoencoderSSDD) -> None:
    """Where torch.set_default_device names a GPU, the fixed noise is drawn there by a generator of the CPU."""
    z = ae.encode(X).latent_dist.mode()
    image = ae.decode(z).sample
    with torch.device("meta"):
        torch.testing.assert_close(ae.decode(z).sample, image)
        torch.testing.assert_close(ae.encode(X).latent_dist.mode(), z)
        weights = _weights((Span(0, 4), Span(3, 7)), 8)
        assert {weight.device.type for weight in weights.values()} == {"cpu"}, "tiles cannot be blended"
        statistics = LatentStatistics()
        statistics.update(z)
        assert LatentStatistics.from_state(statistics.state()).mean.device.type == "cpu"
        assert kernel_distances(z.flatten(1).double(), z.flatten(1).double(), 2, 2).device.type == "cpu"


def test_number_of_steps(ae: AutoencoderSSDD) -> None:
    z = ae.encode(X).latent_dist.mode()
    with torch.no_grad():  # a trained decoder would do; here the output layer alone makes steps matter
        ae.decoder.up[3].blocks[2].conv2.weight.normal_(std=0.1)
    ae.register_to_config(num_inference_steps=4)
    assert torch.equal(ae.decode(z).sample, ae.decode(z, num_inference_steps=4).sample), (
        "the config's default is ignored"
    )
    assert not torch.allclose(ae.decode(z).sample, ae.decode(z, num_inference_steps=1).sample, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_finite_in_every_precision(ae: AutoencoderSSDD, dtype: torch.dtype) -> None:
    """Norms or softmax overflow, also on images far outside of the usual range."""
    exact = ae.decode(ae.encode(X).latent_dist.mode(), num_inference_steps=3).sample
    ae.to(dtype)
    y = ae.decode(ae.encode(X.to(dtype)).latent_dist.mode(), num_inference_steps=3).sample
    assert y.dtype == dtype
    assert (y.float() - exact).abs().max() < 0.1
    assert torch.isfinite(ae(50 * X.to(dtype)).sample).all()


def test_precisions_are_independent(ae: AutoencoderSSDD) -> None:
    """The decoder's precision changes the latents, or the other way round."""
    z = ae.encode(X).latent_dist.mode()
    ae.decoder.to(torch.bfloat16)
    assert torch.equal(ae.encode(X).latent_dist.mode(), z)
    assert ae.decode(z).sample.dtype == torch.bfloat16
    ae.decoder.to(torch.float32)
    y = ae.decode(z).sample
    ae.encoder.to(torch.bfloat16)
    assert ae.encode(X).latent_dist.mode().dtype == torch.bfloat16
    assert torch.equal(ae.decode(z).sample, y)


def test_gradient_checkpointing(ae: AutoencoderSSDD) -> None:
    """Diffusers' switch doesn't reach the networks, or changes the gradients."""
    ae.requires_grad_(True).train()
    gradients = []
    for on in (False, True):
        ae.enable_gradient_checkpointing() if on else ae.disable_gradient_checkpointing()
        assert ae.encoder.gradient_checkpointing is on
        assert ae.decoder.gradient_checkpointing is on
        ae.zero_grad()
        ae(X).sample.square().mean().backward()
        gradients.append(ae.encoder.conv_in.weight.grad.clone())
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(*gradients)


def test_save_and_load_bit_for_bit(ae: AutoencoderSSDD, tmp_path: Path) -> None:
    ae.register_to_config(latents_mean=(0.1, 0.2, 0.3, 0.4), latents_std=(1.0, 2.0, 3.0, 4.0))
    (tmp_path / "plain").touch()
    ae.save_pretrained(tmp_path / "m")
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == ["config.json", "diffusion_pytorch_model.safetensors"]
    assert {p.stat().st_mode for p in (tmp_path / "m").iterdir()} == {(tmp_path / "plain").stat().st_mode}, (
        "other users cannot read the model"
    )
    loaded = AutoencoderSSDD.from_pretrained(tmp_path / "m")
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in ae.state_dict().items())
    assert torch.equal(loaded(X).sample, ae(X).sample)
    kept = {k: v for k, v in loaded.config.items() if not k.startswith("_")}
    assert kept == {k: list(v) if isinstance(v, tuple) else v for k, v in ae.config.items() if not k.startswith("_")}
    half = AutoencoderSSDD.from_pretrained(tmp_path / "m", torch_dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    half.save_pretrained(tmp_path / "half", variant="fp16")  # all that there is: taken, as of other autoencoders
    again = AutoencoderSSDD.from_pretrained(tmp_path / "half", torch_dtype=torch.bfloat16)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in half.state_dict().items())


@pytest.mark.parametrize("name", ["scaling_factor", "shift_factor"])
def test_a_factor_that_is_missing_is_named(name: str) -> None:
    """diffusers' default of a shift is null: normalising failed later, with a word about NoneType."""
    with pytest.raises(ValueError, match=f"expected {name} as a number, found None"):
        AutoencoderSSDD.from_preset("f8c4", "XXS", encoder_width=32, **{name: None})


def test_pickled_weights_are_refused(ae: AutoencoderSSDD, tmp_path: Path) -> None:
    """A pickle can run code when it is loaded."""
    ae.save_pretrained(tmp_path)
    torch.save(ae.state_dict(), tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match="pickled weights can run code"):
        AutoencoderSSDD.from_pretrained(tmp_path, use_safetensors=False)
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(OSError, match="safetensors"):
        AutoencoderSSDD.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="never saved as a pickle"):
        ae.save_pretrained(tmp_path, safe_serialization=False)


def test_saved_whole_where_it_was_in_several_files(ae: AutoencoderSSDD, tmp_path: Path) -> None:
    """The list of files that are gone would be believed."""
    ae.save_pretrained(tmp_path, max_shard_size="2MB")
    ae.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "diffusion_pytorch_model.safetensors"]
    AutoencoderSSDD.from_pretrained(tmp_path)


def test_a_pickle_renamed_to_safetensors_is_refused(ae: AutoencoderSSDD, tmp_path: Path) -> None:
    ae.save_pretrained(tmp_path)
    torch.save(ae.state_dict(), tmp_path / "x.bin")
    shutil.move(tmp_path / "x.bin", tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.raises((OSError, ValueError, RuntimeError)):
        AutoencoderSSDD.from_pretrained(tmp_path)


def test_raw_and_normalised_latents(ae: AutoencoderSSDD) -> None:
    z = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(ae.normalize_latents(z), (z - 0.25) * 0.5)
    torch.testing.assert_close(ae.denormalize_latents(ae.normalize_latents(z)), z)
    ae.register_to_config(latents_mean=(1.0, 2.0, 3.0, 4.0), latents_std=(1.0, 2.0, 4.0, 8.0))
    torch.testing.assert_close(ae.normalize_latents(z)[:, 3], (z[:, 3] - 4) / 8)
    torch.testing.assert_close(ae.denormalize_latents(ae.normalize_latents(z)), z)


def test_the_decoder_is_a_velocity_network(ae: AutoencoderSSDD) -> None:
    z = ae.encode(X).latent_dist.mode()
    noise = torch.randn(X.shape)
    v = ae.decoder(noise, torch.ones(2), z)
    torch.testing.assert_close(ae.decode(z, noise=noise, num_inference_steps=1).sample, noise + v)


@pytest.mark.parametrize("shape", [(3, 40, 56), (1, 4, 40, 56), (1, 3, 41, 56), (1, 3, 0, 56)])
def test_wrong_images_are_refused(ae: AutoencoderSSDD, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected images .* multiples of 8"):
        ae.encode(torch.zeros(shape))


def test_wrong_latents_are_refused(ae: AutoencoderSSDD) -> None:
    with pytest.raises(ValueError, match=r"expected a latent \(B, 4, h, w\), found \(1, 16, 2, 2\)"):
        ae.decode(torch.zeros(1, 16, 2, 2))
    with pytest.raises(ValueError, match="expected noise"):
        ae.decode(torch.zeros(1, 4, 2, 2), noise=torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="positive whole number"):
        ae.decode(torch.zeros(1, 4, 2, 2), num_inference_steps=0)
    with pytest.raises(OSError, match="no-such-model"):
        AutoencoderSSDD.from_pretrained("./no-such-model")


def test_a_model_without_encoder_decodes_only() -> None:
    model = AutoencoderSSDD.from_preset("f8c4", "XXS", has_encoder=False)
    assert model.decode(torch.zeros(1, 4, 2, 2)).sample.shape == (1, 3, 16, 16)
    with pytest.raises(ValueError, match=r"only decodes.*: pass --encoder"):
        model.encode(X)


class _Patches(nn.Module):
    """Moments of an f8c4 latent by one convolution, in its own dtype."""

    spatial_factor, latent_channels = 8, 4

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.dtype = dtype
        self.conv = nn.Conv2d(3, 8, 8, stride=8, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


def test_an_attached_encoder_encodes(tmp_path: Path) -> None:
    """A decoder that was trained on somebody's encoder could not be used with it, or would save it."""
    model = AutoencoderSSDD.from_preset("f8c4", "XXS", has_encoder=False).eval()
    names = set(model.state_dict())
    encoder = _Patches()
    model.attach_encoder(encoder)
    assert model.attached_encoder is encoder
    assert not encoder.training
    x = torch.rand(2, 3, 64, 600) * 2 - 1
    with torch.no_grad():
        expected = encoder(x).chunk(2, dim=1)[0]
        torch.testing.assert_close(model.encode(x).latent_dist.mode(), expected)
        model.enable_slicing()
        torch.testing.assert_close(model.encode(x).latent_dist.mode(), expected)
        model.enable_tiling()
        torch.testing.assert_close(model.encode(x).latent_dist.mode(), expected, atol=1e-5, rtol=1e-5)
    assert set(model.state_dict()) == names
    model.save_pretrained(tmp_path)
    assert AutoencoderSSDD.from_pretrained(tmp_path).attached_encoder is None


@pytest.mark.parametrize("inside", ["model", "vae"])
def test_runs_and_pipelines_stand_for_their_model(tmp_path: Path, inside: str) -> None:
    """As they do for every command."""
    saved = AutoencoderSSDD.from_preset("f8c4", "XXS", encoder_width=32, encoder_groups=8)
    saved.save_pretrained(tmp_path / inside)
    (tmp_path / "config.json").write_text("{}")
    found = AutoencoderSSDD.from_pretrained(tmp_path)
    assert torch.equal(found.decoder.conv_in.weight, saved.decoder.conv_in.weight)


class _Means:
    """What ``--encoder file.py:NAME`` takes: no module."""

    spatial_factor, latent_channels = 8, 4

    def encode(self, x: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(x, 8)[:, [0, 1, 2, 0]]


def test_what_encodes_can_be_attached() -> None:
    model = AutoencoderSSDD.from_preset("f8c4", "XXS", has_encoder=False).eval()
    model.attach_encoder(_Means())
    assert torch.equal(model.encode(X).latent_dist.mode(), _Means().encode(X))


def test_normalised_latents_are_not_rounded_before() -> None:
    """Half precision has few digits left of latents far from zero: 41 dB instead of 55."""
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    known = {"decoder_latents_mean": (9.97,) * 4, "decoder_latents_std": (0.503,) * 4}
    model = AutoencoderSSDD.from_preset("f8c4", "XXS", has_encoder=False).eval()
    same = AutoencoderSSDD.from_preset("f8c4", "XXS", has_encoder=False, **known).eval()
    same.load_state_dict(model.state_dict())
    with torch.no_grad():
        expected = model.decode(z).sample
        found = [
            ae.to(torch.bfloat16).decode(latent).sample.float() for ae, latent in ((model, z), (same, z * 0.503 + 9.97))
        ]
    errors = [float((image - expected).square().mean()) for image in found]
    assert same.decoder.latents_mean.dtype == torch.float32
    assert errors[1] < 1.2 * errors[0]


def test_a_generator_for_each_latent() -> None:
    model = AutoencoderSSDD.from_preset("f8c4", "XXS", has_encoder=False).eval()
    for count in (1, 3):
        with pytest.raises(ValueError, match=f"expected a generator for each of 2 latents, found {count}"):
            model.decode(torch.zeros(2, 4, 2, 2), generator=[torch.Generator() for _ in range(count)])


def test_an_attached_encoder_has_its_own_dtype_and_the_decoders_device() -> None:
    """A half-precision decoder would round the latents, or a decoder moved to a GPU would leave its encoder behind."""
    model = AutoencoderSSDD.from_preset("f8c4", "XXS", has_encoder=False).to(torch.bfloat16)
    model.attach_encoder(_Patches(torch.float64))
    with torch.no_grad():
        assert model.encode(X).latent_dist.mean.dtype == torch.float64
    model.to("meta")
    assert model.encode(X.to("meta")).latent_dist.mean.device.type == "meta"


def test_an_encoder_that_does_not_fit_is_refused() -> None:
    """Latents of another layout would be decoded to noise."""
    own = AutoencoderSSDD.from_preset("f8c4", "XXS", encoder_width=32)
    with pytest.raises(ValueError, match=r"expected a model without an encoder .*, found one that has its own"):
        own.attach_encoder(_Patches())
    for layout in ("f16c4", "f8c8"):
        model = AutoencoderSSDD.from_preset(layout, "XXS", has_encoder=False)
        with pytest.raises(ValueError, match=f"expected an encoder of {layout}, found f8c4"):
            model.attach_encoder(_Patches())
