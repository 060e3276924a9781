"""The manifest: what a finished set is, by the plan and the indices of its shards. It is written last."""

import hashlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from ..autoencoder.statistics import LatentStatistics
from .format import (
    MANIFEST,
    MOST_SKIPPED,
    Label,
    Manifest,
    Plan,
    SetStatistics,
    ShardEntry,
    ShardIndex,
    SkippedImage,
    TokenizedDataError,
    decode,
    index_name,
    read_json,
    shard_name,
)
from .labels import class_order


def make_manifest(plan: Plan, shards: Iterable[ShardIndex]) -> Manifest:
    """Return what all shards of a plan, in order, come to; one of them at a time is in memory.

    Raises ValueError if no image is in them.
    """
    statistics, entries = LatentStatistics(), list[ShardEntry]()
    labels, stated = set[Label](), set[tuple[str, ...]]()
    skipped: list[SkippedImage] = []
    skipped_images, unlabelled, left_out = 0, 0, Counter[str]()
    for shard in shards:
        merge(statistics, shard)
        skipped += shard.skipped[: MOST_SKIPPED - len(skipped)]
        skipped_images += len(shard.skipped)
        left_out.update(shard.left_out)
        unlabelled += shard.labels.count(None)
        labels.update(shard.labels)
        stated.add(tuple(shard.classes))
        entries.append(
            ShardEntry(
                name=shard_name(shard.number, plan.container),
                images=shard.images,
                latents=shard.latents,
                bytes=shard.file_bytes,
                sha256=shard.sha256,
                index_sha256=hashlib.sha256(shard.encode()).hexdigest(),
            )
        )
    if not statistics.count:
        nothing = "the data are empty" if plan.data.only is None else f"no name fits {plan.data.only!r} (--only)"
        reason = skipped[0].reason if skipped else nothing
        raise ValueError(f"expected usable images, found none: {skipped_images} skipped; {reason}")
    fields = {name: getattr(plan, name) for name in Plan.__struct_fields__}
    if plan.shard_images is None:
        classes = class_order(labels)
        if len(orders := stated - {()}) == 1 and set(classes) <= set(*orders):  # numbers of the data set's own
            classes = list(*orders)
        fields["classes"] = classes if len(labels - {None}) > (plan.data.labels == "auto") else []
        if plan.data.labels == "folder" and not classes:
            raise ValueError("expected images whose folder or .cls names their class (--labels folder), found none")
    return Manifest(
        **fields,
        images=sum(entry.images for entry in entries),
        latents=sum(entry.latents for entry in entries),
        skipped=skipped,
        skipped_images=skipped_images,
        left_out=dict(left_out),
        unlabelled=unlabelled,
        statistics=SetStatistics.of(statistics),
        shards=entries,
    )


def merge(statistics: LatentStatistics, shard: ShardIndex) -> None:
    """Add those of a shard. Raises ValueError for damaged ones or another number of channels."""
    if shard.statistics is not None:
        statistics.merge(shard.statistics.statistics())


def plan_digest(manifest: Manifest) -> str:
    """Return the digest of the plan that a manifest was made of."""
    return Plan(**{name: getattr(manifest, name) for name in Plan.__struct_fields__}).digest


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a finished set. Raises FileNotFoundError or TokenizedDataError with one line."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: expected a folder of ssdd tokenize, found none")
    path = folder / MANIFEST
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: expected a manifest, found none: no folder of ssdd tokenize, or not finished: run it again"
        )
    manifest = decode(read_json(path), Manifest, str(path))
    names = [shard_name(number, manifest.container) for number in range(len(manifest.shards))]
    latents = sum(shard.latents for shard in manifest.shards)
    if [shard.name for shard in manifest.shards] != names or latents != manifest.latents:
        raise TokenizedDataError(f"{path}: expected shards in order with {manifest.latents} latents, found others")
    channels = manifest.latent_shape[0]
    if {len(manifest.statistics.latents_mean), len(manifest.statistics.latents_std)} != {channels}:
        raise TokenizedDataError(f"{path}: expected statistics of {channels} channels, found others")
    return manifest


def read_index(folder: Path, number: int, manifest: Manifest, digest: str) -> ShardIndex:
    """Return the index of a shard of the plan with this digest.

    Raises:
        FileNotFoundError, TokenizedDataError: there is none, or it is not the one that the manifest states.
    """
    path, entry = folder / index_name(number), manifest.shards[number]
    content = read_json(path)
    index = ShardIndex.decode(content, str(path))
    if index.plan != digest:
        raise TokenizedDataError(f"{path}: expected a shard of this set, found one of another model, data or settings")
    if hashlib.sha256(content).hexdigest() != entry.index_sha256:
        raise TokenizedDataError(f"{path}: expected the bytes that {MANIFEST} has the sha256 of, found others")
    stated = (number, entry.images, entry.latents, entry.bytes, entry.sha256)
    if stated != (index.number, index.images, index.latents, index.file_bytes, index.sha256):
        raise TokenizedDataError(f"{path}: expected the counts and sizes of {MANIFEST}, found others")
    return index
