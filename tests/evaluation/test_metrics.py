"""The registry: one entry is enough for a metric, also for one of the user's own."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ssdd.evaluation.metrics import COSTS, IMAGE_METRICS, SET_METRICS, BatchMetrics, Metric, ordered, own_metric

OWN = """
import torch

def brightness(original, reconstruction):
    return (reconstruction.float() - original.float()).abs().mean((1, 2, 3))

brightness.better = "lower"
brightness.heading = "Brightness"
brightness.digits = 1

class Largest:
    better = "zero"
    def __call__(self, original, reconstruction):
        return (reconstruction.int() - original.int()).flatten(1).amax(1).numpy()

def undirected(original, reconstruction):
    return torch.zeros(len(original))

def short(original, reconstruction):
    return torch.zeros(1)

def broken(original, reconstruction):
    raise KeyError("nothing")

short.better = broken.better = "higher"
psnr = short
"""


@pytest.fixture
def own(tmp_path: Path) -> Callable[[str], Metric]:
    (tmp_path / "own.py").write_text(OWN)
    return lambda name: own_metric(f"{tmp_path / 'own.py'}:{name}")


def test_a_metric_of_ones_own(own: Callable[[str], Metric], picture: Callable[..., np.ndarray]) -> None:
    images = np.stack([picture(16, 16, seed).clip(0, 250) for seed in range(3)])
    metrics = BatchMetrics(others=[own("brightness"), own("Largest")])
    found = metrics(images, images + np.uint8(5))
    assert found["brightness"] == pytest.approx([5] * 3)
    assert found["Largest"] == pytest.approx([5] * 3)
    entry = metrics.metrics["brightness"]
    assert (entry.heading, entry.digits, entry.better) == ("Brightness", 1, "lower")
    assert entry in ordered(metrics.metrics)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("undirected", "expected a function with an attribute better, one of higher, lower"),
        ("missing", "expected missing in"),
        ("psnr", "expected a name of its own"),
    ],
)
def test_what_is_no_metric(own: Callable[[str], Metric], name: str, message: str) -> None:
    with pytest.raises((ValueError, ImportError), match=message):
        own(name)


@pytest.mark.parametrize(("name", "message"), [("short", "a number for each of 2 images"), ("broken", "KeyError")])
def test_a_metric_that_fails_says_where(
    own: Callable[[str], Metric], picture: Callable[..., np.ndarray], name: str, message: str
) -> None:
    images = np.stack([picture(16, 16, seed) for seed in range(2)])
    with pytest.raises(ValueError, match=rf"own\.py:{name}: .*{message}"):
        BatchMetrics(others=[own(name)])(images, images)


def test_every_entry_can_be_saved() -> None:
    for metric in (*IMAGE_METRICS.values(), *SET_METRICS.values(), *COSTS.values()):
        again = Metric(metric.name, **metric.describe())
        assert again.describe() == metric.describe()
        assert metric.description, f"{metric.name}: nobody is told how it is computed"
