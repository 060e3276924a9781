"""Every byte of a tokenized set against its manifest, and every field of it against all others."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from ..statistics import LatentStatistics
from ..text import one_safe_line
from .format import (
    KEY,
    MANIFEST,
    MOST_SKIPPED,
    PLAN,
    SHARD,
    Manifest,
    Plan,
    SetStatistics,
    ShardEntry,
    ShardIndex,
    TokenizedDataError,
    decode,
    read_json,
)
from .manifest import merge, plan_digest, read_index, read_manifest
from .reader import open_shard

_CLOSE = 1e-9
"""Relative: sums of float64 in another order differ by less."""


def verify(folder: Path, progress: Callable[[Iterable[Any]], Iterable[Any]] = iter) -> list[str]:
    """Read everything; return a line for each fault, none for a set that is whole.

    Checked are: the plan; that all shards are there and no others; sizes and sha256 of shards and indices; every
    member: order, names, types, shapes, finite numbers, metadata, labels; counts; the numbers of images; statistics.

    Raises:
        FileNotFoundError, TokenizedDataError: there is no manifest that can be read.
    """
    manifest = read_manifest(folder)
    digest = plan_digest(manifest)
    faults = [] if manifest.first_digest else list(_plan_faults(folder, digest))  # it states its plan itself
    total = LatentStatistics()
    indices = skipped = images = 0
    last = 0
    for number, entry in enumerate(progress(manifest.shards)):
        try:
            index = read_index(folder, number, manifest, digest)
            faults += _shard_faults(folder, entry, index, manifest)
            if manifest.shard_images is not None and index.first != last:
                faults.append(f"{folder / entry.name}: expected images from {last} on, found {index.first}")
            merge(total, index)
            indices, skipped, images, last = (
                indices + 1,
                skipped + len(index.skipped),
                images + index.images,
                index.last,
            )
        except (ValueError, OSError) as error:
            faults.append(one_safe_line(str(error)))
    names = {entry.name for entry in manifest.shards}
    strangers = sorted(p.name for p in folder.iterdir() if SHARD.fullmatch(p.name) and p.name not in names)
    faults += [f"{folder / name}: expected the shards of {MANIFEST} alone, found one more" for name in strangers]
    if indices == len(manifest.shards):
        faults += _total_faults(folder / MANIFEST, manifest, images, skipped, last)
        if total.count and manifest.statistics != SetStatistics.of(total):
            faults.append(f"{folder / MANIFEST}: expected the statistics of all shards, found others")
    return faults


def _plan_faults(folder: Path, digest: str) -> Iterator[str]:
    path = folder / PLAN
    try:
        if decode(read_json(path), Plan, str(path)).digest != digest:
            yield f"{path}: expected the plan that {MANIFEST} states, found another"
    except (TokenizedDataError, OSError) as error:
        yield str(error)


def _shard_faults(folder: Path, entry: ShardEntry, index: ShardIndex, manifest: Manifest) -> Iterator[str]:
    path = folder / entry.name
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if path.stat().st_size != entry.bytes:
        yield f"{path}: expected {entry.bytes} bytes, found {path.stat().st_size}"
    if found != entry.sha256:
        yield f"{path}: expected sha256 {entry.sha256[:12]}..., found {found[:12]}...: delete it and tokenize again"
        return  # what follows would be consequences
    if manifest.container == "mds":
        return  # its own package reads what is inside
    statistics, keys, images = LatentStatistics(), set(), set()
    for row, audited in enumerate(open_shard(folder, index, manifest).audit()):
        latent, label = audited.latent, index.labels[row]
        key = KEY.fullmatch(latent.key)
        place, image = f"{path}:{latent.key}", int(key["image"]) if key else -1
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
    if not _alike(index.statistics.statistics() if index.statistics else LatentStatistics(), statistics):
        yield f"{path}: expected the statistics of its index, found others"


def _total_faults(path: Path, manifest: Manifest, images: int, skipped: int, last: int) -> Iterator[str]:
    named = skipped if manifest.first_digest else min(skipped, MOST_SKIPPED)
    if manifest.skipped_images != skipped or len(manifest.skipped) != named:
        yield f"{path}: expected the {skipped} skipped images of the shards, found {manifest.skipped_images} others"
    stated = manifest.data.images
    if manifest.images != images or (stated is not None and not (images + skipped == last == stated)):
        yield f"{path}: expected {images} images and {skipped} skipped, {last} in all, found {manifest.images}"


def _alike(a: LatentStatistics, b: LatentStatistics) -> bool:
    if a.count != b.count or a.channels != b.channels:
        return False
    pairs = [(a.mean, b.mean), (a.minimum, b.minimum), (a.maximum, b.maximum)] + [(a.std, b.std)] * bool(a.count)
    scale = max(1.0, *(t.abs().max().item() for t in (a.minimum, a.maximum) if len(t)), 1.0)
    return all(torch.allclose(x, y, rtol=_CLOSE, atol=_CLOSE * scale) for x, y in pairs)
