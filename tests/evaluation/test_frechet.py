"""Statistics of features and their Fréchet distance: closed forms, other libraries; nothing depends on batches."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ssdd.evaluation.frechet import GaussianStatistics, frechet_distance
from tests.evaluation.random_features import features


def statistics(x: Tensor, batch: int = 100) -> GaussianStatistics:
    result = GaussianStatistics(x.shape[1])
    for part in x.split(batch):
        result.update(part)
    return result


def covariance(width: int, seed: int, rank: int | None = None) -> Tensor:
    root = torch.randn(width, rank or width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return root @ root.T


def gaussian(mean: Tensor, matrix: Tensor, count: int = 10**6) -> GaussianStatistics:
    result = GaussianStatistics(len(mean))
    result.count, result.mean, result.scatter = count, mean, matrix * (count - 1)
    return result


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


def test_statistics_of_features_made_in_inference_mode() -> None:
    total = GaussianStatistics(24)
    with torch.inference_mode():
        total.update(features(300) + 0)
    total.update(features(300, seed=1))
    both = statistics(torch.cat([features(300), features(300, seed=1)]))
    assert torch.allclose(total.covariance, both.covariance, rtol=1e-12)
    total.update(features(10).requires_grad_())
    assert not total.mean.requires_grad, "the graph of every batch is kept in memory"


def test_statistics_refuse_what_is_not_theirs() -> None:
    total = GaussianStatistics(4, extractor="dino")
    with pytest.raises(ValueError, match="finite"):
        total.update(torch.tensor([[0.0, math.nan, 0.0, 0.0]]))
    assert total.count == 0, "half of a bad batch is counted"
    total.update(torch.zeros(0, 4))
    assert total.mean.isfinite().all(), "a batch without images spoils the mean"
    with pytest.raises(ValueError, match="two features or more, found 0"):
        _ = total.covariance
    with pytest.raises(ValueError, match="one extractor, found dino and inception"):
        frechet_distance(total, GaussianStatistics(4, extractor="inception"))


def test_frechet_distance_of_diagonal_gaussians() -> None:
    """|mu - nu|² + sum (s - t)², s and t the standard deviations; some of them 0."""
    mean, other = torch.linspace(-1, 2, 40).double(), torch.linspace(0, 1, 40).double()
    s, t = torch.linspace(0, 3, 40).double(), torch.linspace(2, 0, 40).double()
    t[-10:] = 0
    expected = float((mean - other).square().sum() + (s - t).square().sum())
    for pair in ((mean, s, other, t), (other, t, mean, s)):
        found = frechet_distance(gaussian(pair[0], pair[1].square().diag()), gaussian(pair[2], pair[3].square().diag()))
        assert found == pytest.approx(expected, rel=1e-12), "not the Fréchet distance, or not symmetric"


@pytest.mark.parametrize("rank", [30, 12])
def test_frechet_distance_of_commuting_full_covariances(rank: int) -> None:
    """A and 4 A: |R|² (1 - 2)² = tr A. Of rank 12 in 30 dimensions too, where (A B)^(1/2) turns imaginary."""
    matrix, mean = covariance(30, 1, rank), torch.zeros(30, dtype=torch.float64)
    found = frechet_distance(gaussian(mean, matrix), gaussian(mean + 1, 4 * matrix))
    assert found == pytest.approx(float(matrix.trace()) + 30, rel=1e-12)
    assert frechet_distance(gaussian(mean, matrix), gaussian(mean, matrix)) < 1e-11 * float(matrix.trace())


def test_frechet_distance_of_orthogonal_singular_covariances() -> None:
    """No direction in common: tr A + tr B. Rounding in the empty directions adds its square root, 1e-8, elsewhere."""
    basis, _ = torch.linalg.qr(torch.randn(60, 60, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    a, b = basis[:, :20] @ basis[:, :20].T, basis[:, 20:30] @ basis[:, 20:30].T
    mean = torch.zeros(60, dtype=torch.float64)
    assert frechet_distance(gaussian(mean, a), gaussian(mean, b)) == pytest.approx(30, rel=1e-13)
    point = gaussian(mean, torch.zeros(60, 60, dtype=torch.float64))
    assert frechet_distance(point, gaussian(mean, a)) == pytest.approx(20, rel=1e-13), "a set of one picture"
    assert frechet_distance(point, point) == 0


@pytest.mark.parametrize("width", [8, 64, 200])
def test_frechet_distance_agrees_with_scipy_and_torch_fidelity(width: int) -> None:
    linalg = pytest.importorskip("scipy.linalg", reason="scipy is not installed (ssdd[eval])")
    means = torch.randn(2, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    a, b = covariance(width, 1), covariance(width, 2)
    found = frechet_distance(gaussian(means[0], a), gaussian(means[1], b))
    root = linalg.sqrtm((a @ b).numpy()).real
    expected = float((means[0] - means[1]).square().sum() + a.trace() + b.trace()) - 2 * np.trace(root)
    assert found == pytest.approx(expected, rel=1e-9), "scipy's square root gives another distance"
    fid = pytest.importorskip("torch_fidelity.metric_fid", reason="torch-fidelity is not installed (ssdd[eval])")
    pair = [{"mu": m.numpy(), "sigma": c.numpy()} for m, c in zip(means, (a, b), strict=True)]
    (theirs,) = fid.fid_statistics_to_metric(*pair, verbose=False).values()
    assert found == pytest.approx(theirs, rel=1e-9), "torch-fidelity's FID differs"


def test_half_precision_features_are_counted_in_double() -> None:
    x = features(100).half()
    assert torch.equal(statistics(x).covariance, statistics(x.double()).covariance)
