"""Tokenized data in memory: what ``LatentDataset`` has, made of tensors."""

from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from ssdd.checkpoints.identity import LatentIdentity

NOBODY = LatentIdentity("none", "0" * 64, 8, 4)
STATISTICS = {"scaling_factor": 0.5, "shift_factor": 1.0, "latents_mean": None, "latents_std": None}


@dataclass
class MemoryLatents:
    """Posteriors whose standard deviation is next to nothing."""

    means: Tensor
    labels: list[int | None]
    classes: list[str]
    statistics: dict[str, Any] = field(default_factory=lambda: dict(STATISTICS))
    model: LatentIdentity = NOBODY
    digest: str = "1" * 64

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        c, h, w = self.means.shape[1:]
        return c, h, w

    def ranges_of_shapes(self) -> list[tuple[tuple[int, int, int], range]]:
        return [(self.latent_shape, range(len(self)))]

    def __len__(self) -> int:
        return len(self.means)

    def __getitem__(self, index: int) -> dict[str, Any]:
        mean, label = self.means[index], self.labels[index]
        number = torch.tensor(-1 if label is None else label)
        return {"mean": mean, "logvar": torch.full_like(mean, -30.0), "label": number, "key": f"{index:04d}"}


@dataclass
class BucketedLatents(MemoryLatents):
    """Shards of latents, each of one shape, as ``ssdd tokenize --buckets`` makes them."""

    shards: list[Tensor] = field(default_factory=list)

    def ranges_of_shapes(self) -> list[tuple[tuple[int, int, int], range]]:
        found, start = [], 0
        for shape, shards in groupby(self.shards, lambda shard: tuple(shard.shape[1:])):
            end = start + sum(map(len, shards))
            found.append((shape, range(start, end)))
            start = end
        return found

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        latents = [latent for shard in self.shards for latent in shard]
        mean, label = latents[index], self.labels[index]
        return {"mean": mean, "logvar": torch.full_like(mean, -30.0), "label": torch.tensor(label), "key": str(index)}


def bucketed_latents(counts: dict[tuple[int, int], list[int]], channels: int = 4) -> BucketedLatents:
    """Latents of several shapes, (h, w): how many are in each of its shards. The label of each is its number."""
    random = torch.Generator().manual_seed(0)
    shards = [
        torch.randn(count, channels, *shape, generator=random) for shape, shard in counts.items() for count in shard
    ]
    total = sum(len(shard) for shard in shards)
    return BucketedLatents(
        torch.zeros(0, channels, 4, 4), list(range(total)), [str(i) for i in range(total)], shards=shards
    )


TWO = torch.tensor([[3.0, -1.0, 1.0, 1.0], [-1.0, 3.0, 1.0, 1.0]])
"""Raw latent of each of two classes, by channel: normalised 1, -1, 0, 0 and -1, 1, 0, 0."""


def two_classes(count: int = 16, side: int = 4) -> MemoryLatents:
    """Two constant latents, by class: what a class-conditional model can learn at once."""
    labels = [i % 2 for i in range(count)]
    means = TWO[torch.tensor(labels)][:, :, None, None].expand(count, 4, side, side).contiguous()
    return MemoryLatents(means, list(labels), ["plus", "minus"])


def random_latents(count: int = 12, side: int = 4, classes: int = 3) -> MemoryLatents:
    """Every latent another one."""
    means = torch.randn(count, 4, side, side, generator=torch.Generator().manual_seed(0)) * 2 + 1
    names = [f"class{i}" for i in range(classes)]
    return MemoryLatents(means, [i % classes if classes else None for i in range(count)], names)
