"""Kernel distance and manifolds of feature sets: other libraries, plain loops, bounded memory."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from ssdd.evaluation import distances
from ssdd.evaluation.distances import (
    ManifoldMetrics,
    kernel_distance,
    manifold_metrics,
    squared_mmd,
)
from tests.evaluation.random_features import features

Metric = Callable[[Tensor, Tensor], object]


def kernel_by_hand(x: Tensor, y: Tensor) -> float:
    """Unbiased MMD² in one piece."""
    x, y = x.double(), y.double()

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / x.shape[1] + 1) ** 3

    xx, yy = kernel(x, x), kernel(y, y)
    within = (xx.sum() - xx.trace()) / (len(x) * (len(x) - 1)) + (yy.sum() - yy.trace()) / (len(y) * (len(y) - 1))
    return float(within - 2 * kernel(x, y).mean())


@pytest.mark.parametrize("block", [7, 64, 4096])
def test_squared_mmd_agrees_with_the_whole_matrices(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(distances, "_BLOCK", block)
    x, y = features(130), features(201, seed=1, shift=0.1)
    assert squared_mmd(x, y) == pytest.approx(kernel_by_hand(x, y), rel=1e-10), "a block is lost or counted twice"
    assert squared_mmd(y, x) == pytest.approx(squared_mmd(x, y), rel=1e-10)
    # Equal and the same tensor: the mean between them has the diagonal, those within have not.
    assert squared_mmd(x, x) == pytest.approx(kernel_by_hand(x, x), rel=1e-10), "one set against itself"


def test_kernel_distance_agrees_with_torchmetrics_and_torch_fidelity() -> None:
    """One subset of all features: no chance in it. torchmetrics computes in float32."""
    kid = pytest.importorskip("torchmetrics.image.kid")
    x, y = features(200), features(200, seed=1, shift=0.3)
    found = kernel_distance(x, y, subset_size=200, subsets=2)
    assert found.mean == pytest.approx(float(kid.poly_mmd(x.double(), y.double())), rel=1e-10)
    theirs = pytest.importorskip("torch_fidelity.metric_kid", reason="torch-fidelity is not installed (ssdd[eval])")
    result = theirs.kid_features_to_metric(x.double(), y.double(), kid_subsets=2, kid_subset_size=200, verbose=False)
    assert found.mean == pytest.approx(result[theirs.KEY_METRIC_KID_MEAN], rel=1e-10)
    assert found.deviation < 1e-10, "the whole set, drawn twice, is not one set"


def test_kernel_distance_is_the_mean_over_random_subsets() -> None:
    x, y = features(300), features(250, seed=1, shift=0.3)
    first = kernel_distance(x, y, subset_size=60, subsets=50, seed=3)
    assert kernel_distance(x, y, subset_size=60, subsets=50, seed=3) == first, "the same seed gives another number"
    assert kernel_distance(x, y, subset_size=60, subsets=50, seed=4) != first, "the seed is not used"
    assert abs(first.mean - squared_mmd(x, y)) < 4 * first.standard_error, "biased against the exact value"
    assert first.standard_error == pytest.approx(first.deviation / 7), "sqrt(50 - 1)"
    equal = kernel_distance(features(300), features(300, seed=2), subset_size=60, subsets=50)
    assert abs(equal.mean) < first.mean / 20, "two samples of one distribution are far apart"


def manifolds_by_hand(real: Tensor, fake: Tensor, k: int) -> ManifoldMetrics:
    """One pair at a time, from differences. A centre lies in its ball, whose radius is to another feature."""

    def radii(x: list[np.ndarray]) -> list[float]:
        return [sorted(float(((a - b) ** 2).sum()) for j, b in enumerate(x) if j != i)[k - 1] for i, a in enumerate(x)]

    reals, fakes = (list(s.double().numpy()) for s in (real, fake))
    squared = np.array([[((a - b) ** 2).sum() for b in fakes] for a in reals])
    in_real = (squared < np.array(radii(reals))[:, None] - 1e-9) | (squared == 0)
    in_fake = (squared < np.array(radii(fakes)) - 1e-9) | (squared == 0)
    return ManifoldMetrics(
        in_real.any(0).mean(), in_fake.any(1).mean(), in_real.sum(0).mean() / k, in_real.any(1).mean()
    )


def lattice(count: int, seed: int) -> Tensor:
    """Whole coordinates from 0 to 3: many ties, many duplicates."""
    return torch.randint(0, 4, (count, 4), generator=torch.Generator().manual_seed(seed)).float() + 7


@pytest.mark.parametrize("make", [lambda n, s: features(n, 6, s, 0.2 * s), lattice])
@pytest.mark.parametrize("neighbours", [1, 5])
@pytest.mark.parametrize("block", [16, 4096])
def test_manifold_metrics_agree_with_a_loop(
    monkeypatch: pytest.MonkeyPatch, make: Callable[[int, int], Tensor], neighbours: int, block: int
) -> None:
    """Blocks, ties or duplicates change a metric."""
    monkeypatch.setattr(distances, "_BLOCK", block)
    real, fake = make(70, 0), make(53, 1)
    assert manifold_metrics(real, fake, neighbours) == manifolds_by_hand(real, fake, neighbours)


@pytest.mark.parametrize("neighbours", [1, 3, 5, 10])
def test_manifold_metrics_agree_with_the_authors_package(neighbours: int) -> None:
    prdc = pytest.importorskip("prdc", reason="prdc is not installed: pip install prdc")
    real, fake = features(600, 16), features(500, 16, seed=1, shift=0.6)
    expected = prdc.compute_prdc(real.double().numpy(), fake.double().numpy(), nearest_k=neighbours)
    found = manifold_metrics(real, fake, neighbours)
    assert {name: getattr(found, name) for name in expected} == pytest.approx(expected, abs=1e-12)
    assert 0.05 < found.coverage < 0.95, "this case would not tell a wrong metric from a right one"


def test_manifold_metrics_of_equal_sets_are_one() -> None:
    """Also with duplicates and in another order; k + 1 duplicates shrink a ball to a point, which is its own."""
    x = features(200)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    assert manifold_metrics(x, x[order]) == ManifoldMetrics(1, 1, 1, 1)
    x[:8] = x[0]
    found = manifold_metrics(x, x[order])
    assert (found.precision, found.recall, found.coverage) == (1, 1, 1), "a duplicate is outside of its own ball"
    apart = manifold_metrics(x, x + 100)
    assert apart == ManifoldMetrics(0, 0, 0, 0), "sets far apart cover each other"


def test_precision_is_of_the_fakes_and_recall_of_the_reals() -> None:
    """Fakes from one of two modes: all good, half missing."""
    two = torch.cat([features(200), features(200, seed=1, shift=100)])
    found = manifold_metrics(two, features(200, seed=2))
    assert found.precision > 0.9, "fakes of a real mode are no good"
    assert found.recall < 0.6, "precision and recall are swapped"
    assert found.coverage < 0.6, "a missing mode counts as covered"


@pytest.mark.parametrize("metric", [squared_mmd, kernel_distance, manifold_metrics])
def test_wrong_features_are_refused(metric: Metric) -> None:
    x = features(10)
    for wrong in (features(10, 23), x[0], x.long()):
        with pytest.raises(ValueError, match=r"expected float features \(B, 24\)"):
            metric(x, wrong)
    with pytest.raises(ValueError, match="finite"):
        metric(x, x / 0)
    with pytest.raises(ValueError, match="two features or more in each set, found 10 and 1"):
        metric(x, x[:1])


def test_wrong_numbers_are_refused() -> None:
    x = features(10)
    with pytest.raises(ValueError, match="subsets of 2 to 10 features, found 1000"):
        kernel_distance(x, x)
    with pytest.raises(ValueError, match="2 subsets or more, found 1"):
        kernel_distance(x, x, subset_size=5, subsets=1)
    for neighbours in (0, 10):
        with pytest.raises(ValueError, match=f"1 to 9 neighbours, found {neighbours}"):
            manifold_metrics(x, x, neighbours)


@pytest.mark.parametrize("metric", [squared_mmd, manifold_metrics])
def test_memory_does_not_grow_with_the_square(monkeypatch: pytest.MonkeyPatch, metric: Metric) -> None:
    """10,000 features against 10,000 take gigabytes: nothing is even as large as the features."""
    monkeypatch.setattr(distances, "_BLOCK", 64)
    largest = 0

    class Spy(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            for value in result if isinstance(result, tuple | list) else [result]:
                if isinstance(value, Tensor):
                    largest = max(largest, value.numel())
            return result

    x, y = features(2000, 8), features(2000, 8, seed=1)
    with Spy():
        metric(x, y)
    assert largest <= 2000 * 5, f"a tensor of {largest:,} numbers: more than the 5 radii of each of 2000"


def test_half_precision_features_are_counted_in_double() -> None:
    """(x'y)³ of float16 overflows at 65504."""
    x, y = features(100).half(), features(100, seed=1).half()
    assert squared_mmd(x, y) == squared_mmd(x.double(), y.double())
    assert manifold_metrics(x, y) == manifold_metrics(x.double(), y.double())
