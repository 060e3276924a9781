"""From noise to latents: the schedulers' convention, guidance, and samples that depend on nothing but their number."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from ssdd import AutoencoderSSDD
from ssdd.checkpoints.identity import LatentIdentity
from ssdd.evaluation.decoders import LatentDecoder
from ssdd.generation.model import build_dit, null_class
from ssdd.generation.result import Generator, LatentFacts, parse_classes
from ssdd.generation.sampling import Sampler, Sampling, generate, generate_images, guided_velocity, integrate
from tests.generation.latents import NOBODY, STATISTICS

FACTS = LatentFacts((4, 4, 4), ("plus", "minus"), {**STATISTICS, "latents_convention": "measured"}, NOBODY)


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
    torch.testing.assert_close(integrate(velocity, noise, Sampling(steps=steps).times), x, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("sampler", ["euler", "heun"])
@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_straight_paths_end_at_the_image(sampler: Sampler, steps: int, shift: float) -> None:
    image, noise = torch.randn(3, 4), torch.randn(3, 4)
    times = Sampling(steps=steps, shift=shift).times
    torch.testing.assert_close(integrate(lambda x, t: image - noise, noise, times, sampler), image)


@pytest.mark.parametrize(("sampler", "calls"), [("euler", 5), ("heun", 10)])
def test_calls_are_those_that_are_told(sampler: Sampler, calls: int) -> None:
    sampling, times = Sampling(steps=5, sampler=sampler), list[float]()

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        times.append(float(t[0]))
        return x

    integrate(velocity, torch.ones(1, 1), sampling.times, sampler)
    assert len(times) == sampling.calls == calls
    assert (min(times), max(times)) == ((0.0, 1.0) if sampler == "heun" else (pytest.approx(0.2), 1.0))


def test_times_are_shifted_as_in_sd3() -> None:
    """t = s u / (1 + (s - 1) u): for s = 3, 1/2 becomes 3/4."""
    assert Sampling(steps=2).times == [1.0, 0.5, 0.0]
    assert Sampling(steps=2, shift=3.0).times == [1.0, 0.75, 0.0]


MEANS, WEIGHTS, STD = torch.tensor([-2.0, 1.0, 3.0], dtype=torch.float64), torch.tensor([0.2, 0.5, 0.3]), 0.4
"""A mixture of three Gaussians on a line, whose flow is known."""


def mixture_velocity(x: Tensor, t: Tensor) -> Tensor:
    """E[x_0 - noise | x_t = x] for x_t = (1 - t) x_0 + t noise: Gaussian in each component, weighted by its density."""
    x, t = x.double(), t.double()[:, None]
    mean, variance = (1 - t) * MEANS, (1 - t) ** 2 * STD**2 + t**2  # (B, 3) and (B, 1), of x_t in each component
    density = WEIGHTS * torch.exp(-((x - mean) ** 2) / (2 * variance))
    share = density / density.sum(dim=1, keepdim=True)
    slope = ((1 - t) * STD**2 - t) / variance  # covariance of x_0 - noise and x_t, by the variance of x_t
    return (share * (MEANS + slope * (x - mean))).sum(dim=1, keepdim=True)


def exact_solution(noise: Tensor) -> Tensor:
    """In one dimension the flow keeps quantiles: the mixture's quantile of the noise's probability."""
    probability = torch.special.ndtr(noise.double())
    low, high = torch.full_like(probability, -10.0), torch.full_like(probability, 10.0)
    for _ in range(80):
        middle = (low + high) / 2
        below = (WEIGHTS * torch.special.ndtr((middle - MEANS) / STD)).sum(dim=1, keepdim=True) < probability
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return middle


@pytest.mark.parametrize(("sampler", "order"), [("euler", 1), ("heun", 2)])
def test_order_of_convergence_on_a_gaussian_mixture(sampler: Sampler, order: int) -> None:
    """The error against the closed form falls by 2^order when the steps are doubled."""
    noise = torch.linspace(-2, 2, 41)[:, None]
    exact, errors = exact_solution(noise), []
    for steps in (32, 64, 128):
        solution = integrate(mixture_velocity, noise, Sampling(steps=steps).times, sampler)
        errors.append(float((solution - exact).abs().mean()))
    orders = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    assert orders[-1] == pytest.approx(order, abs=0.25), (errors, orders)


@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_samples_are_of_their_class(generator: Generator, sampler: Sampler) -> None:
    """Trained on two constant latents: 1, -1, 0, 0 and -1, 1, 0, 0 by channel."""
    sampling = Sampling(steps=20, guidance=2.0, sampler=sampler)
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


def test_classes_out_of_range(generator: Generator) -> None:
    for wrong in (2, -1):
        with pytest.raises(ValueError, match=rf"^expected classes from 0 to 1, found {wrong}$"):
            generate(generator, [0, wrong], Sampling(steps=1))
    without = Generator(generator.model, LatentFacts((4, 4, 4), (), FACTS.statistics, NOBODY))
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
        ({"shift": 0.0}, "shift of the times above 0"),
        ({"sampler": "ddim"}, "expected a sampler, euler or heun, found 'ddim'"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(**settings)  # type: ignore[arg-type]


def test_autoguidance_leads_away_from_the_guide() -> None:
    torch.manual_seed(0)
    models = [build_dit("tiny/2", (4, 4, 4), 2).eval() for _ in range(2)]
    for parameter in (p for model in models for p in model.parameters()):
        parameter.data += torch.randn_like(parameter) * 0.05
    x, t, labels = torch.randn(3, 4, 4, 4), torch.full((3,), 0.5), torch.tensor([0, 1, 1])
    with torch.no_grad():
        good, bad = (guided_velocity(model, labels, Sampling(guidance=1.0))(x, t) for model in models)
        guided = guided_velocity(models[0], labels, Sampling(guidance=2.5), models[1])(x, t)
    torch.testing.assert_close(guided, bad + 2.5 * (good - bad), atol=1e-5, rtol=1e-4)


def test_guide_on_other_latents_is_refused(generator: Generator) -> None:
    other = replace(generator.facts, tokenizer=LatentIdentity("other", "2" * 64, 8, 4))
    with pytest.raises(ValueError, match=r"a guide on latents of none.*of other"):
        generate(generator, [0], Sampling(steps=1), guide=Generator(generator.model, other))
    other = replace(generator.facts, classes=("minus", "plus"))
    with pytest.raises(ValueError, match="a guide with the generator's classes"):
        generate(generator, [0], Sampling(steps=1), guide=Generator(generator.model, other))


@pytest.fixture(scope="module")
def decoder() -> LatentDecoder:
    model = AutoencoderSSDD.from_preset(encoder="f8c4", decoder="XXS", encoder_width=32, encoder_groups=8).eval()
    return LatentDecoder(model, NOBODY)


def test_no_class_needs_no_guidance(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the work for the same samples."""
    sizes: list[int] = []
    generator.model.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])) if args else None)
    guided, plain = (generate(generator, [None] * 2, Sampling(steps=2, guidance=g)) for g in (4.0, 1.0))
    assert torch.equal(guided, plain)
    assert set(sizes) <= {2}


def test_decoder_that_does_not_fit_is_refused(generator: Generator, decoder: LatentDecoder) -> None:
    """Its channels, or the side of an image, would be wrong."""
    for layout, message in (((8, 16), "of f8c4.*one of f8c16"), ((4, 4), "of f8c4.*one of f4c4")):
        other = LatentDecoder(decoder.model, LatentIdentity("other", None, *layout))
        with pytest.raises(ValueError, match=message):
            generate_images(generator, other, [0], Sampling())


def test_images_are_decoded_raw_latents(generator: Generator, decoder: LatentDecoder) -> None:
    sampling = Sampling(steps=2)
    batches = list(generate_images(generator, decoder, [0, 1, 0], sampling, batch_size=2))
    assert [b.shape for b in batches] == [(2, 32, 32, 3), (1, 32, 32, 3)]
    raw = 1 + 2 * generate(generator, [0, 1, 0], sampling)
    with torch.no_grad():
        expected = decoder.model.decode(raw[:2]).sample.clamp(-1, 1).add(1).mul(127.5).permute(0, 2, 3, 1)
    assert float((torch.from_numpy(batches[0]).float() - expected).abs().max()) < 1.01


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["all"], [0, 1, 2, 3]),
        (["tench"], [0]),
        (["Tinca tinca"], [0]),
        (["tench, Tinca tinca", "2"], [0, 2]),
        (["great white", "0"], [2, 0]),
        (["hammer", "tiger shark"], [1, 3]),
        (["#3", "#0"], [3, 0]),
        (["goldfish"], None),
        (["shark"], None),
        (["4"], None),
        (["-1"], None),
        (["--5"], None),
        (["#--5"], None),
        (["tench,2"], None),
    ],
)
def test_classes_by_number_name_and_part(words: list[str], expected: list[int] | None) -> None:
    names = ("tench, Tinca tinca", "hammerhead", "great white shark, white shark", "tiger shark")
    facts = replace(FACTS, classes=names)
    if expected is not None:
        assert parse_classes(words, facts) == expected
        return
    with pytest.raises(ValueError, match=r"^expected"):
        parse_classes(words, facts)


def test_classes_may_be_integers_of_numpy() -> None:
    FACTS.check_labels(list(np.arange(len(FACTS.classes))))  # type: ignore[arg-type]
    for wrong in (np.int64(len(FACTS.classes)), np.float64(0), True, 0.0):
        with pytest.raises(ValueError, match="expected classes from 0 to"):
            FACTS.check_labels([wrong])  # type: ignore[list-item]


def test_classes_whose_names_are_numbers() -> None:
    """Folders 1, 2, 10 and 3: what is "2"?"""
    facts = replace(FACTS, classes=("1", "10", "2", "3"))
    assert parse_classes(["10", "3"], facts) == [1, 3]
    assert parse_classes(["#1", "#2"], facts) == [1, 2]
    with pytest.raises(ValueError, match=r"named in one way, found '1', the name of class #0"):
        parse_classes(["1"], facts)
    with pytest.raises(ValueError, match="found 'a' twice"):
        parse_classes(["a"], replace(FACTS, classes=("a", "a")))
