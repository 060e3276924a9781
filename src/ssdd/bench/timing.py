"""Fair times: the contenders take turns, in one process, on one device.

A ratio is the median of the ratios within a round, so that what slows the machine for a while slows both.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Times:
    """Seconds of each round."""

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    @property
    def spread(self) -> float:
        """Half of the distance from the quickest round to the slowest, as a share of the median."""
        return (max(self.rounds) - min(self.rounds)) / (2 * self.median)

    def ratio(self, other: "Times") -> float:
        """How many times as long the other one took: the median over rounds."""
        return statistics.median(b / a for a, b in zip(self.rounds, other.rounds, strict=True))


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Of one call, until the device has finished."""
    _finish(device)
    begin = time.perf_counter()
    work()
    _finish(device)
    return time.perf_counter() - begin


def take_turns(
    contenders: Mapping[str, Sequence[Callable[[], object]]],
    rounds: int,
    device: torch.device,
    step: Callable[[], object] = lambda: None,
) -> dict[str, list[Times]]:
    """Times of each part of each contender: one round to warm up, then ``rounds`` in which they take turns.

    contenders: by name, the parts that are timed apart. step: called after each contender, for a progress bar.
    """
    found: dict[str, list[list[float]]] = {name: [[] for _ in parts] for name, parts in contenders.items()}
    for i in range(rounds + 1):
        for name, parts in contenders.items():
            for times, part in zip(found[name], parts, strict=True):
                elapsed = seconds(part, device)
                if i:
                    times.append(elapsed)
            step()
    return {name: [Times(tuple(times)) for times in parts] for name, parts in found.items()}


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
