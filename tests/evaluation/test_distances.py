"""Sets of features and their distances: other libraries, plain loops; no dependence on order or processes."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ssdd.evaluation import distances
from ssdd.evaluation.distances import (
    FeatureSet,
    cmmd,
    kernel_distances,
    manifold_metrics,
    set_distances,
    squared_mmd,
)
from ssdd.evaluation.features import CLIP_FEATURES
from tests.evaluation.random_features import extractor_of, feature_set, features


def doubles(count: int, width: int = 24, seed: int = 0, shift: float = 0.0) -> Tensor:
    return features(count, width, seed, shift).double()


def test_kernel_distances_agree_with_torchmetrics_and_torch_fidelity() -> None:
    """One subset of all features: no chance in it."""
    kid = pytest.importorskip("torchmetrics.image.kid")
    x, y = doubles(200), doubles(200, seed=1, shift=0.3)
    found = kernel_distances(x, y, subsets=2, size=200)
    assert float(found.mean()) == pytest.approx(float(kid.poly_mmd(x, y)), rel=1e-10)
    assert float(squared_mmd(x, x)) == pytest.approx(float(kid.poly_mmd(x, x)), rel=1e-10), "one set against itself"
    theirs = pytest.importorskip("torch_fidelity.metric_kid", reason="torch-fidelity is not installed (ssdd[eval])")
    result = theirs.kid_features_to_metric(x, y, kid_subsets=2, kid_subset_size=200, verbose=False)
    assert float(found.mean()) == pytest.approx(result[theirs.KEY_METRIC_KID_MEAN], rel=1e-10)
    assert found.std() < 1e-10, "the whole set, drawn twice, is not one set"


def test_kernel_distances_are_of_random_subsets() -> None:
    x, y = doubles(300), doubles(250, seed=1, shift=0.3)
    first = kernel_distances(x, y, subsets=50, size=60, seed=3)
    assert torch.equal(kernel_distances(x, y, subsets=50, size=60, seed=3), first), "the same seed, another number"
    assert not torch.equal(kernel_distances(x, y, subsets=50, size=60, seed=4), first), "the seed is not used"
    assert abs(first.mean() - squared_mmd(x, y)) < 4 * first.std() / 50**0.5, "biased against the exact value"
    equal = kernel_distances(x, doubles(300, seed=2), subsets=50, size=60)
    assert abs(equal.mean()) < first.mean() / 20, "two samples of one distribution are far apart"


def cmmd_by_hand(x: Tensor, y: Tensor) -> float:
    """One pair at a time."""

    def mean(a: Tensor, b: Tensor) -> float:
        return float(np.mean([[math.exp(-float((p - q).square().sum()) / 200) for q in b] for p in a]))

    return 1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))


@pytest.mark.parametrize("block", [7, 4096])
def test_cmmd_is_a_mean_over_all_pairs(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(distances, "_BLOCK", block)
    x, y = (torch.nn.functional.normalize(doubles(n, seed=n)) for n in (30, 41))
    assert cmmd(x, y) == pytest.approx(cmmd_by_hand(x, y), rel=1e-8)
    assert cmmd(x, x.flip(0)) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("block", [16, 4096])
@pytest.mark.parametrize("neighbors", [1, 3, 5, 10])
def test_manifold_metrics_agree_with_the_authors_package(
    monkeypatch: pytest.MonkeyPatch, neighbors: int, block: int
) -> None:
    monkeypatch.setattr(distances, "_BLOCK", block)
    prdc = pytest.importorskip("prdc", reason="prdc is not installed: pip install prdc")
    real, fake = doubles(600, 16), doubles(500, 16, seed=1, shift=0.6)
    expected = prdc.compute_prdc(real.numpy(), fake.numpy(), nearest_k=neighbors)
    found = manifold_metrics(real, fake, neighbors)
    assert found == pytest.approx(expected, abs=1e-6)
    assert 0.05 < found["coverage"] < 0.95, "this case would not tell a wrong metric from a right one"


def test_manifold_metrics_of_equal_sets_are_one() -> None:
    x = doubles(200)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    assert set(manifold_metrics(x, x[order], 5).values()) == {1}
    assert set(manifold_metrics(x, x + 100, 5).values()) == {0}, "sets far apart cover each other"


def test_precision_is_of_the_fakes_and_recall_of_the_reals() -> None:
    """Fakes from one of two modes: all good, half missing."""
    two = torch.cat([doubles(200), doubles(200, seed=1, shift=100)])
    found = manifold_metrics(two, doubles(200, seed=2), 5)
    assert found["precision"] > 0.9, "fakes of a real mode are no good"
    assert found["recall"] < 0.6, "precision and recall are swapped"
    assert found["coverage"] < 0.6, "a missing mode counts as covered"


def test_memory_does_not_grow_with_the_square(monkeypatch: pytest.MonkeyPatch) -> None:
    """All distances of 10,000 features to 10,000 take 800 MB, and copies of them too."""
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

    x, y = doubles(2000, 8), doubles(2000, 8, seed=1)
    with Spy():
        manifold_metrics(x, y, 5)
        cmmd(x, y)
    assert largest <= 64 * 2000, f"a tensor of {largest:,} numbers: more than one block"


def test_the_hash_is_splitmix64() -> None:
    """Its first outputs with seed 0, as published: the subset must stay the same for ever."""
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert distances._hash(np.arange(3)).tolist() == expected


def by_hand(count: int, most: int) -> list[int]:
    """Numbers of the subset of crops 0 to count - 1, in the order of their hashes."""
    return np.argsort(distances._hash(np.arange(count)))[:most].tolist()


@pytest.mark.parametrize("order", ["forward", "backward", "shuffled"])
@pytest.mark.parametrize("batch", [1, 7, 250, 2000])
def test_the_subset_depends_on_numbers_alone(monkeypatch: pytest.MonkeyPatch, order: str, batch: int) -> None:
    """Sets that are sorted by class would be judged by their first classes."""
    monkeypatch.setattr(distances, "SUBSET", 100)
    x = features(2000)
    numbers = {
        "forward": torch.arange(2000),
        "backward": torch.arange(2000).flip(0),
        "shuffled": torch.randperm(2000, generator=torch.Generator().manual_seed(0)),
    }[order]
    found = feature_set(x[numbers], numbers.tolist(), batch)
    assert found.statistics.count == 2000
    assert torch.equal(found.subset, x[by_hand(2000, 100)])
    assert sum(len(kept) for kept, _ in found._kept) <= 200, "memory grows with the set"
    assert torch.equal(feature_set(x[:50], range(50)).subset, x[by_hand(50, 50)]), "few features are all of the subset"


def test_sets_sorted_by_class_and_shuffled_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders are sorted by class, samples take all classes in turn: KID and coverage compared 8 classes with 1000."""
    monkeypatch.setattr(distances, "SUBSET", 1000)
    monkeypatch.setattr(distances, "KID_SUBSETS", 5)
    random = torch.Generator().manual_seed(0)
    centres = torch.randn(20, 16, generator=random) * 10
    in_turn = torch.arange(2000) % 20
    rows = []
    for labels in (in_turn.sort().values, in_turn):
        real, fake = (c + torch.randn(2000, 16, generator=random) for c in (centres[labels], centres[in_turn]))
        rows.append(set_distances(feature_set(real), feature_set(fake)))
    for name, tolerance in {"precision": 0.05, "recall": 0.05, "density": 0.1, "coverage": 0.05}.items():
        assert rows[0][name] > 0.85
        assert rows[0][name] == pytest.approx(rows[1][name], abs=tolerance)
    of_the_first = float(squared_mmd(centres[in_turn.sort().values[:1000]].double(), centres[in_turn[:1000]].double()))
    assert all(abs(row["kid"]) < of_the_first / 10 for row in rows), f"half of the classes are at {of_the_first}"


def test_set_distances_say_what_they_are_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances, "SUBSET", 200)
    real, fake = features(300), features(250, seed=1, shift=0.2)
    found = set_distances(feature_set(real), feature_set(fake), neighbors=3)
    sizes = {"count": 250, "subset": 200, "kid_subsets": 100, "kid_subset_size": 200, "neighbors": 3}
    assert {name: found[name] for name in sizes} == sizes
    x, y = real[by_hand(300, 200)].double(), fake[by_hand(250, 200)].double()
    assert {name: found[name] for name in ("precision", "recall", "density", "coverage")} == manifold_metrics(x, y, 3)
    assert found["kid"] == pytest.approx(float(squared_mmd(x, y)), rel=1e-9)
    assert found["kid_standard_error"] == pytest.approx(0, abs=1e-9), "subsets of all features differ"
    assert "cmmd" not in found
    clip = [feature_set(s, identity=f"sha256 0, {CLIP_FEATURES}") for s in (real, fake)]
    assert set_distances(*clip)["cmmd"] == pytest.approx(cmmd(x, y), rel=1e-9)
    with pytest.raises(ValueError, match="one extractor"):
        set_distances(clip[0], feature_set(fake))


def test_equally_many_features_of_both_sets_are_compared() -> None:
    """Coverage and density depend on how many features there are of each."""
    real, fake = features(300), features(100, seed=1)
    found = set_distances(feature_set(real), feature_set(fake))
    assert (found["count"], found["subset"]) == (100, 100)
    expected = manifold_metrics(real[by_hand(300, 100)].double(), fake.double(), 5)
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6)


def test_distances_of_too_few_features_are_left_out() -> None:
    kid = {"frechet", "subset", "kid", "kid_standard_error", "kid_subsets", "kid_subset_size", "neighbors"}
    for count, expected in ((0, set()), (1, set()), (5, kid)):
        found = set_distances(feature_set(features(10)), feature_set(features(count, seed=1)))
        assert found.keys() == {"count"} | expected
        assert found["count"] == count
        assert all(math.isfinite(value) for value in found.values())


def test_saved_features_come_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A reference set counted once and kept in a file differs from the one just counted."""
    monkeypatch.setattr(distances, "SUBSET", 100)
    path = tmp_path / "reference.safetensors"
    saved, fake = feature_set(features(300)), feature_set(features(300, seed=1))
    saved.extra = {"protocol": "crops", "count": "300"}
    saved.save(path)
    loaded = FeatureSet.load(path, extractor_of(24))
    assert loaded.extra == saved.extra
    assert set_distances(loaded, fake) == set_distances(saved, fake)
    assert loaded.statistics.extractor == saved.statistics.extractor
    loaded.add(features(300, seed=2), range(300, 600))
    saved.add(features(300, seed=2), range(300, 600))
    assert torch.equal(loaded.subset, saved.subset), "it cannot be added to"
    (tmp_path / "ordinary").touch()
    assert path.stat().st_mode == (tmp_path / "ordinary").stat().st_mode, "colleagues cannot read it"
    saved.save(path)


_WORKER = """
import sys, torch
from ssdd.evaluation import distances
from ssdd.runtime.processes import Processes, join_processes
from random_features import feature_set, features
distances.SUBSET = 50
with join_processes(torch.device("cpu")) as processes:
    for shares in ([0, 300, 700], [1000, 0, 0], [1, 1, 998]):
        numbers = torch.arange(1000).split(shares)[processes.rank].tolist()
        whole = feature_set(features(1000)[numbers], numbers).reduce(processes)
        if processes.main:
            one = feature_set(features(1000), range(1000))
            assert one.reduce(Processes(0, 1, torch.device("cpu"))) is one
            assert torch.equal(whole.subset, one.subset), "another subset"
            a, b = whole.statistics, one.statistics
            assert a.count == b.count == 1000
            assert (a.mean - b.mean).abs().max() < 1e-12
            assert (a.covariance - b.covariance).abs().max() < 1e-12 * b.covariance.abs().max()
            assert (a.extractor, whole.extra) == (b.extractor, one.extra)
"""


@pytest.mark.slow
def test_several_processes_are_one(tmp_path: Path) -> None:
    """A published number would depend on the number of GPUs, or a process without images would spoil it."""
    (tmp_path / "worker.py").write_text(_WORKER)
    run = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3", str(tmp_path / "worker.py")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run([sys.executable, *run], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
