"""Every byte of a tokenized set against its manifest, and every field of it against all others."""

import hashlib
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from ..statistics import LatentStatistics
from .format import (
    KEY,
    LATENT,
    MANIFEST,
    META,
    PLAN,
    SHARD,
    STORED,
    ShardIndex,
    TokenizedDataError,
    decode_json,
    parse_latent,
    read_bytes,
    shard_name,
)
from .manifest import Manifest, ShardEntry, describe_statistics, merged_statistics, read_index, read_manifest
from .plan import plan_digest

_CLOSE = 1e-9
"""Relative: sums of float64 in another order differ by less."""
_MOST_META_BYTES = 1 << 16


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
        except (ValueError, OSError, tarfile.TarError) as error:
            faults.append(" ".join(str(error).split()))
    names = {shard_name(shard.number) for shard in manifest.shards}
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
    path = folder / shard_name(shard.number)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if path.stat().st_size != shard.bytes:
        yield f"{path}: expected {shard.bytes} bytes, found {path.stat().st_size}"
    if found != shard.sha256:
        yield f"{path}: expected sha256 {shard.sha256[:12]}..., found {found[:12]}...: delete it and tokenize again"
        return  # what follows would be consequences
    statistics, keys, images = LatentStatistics(), set(), set()
    for i, (offset, latent, meta) in enumerate(_pairs(path, index.member_bytes)):
        label = f"{path}:{latent[0]}"
        if i >= len(index.offsets) or offset != index.offsets[i] or len(latent[1]) != index.member_bytes:
            yield f"{label}: expected the places and sizes of the index, found others"
            return
        mean, logvar = parse_latent(latent[1], manifest.latent_shape, STORED[manifest.store], label)
        if not bool(mean.isfinite().all() and logvar.isfinite().all()):
            yield f"{label}: expected finite numbers, found NaN or infinity"
            return
        statistics.update(mean[None])
        fields = decode_json(meta[1], f"{path}:{meta[0]}")
        key = latent[0].removesuffix(LATENT)
        stated = fields.get("key"), fields.get("label"), fields.get("image")
        if stated != (key, index.labels[i], int(key[:9])) or not index.first <= int(key[:9]) < index.last:
            yield f"{path}:{meta[0]}: expected key, label and image as the index has them, found {stated}"
        keys.add(key)
        images.add(int(key[:9]))
    if len(keys) != len(index.offsets) or len(images) != index.images:
        counts = f"{index.images} images, {len(index.offsets)} latents"
        yield f"{path}: expected {counts}, found {len(images)} and {len(keys)}"
    elif images & {skipped.image for skipped in index.skipped}:
        yield f"{path}: expected no latent of a skipped image, found one"
    stated_statistics = LatentStatistics.from_state(index.statistics) if index.statistics else LatentStatistics()
    if not _alike(stated_statistics, statistics):
        yield f"{path}: expected the statistics of its index, found others"


def _pairs(path: Path, latent_bytes: int) -> Iterator[tuple[int, tuple[str, bytes], tuple[str, bytes]]]:
    """Place of each latent, name and content of it and of its metadata. Raises TokenizedDataError, tarfile.TarError."""
    with tarfile.open(path, "r:") as tar:
        before: tuple[int, str, bytes] | None = None
        for member in tar:
            file = tar.extractfile(member) if member.isreg() else None
            suffix = LATENT if before is None else META
            name = member.name.removesuffix(suffix)
            small = member.size <= (latent_bytes if before is None else _MOST_META_BYTES) and not member.issparse()
            fits = before is None or before[1] == name + LATENT
            if file is None or member.name != name + suffix or not KEY.fullmatch(name) or not (small and fits):
                raise TokenizedDataError(f"{path}: expected KEY{LATENT} and KEY{META} in turn, found {member.name!r}")
            if before is None:
                before = member.offset, member.name, file.read()
            else:
                yield before[0], before[1:], (member.name, file.read())
                before = None
        if before is not None:
            raise TokenizedDataError(f"{path}: expected {META} after {before[1]!r}, found the end")


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
