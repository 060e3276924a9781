"""The manifest: what a finished set is, by the plan and the indices of its shards. It is written last."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..files import atomic_path
from ..statistics import LatentStatistics
from .format import (
    CONTAINERS,
    FORMAT,
    MANIFEST,
    MOST_IMAGES,
    MOST_SHARDS,
    SHA256,
    STORED,
    Container,
    Shape,
    ShardIndex,
    SkippedImage,
    TokenizedDataError,
    decode_json,
    encode_json,
    index_name,
    listed,
    read_bytes,
    read_shape,
    shard_name,
    text,
    whole,
)
from .plan import plan_digest


def make_manifest(plan: Mapping[str, Any], shards: Iterable[ShardIndex]) -> dict[str, Any]:
    """What all shards of a plan, in order, come to; one of them at a time is in memory.

    Raises ValueError if no image is in them.
    """
    statistics, entries = LatentStatistics(), list[dict[str, Any]]()
    skipped: list[SkippedImage] = []
    for shard in shards:
        _merge(statistics, shard)
        skipped += shard.skipped
        entries.append(
            {
                "name": shard_name(shard.number, plan["container"]),
                "images": shard.images,
                "latents": shard.latents,
                "bytes": shard.file_bytes,
                "sha256": shard.sha256,
                "index_sha256": hashlib.sha256(shard.encode()).hexdigest(),
            }
        )
    if not statistics.count:
        reason = skipped[0].reason if skipped else "the data are empty"
        raise ValueError(f"expected usable images, found none: {len(skipped)} skipped; {reason}")
    return {
        **plan,
        "images": sum(entry["images"] for entry in entries),
        "latents": sum(entry["latents"] for entry in entries),
        "skipped": [asdict(image) for image in skipped],
        "statistics": describe_statistics(statistics),
        "shards": entries,
    }


def write_manifest(out: Path, manifest: Mapping[str, Any]) -> None:
    """Atomically; not if it is there already, byte for byte."""
    content, path = encode_json(manifest), out / MANIFEST
    if not path.is_file() or path.read_bytes() != content:
        with atomic_path(path, overwrite=True) as temporary:
            temporary.write_bytes(content)


def merged_statistics(shards: Iterable[ShardIndex]) -> LatentStatistics:
    """Of all shards, in order. Raises ValueError for damaged ones or another number of channels."""
    statistics = LatentStatistics()
    for shard in shards:
        _merge(statistics, shard)
    return statistics


def _merge(statistics: LatentStatistics, shard: ShardIndex) -> None:
    if shard.statistics is not None:
        statistics.merge(LatentStatistics.from_state(shard.statistics))


def describe_statistics(statistics: LatentStatistics) -> dict[str, Any]:
    """Of the means as they are stored, per channel and over all, with the entries of ``LatentStatistics.config``."""
    config = {k: list(v) if isinstance(v, tuple) else v for k, v in statistics.config().items()}
    return {
        **config,
        "positions": statistics.count,
        "mean": statistics.mean.tolist(),
        "std": statistics.std.tolist(),
        "minimum": statistics.minimum.tolist(),
        "maximum": statistics.maximum.tolist(),
        "global_mean": statistics.global_mean,
        "global_std": statistics.global_std,
    }


@dataclass(frozen=True)
class ShardEntry:
    """A shard in the manifest: sizes and sha256 of it and of its index."""

    number: int
    images: int
    latents: int
    bytes: int
    sha256: str
    index_sha256: str


@dataclass(frozen=True)
class Manifest:
    """A manifest, every field that is used checked; ``content`` is all of it."""

    content: dict[str, Any]
    plan: str
    latent_shape: Shape
    store: str
    container: Container
    classes: list[str]
    latents: int
    images: int
    skipped: int
    shards: list[ShardEntry]


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a finished set. Raises FileNotFoundError or TokenizedDataError with one line."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: expected a folder of ssdd tokenize, found none")
    path = folder / MANIFEST
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: expected a manifest, found none: no folder of ssdd tokenize, or not finished: run it again"
        )
    label = str(path)
    found = decode_json(read_bytes(path), label)
    text(found, "format", label, FORMAT)
    container = read_container(found, label)
    entries = listed(found, "shards", label, dict)
    shards = [_entry(entry, number, container, label) for number, entry in enumerate(entries)]
    latents = whole(found, "latents", label, 1, MOST_IMAGES * 2000)
    if sum(shard.latents for shard in shards) != latents or len(shards) > MOST_SHARDS:
        raise TokenizedDataError(
            f"{label}: expected {latents} latents in the shards, found {sum(shard.latents for shard in shards)}"
        )
    plan = {key: value for key, value in found.items() if key not in _RESULTS}
    return Manifest(
        content=found,
        plan=plan_digest(plan),
        latent_shape=read_shape(found, label),
        store=text(found, "store", label, "|".join(STORED)),
        container=container,
        classes=listed(found, "classes", label, str),
        latents=latents,
        images=whole(found, "images", label, 1, MOST_IMAGES),
        skipped=len(listed(found, "skipped", label, dict)),
        shards=shards,
    )


_RESULTS = ("images", "latents", "skipped", "statistics", "shards")
"""What a manifest has besides the plan."""


def read_index(folder: Path, shard: ShardEntry, manifest: Manifest) -> ShardIndex:
    """The index of a shard of the manifest. Raises FileNotFoundError, or TokenizedDataError where they disagree."""
    path = folder / index_name(shard.number)
    content = read_bytes(path)
    index = ShardIndex.decode(content, str(path))
    if index.plan != manifest.plan:
        raise TokenizedDataError(f"{path}: expected a shard of this set, found one of another model, data or settings")
    if hashlib.sha256(content).hexdigest() != shard.index_sha256:
        raise TokenizedDataError(f"{path}: expected the bytes that {MANIFEST} has the sha256 of, found others")
    stated = (shard.number, shard.images, shard.latents, shard.bytes, shard.sha256)
    if stated != (index.number, index.images, index.latents, index.file_bytes, index.sha256):
        raise TokenizedDataError(f"{path}: expected the counts and sizes of {MANIFEST}, found others")
    if len(index.offsets) != (index.latents if manifest.container == "tar" else 0):
        raise TokenizedDataError(f"{path}: expected the places in a {manifest.container} file, found others")
    if any(label is not None and not 0 <= label < len(manifest.classes) for label in index.labels):
        raise TokenizedDataError(f"{path}: expected labels of {len(manifest.classes)} classes, found others")
    return index


def read_container(content: Mapping[str, Any], label: str) -> Container:
    """Raises TokenizedDataError."""
    name = text(content, "container", label, "|".join(CONTAINERS))
    return next(container for container in CONTAINERS if container == name)


def _entry(entry: dict[str, Any], number: int, container: Container, label: str) -> ShardEntry:
    label = f"{label}, shard {number}"
    text(entry, "name", label, re.escape(shard_name(number, container)))
    return ShardEntry(
        number,
        whole(entry, "images", label, 0, MOST_IMAGES),
        whole(entry, "latents", label, 0, MOST_IMAGES),
        whole(entry, "bytes", label, 0, 1 << 50),
        text(entry, "sha256", label, SHA256),
        text(entry, "index_sha256", label, SHA256),
    )
