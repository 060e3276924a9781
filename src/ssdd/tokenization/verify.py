"""Every byte of a tokenized set against its manifest, and every field of it against all others."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from ..autoencoder.statistics import LatentStatistics
from ..runtime.text import one_safe_line
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
    latent: key, types, shape, finite numbers, metadata, label; counts; the numbers of images; statistics.

    Args:
        folder: The set.
        progress: Wraps the shards, as tqdm does.

    Raises:
        FileNotFoundError, TokenizedDataError: There is no manifest that can be read.
    """
    manifest = read_manifest(folder)
    digest = plan_digest(manifest)
    faults = list(_plan_faults(folder, digest))
    total = LatentStatistics()
    skipped = images = last = 0
    for number, entry in enumerate(progress(manifest.shards)):
        try:
            index = read_index(folder, number, manifest, digest)
            faults += _shard_faults(folder, entry, index, manifest)
            if manifest.shard_images is not None and index.first != last:
                faults.append(f"{folder / entry.name}: expected images from {last} on, found {index.first}")
            merge(total, index)
            skipped, images, last = skipped + len(index.skipped), images + index.images, index.last
        except (ValueError, OSError) as error:
            faults.append(one_safe_line(str(error)))
    names = {entry.name for entry in manifest.shards}
    strangers = sorted(p.name for p in folder.iterdir() if SHARD.fullmatch(p.name) and p.name not in names)
    faults += [f"{folder / name}: expected the shards of {MANIFEST} alone, found one more" for name in strangers]
    if faults:
        return faults  # what follows could be consequences
    path, stated = folder / MANIFEST, manifest.data.images
    if (manifest.skipped_images, len(manifest.skipped)) != (skipped, min(skipped, MOST_SKIPPED)):
        faults.append(f"{path}: expected the {skipped} skipped images of the shards, found {manifest.skipped_images}")
    if manifest.images != images or (stated is not None and not (images + skipped == last == stated)):
        faults.append(f"{path}: expected {images} images and {skipped} skipped, {last} in all, found {manifest.images}")
    if manifest.statistics != SetStatistics.of(total):
        faults.append(f"{path}: expected the statistics of all shards, found others")
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
    if found != entry.sha256:
        yield f"{path}: expected sha256 {entry.sha256[:12]}..., found {found[:12]}...: delete it and tokenize again"
        return  # what follows would be consequences
    if manifest.container == "mds":
        return  # its own package reads what is inside
    statistics, keys, images = LatentStatistics(), set(), set()
    for latent, label in zip(open_shard(folder, index, manifest).stream(whole=True), index.labels, strict=True):
        key = KEY.fullmatch(latent.key)
        image = int(key["image"]) if key else -1
        if not bool(latent.mean.isfinite().all() and latent.logvar.isfinite().all()):
            yield f"{path}:{latent.key}: expected finite numbers, found NaN or infinity"
            return
        statistics.update(latent.mean[None])
        stated = latent.label, latent.image
        if stated != (label, image) or not index.first <= image < index.last:
            yield f"{path}:{latent.key}: expected label and image as the index has them, found {stated}"
        keys.add(latent.key)
        images.add(image)
    if len(keys) != index.latents or len(images) != index.images:
        counts = f"{index.images} images, {index.latents} latents"
        yield f"{path}: expected {counts}, found {len(images)} and {len(keys)}"
    if not _alike(index.statistics.statistics() if index.statistics else LatentStatistics(), statistics):
        yield f"{path}: expected the statistics of its index, found others"


def _alike(a: LatentStatistics, b: LatentStatistics) -> bool:
    if (a.count, a.channels) != (b.count, b.channels) or not a.count:
        return a.count == b.count
    scale = max(1.0, a.minimum.abs().max().item(), a.maximum.abs().max().item())
    pairs = [(a.mean, b.mean), (a.minimum, b.minimum), (a.maximum, b.maximum), (a.std, b.std)]
    return all(torch.allclose(x, y, rtol=_CLOSE, atol=_CLOSE * scale) for x, y in pairs)
