"""``ssdd bench decode`` and ``encode``: the same work for all, counted and timed; no assertion is about speed."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ssdd.bench.config import DecodeBench
from ssdd.bench.networks import Contender, decode_contenders
from ssdd.bench.throughput import Speeds, bench_networks, contender_count
from ssdd.nn.presets import DECODERS, DecoderSize
from ssdd.peak import peak_flops

Ssdd = Callable[..., Any]

CPU = torch.device("cpu")
TINY = DecodeBench(decoders=("XXS",), sizes=(64,), peers=("tiny",), rounds=1, seconds=0.0, dtype="fp32")
SMALL = ("--decoders", "XXS", "--sizes", "64", "--rounds", "1", "--seconds", "0", "--dtype", "fp32", "--device", "cpu")


@pytest.fixture(autouse=True)
def peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's own is measured in one test alone: it takes seconds."""
    monkeypatch.setattr("ssdd.bench.throughput.peak_flops", lambda *_: 1e12)


def test_table_file_and_plot(ssdd: Ssdd, tmp_path: Path) -> None:
    options = ("--peers", "tiny", "plain", "--batch-sizes", "1", "2", "--rounds", "2")
    result = ssdd("bench", "decode", *SMALL, *options, "--out", "speed.json", "--plot", "speed.png")
    assert result.status == 0, result.err
    found = json.loads((tmp_path / "speed.json").read_text())
    names = ["Tiny-VAE f8c4", "plain-XXS f8c4", "SSDD-XXS f8c4"]
    assert [(row["name"], row["batch"]) for row in found["rows"]] == [(name, b) for b in (1, 2) for name in names]
    for row in found["rows"]:
        assert len(row["seconds_per_call"]) == 2, "the warm-up counts"
        assert row["images_per_second"] == pytest.approx(row["batch"] / row["median_seconds"])
        assert row["share_of_peak"] == pytest.approx(row["gflop_per_image"] * row["images_per_second"] / 1e3)
        assert row["size"] == 64
    first = [row for row in found["rows"] if row["name"] == names[0]]
    assert all(row["speed_against_first"] == row["gflop_against_first"] == 1 for row in first)
    setting = found["setting"]
    assert (setting["command"], setting["dtype"], setting["compile"], setting["steps"]) == ("decode", "fp32", False, 1)
    lines = result.out.splitlines()
    assert [line for line in lines if line.startswith(tuple(names))] == lines[1:7]
    for part in ("images/s", "of peak", "1 decoding step", "random weights", "optimized"):
        assert part in result.out
    pixels = np.asarray(Image.open(tmp_path / "speed.png").convert("RGB")).reshape(-1, 3)
    colours = {tuple(colour) for colour in np.unique(pixels, axis=0)}
    assert {(0, 0x72, 0xB2), (0xD5, 0x5E, 0), (0, 0x9E, 0x73)} <= colours, "a contender has no line of its own"
    again = ssdd("bench", "decode", *SMALL, "--out", "new.json", "--plot", "speed.png")
    assert "speed.png exists already" in again.error_line(), "the plot is replaced, or the work done first"


def test_work_is_counted_as_it_runs() -> None:
    """The transposed convolution saves work that the plain network does; more steps are more work."""
    settings = replace(TINY, peers=("plain",), batch_sizes=(1, 2))
    once, thrice = (bench_networks(replace(settings, steps=n), CPU).rows for n in (1, 3))
    plain, ours = once[:2]
    assert ours.gflop < plain.gflop
    assert [row.gflop for row in once[:2]] == [row.gflop for row in once[2:]], "the count depends on the batch"
    assert [row.gflop for row in thrice] == pytest.approx([3 * row.gflop for row in once])


def test_onnx_runtime_takes_part(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime", reason="pip install 'ssdd[onnx]'")
    pytest.importorskip("onnxscript", reason="pip install 'ssdd[onnx]'")
    monkeypatch.setitem(DECODERS, "XXS", DecoderSize((32, 32), layers=1, heads=2, groups=8))  # exported sooner
    contenders = []

    def kept(*arguments: Any) -> list[Contender]:
        contenders.extend(decode_contenders(*arguments))
        return contenders

    monkeypatch.setattr("ssdd.bench.throughput.decode_contenders", kept)
    onnx, ours = bench_networks(replace(TINY, peers=("onnx",), mode="eager"), CPU).rows
    assert (onnx.name, ours.name) == ("ONNX-XXS f8c4", "SSDD-XXS f8c4")
    assert onnx.gflop == ours.gflop > 0
    assert contenders[0].work(32, 2)().shape == (2, 3, 32, 32), "other sizes and batches than it was exported with"


@pytest.mark.parametrize("setting", [{"dtype": "bf16"}, {"steps": 2}])
def test_onnx_runtime_is_not_compared_with_unlike_work(setting: dict[str, Any]) -> None:
    pytest.importorskip("onnxruntime", reason="pip install 'ssdd[onnx]'")
    pytest.importorskip("onnxscript", reason="pip install 'ssdd[onnx]'")
    with pytest.raises(ValueError, match="--steps 1 --dtype fp32"):
        bench_networks(replace(TINY, peers=("onnx",), **setting), CPU)


@pytest.mark.parametrize("mode", ["optimized", "eager"])
def test_contenders_decode(mode: str) -> None:
    """A contender that makes other images than the others is measured."""
    settings = replace(TINY, mode=mode, latent="f16c3", dtype="bf16", peers=("plain", "tiny", "plain"))  # type: ignore[arg-type]
    contenders = decode_contenders(settings, CPU)
    assert [c.name for c in contenders] == ["plain-XXS f16c3", "Tiny-VAE f8c4", "SSDD-XXS f16c3"]
    assert contender_count(settings) == len(contenders)
    with torch.inference_mode():
        assert {c.work(32, 2)().shape for c in contenders} == {(2, 3, 32, 32)}
    layouts = [next(p for p in c.autoencoder.parameters() if p.dim() == 4) for c in contenders[1:2]]
    assert layouts[0].is_contiguous(memory_format=torch.channels_last) == (mode == "optimized")


def test_encoders(ssdd: Ssdd, tmp_path: Path) -> None:
    options = ("--sizes", "32", "--rounds", "1", "--seconds", "0", "--dtype", "fp32", "--device", "cpu")
    result = ssdd("bench", "encode", *options, "--latent", "f8c4", "--peers", "kl", "--out", "speed.json")
    assert result.status == 0, result.err
    kl, ours = json.loads((tmp_path / "speed.json").read_text())["rows"]
    assert (kl["name"], ours["name"]) == ("KL-VAE f8c4", "SSDD f8c4")
    assert ours["gflop_per_image"] == pytest.approx(kl["gflop_per_image"], rel=0.01), "the same architecture"


def test_each_size_and_batch_is_reported() -> None:
    """An interrupted run leaves nothing, or a line of work is done twice."""
    reports: list[int] = []
    steps: list[int] = []

    def report(found: Speeds) -> None:
        reports.append(len(found.rows))

    settings = replace(TINY, sizes=(32, 64), peers=())
    bench_networks(settings, CPU, lambda: steps.append(1), report)
    assert reports == [1, 2]
    assert len(steps) == 2 * contender_count(settings) * (settings.rounds + 1)


def test_out_of_memory_costs_only_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def peak_memory(work: Callable[[], torch.Tensor], device: torch.device) -> None:
        if len(work()) == 2:
            raise torch.OutOfMemoryError("no")

    monkeypatch.setattr("ssdd.bench.throughput.peak_memory", peak_memory)
    found = bench_networks(replace(TINY, peers=(), batch_sizes=(1, 2)), CPU)
    assert [row.batch for row in found.rows] == [1]
    assert found.skipped == ["SSDD-XXS f8c4 at 64 px, batch 2: out of memory"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--decoders", "Q"), "found 'Q'"),
        (("--latent", "f7c1"), "expected an encoder like f8c4"),
        (("--latent", "f16c4", "--sizes", "72"), "multiples of 16, found 72"),
        (("--rounds", "0"), "at least 1"),
        (("--mode", "eager", "--compile"), "--compile with --mode optimized"),
        (("--device", "nonsense"), "expected a device"),
    ],
)
def test_what_cannot_be_measured(ssdd: Ssdd, options: tuple[str, ...], message: str) -> None:
    assert message in ssdd("bench", "decode", *SMALL, *options).error_line()


def test_peak_is_of_the_best_size() -> None:
    small, both = (peak_flops(CPU, torch.float32, sides) for sides in ((8,), (8, 256)))
    assert 0 < small < both, "a size that is too small for the machine decides"
