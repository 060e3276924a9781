"""What is to be done, in words that another process, or another machine, can do a part of it by."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from ..dtypes import Dtype
from ..files import atomic_path
from .containers import container_version
from .crops import CropProtocol
from .format import (
    FORMAT,
    MOST_IMAGES,
    MOST_SHARDS,
    PLAN,
    Container,
    decode_json,
    encode_json,
    read_bytes,
    sha256_of,
    text,
)
from .model import LatentEncoder
from .source import LabelledSource, LabelRule

_NOT_COMPARED = (("model", "name"), ("model", "encoder"), ("data", "paths"))
"""They say where the model, its encoder and the data were found, and decide nothing."""


@dataclass(frozen=True)
class TokenizeJob:
    """Plain values that everything follows from: what any process needs to make a shard.

    Attributes:
        paths: data, as ``open_source`` takes them. only, labels: see ``LabelledSource``.
        model, encoder: see ``LatentEncoder``. dtype: of its network.
        protocol: the crops.
        store: fp16 or bf16, of mean and log-variance. container: what shards are written as.
        shard_images: images a shard, broken ones counted. batch_size: crops that are encoded together; both decide
            the bytes, the second by the rounding of the network.
        threads: of the network on a CPU, in each process that encodes; they decide its rounding too, so that they
            are no matter of the machine.
    """

    paths: tuple[str, ...]
    model: str
    protocol: CropProtocol = field(default_factory=CropProtocol)
    only: str | None = None
    labels: LabelRule = "auto"
    store: Literal["fp16", "bf16"] = "fp16"
    container: Container = "tar"
    dtype: Dtype = "fp32"
    shard_images: int = 1024
    batch_size: int = 16
    threads: int = 1
    encoder: str | None = None

    def __post_init__(self) -> None:
        if not (1 <= self.shard_images <= 10**6 and 1 <= self.batch_size <= 10**4):
            raise ValueError(
                "expected 1 to 1000000 images a shard and a batch of 1 to 10000 crops, found "
                f"{self.shard_images} and {self.batch_size}"
            )
        if not 1 <= self.threads <= 1024:
            raise ValueError(f"expected 1 to 1024 threads, found {self.threads}")


@dataclass(frozen=True)
class ShardTask:
    """A shard: its number, and its images, [first, last) of the data."""

    number: int
    first: int
    last: int


class OpenJob:
    """A job with its data and its model open: one of it in each process that makes shards.

    Attributes:
        plan: everything that decides the bytes of the shards, as JSON. digest: of what of it is compared.
    """

    def __init__(self, job: TokenizeJob, device: torch.device | str = "cpu") -> None:
        """Raises ValueError or OSError with one line for data, a model or a size that do not fit."""
        self.job = job
        self.source = LabelledSource(job.paths, job.only, job.labels)
        self.encoder = LatentEncoder(job.model, device, job.dtype, job.encoder)
        factor, size = self.encoder.spatial_factor, job.protocol.size
        if size % factor:
            raise ValueError(f"expected a size that is a multiple of {factor}, as {job.model} needs it, found {size}")
        if len(self.source) > min(MOST_IMAGES, MOST_SHARDS * job.shard_images) - 1:
            raise ValueError(
                f"expected at most {MOST_SHARDS} shards, found {len(self.source)} images: make them larger"
            )
        self.latent_shape = (self.encoder.latent_channels, size // factor, size // factor)
        self.plan = self._plan()
        self.digest = plan_digest(self.plan)

    @property
    def on_cpu(self) -> bool:
        return self.encoder.device.type == "cpu"

    def shards(self) -> Iterator[ShardTask]:
        """All shards, in order."""
        step, images = self.job.shard_images, len(self.source)
        for number, first in enumerate(range(0, images, step)):
            yield ShardTask(number, first, min(first + step, images))

    def _plan(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "model": self.encoder.describe(),
            "data": {"paths": list(self.job.paths), "only": self.job.only, **self.source.describe()},
            "classes": self.source.classes,
            "protocol": self.job.protocol.describe(),
            "latent_shape": list(self.latent_shape),
            "store": self.job.store,
            "container": self.job.container,
            "shard_images": self.job.shard_images,
            # What the last digits hang on.
            "rounding": {
                "dtype": self.job.dtype,
                "batch_size": self.job.batch_size,
                "device": self.encoder.device.type,
                **({"threads": self.job.threads} if self.on_cpu else {}),
                "torch": torch.__version__,
                **container_version(self.job.container),
            },
        }


def plan_digest(plan: Mapping[str, Any]) -> str:
    """sha256 of what makes two plans the same."""
    return sha256_of(_compared(plan))


def settle_plan(out: Path, plan: dict[str, Any]) -> dict[str, Any]:
    """The plan of the folder ``out``: this one if it is new.

    Raises ValueError, with what differs, if the folder was begun by another plan or holds something else.
    """
    path = out / PLAN
    if not path.exists():
        if strangers := sorted(p.name for p in out.iterdir() if not p.name.startswith(".")):
            raise ValueError(
                f"{out}: expected a new folder, or one of ssdd tokenize with its {PLAN}, found {strangers[0]} in it"
            )
        with atomic_path(path) as temporary:
            temporary.write_bytes(encode_json(plan))
        return plan
    there = decode_json(read_bytes(path), str(path))
    text(there, "format", str(path), FORMAT)
    if found := differences(there, plan):
        raise ValueError(
            f"{out} was begun with other settings: {'; '.join(found[:4])}"
            f"{f'; {len(found) - 4} more' if len(found) > 4 else ''}: give it the same ones, or another --out"
        )
    return there


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """``protocol.size is 256 there, 128 here`` for each value of two plans that differs."""
    left, right = dict(_leaves(_compared(there))), dict(_leaves(_compared(here)))
    return [
        f"{name} is {_short(left.get(name))} there, {_short(right.get(name))} here"
        for name in {**left, **right}
        if left.get(name) != right.get(name)
    ]


def _compared(plan: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: dict(value) if isinstance(value, dict) else value for key, value in plan.items()}
    for group, key in _NOT_COMPARED:
        if isinstance(found.get(group), dict):
            found[group].pop(key, None)
    return found


def _leaves(plan: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in plan.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _short(value: Any) -> str:
    words = str(value)
    return words if len(words) <= 40 else f"{words[:24]}..."
