"""Draws of a step: a function of (seed, position in the run), however the batch is cut."""

import torch

from ssdd.training.random import BatchRandom

CPU = torch.device("cpu")


def test_parts_are_cut_from_one_batch() -> None:
    """Two processes would draw other noise than one."""
    whole = BatchRandom(3, 640, 8, CPU)
    parts = [BatchRandom(3, 640, 4, CPU), BatchRandom(3, 644, 4, CPU)]
    for shape in ((), (3, 4, 4), (2,)):
        expected = whole.normal(*shape)
        assert expected.shape == (8, *shape)
        assert torch.equal(torch.cat([p.normal(*shape) for p in parts]), expected)


def test_draws_depend_on_seed_and_clock() -> None:
    """The same noise at every step, or in every run."""
    draws = [BatchRandom(s, n, 4, CPU).normal(5) for s, n in ((0, 0), (0, 4), (1, 0), (0, 0))]
    assert torch.equal(draws[0], draws[3])
    assert not torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
