"""Every byte of a tokenized set against its manifest, and every field of it against all others."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from ..statistics import LatentStatistics
from ..text import one_safe_line
from .format import (
    MANIFEST,
    PLAN,
    SHARD,
    ShardIndex,
    TokenizedDataError,
    decode_json,
    read_bytes,
    shard_name,
)
from .manifest import Manifest, ShardEntry, describe_statistics, merged_statistics, read_index, read_manifest
from .plan import plan_digest
from .reader import open_shard

_CLOSE = 1e-9
"""Relative: sums of float64 in another order differ by less."""


def verify(folder: Path, progress: Callable[[Iterable[Any]], Iterable[Any]] = iter) -> list[str]:
    """Reads everything; returns a line for each fault, none for a set that is whole.

    Checked are: the plan; that all shards are there and no others; sizes and sha256 of shards and indices; every
    member: order, names, types, shapes, finite numbers, metadata, labels; counts; the numbers of images; statistics.

    Raises FileNotFoundError or TokenizedDataError without a manifest that can be read.
    """
    manifest = read_manifest(folder)
    faults = list(_plan_faults(folder, manifest))
    indices: list[ShardIndex] = []
    for shard in progress(manifest.shards):
        try:
            index = read_index(folder, shard, manifest)
            faults += _shard_faults(folder, shard, index, manifest)
            indices.append(index)
        except (ValueError, OSError) as error:
            faults.append(one_safe_line(str(error)))
    names = {shard_name(shard.number, manifest.container) for shard in manifest.shards}
    strangers = sorted(p.name for p in folder.iterdir() if SHARD.fullmatch(p.name) and p.name not in names)
    faults += [f"{folder / name}: expected the shards of {MANIFEST} alone, found one more" for name in strangers]
    if len(indices) == len(manifest.shards):
        try:
            faults += _total_faults(folder / MANIFEST, manifest, indices)
        except ValueError as error:
            faults.append(f"{folder / MANIFEST}: {error}")
    return faults


def _plan_faults(folder: Path, manifest: Manifest) -> Iterator[str]:
    path = folder / PLAN
    try:
        if plan_digest(decode_json(read_bytes(path), str(path))) != manifest.plan:
            yield f"{path}: expected the plan that {MANIFEST} states, found another"
    except (TokenizedDataError, OSError) as error:
        yield str(error)


def _shard_faults(folder: Path, shard: ShardEntry, index: ShardIndex, manifest: Manifest) -> Iterator[str]:
    path = folder / shard_name(shard.number, manifest.container)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if path.stat().st_size != shard.bytes:
        yield f"{path}: expected {shard.bytes} bytes, found {path.stat().st_size}"
    if found != shard.sha256:
        yield f"{path}: expected sha256 {shard.sha256[:12]}..., found {found[:12]}...: delete it and tokenize again"
        return  # what follows would be consequences
    statistics, keys, images = LatentStatistics(), set(), set()
    for row, audited in enumerate(open_shard(folder, index, manifest).audit()):
        latent, label = audited.latent, index.labels[row]
        place, image = f"{path}:{latent.key}", int(latent.key[:9])
        if not bool(latent.mean.isfinite().all() and latent.logvar.isfinite().all()):
            yield f"{place}: expected finite numbers, found NaN or infinity"
            return
        statistics.update(latent.mean[None])
        stated = audited.key, audited.label, audited.image
        if stated != (latent.key, label, image) or not index.first <= image < index.last:
            yield f"{place}: expected key, label and image as the index has them, found {stated}"
        keys.add(latent.key)
        images.add(image)
    if len(keys) != index.latents or len(images) != index.images:
        counts = f"{index.images} images, {index.latents} latents"
        yield f"{path}: expected {counts}, found {len(images)} and {len(keys)}"
    elif images & {skipped.image for skipped in index.skipped}:
        yield f"{path}: expected no latent of a skipped image, found one"
    stated_statistics = LatentStatistics.from_state(index.statistics) if index.statistics else LatentStatistics()
    if not _alike(stated_statistics, statistics):
        yield f"{path}: expected the statistics of its index, found others"


def _total_faults(path: Path, manifest: Manifest, indices: list[ShardIndex]) -> Iterator[str]:
    content, total = manifest.content, indices[-1].last
    if [i.first for i in indices] != [0, *(i.last for i in indices[:-1])]:
        yield f"{path}: expected shards of images one after the other, found gaps"
    skipped = [{"image": s.image, "name": s.name, "reason": s.reason} for i in indices for s in i.skipped]
    if content["skipped"] != skipped:
        yield f"{path}: expected the {len(skipped)} skipped images of the shards, found {manifest.skipped} others"
    images = sum(i.images for i in indices)
    stated = content["data"].get("images") if isinstance(content.get("data"), dict) else None
    if manifest.images != images or images + len(skipped) != total or stated != total:
        yield f"{path}: expected {images} images and {len(skipped)} skipped, {total} in all, found {manifest.images}"
    if content.get("statistics") != json.loads(json.dumps(describe_statistics(merged_statistics(indices)))):
        yield f"{path}: expected the statistics of all shards, found others"


def _alike(a: LatentStatistics, b: LatentStatistics) -> bool:
    if a.count != b.count or a.channels != b.channels:
        return False
    pairs = [(a.mean, b.mean), (a.minimum, b.minimum), (a.maximum, b.maximum)] + [(a.std, b.std)] * bool(a.count)
    scale = max(1.0, *(t.abs().max().item() for t in (a.minimum, a.maximum) if len(t)), 1.0)
    return all(torch.allclose(x, y, rtol=_CLOSE, atol=_CLOSE * scale) for x, y in pairs)
