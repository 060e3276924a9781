"""What a person sees of a run: progress bar, ``stats.jsonl``, TensorBoard or another tracker, lines of text."""

import hashlib
import importlib
import json
import logging
import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..data.images import save_image
from ..runtime.files import atomic_path
from ..runtime.processes import Processes, mean_over_processes, usable_cores
from ..runtime.text import bars_are_off
from .config import RunConfig, flatten, to_dict
from .parts import PartSize, dead_parts, table

logger = logging.getLogger(__name__)

LINE_SECONDS = 60.0
"""Least seconds between two lines about the progress where there is no bar."""

SLOW = 0.1
"""Share of the machine's peak below which a run says what may hold it up."""


class RunLog:
    """Sums on the device over a log interval; one reading, one line of ``stats.jsonl`` at its end.

    Only the main process writes; all of them take part in the means.

    Args:
        run: folder of the run.
        config: of the run.
        processes: that train it.
        seen: images seen at the start.
        share_of_peak: utilisation of the machine at one image per second.
    """

    def __init__(self, run: Path, config: RunConfig, processes: Processes, seen: int, share_of_peak: float) -> None:
        self.run, self.interval, self.processes = run, config.log.stats_images, processes
        self.batch_size, self.total, self.share_of_peak = config.batch_size, config.total_images, share_of_peak
        self.sums: dict[str, Tensor] = {}
        self.since, self.started, self.waited = seen, time.monotonic(), 0.0
        self.intervals, self.warned, self.new = 0, set[str](), seen == 0
        self.told = self.started
        self.tracker: Tracker | None = None
        if processes.main:
            for name in ("stats.jsonl", "validation.jsonl"):
                forget_after(run / name, seen)
            self.tracker = Tracker(config, run, seen)
        total, hidden = config.total_images, not processes.main
        self.bar = tqdm(
            total=total, initial=seen, unit="img", smoothing=0.05, disable=hidden or bars_are_off(), dynamic_ncols=True
        )

    def ends_interval(self, seen: int) -> bool:
        """Return whether the update that ends at ``seen`` images is the last of its log interval."""
        return seen // self.interval != (seen - self.batch_size) // self.interval or seen >= self.total

    def add(self, values: dict[str, Tensor], finite: Tensor, seen: int, waited: float) -> None:
        """Add scalars of one update, on the device, whether it was taken, and the seconds it waited for data."""
        for name, value in values.items():
            # a skipped update is no part of the means; each name counts the updates that it was there in
            pair = torch.stack([torch.where(finite, value.detach().float(), 0.0), finite.float()])
            self.sums[name] = self.sums[name] + pair if name in self.sums else pair
        self.waited += waited
        self.bar.update(seen - self.bar.n)

    def write(self, seen: int, parts: dict[str, PartSize], **more: float) -> dict[str, float]:
        """Write means over the interval, and ``more`` as it is: a call for all processes. Return the means."""
        names = sorted(self.sums)
        pairs = mean_over_processes(torch.stack([self.sums[n] for n in names])).tolist() if names else []
        means = {name: value / taken for name, (value, taken) in zip(names, pairs, strict=True) if taken}
        elapsed = time.monotonic() - self.started
        speed = (seen - self.since) / elapsed
        line: dict[str, Any] = {"images": seen, **means, **more, "images_per_second": speed}
        if self.share_of_peak:
            line["utilisation"] = speed * self.share_of_peak
        finite = {name: size for name, size in parts.items() if math.isfinite(size.gradient + size.update)}
        line["parts"] = {name: {"gradient": size.gradient, "update": size.update} for name, size in finite.items()}
        if self.tracker is not None:
            _append(self.run / "stats.jsonl", line)
            shown = {k: v for k, v in line.items() if k in means or k == "utilisation"}
            self._show(seen, speed, {k: f"{v:.4g}" for k, v in shown.items()})
            self.tracker.scalars(line, seen)
            self._warn(parts, line, self.waited / elapsed)
        self.sums, self.since, self.started, self.waited = {}, seen, time.monotonic(), 0.0
        self.intervals += 1
        return means

    def _show(self, seen: int, speed: float, means: dict[str, str]) -> None:
        """Show means beside the progress bar or, where nobody would see it move, in a line a minute."""
        self.bar.set_postfix(means)
        if bars_are_off() and time.monotonic() - self.told > LINE_SECONDS:
            self.told = time.monotonic()
            left = timedelta(seconds=round((self.total - seen) / speed))
            words = ", ".join(f"{name} {value}" for name, value in means.items())
            logger.info(
                "%s of %s images, %.3g a second, %s left: %s", f"{seen:,}", f"{self.total:,}", speed, left, words
            )

    def validated(self, scores: dict[str, float], seen: int) -> None:
        """Write the metrics of a validation: a call for the main process, as are those below."""
        assert self.tracker is not None
        _append(self.run / "validation.jsonl", {"images": seen, **scores})
        self.tracker.scalars({f"validation/{name}": value for name, value in scores.items()}, seen)

    def picture(self, page: np.ndarray, seen: int) -> None:
        """Write a sample grid, uint8 (H, W, 3)."""
        assert self.tracker is not None
        save_image(self.run / "samples" / f"{seen:012d}.png", page, overwrite=True)
        self.tracker.picture(page, seen)

    def say(self, message: str, *values: object) -> None:
        """Log a line above the progress bar."""
        self.bar.clear()
        logger.info(message, *values)

    def close(self) -> None:
        self.bar.close()
        if self.tracker is not None:
            self.tracker.close()

    def _warn(self, parts: dict[str, PartSize], line: dict[str, Any], waiting: float) -> None:
        """Show the first measurement of a run; say once which part does not learn, and why a run is slow."""
        if self.intervals == 0 and self.new:
            self.say("gradient and update by part, after %d images:\n%s", line["images"], table(parts))
        dead = [part for part in dead_parts(parts) if part not in self.warned] if self.intervals else []
        if dead:
            self.warned |= set(dead)
            self.say("warning: %s: a gradient below 1e-5 of the largest part's: it hardly learns", ", ".join(dead))
        if self.intervals and 0 < line.get("utilisation", 1.0) < SLOW and "slow" not in self.warned:
            self.warned.add("slow")
            reasons = slow_reasons(waiting, self.processes)
            self.say("%.1f %% of the machine's peak: %s", 100 * line["utilisation"], "; ".join(reasons))


def slow_reasons(waiting: float, processes: Processes) -> list[str]:
    """Return what may hold a run up. waiting: the share of its time that it waits for data."""
    reasons = []
    if waiting > 0.2:
        reasons.append(f"{waiting:.0%} of the time is waiting for data (--data.workers, or faster storage)")
    cores, busy = usable_cores(), os.getloadavg()[0]
    if processes.device.type == "cpu" and busy > cores + 1:
        reasons.append(f"{busy:.1f} processes want to run on {cores} core{'s' if cores > 1 else ''}")
    return reasons or ["small images or batches; --compile may help"]


class Tracker:
    """Curves and grids in TensorBoard's event files, or in wandb or trackio, which has wandb's interface.

    A run of wandb or trackio is known by its folder, and goes on there when resumed. A tracker that fails, be it at its
    import, is left out with the reason: the run is worth more than its curves.
    """

    def __init__(self, config: RunConfig, run: Path, seen: int) -> None:
        self.name = config.log.to
        self.board: Any = None
        self.module: Any = None
        self._try(lambda: self._open(config, run, seen))

    def _open(self, config: RunConfig, run: Path, seen: int) -> None:
        if self.name == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(run / "tensorboard"), purge_step=seen + 1 if seen else None)
            return
        module, folder = importlib.import_module(self.name), str(run.resolve())
        options: dict[str, Any] = {"project": "ssdd", "name": run.name, "config": to_dict(config), "resume": "allow"}
        if self.name == "wandb":
            options |= {"dir": folder, "id": hashlib.sha256(folder.encode()).hexdigest()[:16]}
        module.init(**options)
        self.module = module

    def _try(self, call: Callable[[], object]) -> None:
        """Make a call; leave the tracker out from then on if it fails."""
        try:
            call()
        except Exception as error:  # an import can fail in any way, such as a TypeError of a mismatched protobuf
            self.board = self.module = None
            reason = " ".join(str(error).split()) or type(error).__name__
            logger.warning("%s is left out: %s (pip install -U %s)", self.name, reason, self.name)

    def scalars(self, values: dict[str, Any], seen: int) -> None:
        """Send numbers; those of a dictionary inside under ``name/``."""
        numbers = {k: v for k, v in flatten(values, "/").items() if k != "images"}
        if self.module is not None:
            self._try(lambda: self.module.log(numbers, step=seen))
        elif self.board is not None:
            self._try(lambda: [self.board.add_scalar(name, value, seen) for name, value in numbers.items()])

    def picture(self, page: np.ndarray, seen: int) -> None:
        """Send a sample grid, uint8 (H, W, 3)."""
        if self.module is not None:
            self._try(lambda: self.module.log({"samples": self.module.Image(page)}, step=seen))
        elif self.board is not None:
            self._try(lambda: self.board.add_image("samples", page, seen, dataformats="HWC"))

    def close(self) -> None:
        if self.module is not None:
            self._try(self.module.finish)
        elif self.board is not None:
            self._try(self.board.close)


def forget_after(path: Path, seen: int) -> None:
    """Drop the lines of a run that went on after its last checkpoint: they are about to be written again."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text().splitlines():
        with suppress(ValueError, KeyError, TypeError):  # the last line of a run that was killed while it wrote
            if json.loads(line)["images"] <= seen:
                kept.append(line)
    with atomic_path(path, overwrite=True) as new:
        new.write_text("".join(f"{line}\n" for line in kept))


def _append(path: Path, line: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
