"""Does the memory of a long run grow, or the time of an update?

    python benchmarks/growth.py training 2000
    python benchmarks/growth.py evaluation 10000
    python benchmarks/growth.py tokenization 100000 --processes 2

Checks docs/reliability.md, docs/evaluation.md and docs/tokenization.md. So many updates of a tiny model on pictures
that are made here; crops of noise, evaluated with a trivial autoencoder; small images, encoded by a small network into
shards. Printed are the memory of all processes after 1 %, 50 % and 100 % of the work, with what they share counted
once, and for the training the median CPU time of its last twenty updates. Exit status 1 if memory after the first
hundredth grows by more than 5 %, or the time by more than half.
"""

import argparse
import contextlib
import io
import multiprocessing
import os
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ssdd import AutoencoderSSDD
from ssdd.cli.parse import parse
from ssdd.evaluation.autoencoders import Bicubic
from ssdd.evaluation.metrics import BatchMetrics
from ssdd.evaluation.protocols import EvaluationSet, get_protocol
from ssdd.evaluation.run import Entry, Run
from ssdd.tokenization import CropProtocol, TokenizeJob, tokenize
from ssdd.training.loop import train_task
from ssdd.training.tokenizer import TokenizerTask

GROWTH, SLOWDOWN = 1.05, 1.5
SHARES = (0.01, 0.5, 1.0)


class Meter:
    """Note the memory of this process and of all that it has started, and its CPU time, on the way.

    Attributes:
        mebibytes: in memory, at each of ``SHARES``.
        milliseconds: median CPU time between the last twenty calls, at each of them.
    """

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self.mebibytes: list[float] = []
        self.milliseconds: list[float] = []
        self._times = [time.process_time()]

    def update(self, count: int = 1) -> None:
        self.done += count
        self._times = [*self._times[-20:], time.process_time()]
        while len(self.mebibytes) < len(SHARES) and self.done >= SHARES[len(self.mebibytes)] * self.total:
            self.mebibytes.append(sum(map(_proportional_set, _processes_below(os.getpid()))) / 1024)
            self.milliseconds.append(1e3 * statistics.median(b - a for a, b in pairwise(self._times)))


def _processes_below(pid: int) -> list[int]:
    """Return a process, all that it has started, and those have."""
    pids = [pid]
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            pids += [below for child in path.read_text().split() for below in _processes_below(int(child))]
    return pids


def _proportional_set(pid: int) -> int:
    """Return KiB in memory, a page of n processes as 1 / n; 0 for a process that has ended."""
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=["training", "evaluation", "tokenization"])
    parser.add_argument("count", type=int, help="updates, crops or images")
    parser.add_argument("--processes", type=int, default=1, help="of the tokenization (default: 1)")
    options = parser.parse_args()
    least = 2000 if options.work == "training" else 100
    if options.count < least:
        parser.error(f"expected a count of at least {least}, found {options.count}: 1 % of it says too little")
    tokenization = partial(tokenize_images, processes=options.processes)
    work = {"training": train, "evaluation": evaluate, "tokenization": tokenization}[options.work]
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        meter = work(Path(folder), options.count)
    for share, mebibytes, milliseconds in zip(SHARES, meter.mebibytes, meter.milliseconds, strict=True):
        timed = f"  {milliseconds:7.1f} ms an update" if options.work == "training" else ""
        print(f"{share * options.count:9,.0f}  {mebibytes:8,.1f} MiB{timed}")
    grown, slower = (max(values) / values[0] for values in (meter.mebibytes, meter.milliseconds))
    sys.exit(int(grown > GROWTH or (options.work == "training" and slower > SLOWDOWN)))


# ---- the works -------------------------------------------------------------------------------------------------------


def train(folder: Path, updates: int) -> Meter:
    """Train by the smallest recipe, an image an update, with a checkpoint every tenth of the way."""
    random, meter = np.random.default_rng(0), Meter(updates)
    (folder / "photographs").mkdir()
    for i in range(8):
        small = Image.fromarray(random.integers(0, 256, (3, 4, 3), dtype=np.uint8))
        small.resize((48, 40), Image.Resampling.BICUBIC).save(folder / "photographs" / f"{i}.png")
    options = ["--data.resolution", "16", "--data.workers", "0", "--loss.lpips", "0", "--validation.count", "0"]
    options += ["--total-images", str(updates), "--batch-size", "1", "--precision", "fp32"]
    options += ["--optimizer.warmup-images", "16", "--optimizer.decay-images", "0", "--log.sample-images", "0"]
    options += ["--log.stats-images", str(updates // 100), "--log.checkpoint-images", str(updates // 10)]
    config = parse(["train", "tiny-encoder", "--data.paths", str(folder / "photographs"), *options]).recipe

    class WatchedTask(TokenizerTask):
        def on_device(self, piece: Tensor, device: torch.device) -> Tensor:
            meter.update()
            return super().on_device(piece, device)

    train_task(config, WatchedTask, folder / "run", torch.device("cpu"))
    return meter


class NoiseSource:
    """Small pictures of noise, each a function of its number."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        return f"{index}.png"

    def read(self, index: int) -> np.ndarray:
        return np.random.default_rng(index).integers(0, 256, (128, 128, 3), dtype=np.uint8)


def evaluate(_: Path, crops: int) -> Meter:
    """Evaluate a bicubic reduction by eight."""
    meter = Meter(crops)

    def watched(items: Iterable[Any], total: int) -> Iterator[Any]:
        for item in items:
            yield item
            meter.update()

    evaluation_set = EvaluationSet(NoiseSource(crops), get_protocol("paper-128-v1"))
    Run(evaluation_set, BatchMetrics(), workers=1, progress=watched).add([Entry(Bicubic(8))])
    return meter


def tokenize_images(folder: Path, count: int, processes: int = 1) -> Meter:
    """Tokenize by a network of random weights."""
    AutoencoderSSDD.from_preset(encoder="f8c4", decoder="XXS", encoder_width=32).save_pretrained(folder / "model")
    # What tarfile needs for so many members would stay in this process, and count.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as other:
        other.submit(write_images, folder / "images.tar", count).result()
    job = TokenizeJob(
        paths=(str(folder / "images.tar"),),
        model=str(folder / "model"),
        protocol=CropProtocol(size=32),
        batch_size=16,
        shard_images=max(16, min(1024, count // 8)),
    )
    meter = Meter(count)
    tokenize(job, folder / "out", progress=lambda _: contextlib.nullcontext(meter), processes=processes, workers=1)
    return meter


def write_images(path: Path, count: int) -> None:
    """Write a tar file of PNG files, of which 256 are different."""
    random = np.random.default_rng(0)
    contents = []
    for _ in range(256):
        buffer = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (40, 40, 3), np.uint8)).save(buffer, "PNG")
        contents.append(buffer.getvalue())
    with tarfile.open(path, "w") as tar:
        for i in range(count):
            info = tarfile.TarInfo(f"{'abc'[i % 3]}/{i:07d}.png")
            info.size = len(contents[i % 256])
            tar.addfile(info, io.BytesIO(contents[i % 256]))


if __name__ == "__main__":
    main()
