"""Fair times: the contenders take turns, in one process, on one device.

A ratio is the median of the ratios within a round, so that what slows the machine for a while slows both.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from ..peak import seconds


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


def take_turns(
    contenders: Mapping[str, Sequence[Callable[[], object]]],
    rounds: int,
    device: torch.device,
    step: Callable[[], object] = lambda: None,
    least: float = 0.0,
) -> dict[str, list[Times]]:
    """Times of a call of each part of each contender: a round to warm up, then ``rounds`` in which they take turns.

    contenders: by name, the parts that are timed apart. step: called after each contender, for a progress bar. least:
    seconds of a part in a round; what is quicker is called again, as often in each round.
    """
    found: dict[str, list[list[float]]] = {name: [[] for _ in parts] for name, parts in contenders.items()}
    calls: dict[str, list[int]] = {}
    for name, parts in contenders.items():
        calls[name] = [_warm_up(part, device, least) for part in parts]
        step()
    for _ in range(rounds):
        for name, parts in contenders.items():
            for times, part, count in zip(found[name], parts, calls[name], strict=True):
                times.append(seconds(_repeated(part, count), device) / count)
            step()
    return {name: [Times(tuple(times)) for times in parts] for name, parts in found.items()}


def _warm_up(part: Callable[[], object], device: torch.device, least: float) -> int:
    """How many calls last ``least`` seconds."""
    elapsed = seconds(part, device)
    if not least:
        return 1
    elapsed = seconds(part, device)  # without compiling
    return max(1, math.ceil(least / max(elapsed, 1e-9)))


def _repeated(part: Callable[[], object], count: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(count):
            part()

    return run
