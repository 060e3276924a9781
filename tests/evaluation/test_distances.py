"""Distances of feature sets: closed forms, other libraries, plain loops; bounded memory; nothing depends on batches."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ssdd.evaluation import distances
from ssdd.evaluation.distances import (
    GaussianStatistics,
    ManifoldMetrics,
    frechet_distance,
    kernel_distance,
    manifold_metrics,
    squared_mmd,
)
from ssdd.files import OutputExists

Metric = Callable[[Tensor, Tensor], object]


def features(count: int, width: int = 24, seed: int = 0, shift: float = 0.0) -> Tensor:
    """Correlated, of unequal variances, far from zero: as a network's after its last ReLU."""
    random = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=torch.Generator().manual_seed(99)) / width**0.5
    return torch.randn(count, width, generator=random) @ mixing + 5 + shift


def statistics(x: Tensor, batch: int = 100) -> GaussianStatistics:
    result = GaussianStatistics(x.shape[1])
    for part in x.split(batch):
        result.update(part)
    return result


def covariance(width: int, seed: int, rank: int | None = None) -> Tensor:
    root = torch.randn(width, rank or width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return root @ root.T


def gaussian(mean: Tensor, matrix: Tensor, count: int = 10**6) -> GaussianStatistics:
    return GaussianStatistics.from_moments(mean, matrix, count)


@pytest.mark.parametrize("batch", [1, 7, 64, 1024, 3000])
def test_statistics_do_not_depend_on_the_batch_size(batch: int) -> None:
    """The published number changes with --batch-size. A mean of 1000 would swallow sums of squares."""
    x = features(3000, 12, shift=1000)
    found, exact = statistics(x, batch), x.double().numpy()
    np.testing.assert_allclose(found.mean, exact.mean(0), rtol=1e-12)
    expected = np.cov(exact, rowvar=False)
    assert np.abs(found.covariance.numpy() - expected).max() < 1e-10 * np.abs(expected).max()
    assert torch.equal(found.covariance, found.covariance.T), "eigh would read only one of two halves"
    assert found.count == 3000


@pytest.mark.parametrize("parts", [[3000], [1, 2999], [0, 1000, 0, 2000], [700] * 4 + [200]])
def test_merged_processes_equal_one(parts: list[int]) -> None:
    """Several GPUs give another number than one; or a process without images spoils it."""
    x = features(3000)
    total = GaussianStatistics(24)
    for part in x.split(parts):
        total.merge(statistics(part))
    expected = statistics(x)
    assert total.count == expected.count
    assert (total.mean - expected.mean).abs().max() < 1e-12
    assert (total.covariance - expected.covariance).abs().max() < 1e-12 * expected.covariance.abs().max()


def test_statistics_of_features_made_in_inference_mode() -> None:
    with torch.inference_mode():
        total = statistics(features(300))
    total.update(features(300, seed=1))
    both = statistics(torch.cat([features(300), features(300, seed=1)]))
    assert torch.allclose(total.covariance, both.covariance, rtol=1e-12)
    total.update(features(10).requires_grad_())
    assert not total.mean.requires_grad, "the graph of every batch is kept in memory"


def test_saved_statistics_come_back(tmp_path: Path) -> None:
    """A reference set counted once and kept in a file differs from the one just counted."""
    path = tmp_path / "reference.safetensors"
    saved = GaussianStatistics(24, extractor="some 0123")
    saved.update(features(100))
    saved.save(path)
    loaded = GaussianStatistics.load(path)
    assert (loaded.count, loaded.extractor) == (100, "some 0123")
    assert torch.equal(loaded.mean, saved.mean)
    assert torch.equal(loaded.covariance, saved.covariance)
    with pytest.raises(OutputExists):
        saved.save(path)
    with pytest.raises(FileNotFoundError):
        GaussianStatistics.load(tmp_path / "none.safetensors")
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match="has no statistics of features") as error:
        GaussianStatistics.load(path)
    assert "\n" not in str(error.value)


def test_statistics_refuse_what_is_not_theirs() -> None:
    total = GaussianStatistics(4, extractor="dino")
    for wrong in (torch.zeros(2, 5), torch.zeros(4), torch.zeros(2, 4, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"expected float features \(B, 4\)"):
            total.update(wrong)
    with pytest.raises(ValueError, match="finite"):
        total.update(torch.tensor([[0.0, math.nan, 0.0, 0.0]]))
    assert total.count == 0, "half of a bad batch is counted"
    with pytest.raises(ValueError, match="two features or more, found 0"):
        _ = total.covariance
    for call in (total.merge, lambda other: frechet_distance(total, other)):
        with pytest.raises(ValueError, match="one width, found 4 and 5"):
            call(GaussianStatistics(5))
        with pytest.raises(ValueError, match="one extractor, found dino and inception"):
            call(GaussianStatistics(4, extractor="inception"))


def test_frechet_distance_of_diagonal_gaussians() -> None:
    """|mu - nu|² + sum (s - t)², s and t the standard deviations; some of them 0."""
    mean, other = torch.linspace(-1, 2, 40).double(), torch.linspace(0, 1, 40).double()
    s, t = torch.linspace(0, 3, 40).double(), torch.linspace(2, 0, 40).double()
    t[-10:] = 0
    expected = float((mean - other).square().sum() + (s - t).square().sum())
    for pair in ((mean, s, other, t), (other, t, mean, s)):
        found = frechet_distance(gaussian(pair[0], pair[1].square().diag()), gaussian(pair[2], pair[3].square().diag()))
        assert found.value == pytest.approx(expected, rel=1e-12), "not the Fréchet distance, or not symmetric"
        assert found.reliable


@pytest.mark.parametrize("rank", [30, 12])
def test_frechet_distance_of_commuting_full_covariances(rank: int) -> None:
    """A and 4 A: |R|² (1 - 2)² = tr A. Of rank 12 in 30 dimensions too, where (A B)^(1/2) turns imaginary."""
    matrix, mean = covariance(30, 1, rank), torch.zeros(30, dtype=torch.float64)
    found = frechet_distance(gaussian(mean, matrix), gaussian(mean + 1, 4 * matrix)).value
    assert found == pytest.approx(float(matrix.trace()) + 30, rel=1e-12)
    assert frechet_distance(gaussian(mean, matrix), gaussian(mean, matrix)).value < 1e-11 * float(matrix.trace())


def test_frechet_distance_of_orthogonal_singular_covariances() -> None:
    """No direction in common: tr A + tr B. Rounding in the empty directions adds its square root, 1e-8, elsewhere."""
    basis, _ = torch.linalg.qr(torch.randn(60, 60, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    a, b = basis[:, :20] @ basis[:, :20].T, basis[:, 20:30] @ basis[:, 20:30].T
    mean = torch.zeros(60, dtype=torch.float64)
    assert frechet_distance(gaussian(mean, a), gaussian(mean, b)).value == pytest.approx(30, rel=1e-13)
    point = gaussian(mean, torch.zeros(60, 60, dtype=torch.float64))
    assert frechet_distance(point, gaussian(mean, a)).value == pytest.approx(20, rel=1e-13), "a set of one picture"
    assert frechet_distance(point, point).value == 0


@pytest.mark.parametrize("width", [8, 64, 200])
def test_frechet_distance_agrees_with_scipy_and_torch_fidelity(width: int) -> None:
    linalg = pytest.importorskip("scipy.linalg", reason="scipy is not installed (ssdd[eval])")
    means = torch.randn(2, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    a, b = covariance(width, 1), covariance(width, 2)
    found = frechet_distance(gaussian(means[0], a), gaussian(means[1], b)).value
    root = linalg.sqrtm((a @ b).numpy()).real
    expected = float((means[0] - means[1]).square().sum() + a.trace() + b.trace()) - 2 * np.trace(root)
    assert found == pytest.approx(expected, rel=1e-9), "scipy's square root gives another distance"
    fid = pytest.importorskip("torch_fidelity.metric_fid", reason="torch-fidelity is not installed (ssdd[eval])")
    pair = [{"mu": m.numpy(), "sigma": c.numpy()} for m, c in zip(means, (a, b), strict=True)]
    (theirs,) = fid.fid_statistics_to_metric(*pair, verbose=False).values()
    assert found == pytest.approx(theirs, rel=1e-9), "torch-fidelity's FID differs"


def test_frechet_distance_of_few_features_is_not_reliable() -> None:
    few, many = statistics(features(24)), statistics(features(25))
    assert not frechet_distance(few, many).reliable, "24 features of width 24 pass for enough"
    assert not frechet_distance(many, few).reliable
    assert frechet_distance(many, many).reliable


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
    assert torch.equal(statistics(x).covariance, statistics(x.double()).covariance)
