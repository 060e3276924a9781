"""Does a long training grow? Memory and time of an update, over thousands of updates of a tiny model.

    python benchmarks/load.py

Checks docs/reliability.md, "Load". A run of the smallest recipe on pictures that it makes, with a checkpoint every
tenth of the way. Printed are the memory of the process and the median CPU time of the last twenty updates after 1 %,
50 % and 100 % of them. Exit status 1 if memory after the first hundredth grows by more than 5 %, or the time by more
than half.
"""

import argparse
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from common import MemoryMeter
from PIL import Image
from torch import Tensor

from ssdd.cli.parse import parse
from ssdd.training.config import TrainConfig
from ssdd.training.loop import train_task
from ssdd.training.tokenizer import TokenizerTask

GROWTH, SLOWDOWN = 1.05, 1.5


class WatchedTask(TokenizerTask):
    """Note CPU time and memory at each batch; an update has one image."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        self.meter, self.times = MemoryMeter(config.total_images), [time.process_time()]

    def on_device(self, piece: Tensor, device: torch.device) -> Tensor:
        self.times.append(time.process_time())
        self.meter.update()
        return super().on_device(piece, device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=2000)
    updates = parser.parse_args().updates
    if updates < 2000:
        parser.error(f"expected at least 2000 updates, of which one in a hundred is twenty, found {updates}")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        moments = measure(Path(folder), updates)
    print("updates  memory MiB  ms an update")
    for update, mebibytes, seconds in moments:
        print(f"{update:7}  {mebibytes:10.1f}  {seconds * 1e3:12.1f}")
    (_, memory, seconds), *later = moments
    grown, slower = max(m[1] for m in later) / memory, max(m[2] for m in later) / seconds
    print(f"largest growth: memory x {grown:.3f}, time x {slower:.2f}")
    sys.exit(int(grown > GROWTH or slower > SLOWDOWN))


def measure(folder: Path, updates: int) -> list[tuple[int, float, float]]:
    """Train. Return updates, MiB in memory and seconds of CPU time an update at the three moments."""
    random = np.random.default_rng(0)
    (folder / "photographs").mkdir()
    for i in range(8):
        small = Image.fromarray(random.integers(0, 256, (3, 4, 3), dtype=np.uint8))
        small.resize((48, 40), Image.Resampling.BICUBIC).save(folder / "photographs" / f"{i}.png")
    options = ["--data.resolution", "16", "--data.workers", "0", "--loss.lpips", "0", "--validation.count", "0"]
    options += ["--total-images", str(updates), "--batch-size", "1", "--precision", "fp32"]
    options += ["--optimizer.warmup-images", "16", "--optimizer.decay-images", "0", "--log.sample-images", "0"]
    options += ["--log.stats-images", str(updates // 100), "--log.checkpoint-images", str(updates // 10)]
    config = parse(["train", "tiny-encoder", "--data.paths", str(folder / "photographs"), *options]).recipe
    tasks: list[WatchedTask] = []

    def make_task(config: TrainConfig) -> WatchedTask:
        tasks.append(WatchedTask(config))
        return tasks[0]

    train_task(config, make_task, folder / "run", torch.device("cpu"))
    durations = [end - begin for begin, end in pairwise(tasks[0].times)]
    moments = [int(share * updates) for share in MemoryMeter.SHARES]
    seconds = [statistics.median(durations[max(0, moment - 20) : moment]) for moment in moments]
    return list(zip(moments, tasks[0].meter.mebibytes, seconds, strict=True))


if __name__ == "__main__":
    main()
