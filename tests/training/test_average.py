"""The average of the weights: its half-life is in images, buffers are in it, it begins when it is told to."""

import pytest
import torch
from torch import nn

from ssdd.training.average import Average
from ssdd.training.config import AverageConfig


class Model(nn.Module):
    """A weight, a buffer, a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.register_buffer("running", torch.zeros(1))
        self.register_buffer("count", torch.tensor(0))

    def set(self, value: float) -> None:
        with torch.no_grad():
            self.weight.fill_(value)
            self.running.fill_(value)
            self.count.fill_(int(value))


@pytest.mark.parametrize("batch", [1, 5, 20])
def test_half_life_is_in_images(batch: int) -> None:
    """The batch size changes how long the average remembers."""
    model = Model()
    average = Average(model, AverageConfig(halflife_images=100), batch)
    start = 100_000  # long after the start, when the half-life is the configured one
    average.update(model, start)
    model.set(1.0)
    for seen in range(start + batch, start + 100 + batch, batch):
        average.update(model, seen)
    assert float(average.module.weight) == pytest.approx(0.5, abs=1e-3)
    assert float(average.module.running) == pytest.approx(0.5, abs=1e-3), "buffers are left out"
    assert int(average.module.count) == 1, "whole numbers cannot be averaged: the newest"
    assert not average.module.weight.requires_grad


def test_average_begins_when_it_is_told_to() -> None:
    """Until then it is the weights themselves."""
    model = Model()
    average = Average(model, AverageConfig(halflife_images=1000, from_images=100), 10)
    for seen in range(10, 110, 10):
        model.set(seen)
        average.update(model, seen)
        assert float(average.module.weight) in (seen, pytest.approx(seen, abs=10))
        if seen < 100:
            assert float(average.module.weight) == seen
    model.set(0.0)
    average.update(model, 110)
    assert float(average.module.weight) > 10, "the average has not begun"


@pytest.mark.parametrize("start", [0, 1000])
def test_average_of_what_stands_for_the_weights(start: int) -> None:
    """With a schedule-free optimiser the training sequence y is averaged, and not x, which the method is about."""
    model = Model()
    average = Average(model, AverageConfig(halflife_images=1000, from_images=start), 10)
    for seen in range(10, 110, 10):
        model.set(seen)
        average.update(model, seen, {model.weight: torch.full((1,), 7.0)})
    assert float(average.module.weight) == pytest.approx(7.0, abs=1e-3)
    assert float(average.module.running) > 8.0, "a buffer has no other point"


def test_random_start_is_forgotten() -> None:
    """After ten updates of a run with a long half-life, the first weights still rule."""
    model = Model()
    model.set(100.0)
    average = Average(model, AverageConfig(halflife_images=10**9), 4)
    average.update(model, 4)
    model.set(0.0)
    for seen in range(8, 84, 4):
        average.update(model, seen)
    assert float(average.module.weight) < 1.0


def test_update_reads_nothing_on_the_host() -> None:
    """``AveragedModel``'s own update copies its counter to the model's device and back, and the host waits."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Operations(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            names.add(str(func))
            return func(*args, **(kwargs or {}))

    names: set[str] = set()
    average = Average(Model(), AverageConfig(), 4)
    with Operations():
        average.update(Model(), 8)
    assert not {n for n in names if "_local_scalar_dense" in n or "_to_copy" in n}, names
