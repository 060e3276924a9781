"""The discriminator and its losses: bounds, shapes, time, exact restoration, numbers by hand."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ssdd.objectives.adversarial import (
    PatchDiscriminator,
    SpectralConv,
    adaptive_weight,
    frozen,
    hinge_discriminator_loss,
    hinge_generator_loss,
)

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def discriminator(in_channels: int = 3, width: int = 8, layers: int = 3, time: bool = False) -> PatchDiscriminator:
    torch.manual_seed(0)
    return PatchDiscriminator(in_channels, width, layers, time)


def pictures(count: int, height: int = 32, width: int = 32, channels: int = 3, seed: int = 1) -> Tensor:
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize(
    ("height", "width", "h", "w"), [(32, 32, 2, 2), (24, 24, 1, 1), (41, 70, 3, 6), (64, 40, 6, 3)]
)
def test_one_logit_for_each_patch(height: int, width: int, h: int, w: int) -> None:
    """Some size of image gives another number of patches than documented."""
    assert discriminator()(pictures(2, height, width)).shape == (2, 1, h, w)


def test_receptive_field_is_seventy_pixels() -> None:
    """A logit judges less or more of the image than PatchGAN's 70 x 70 pixels."""
    net, x = discriminator(width=2), pictures(1, 128, 128).requires_grad_()
    (gradient,) = torch.autograd.grad(net(x)[0, 0, 7, 7], x)
    seen = gradient.abs().sum((0, 1))
    for line in (seen.sum(0), seen.sum(1)):
        places = line.nonzero().flatten()
        assert int(places[-1] - places[0]) + 1 == 70


def test_spectral_norm_is_one() -> None:
    """The bound that the normalisation is there for does not hold, or not any more after the weights have moved."""
    net = discriminator()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn_like(p))
        for _ in range(200):
            net(pictures(1))
    for conv in net.modules():
        if isinstance(conv, SpectralConv):
            largest = torch.linalg.svdvals(conv.weight.flatten(1))[0].item()
            assert largest == pytest.approx(1, abs=2e-2)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])
def test_power_iteration_stays_in_float32_under_autocast(device: str) -> None:
    """Singular values would be estimated in bfloat16: on a GPU, autocast takes a product with a vector, too."""
    plain, cast = discriminator(time=True).to(device), discriminator(time=True).to(device)
    x, t = pictures(2).to(device), torch.rand(2).to(device)
    with torch.autocast(device, torch.bfloat16):
        logits = cast(x, t)
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), plain(x, t), atol=2e-2, rtol=0)
    assert all(torch.equal(a, b) for a, b in zip(plain.buffers(), cast.buffers(), strict=True))


def test_time_changes_logits() -> None:
    """The discriminator does not see how noisy its input is, or mixes up the times of a batch."""
    net = discriminator(in_channels=6, time=True).eval()
    x = pictures(1, channels=6).repeat(3, 1, 1, 1)
    logits = net(x, torch.tensor([0.1, 0.9, 0.1]))
    assert (logits[0] - logits[1]).abs().max() > 1e-3
    torch.testing.assert_close(logits[0], logits[2])


@pytest.mark.parametrize("time", [False, True])
def test_logits_do_not_depend_on_neighbours(time: bool) -> None:
    """The loss would depend on how a batch is cut over processes."""
    net = discriminator(time=time).eval()
    x, t = pictures(4), torch.rand(4)
    alone = [net(x[i : i + 1], t[i : i + 1] if time else None) for i in range(4)]
    torch.testing.assert_close(net(x, t if time else None), torch.cat(alone))


@pytest.mark.parametrize("time", [False, True])
def test_restored_state_gives_the_same_bits(tmp_path: Path, time: bool) -> None:
    """A resumed run would go on with another discriminator, power iteration vectors included."""
    net, x, t = discriminator(time=time), pictures(2), torch.rand(2) if time else None
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        net(x, t).square().mean().backward()
        optimizer.step()
    save_file(net.state_dict(), tmp_path / "adversary.safetensors")
    torch.manual_seed(7)
    restored = PatchDiscriminator(width=8, time=time)
    restored.load_state_dict(load_file(tmp_path / "adversary.safetensors"))
    for _ in range(2):  # the second pass follows a power iteration
        assert torch.equal(net(x, t), restored(x, t))
    assert torch.equal(net.eval()(x, t), restored.eval()(x, t))


def test_compiled_network_agrees() -> None:
    """``compile`` breaks the discriminator, or loses its power iterations."""
    net = discriminator(width=4, layers=2, time=True)
    other = copy.deepcopy(net)
    compiled = torch.compile(other, backend="aot_eager", fullgraph=True)
    x, t = pictures(2, 16, 16), torch.rand(2)
    for _ in range(2):
        torch.testing.assert_close(compiled(x, t), net(x, t))
    for a, b in zip(net.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(a, b)


def test_hinge_losses_by_hand() -> None:
    """The numbers are not those of the equations, or not in float32."""
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 1.0])
    loss = hinge_discriminator_loss(real.bfloat16(), fake.bfloat16())
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(((0 + 0.5 + 2) / 3 + (0 + 1 + 2) / 3) / 2)
    assert hinge_generator_loss(fake.bfloat16()).dtype == torch.float32
    assert hinge_generator_loss(fake).item() == pytest.approx(2 / 3)
    assert hinge_discriminator_loss(torch.zeros(4), torch.zeros(4)).item() == 1, "undecided is 1"


def test_adaptive_weight_is_the_ratio_of_norms() -> None:
    """The adversarial loss is not balanced against the others, or the weight itself is optimised."""
    a, b = torch.full((4, 4), 3.0, requires_grad=True), torch.full((2, 2), 0.5)
    weight = adaptive_weight(a.bfloat16(), b)
    assert weight.item() == pytest.approx(12 / (1 + 1e-4))
    assert weight.dtype == torch.float32
    assert weight.shape == ()
    assert not weight.requires_grad
    assert adaptive_weight(a, torch.zeros(2)).item() == 1e4, "the limit"
    assert adaptive_weight(a, b, limit=5).item() == 5
    assert adaptive_weight(torch.zeros(2), b).item() == 0


def test_adaptive_weight_does_not_wait_for_the_device() -> None:
    """Every step would wait for the accelerator; the meta device has no values to wait for."""
    gradient = torch.ones(3, device="meta")
    assert adaptive_weight(gradient, gradient).device.type == "meta"


def test_frozen_lets_gradients_through_and_restores() -> None:
    """The generator's pass trains the discriminator, gives the generator nothing, or leaves parameters switched off."""
    net, x = discriminator(), pictures(2).requires_grad_()
    with frozen(net):
        loss = hinge_generator_loss(net(x))
    assert all(p.requires_grad for p in net.parameters())
    loss.backward()
    assert x.grad is not None
    assert x.grad.abs().max() > 0
    assert all(p.grad is None for p in net.parameters())


def test_learns_to_tell_two_distributions_apart() -> None:
    """The discriminator cannot be trained: smooth against noisy images of the same mean and variance."""
    net = discriminator()
    optimizer = torch.optim.Adam(net.parameters(), 2e-3, betas=(0.5, 0.9))

    def batch(step: int) -> tuple[Tensor, Tensor]:
        coarse = pictures(8, 8, 8, seed=2 * step)
        return coarse.repeat_interleave(4, 2).repeat_interleave(4, 3), pictures(8, seed=2 * step + 1)

    for step in range(40):
        real, fake = batch(step)
        optimizer.zero_grad()
        hinge_discriminator_loss(net(real), net(fake)).backward()
        optimizer.step()
    real, fake = batch(1000)
    with torch.no_grad():
        right = torch.cat([net.eval()(real) > 0, net(fake) < 0]).float().mean().item()
    assert right > 0.95
