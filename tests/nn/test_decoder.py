"""The velocity network away from the golden cases: odd sizes, free grids, features, checkpointing, init."""

import pytest
import torch

from ssdd.nn.decoder import Decoder, VelocityFeatures
from ssdd.nn.presets import decoder_size


def decoder(latent_channels: int = 4) -> Decoder:
    torch.manual_seed(0)
    model = Decoder(decoder_size("XXS"), latent_channels)
    with torch.no_grad():
        for p in model.parameters():  # the zero-initialised layers, too, must carry signal in these tests
            p.add_(0.02 * torch.randn(p.shape))
    return model


@pytest.mark.parametrize(
    ("pixels", "latent"),
    [
        ((64, 64), (8, 8)),
        ((40, 72), (5, 9)),
        ((36, 20), (9, 5)),
        ((64, 96), (2, 3)),
        ((64, 32), (16, 8)),
        ((4, 4), (1, 1)),
    ],
)
def test_any_size_and_latent_grid(pixels: tuple[int, int], latent: tuple[int, int]) -> None:
    """Some size of image, or a latent grid that is coarser or finer than the tokens', cannot be decoded."""
    model = decoder()
    x, z = torch.randn(2, 3, *pixels), torch.randn(2, 4, *latent)
    with torch.no_grad():
        velocity = model(x, torch.tensor([0.2, 1.0]), z)
        other = model(x, torch.tensor([0.2, 1.0]), z + torch.randn_like(z))
    assert velocity.shape == x.shape
    assert torch.isfinite(velocity).all()
    assert (velocity - other).abs().max() > 1e-4, "the latent has no influence"


def test_features_are_the_tokens_of_the_block() -> None:
    """REPA would be trained on something else than the block's output, or the velocity changes with the request."""
    model = decoder()
    x, t, z = torch.randn(2, 3, 40, 64), torch.rand(2), torch.randn(2, 4, 5, 8)
    with torch.no_grad():
        plain = model(x, t, z)
        results = [model(x, t, z, feature_block=i) for i in range(4)]
    for result in results:
        assert isinstance(result, VelocityFeatures)
        assert result.grid == (5, 8)
        assert result.features.shape == (2, 40, 96)
        assert torch.equal(result.velocity, plain)
    assert not torch.equal(results[0].features, results[3].features)


def test_gradient_checkpointing_changes_nothing() -> None:
    """Recomputing activations gives other gradients."""
    model = decoder()
    x, t, z = torch.randn(1, 3, 32, 32), torch.rand(1), torch.randn(1, 4, 4, 4)
    gradients = []
    for on in (False, True):
        model.gradient_checkpointing = on
        model.zero_grad()
        model(x, t, z).square().mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(list(model.parameters()))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_each_image_is_decoded_on_its_own() -> None:
    """Images of a batch influence one another."""
    model = decoder().eval()
    x, t, z = torch.randn(3, 3, 32, 48), torch.rand(3), torch.randn(3, 4, 4, 6)
    with torch.no_grad():
        together = model(x, t, z)
        alone = torch.cat([model(x[i : i + 1], t[i : i + 1], z[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_initialisation() -> None:
    """Residual branches don't start at zero, or the output starts at zero."""
    torch.manual_seed(0)
    model = Decoder(decoder_size("XXS"), 4)
    state = model.state_dict()
    zero = [k for k in state if k.endswith(("conv2.weight", "feed_forward.out.weight", "bias_table"))]
    assert len(zero) == 4 * 2 + 4 * 3 + 2 * 4
    assert all(state[k].abs().max() == 0 for k in zero)
    assert all(v.abs().max() == 0 for k, v in state.items() if k.endswith(".bias"))
    assert state["conv_out.weight"].std() == pytest.approx((9 * 32) ** -0.5, rel=0.1)
    assert state["up.0.blocks.0.norm1.modulation.weight"].std() == pytest.approx(0.02, rel=0.1)
    bound = (6 / (96 + 96)) ** 0.5
    assert 0.9 * bound < state["middle.proj_in.weight"].abs().max() <= bound


def test_initialisation_of_the_paper() -> None:
    """``init="paper"`` is not what was published."""
    torch.manual_seed(0)
    model = Decoder(decoder_size("XXS"), 4)
    model.reset_parameters("paper")
    assert float(model.conv_out.weight.std()) == pytest.approx(0.02, rel=0.1)
    assert float(model.up[0].blocks[0].shortcut.weight.std()) == pytest.approx(0.02, rel=0.1)


def gradient_by_block(model: Decoder) -> dict[str, float]:
    """Root mean square of the gradient of each level, of the middle and of the ends."""
    found: dict[str, list[float]] = {}
    for name, p in model.named_parameters():
        first, second, *_ = name.split(".")
        if p.grad is not None:
            found.setdefault(first + second * second.isdigit(), []).append(float(p.grad.square().mean()))
    return {name: (sum(values) / len(values)) ** 0.5 for name, values in found.items()}


@pytest.mark.parametrize("size", ["XXS", "S"])
def test_every_block_has_a_gradient_from_the_start(size: str) -> None:
    """With small convolutions coarse levels and transformer never learn: their gradient is below AdamW's eps."""
    torch.manual_seed(0)
    model = Decoder(decoder_size(size), 4)
    x, noise, t, z = torch.randn(2, 3, 64, 64), torch.randn(2, 3, 64, 64), torch.rand(2), torch.randn(2, 4, 8, 8)
    (model(x, t, z) - noise).square().mean().backward()
    found = gradient_by_block(model)
    del found["time"]  # hidden by the second convolutions, which begin at zero
    dead = {name: value / max(found.values()) for name, value in found.items() if value < 1e-6 * max(found.values())}
    assert not dead, f"no gradient reaches {dead}"


def test_latents_enter_normalised() -> None:
    """A decoder with statistics is given something else than (z - mean) / std, or the raw latent twice."""
    torch.manual_seed(0)
    plain = Decoder(decoder_size("XXS"), 2).eval()
    normalised = Decoder(decoder_size("XXS"), 2, latents_mean=(3.0, -1.0), latents_std=(4.0, 0.5)).eval()
    normalised.load_state_dict(plain.state_dict())  # the statistics are the config's, and no weights
    x, t, z = torch.randn(1, 3, 16, 16), torch.rand(1), torch.randn(1, 2, 2, 2)
    raw = z * torch.tensor([4.0, 0.5]).view(1, 2, 1, 1) + torch.tensor([3.0, -1.0]).view(1, 2, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(normalised(x, t, raw), plain(x, t, z), atol=1e-5, rtol=1e-4)


def test_wrong_inputs_are_refused() -> None:
    model = decoder()
    x, t = torch.randn(1, 3, 16, 16), torch.rand(1)
    with pytest.raises(ValueError, match="expected a latent with 4 channels, found 5"):
        model(x, t, torch.randn(1, 5, 2, 2))
    with pytest.raises(ValueError, match="expected a block from 0 to 3, found 4"):
        model(x, t, torch.randn(1, 4, 2, 2), feature_block=4)
