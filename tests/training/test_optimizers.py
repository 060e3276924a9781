"""One update: which parameters are decayed, what is skipped and what not, nobody waits for the device."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from ssdd.generation.config import GenerationConfig
from ssdd.nn.decoder import Decoder
from ssdd.nn.presets import decoder_size
from ssdd.training.config import FlowConfig, KLVAEConfig, KLVAELoss, OptimizerConfig
from ssdd.training.optimizers import Update, build_optimizer, learning_rate, orthogonal, schedule_notes

NAMES = ("adamw", "muon", "schedule-free-radam")
CPU = torch.device("cpu")


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
    model = nn.Sequential(nn.Linear(4, 3))
    update = Update(model, config(name), "fp32", CPU)
    for step in range(12):
        update.backward(model(torch.randn(5, 4)).square().mean(), 1.0)
        if step not in (0, 8):  # the very first one too: the optimiser's state is made then
            before = [p.detach().clone() for p in model.parameters()]
            norm, finite = update.step(1e-2)
            assert bool(finite), "a good update is skipped"
            moved = any(not p.equal(old) for p, old in zip(model.parameters(), before, strict=True))
            assert moved or (name == "schedule-free-radam" and step < 6), "a good update does nothing"
            continue
        before = snapshot(model, update)
        model[0].weight.grad[1, 2] = bad
        norm, finite = update.step(1e-2)
        assert not bool(finite), f"gradient norm {norm} passes for finite"
        after = snapshot(model, update)
        if step:  # AdamW makes its state in the first step
            assert all(a.equal(b) for a, b in zip(before, after, strict=True)), "a skipped update leaves traces"
        assert all(t.isfinite().all() for t in after), "a skipped update spoils the state"


def test_loss_that_is_not_finite_poisons_the_gradient() -> None:
    """An infinite loss whose gradient is finite slips through, and other processes never hear of it."""
    model = nn.Linear(2, 1, bias=False)
    update = Update(model, config("adamw"), "fp32", CPU)
    update.backward(model.weight.sum() + float("inf"), 1.0)
    assert model.weight.grad.isnan().all()
    model.weight.grad = None
    update.backward(3 * model.weight.sum(), 0.5)
    assert model.weight.grad.tolist() == [[1.5, 1.5]], "the scale is lost"


@pytest.mark.parametrize("name", NAMES)
def test_biases_and_norms_are_not_decayed(name: str) -> None:
    decoder = Decoder(decoder_size("XXS"), 4)
    decoder.conv_in.requires_grad_(False)
    *decayed, others = build_optimizer(decoder, config(name, weight_decay=0.1)).param_groups
    assert {group["weight_decay"] for group in decayed} == {0.1}
    assert others["weight_decay"] == 0.0
    names = {id(p): n for n, p in decoder.named_parameters()}
    weights = [p for group in decayed for p in group["params"]]
    found = [{names[id(p)] for p in group} for group in (weights, others["params"])]
    assert all(n.endswith("weight") for n in found[0]), "a bias is decayed"
    assert all("norm" in n or n.endswith(("bias", "bias_table")) for n in found[1]), "a weight is not decayed"
    assert any(n.endswith("bias_table") for n in found[1]), "position biases are decayed"
    assert len(found[0] | found[1]) == len(names) - 2, "a frozen parameter is trained, or one is left out"


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="PyTorch before 2.9 has none to compare with")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_muon_updates_are_pytorchs(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions are cut into other rows, momentum is lost between steps, or the ends are trained by Muon too."""
    monkeypatch.setattr("ssdd.training.optimizers.fastest_dtype", lambda device: dtype)
    torch.manual_seed(0)
    model = nn.ModuleDict({"conv_in": nn.Conv2d(3, 4, 3), "conv": nn.Conv2d(4, 8, 3), "linear": nn.Linear(8, 4)})
    model.to(memory_format=torch.channels_last)
    rows = [nn.Parameter(model[n].weight.detach().flatten(1).clone()) for n in ("conv", "linear")]
    expected = torch.optim.Muon(rows, lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    ends = nn.Parameter(model["conv_in"].weight.detach().clone())
    adamw = torch.optim.AdamW([ends], lr=1e-2, betas=(0.9, 0.999), weight_decay=0.1)
    optimizer = build_optimizer(model, config("muon", weight_decay=0.1))
    for _ in range(3):
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        for row, name in zip(rows, ("conv", "linear"), strict=True):
            row.grad = model[name].weight.grad.flatten(1)
        ends.grad = model["conv_in"].weight.grad
        optimizer.step(), expected.step(), adamw.step()
    for row, name in zip(rows, ("conv", "linear"), strict=True):
        found = model[name].weight.detach().flatten(1)
        torch.testing.assert_close(found, row.detach(), atol=2e-4, rtol=0)  # PyTorch's is in bfloat16, in another order
    torch.testing.assert_close(model["conv_in"].weight.detach(), ends.detach())


@pytest.mark.parametrize("shape", [(8, 24), (24, 8)])
def test_orthogonal(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Directions are turned, or weak ones do not count: with equal singular values all do."""
    monkeypatch.setattr("ssdd.training.optimizers.fastest_dtype", lambda device: torch.float32)
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonal(matrix)
    assert found.dtype == torch.float32
    values = (u.T @ found @ v.T).diagonal()
    assert ((values > 0.6) & (values < 1.3)).all(), values
    torch.testing.assert_close(u * values @ v, found, atol=1e-4, rtol=0)


def test_fp16_scales_the_loss_and_finds_the_scale() -> None:
    """Small gradients vanish in half precision, or one overflow ends the run."""
    model = nn.Linear(2, 1, bias=False)
    update = Update(model, config("adamw"), "fp16", CPU)
    update.backward(model.weight.sum(), 1.0)
    assert float(model.weight.grad[0, 0]) == 2.0**16, "the loss is not scaled"
    norm, finite = update.step(0.0)
    assert (float(norm), bool(finite)) == (pytest.approx(2**0.5), True)
    update.backward(model.weight.sum() * float("inf"), 1.0)
    _, finite = update.step(0.0)
    assert not bool(finite)
    assert update.scaler.get_scale() == 2.0**15, "the scale does not give way"


def test_gradient_is_clipped() -> None:
    model = nn.Linear(4, 1, bias=False)
    update = Update(model, config("adamw", clip=0.1), "fp32", CPU)
    update.backward(5 * model.weight.sum(), 1.0)
    seen: list[torch.Tensor] = []
    update.optimizer.register_step_pre_hook(lambda *_: seen.append(model.weight.grad.clone()))
    norm, _ = update.step(1e-2)
    assert norm == pytest.approx(10.0), "the norm is to be reported before clipping"
    assert float(seen[0].norm()) == pytest.approx(0.1, rel=1e-4)
    assert model.weight.grad is None, "gradients add up over updates"


def test_schedule_shrinks_with_a_short_run() -> None:
    """A run of a tenth of the recipe's length never reaches the rate that was asked for."""
    settings = FlowConfig(
        batch_size=1,
        total_images=100,
        optimizer=OptimizerConfig(learning_rate=1.0, warmup_images=300, decay_images=700),
    )
    rates = [learning_rate(settings, seen) for seen in range(100)]
    assert max(rates) == 1.0
    assert rates.index(1.0) == 29
    assert rates[-1] < 0.03


def test_what_a_run_is_too_short_for_is_said() -> None:
    """A trial run says nothing about the real one, and nobody knows."""
    short = OptimizerConfig(warmup_images=300, decay_images=700)
    config = KLVAEConfig(total_images=100, optimizer=short, loss=KLVAELoss(adversarial=0.5))
    shortened, discriminator = schedule_notes(config)
    assert "shortened to 30 and 70 of its 100 images" in shortened
    assert "warm-up is longer than the 100 images" in discriminator
    late = replace(config, loss=KLVAELoss(adversarial=0.5, adversarial_from_images=200))
    assert "comes in at 200 images, after the end of this run at 100" in schedule_notes(late)[1]
    assert schedule_notes(replace(config, total_images=1000)) == []
    assert len(schedule_notes(GenerationConfig(total_images=100, optimizer=short))) == 1


def test_learning_rate_schedule() -> None:
    settings = FlowConfig(
        batch_size=10,
        total_images=100,
        optimizer=OptimizerConfig(learning_rate=1.0, warmup_images=40, decay_images=30),
    )
    rates = [learning_rate(settings, seen) for seen in range(0, 100, 10)]
    expected = [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 2 / 3, 1 / 3]
    torch.testing.assert_close(torch.tensor(rates), torch.tensor(expected))
