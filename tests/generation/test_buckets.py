"""Latents of several shapes: batches of one shape each, every latent in its turn, exact on resume."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ssdd.cli.main import run as ssdd
from ssdd.generation.data import LatentStream, find_buckets, latent_batches
from ssdd.generation.result import load_generator
from ssdd.tokenization import LatentDataset
from ssdd.training.watch import StopRequest, TrainingStopped
from tests.generation.conftest import stop_third_update
from tests.generation.latents import bucketed_latents, random_latents
from tests.training.runs import newest, stats

Train = Callable[..., Path]

WIDE, SQUARE, TALL = (4, 8), (6, 6), (8, 4)
COUNTS = {WIDE: [5, 0, 6], SQUARE: [3], TALL: [20, 17]}
"""11, 3 and 37 latents."""
BATCH = 4


def numbers(stream: LatentStream, epochs: int) -> Iterator[list[int]]:
    """The numbers of the latents of each batch."""
    for batch in range(sum(stream._batches_before(epochs))):
        yield [stream.locate(batch * BATCH + i)[1] for i in range(BATCH)]


def test_buckets_are_the_latents_of_one_shape() -> None:
    buckets = find_buckets(bucketed_latents({**COUNTS, (4, 6): [2]}))
    assert [(bucket.shape, len(bucket.numbers)) for bucket in buckets] == [
        ((4, *TALL), 37), ((4, *WIDE), 11), ((4, *SQUARE), 3), ((4, 4, 6), 2),
    ]  # fmt: skip
    assert [bucket.numbers for bucket in buckets[1:]] == [range(11), range(11, 14), range(51, 53)]
    assert find_buckets(random_latents(7)) == [((4, 4, 4), range(7))]


def test_each_batch_has_one_shape_and_each_latent_its_turn() -> None:
    """In an epoch every latent comes once but for those of a last batch that is not complete, which come next."""
    stream = LatentStream(bucketed_latents(COUNTS), 3, BATCH)
    for epochs in range(1, 9):
        batches = list(numbers(stream, epochs))
        for batch in batches:
            assert len({stream.data[number]["mean"].shape for number in batch}) == 1
        seen = Counter(number for batch in batches for number in batch)
        for bucket in stream.buckets:
            size = len(bucket.numbers)
            total = epochs * size // BATCH * BATCH
            counts = [seen[number] for number in bucket.numbers]
            assert sum(counts) == total, "a bucket has more or less than its share"
            assert set(counts) <= {total // size, -(-total // size)}
            assert epochs * size - total < BATCH, "more than a batch is left over"
    first, both = list(numbers(stream, 1)), list(numbers(stream, 2))
    assert both[len(first) : 2 * len(first)] != first, "two epochs are alike"
    shapes = [stream.data[batch[0]]["mean"].shape for batch in first]
    assert shapes != sorted(shapes), "buckets follow one another"


def test_position_is_a_function_of_the_seed_alone() -> None:
    """From the middle, in parts for two processes, by workers: the same latents."""
    data = bucketed_latents(COUNTS)
    stream = LatentStream(data, 3, BATCH)
    whole = latent_batches(stream, 0, BATCH, 0)
    labels = [next(whole).labels.tolist() for _ in range(30)]
    assert labels == [[stream.locate(BATCH * k + i)[1] for i in range(BATCH)] for k in range(30)]
    later = latent_batches(LatentStream(data, 3, BATCH), 17 * BATCH, BATCH, 1)
    assert [next(later).labels.tolist() for _ in range(5)] == labels[17:22]
    parts = [latent_batches(stream, 0, BATCH, 0, rank, 2) for rank in (0, 1)]
    assert [[n for part in parts for n in next(part).labels.tolist()] for _ in range(30)] == labels
    other = latent_batches(LatentStream(data, 4, BATCH), 0, BATCH, 0)
    assert [next(other).labels.tolist() for _ in range(30)] != labels


def test_fewer_latents_than_a_batch() -> None:
    stream = LatentStream(bucketed_latents({WIDE: [2], TALL: [1]}), 0, 8)
    found = [[stream.locate(8 * batch + i)[1] for i in range(8)] for batch in range(6)]
    assert Counter(n for batch in found for n in batch) == {0: 16, 1: 16, 2: 16}


@pytest.mark.parametrize("network", ["dit", "lightning"])
def test_interrupted_run_resumes_bit_for_bit(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: str
) -> None:
    settings = {"network": network, "size": "tiny"}
    train(tmp_path / "whole", bucketed_latents(COUNTS), **settings)
    stop_third_update(monkeypatch)
    with pytest.raises(TrainingStopped, match="at 12 images"):
        train(tmp_path / "cut", bucketed_latents(COUNTS), **settings)
    train(tmp_path / "cut", bucketed_latents(COUNTS), **settings)
    assert newest(tmp_path / "whole") == newest(tmp_path / "cut")
    assert stats(tmp_path / "whole") == stats(tmp_path / "cut")


@pytest.mark.slow
def test_set_made_with_buckets_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pictures of three shapes, through the commands; a run that is stopped and one that is not end alike."""
    random = np.random.default_rng(0)
    for i in range(14):
        size = ((64, 64), (96, 48), (48, 96))[i % 3]
        path = tmp_path / "photos" / ("cats", "dogs")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(random.integers(0, 256, (3, 3, 3), dtype=np.uint8))
        small.resize(size, Image.Resampling.BICUBIC).save(path)
    latents = str(tmp_path / "latents")
    made = ["tokenize", str(tmp_path / "photos"), "--out", latents, "--buckets", "64:16", "--shard-images", "4"]
    assert ssdd(made) == 0
    assert len({(h, w) for _, h, w in LatentStream(LatentDataset(latents), 0).shapes}) == 3
    options = [
        *("--network", "lightning", "--size", "tiny"),
        *("--total-images", "32", "--batch-size", "4", "--workers", "0", "--log.sample-images", "0"),
        *("--log.stats-images", "4", "--log.checkpoint-images", "32"),
    ]

    def train(name: str) -> int:
        return ssdd(["generate", "train", latents, "--out", str(tmp_path / name), *options])

    assert train("whole") == 0
    asked = iter([False] * 4)
    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "agreed", lambda self: 0 if next(asked, True) is False else 15)
        assert train("cut") != 0
    assert [p.name for p in (tmp_path / "cut" / "checkpoints").iterdir()] == ["000000000020"]
    assert train("cut") == 0
    assert stats(tmp_path / "whole") == stats(tmp_path / "cut")
    weights = [load_file(tmp_path / run / "model" / "diffusion_pytorch_model.safetensors") for run in ("whole", "cut")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    config = json.loads((tmp_path / "whole" / "model" / "config.json").read_text())
    assert (config["patch_size"], config["sample_size"]) == (2, [8, 8])
    assert load_generator(tmp_path / "whole").facts.latent_shape == (4, 8, 8)
    sample = ["generate", "sample", str(tmp_path / "whole"), "--count", "2", "--steps", "1"]
    assert ssdd([*sample, "--height", "48", "--width", "96", "--out", str(tmp_path / "wide")]) == 0
    assert Image.open(tmp_path / "wide" / "000001.png").size == (96, 48)
    assert ssdd([*sample, "--height", "40", "--out", str(tmp_path / "odd")]) == 1
    assert "expected sides that are multiples of 16 px, found 40 x 64" in capsys.readouterr().err
    assert ssdd([*sample, "--out", str(tmp_path / "wide")]) == 1, "square samples among wide ones"


def test_diffusers_network_needs_one_shape(train: Train, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs square latents of one shape, found a set with buckets: use --network"):
        train(tmp_path / "run", bucketed_latents(COUNTS), network="diffusers")
