"""From noise to latents: the schedulers' convention, guidance, and samples that depend on nothing but their number."""

import math
from dataclasses import replace

import pytest
import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor

from ssdd import AutoencoderSSDD
from ssdd.generation.decoding import spatial_factor
from ssdd.generation.model import build_dit, dit_size, null_class
from ssdd.generation.result import Generator, LatentFacts
from ssdd.generation.sampling import Sampling, generate, generate_images, guided_velocity, integrate
from tests.generation.latents import STATISTICS

FACTS = LatentFacts((4, 4, 4), ("plus", "minus"), {**STATISTICS, "latents_convention": "measured"}, {})


def test_euler_is_the_plain_loop_on_equal_steps() -> None:
    """x <- x + (t_i - t_{i+1}) v(x, t_i), v from noise to image: the other sign would go away from the image."""
    torch.manual_seed(0)
    weight, noise = torch.randn(6, 6) / 3, torch.randn(2, 6)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(x @ weight) - t[:, None] * x

    x, steps = noise, 7
    for i in range(steps):
        t = torch.full((2,), 1 - i / steps)
        x = x + velocity(x, t) / steps
    torch.testing.assert_close(integrate(velocity, noise, steps), x, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("sampler", ["euler", "heun"])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_straight_paths_end_at_the_image(sampler: str, steps: int) -> None:
    image, noise = torch.randn(3, 4), torch.randn(3, 4)
    found = integrate(lambda x, t: image - noise, noise, steps, sampler)  # type: ignore[arg-type]
    torch.testing.assert_close(found, image, atol=2e-4, rtol=0)  # Heun divides a difference by a t of 0.001


def test_heun_converges_faster_than_euler() -> None:
    """dx/ds = x with s = 1 - t, from x at s = 0: e x at the end."""
    noise = torch.ones(1, 1)
    errors = {
        (sampler, steps): abs(float(integrate(lambda x, t: x, noise, steps, sampler)) - math.e)  # type: ignore[arg-type]
        for sampler in ("euler", "heun")
        for steps in (10, 20, 40)
    }
    for steps in (10, 20):
        assert errors["euler", steps] / errors["euler", 2 * steps] == pytest.approx(2, rel=0.2)
        assert errors["heun", steps] / errors["heun", 2 * steps] == pytest.approx(4, rel=0.3)
    assert errors["heun", 10] < errors["euler", 40] / 2, "19 calls of Heun against 40 of Euler"


@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_samples_are_of_their_class(generator: Generator, sampler: str) -> None:
    """Trained on two constant latents: 1, -1, 0, 0 and -1, 1, 0, 0 by channel."""
    sampling = Sampling(steps=20, guidance=2.0, sampler=sampler)  # type: ignore[arg-type]
    z = generate(generator, [0, 1, 0, 1], sampling)
    expected = torch.tensor([[1.0, -1, 0, 0], [-1, 1, 0, 0]])[torch.tensor([0, 1, 0, 1])][:, :, None, None]
    assert float((z - expected).abs().mean()) < 0.25
    raw = generator.facts.denormalize(expected)
    torch.testing.assert_close(raw[0, :, 0, 0], torch.tensor([3.0, -1.0, 1.0, 1.0]))


def test_no_label_gives_either_class(generator: Generator) -> None:
    z = generate(generator, [None] * 12, Sampling(steps=10))
    signs = {int(s) for s in (z[:, 0] - z[:, 1]).mean(dim=(1, 2)).sign()}
    assert signs == {-1, 1}


def test_sample_depends_on_seed_number_and_class_alone(generator: Generator) -> None:
    labels, sampling = [0, 1, 1, 0, 1], Sampling(steps=4)
    whole = generate(generator, labels, sampling, batch_size=5)
    for batch_size in (1, 2, 3):
        found = generate(generator, labels, sampling, batch_size=batch_size)
        torch.testing.assert_close(found, whole, atol=1e-5, rtol=1e-4)
    part = generate(generator, [0, 1], sampling, numbers=[3, 2])
    torch.testing.assert_close(part, whole[[3, 2]], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(whole[1], whole[2], atol=1e-3), "two samples began with the same noise"
    other = generate(generator, labels, replace(sampling, seed=1))
    assert not torch.allclose(other[0], whole[0], atol=1e-3)


def test_guidance_is_a_line_through_both_predictions_inside_its_interval() -> None:
    torch.manual_seed(0)
    model = build_dit("tiny/2", (4, 4, 4), 2).eval()
    for p in model.parameters():
        p.data += torch.randn_like(p) * 0.05
    x, labels = torch.randn(3, 4, 4, 4), torch.tensor([0, 1, 1])

    def at(t: float, **options: object) -> Tensor:
        return guided_velocity(model, labels, Sampling(**options))(x, torch.full((3,), t))  # type: ignore[arg-type]

    with torch.no_grad():
        plain = at(0.5, guidance=1.0)
        nothing = guided_velocity(model, torch.full((3,), null_class(model)), Sampling(guidance=1.0))(
            x, torch.full((3,), 0.5)
        )
        assert not torch.allclose(plain, nothing, atol=1e-3), "the class makes no difference"
        torch.testing.assert_close(at(0.5, guidance=3.0), nothing + 3 * (plain - nothing), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(at(0.5, guidance=3.0, interval=(0.6, 0.9)), plain)
        assert not torch.allclose(at(0.6, guidance=3.0, interval=(0.6, 0.9)), at(0.6, guidance=1.0), atol=1e-3)


def test_sizes_are_the_published_ones() -> None:
    """675, 458, 130, 33 million parameters; diffusers embeds time and class in each block, we count that once."""
    with torch.device("meta"):
        counts = {}
        for name in ("XL/2", "L/2", "B/2", "S/2"):
            size = dit_size(name)
            model = DiTTransformer2DModel(size.heads, size.head_width, num_layers=size.layers, patch_size=size.patch)
            others = [f"transformer_blocks.{i}.norm1.emb." for i in range(1, size.layers)]
            counted = [p.numel() for n, p in model.named_parameters() if not n.startswith(tuple(others))]
            counts[name] = round(sum(counted) / 1e6)
    assert counts == {"XL/2": 675, "L/2": 458, "B/2": 130, "S/2": 33}


def test_classes_out_of_range(generator: Generator) -> None:
    for wrong in (2, -1):
        with pytest.raises(ValueError, match=rf"^expected classes from 0 to 1, found {wrong}$"):
            generate(generator, [0, wrong], Sampling(steps=1))
    without = Generator(generator.model, LatentFacts((4, 4, 4), (), FACTS.statistics, {}))
    with pytest.raises(ValueError, match="this model knows none; found 0"):
        generate(without, [0], Sampling(steps=1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps of at least 1"),
        ({"seed": -1}, "seed of at least 0"),
        ({"guidance": -1.0}, "guidance of at least 0"),
        ({"guidance": math.nan}, "guidance of at least 0"),
        ({"interval": (0.9, 0.1)}, "interval of times from 0 to 1"),
        ({"sampler": "ddim"}, "expected a sampler, euler or heun, found 'ddim'"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(**settings)  # type: ignore[arg-type]


def test_decoder_that_does_not_fit_is_refused(generator: Generator) -> None:
    """Its channels, or the side of an image, would be wrong."""
    small = {"decoder": "XXS", "encoder_width": 32, "encoder_groups": 8}
    for name, message in (("f8c16", "decoder of 4 latent channels.*one of 16"), ("f4c4", "factor 8.*found 4")):
        decoder = AutoencoderSSDD.from_preset(encoder=name, **small)
        assert spatial_factor(decoder) == decoder.spatial_factor
        with pytest.raises(ValueError, match=message):
            generate_images(generator, decoder, [0], Sampling())


def test_images_are_decoded_raw_latents(generator: Generator) -> None:
    decoder = AutoencoderSSDD.from_preset(encoder="f8c4", decoder="XXS", encoder_width=32, encoder_groups=8).eval()
    sampling = Sampling(steps=2)
    batches = list(generate_images(generator, decoder, [0, 1, 0], sampling, batch_size=2))
    assert [b.shape for b in batches] == [(2, 32, 32, 3), (1, 32, 32, 3)]
    raw = 1 + 2 * generate(generator, [0, 1, 0], sampling)
    with torch.no_grad():
        expected = decoder.decode(raw[:2]).sample.clamp(-1, 1).add(1).mul(127.5).permute(0, 2, 3, 1)
    assert float((torch.from_numpy(batches[0]).float() - expected).abs().max()) < 1.01
