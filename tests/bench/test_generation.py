"""``ssdd bench generation``: the same work for all, counted and timed; no assertion is about the time itself."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ssdd.bench.config import GenerationBench
from ssdd.bench.generation import bench_generation
from ssdd.bench.timing import Times, take_turns

Ssdd = Callable[..., Any]

SMALL = ("--dit", "tiny/2", "--decoder", "XXS", "--image-size", "32", "--batch-size", "2", "--rounds", "2")
SMALL += ("--dtype", "fp32", "--device", "cpu")


def test_table_and_file(ssdd: Ssdd, tmp_path: Path) -> None:
    result = ssdd("bench", "generation", *SMALL, "--steps", "2", "--out", "speed.json")
    assert result.status == 0, result.err
    found = json.loads((tmp_path / "speed.json").read_text())
    kl, f16, f8 = found["rows"]
    assert [row["name"] for row in found["rows"]] == ["KL-VAE f8c4", "SSDD-XXS f16c4", "SSDD-XXS f8c4"]
    assert [row["tokens"] for row in found["rows"]] == [4, 1, 4]
    assert kl["dit_gflop_per_image"] == f8["dit_gflop_per_image"] > f16["dit_gflop_per_image"] > 0
    assert kl["decode_gflop_per_image"] > f8["decode_gflop_per_image"] > 0
    assert kl["speed_against_first"] == 1
    assert all(len(row["dit_seconds_per_batch"]) == 2 for row in found["rows"]), "the first round counts"
    for part in ("KL-VAE f8c4", "DiT-tiny/2, 32 px", "2 Euler steps", "guidance 4", "random weights"):
        assert part in result.out
    again = ssdd("bench", "generation", *SMALL, "--steps", "2", "--out", "speed.json")
    assert "exists already" in again.error_line()


def test_steps_and_guidance_are_counted() -> None:
    """A table whose GFLOPs are those of other settings than the measured ones."""
    small = GenerationBench("tiny/2", "XXS", 32, 1, rounds=1, dtype="fp32")
    found = []
    for steps, guidance in ((1, 1.0), (3, 2.0)):
        settings = replace(small, steps=steps, guidance=guidance)
        found.append(bench_generation(settings, torch.device("cpu"))[1].dit_gflop)
    assert found[1] == pytest.approx(2 * 3 * found[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--dit", "XXL/2"), "expected a DiT size"),
        (("--image-size", "40"), "multiple of 32"),
        (("--decoder", "Q"), "found 'Q'"),
        (("--steps", "0"), "at least 1"),
    ],
)
def test_what_cannot_be_measured(ssdd: Ssdd, options: tuple[str, ...], message: str) -> None:
    assert message in ssdd("bench", "generation", *SMALL, *options).err.splitlines()[-1]
    assert ssdd("bench", "nothing").status == 2


def test_turns() -> None:
    """One contender would be measured while the machine is busy, the other one after that."""
    calls: list[str] = []
    parts = {name: [lambda n=name: calls.append(n)] for name in ("a", "b")}
    found = take_turns(parts, 2, torch.device("cpu"))
    assert calls == ["a", "b"] * 3
    assert len(found["a"][0].rounds) == 2
    slow, quick = Times((2.0, 4.0, 30.0)), Times((1.0, 2.0, 10.0))
    assert quick.ratio(slow) == 2
    assert slow.spread == pytest.approx(28 / 8)
