"""Does a long training grow? Resident memory and time an update, over thousands of updates of a tiny model.

    python benchmarks/load.py [--updates 2000]

A run of the smallest recipe on pictures that it makes, with a checkpoint every tenth of the way. Printed are the memory
of the process and the median CPU time of an update around 1 %, 50 % and 100 % of the updates. Exit status 1 if memory
after the first hundredth grows by more than 5 %, or the time of an update by more than half.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ssdd.cli.train import parse
from ssdd.training import loop
from ssdd.training.optimizers import Update

BATCH = 1
GROWTH, SLOWDOWN = 1.05, 1.5


@dataclass(frozen=True)
class Moment:
    """After so many updates: resident bytes, seconds of CPU time of an update (median of the last twenty)."""

    update: int
    resident: int
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=2000)
    updates = parser.parse_args().updates
    if updates < 2000:
        parser.error(f"expected at least 2000 updates, of which one in a hundred is twenty, found {updates}")
    torch.set_num_threads(1)
    print("updates  resident MB  ms an update")
    with tempfile.TemporaryDirectory() as folder:
        moments = measure(Path(folder), updates, {updates // 100, updates // 2, updates})
    first, *later = moments
    grown = max(m.resident for m in later) / first.resident
    slower = max(m.seconds for m in later) / first.seconds
    print(f"largest growth: memory x {grown:.3f}, time x {slower:.2f}")
    sys.exit(int(grown > GROWTH or slower > SLOWDOWN))


def measure(folder: Path, updates: int, at: set[int]) -> list[Moment]:
    """Trains, and looks at the process after these updates."""
    random = np.random.default_rng(0)
    (folder / "photographs").mkdir()
    for i in range(8):
        small = Image.fromarray(random.integers(0, 256, (3, 4, 3), dtype=np.uint8))
        small.resize((48, 40), Image.Resampling.BICUBIC).save(folder / "photographs" / f"{i}.png")
    images = updates * BATCH
    options = ["--data.resolution", "16", "--data.workers", "0", "--loss.lpips", "0", "--validation.count", "0"]
    options += ["--total-images", str(images), "--batch-size", str(BATCH), "--precision", "fp32"]
    options += ["--optimizer.warmup-images", "16", "--optimizer.decay-images", "0", "--log.sample-images", "0"]
    options += ["--log.stats-images", str(images // 100), "--log.checkpoint-images", str(images // 10)]
    config = parse(["tiny-encoder", "--data.paths", str(folder / "photographs"), *options]).recipe

    moments: list[Moment] = []
    ends: list[float] = []
    step = Update.step

    def watched(self: Update, rate: float, watch: Any = None) -> Any:
        result = step(self, rate, watch)
        ends.append(time.process_time())
        if len(ends) in at:
            seconds = statistics.median(b - a for a, b in zip(ends[-20:-1], ends[-19:], strict=True))
            moments.append(Moment(len(ends), resident(), seconds))
            print(f"{len(ends):7}  {resident() / 1e6:11.1f}  {seconds * 1e3:12.1f}", flush=True)
        return result

    Update.step = watched  # type: ignore[method-assign]
    loop.train(config, folder / "run", torch.device("cpu"))
    return moments


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
