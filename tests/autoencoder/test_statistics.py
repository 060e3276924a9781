"""Statistics of latents: NumPy's on all of them at once, whatever the batches, their order and how far from zero."""

import itertools
import json

import numpy as np
import pytest
import torch
from torch import Tensor

from ssdd.autoencoder.statistics import LatentStatistics


def latents(offset: float = 0.0, dtype: torch.dtype = torch.float64) -> Tensor:
    """(11, 3, 4, 5), channels of unequal mean and deviation."""
    z = torch.randn(11, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scale, shift = torch.tensor([[1.0, 2.0, 0.01], [0.5, -3.0, 0.0]])[:, :, None, None].double()
    return (z * scale + shift + offset).to(dtype)


def measured(*parts: Tensor) -> LatentStatistics:
    statistics = LatentStatistics()
    for part in parts:
        statistics.update(part)
    return statistics


def numbers(statistics: LatentStatistics) -> np.ndarray:
    entries = statistics.config()
    single = [statistics.global_mean, statistics.global_std, entries["shift_factor"], 1 / entries["scaling_factor"]]
    return np.array([*single, *entries["latents_mean"], *entries["latents_std"]])


def expected(z: Tensor) -> np.ndarray:
    values = z.double().numpy()
    channels = values.transpose(1, 0, 2, 3).reshape(values.shape[1], -1)
    return np.array([*[values.mean(), values.std()] * 2, *channels.mean(1), *channels.std(1)])


@pytest.mark.parametrize("sizes", [(11,), (1, 4, 6), (1,) * 11], ids=str)
@pytest.mark.parametrize("offset", [0.0, 1e6], ids=str)
def test_streaming_is_numpy_on_everything(sizes: tuple[int, ...], offset: float) -> None:
    """1e6 beside a deviation of 0.01: sums of squares would have lost all of its digits."""
    z = latents(offset)
    found = measured(*z.split(list(sizes)))
    assert found.count == 11 * 4 * 5
    np.testing.assert_allclose(numbers(found), expected(z), rtol=1e-8, atol=1e-8 if offset else 1e-14)
    np.testing.assert_allclose(found.std.numpy(), z.numpy().std((0, 2, 3)), rtol=1e-6 if offset else 1e-12)
    assert torch.equal(found.minimum, z.amin((0, 2, 3)))
    assert torch.equal(found.maximum, z.amax((0, 2, 3)))


def test_order_of_batches_does_not_count() -> None:
    parts = latents(1e3).split([2, 4, 5])
    first, *others = (numbers(measured(*order)) for order in itertools.permutations(parts))
    for other in others:
        np.testing.assert_allclose(other, first, rtol=1e-12)


def test_merge_is_one_pass_over_both() -> None:
    z = latents(1e3)
    whole = measured(z)
    left, right, empty = measured(z[:4]), measured(z[4:]), LatentStatistics()
    right_before = numbers(right)
    for other in (right, empty):
        left.merge(other)
    empty.merge(left)
    for merged in (left, empty):
        assert merged.count == whole.count
        np.testing.assert_allclose(numbers(merged), numbers(whole), rtol=1e-12)
        assert torch.equal(merged.minimum, whole.minimum)
        assert torch.equal(merged.maximum, whole.maximum)
    assert np.array_equal(numbers(right), right_before), "what was merged from has changed"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_latents_of_few_digits_are_summed_in_many(dtype: torch.dtype) -> None:
    z = latents(2.0, dtype).requires_grad_()
    found = measured(*z.split(3))
    np.testing.assert_allclose(numbers(found), expected(z.detach()), rtol=1e-12)
    assert (found.mean.dtype, found.std.dtype, found.mean.requires_grad) == (torch.float64, torch.float64, False)


def test_normalised_by_the_config() -> None:
    """The two formulas of the docstring, globally and per channel."""
    z = latents()
    config = measured(z).config()
    overall = ((z - config["shift_factor"]) * config["scaling_factor"]).numpy()
    np.testing.assert_allclose([overall.mean(), overall.std()], [0, 1], atol=1e-12)
    mean, std = (torch.tensor(config[n]).double().view(1, -1, 1, 1) for n in ("latents_mean", "latents_std"))
    channels = ((z - mean) / std).numpy()
    np.testing.assert_allclose(channels.mean((0, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(channels.std((0, 2, 3)), 1, atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.1, -1e6])
def test_a_channel_that_never_changes_is_finite(value: float) -> None:
    z = latents()
    z[:, 1] = value
    config = measured(*z.split(2)).config()
    assert config["latents_std"][1] == 1.0, "normalised it is infinite, or rounding blown up"
    assert config["latents_mean"][1] == pytest.approx(value)
    assert measured(torch.full((2, 3, 4, 4), value)).config()["scaling_factor"] == 1.0


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_what_is_not_finite_is_named(value: float) -> None:
    """One NaN would be every number of the config, for ever."""
    z = latents()
    z[7, 1, 2, 3] = value
    statistics = measured(latents())
    before = numbers(statistics)
    with pytest.raises(ValueError, match=r"^image 7 of the batch: expected a finite latent, found NaN or infinity"):
        statistics.update(z)
    with pytest.raises(ValueError, match=r"^photo7\.png: expected a finite latent"):
        statistics.update(z, [f"photo{i}.png" for i in range(11)])
    assert np.array_equal(numbers(statistics), before), "half of the batch was counted"


def test_errors() -> None:
    with pytest.raises(ValueError, match="no batch was added"):
        LatentStatistics().config()
    statistics = measured(latents())
    for wrong in (
        torch.zeros(2, 4, 3, 3),
        torch.zeros(3, 4, 5),
        torch.zeros(0, 3, 4, 5),
        torch.zeros(1, 3, 2, 2).int(),
    ):
        with pytest.raises(ValueError, match=r"expected latents \(B, 3, h, w\) of floats, found torch"):
            statistics.update(wrong)
    with pytest.raises(ValueError, match="expected statistics of 3 channels, found 4"):
        statistics.merge(measured(torch.randn(1, 4, 2, 2)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_the_device_as_on_the_cpu() -> None:
    z = latents(1e3, torch.float32)
    np.testing.assert_allclose(numbers(measured(z.cuda())), numbers(measured(z)), rtol=1e-12)
    assert measured(z.cuda()).mean.device.type == "cpu"


def test_state_keeps_every_digit() -> None:
    statistics = LatentStatistics()
    statistics.update(torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(0)) * 3 + 1e3)
    again = LatentStatistics.from_state(json.loads(json.dumps(statistics.state())))
    assert again.state() == statistics.state()
    assert again.config() == statistics.config()
    again.merge(statistics)
    assert again.count == 2 * statistics.count
    assert LatentStatistics.from_state(LatentStatistics().state()).count == 0
    for harm in ({"count": -1}, {"count": True}, {"mean": [0.0]}, {"mean": ["a"] * 4}, {"squares": [-1.0] * 4}):
        with pytest.raises(ValueError, match="statistics of latents"):
            LatentStatistics.from_state(statistics.state() | harm)
