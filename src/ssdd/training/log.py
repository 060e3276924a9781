"""What a person sees of a run: progress bar, ``stats.jsonl``, TensorBoard, and a line or two at the start."""

import json
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..files import atomic_path
from ..processes import Processes, mean_over_processes
from .config import RunConfig

logger = logging.getLogger(__name__)


class RunLog:
    """Sums on the device over a log interval; one reading, one line of ``stats.jsonl`` at its end.

    Only the main process writes; all of them take part in the means.
    """

    def __init__(self, run: Path, config: RunConfig, processes: Processes, seen: int, share_of_peak: float) -> None:
        """share_of_peak: utilisation of the machine at one image per second."""
        self.path, self.interval, self.processes = run / "stats.jsonl", config.log.stats_images, processes
        self.share_of_peak, self.total = share_of_peak, config.total_images
        self.sums: dict[str, Tensor] = {}
        self.since, self.started = seen, time.monotonic()
        self.board: Any = None
        if processes.main:
            forget_after(self.path, seen)
            self.board = _tensorboard(run / "tensorboard", seen)
        self.bar = tqdm(
            total=config.total_images,
            initial=seen,
            unit="img",
            smoothing=0.05,
            disable=not processes.main,
            dynamic_ncols=True,
        )

    def add(self, values: dict[str, Tensor], finite: Tensor, seen: int) -> bool:
        """Scalars of one update, on the device, and whether it was taken. True at the end of an interval of the run."""
        for name, value in values.items():
            # a skipped update is no part of the means; each name counts the updates that it was there in
            pair = torch.stack([torch.where(finite, value.detach().float(), 0.0), finite.float()])
            self.sums[name] = self.sums[name] + pair if name in self.sums else pair
        self.bar.update(seen - self.bar.n)
        return seen // self.interval != self.since // self.interval or seen >= self.total

    def write(self, seen: int, **more: float) -> dict[str, float]:
        """Means over the interval, and ``more`` as it is: the end of an interval, for all processes."""
        names = sorted(self.sums)
        pairs = mean_over_processes(torch.stack([self.sums[n] for n in names])).tolist() if names else []
        means = {name: value / taken for name, (value, taken) in zip(names, pairs, strict=True) if taken}
        now = time.monotonic()
        speed = (seen - self.since) / (now - self.started)
        line = {"images": seen, **means, **more, "images_per_second": speed}
        if self.share_of_peak:
            line["utilisation"] = speed * self.share_of_peak
        self.sums, self.since, self.started = {}, seen, now
        if self.processes.main:
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")
            shown = {k: v for k, v in line.items() if k in means or k == "utilisation"}
            self.bar.set_postfix({k: f"{v:.4g}" for k, v in shown.items()})
            self.scalars({k: v for k, v in line.items() if k != "images"}, seen)
        return means

    def scalars(self, values: dict[str, float], seen: int) -> None:
        """To TensorBoard."""
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(name, value, seen)

    def picture(self, page: np.ndarray, seen: int) -> None:
        """A sample grid, uint8 (H, W, 3), to TensorBoard."""
        if self.board is not None:
            self.board.add_image("samples", page, seen, dataformats="HWC")

    def say(self, message: str, *values: object) -> None:
        """A line above the progress bar, from the main process."""
        if self.processes.main:
            self.bar.clear()
            logger.info(message, *values)

    def close(self) -> None:
        self.bar.close()
        if self.board is not None:
            self.board.close()


def forget_after(stats: Path, seen: int) -> None:
    """Drops the lines of a run that went on after its last checkpoint: they are about to be written again."""
    if not stats.is_file():
        return
    kept = []
    for line in stats.read_text().splitlines():
        try:
            if json.loads(line)["images"] <= seen:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue  # the last line of a run that was killed while it wrote
    with atomic_path(stats, overwrite=True) as path:
        path.write_text("".join(f"{line}\n" for line in kept))


def _tensorboard(folder: Path, seen: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        logger.info("no TensorBoard scalars: pip install 'ssdd[train]' to have them")
        return None
    return SummaryWriter(str(folder), purge_step=seen + 1 if seen else None)
