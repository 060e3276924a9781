"""One update: which parameters are decayed, what is skipped and what not, nobody waits for the device."""

import pytest
import torch
from torch import nn

from ssdd.nn.decoder import Decoder
from ssdd.nn.presets import decoder_size
from ssdd.training.config import OptimizerConfig, TrainConfig
from ssdd.training.optimizers import Update, build_optimizer, learning_rate, poisoned_backward

NAMES = ("adamw", "schedule-free-radam")


def config(name: str, **settings: float) -> OptimizerConfig:
    return OptimizerConfig(name, learning_rate=1e-2, betas=(0.9, 0.999), **settings)  # type: ignore[arg-type]


def snapshot(model: nn.Module, update: Update) -> list[torch.Tensor]:
    tensors = [p.detach().clone() for p in model.parameters()]
    for p in model.parameters():
        tensors += [v.clone() for v in update.optimizer.state[p].values() if isinstance(v, torch.Tensor)]
    return tensors


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", NAMES)
def test_update_that_is_not_finite_changes_nothing(name: str, bad: float) -> None:
    """One NaN in one gradient ruins weights or optimiser state for ever."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    update = Update(model, config(name))
    for step in range(12):
        model(torch.randn(5, 4)).square().mean().backward()
        if step not in (0, 8):  # the very first one too: the optimiser's state is made then
            before = [p.detach().clone() for p in model.parameters()]
            norm, finite = update.step(1e-2)
            assert bool(finite), "a good update is skipped"
            moved = any(not p.equal(old) for p, old in zip(model.parameters(), before, strict=True))
            assert moved or (name == "schedule-free-radam" and step < 6), "a good update does nothing"
            continue
        before = snapshot(model, update)
        model.weight.grad[1, 2] = bad
        norm, finite = update.step(1e-2)
        assert not bool(finite), f"gradient norm {norm} passes for finite"
        after = snapshot(model, update)
        if step:  # AdamW makes its state in the first step
            assert all(a.equal(b) for a, b in zip(before, after, strict=True)), "a skipped update leaves traces"
        assert all(t.isfinite().all() for t in after), "a skipped update spoils the state"


def test_loss_that_is_not_finite_poisons_the_gradient() -> None:
    """An infinite loss whose gradient is finite slips through, and other processes never hear of it."""
    w = torch.nn.Parameter(torch.ones(2))
    poisoned_backward(w.sum() + float("inf"), 1.0)
    assert w.grad.isnan().all()
    w.grad = None
    poisoned_backward(3 * w.sum(), 0.5)
    assert w.grad.tolist() == [1.5, 1.5], "the scale is lost"


@pytest.mark.parametrize("name", NAMES)
def test_biases_and_norms_are_not_decayed(name: str) -> None:
    decoder = Decoder(decoder_size("XXS"), 4)
    decoder.conv_in.requires_grad_(False)
    decayed, others = build_optimizer(decoder, config(name, weight_decay=0.1)).param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    names = {id(p): n for n, p in decoder.named_parameters()}
    found = [{names[id(p)] for p in group["params"]} for group in (decayed, others)]
    assert all(n.endswith("weight") for n in found[0]), "a bias is decayed"
    assert all("norm" in n or n.endswith(("bias", "bias_table")) for n in found[1]), "a weight is not decayed"
    assert any(n.endswith("bias_table") for n in found[1]), "position biases are decayed"
    assert len(found[0] | found[1]) == len(names) - 2, "a frozen parameter is trained, or one is left out"


def test_gradient_is_clipped() -> None:
    model = nn.Linear(4, 1, bias=False)
    update = Update(model, config("adamw", clip=0.1))
    model.weight.grad = torch.full((1, 4), 5.0)
    seen: list[torch.Tensor] = []
    update.optimizer.register_step_pre_hook(lambda *_: seen.append(model.weight.grad.clone()))
    norm, _ = update.step(1e-2)
    assert norm == pytest.approx(10.0), "the norm is to be reported before clipping"
    assert float(seen[0].norm()) == pytest.approx(0.1, rel=1e-4)
    assert model.weight.grad is None, "gradients add up over updates"


def test_learning_rate_schedule() -> None:
    settings = TrainConfig(
        batch_size=10,
        total_images=100,
        optimizer=OptimizerConfig(learning_rate=1.0, warmup_images=40, decay_images=30),
    )
    rates = [learning_rate(settings, seen) for seen in range(0, 100, 10)]
    expected = [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 2 / 3, 1 / 3]
    torch.testing.assert_close(torch.tensor(rates), torch.tensor(expected))
