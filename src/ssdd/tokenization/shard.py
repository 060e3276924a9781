"""One shard: crops of a fixed range of images, encoded in fixed batches, written as a file with its index.

A shard's bytes are a function of the job and the shard's number alone: not of other shards, of what was interrupted
before, nor of how many processes read.

Shapes: B crops of S x S pixels, c latent channels, h x w latent grid.
"""

import hashlib
import io
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from ..data.images import printable, reason_of
from ..data.pixels import images_to_tensor
from ..files import atomic_path
from ..statistics import LatentStatistics
from .containers import LatentMeta, ShardWriter, open_writer
from .crop_reader import CroppedImage, Item, UnreadImage, UnreadImageError, read_images
from .crops import Crop
from .format import (
    STORED,
    ShardIndex,
    SkippedImage,
    TokenizedDataError,
    index_name,
    key_of,
    read_bytes,
    shard_name,
)
from .plan import OpenJob, ShardTask

T = TypeVar("T")

Report = Callable[[int], object]
"""Is told how many images more are done."""


def silent(images: int) -> None:
    """Reports to nobody."""


def write_shard(
    job: OpenJob, task: ShardTask, out: Path, items: Iterator[Item] | None = None, report: Report = silent
) -> ShardIndex:
    """Makes a shard and its index in the folder ``out``; what was there of it is replaced.

    The index appears last: a shard with an index is complete.

    Args:
        items: of the shard's images in their order, from where they are read ahead; read here by default.
        report: is told the number of images after each batch.

    Raises ImageError never: broken images are in the index. Raises UnreadImageError for an image that is lost or
    unreadable since it was listed, ValueError for a latent that is not finite as it is to be stored, OSError where
    nothing can be written; each with one line. What ``items`` and ``report`` raise goes through as it is.
    """
    items = read_images(job, range(task.first, task.last)) if items is None else items
    path = out / shard_name(task.number, job.job.container)
    with _writing(path):
        (out / index_name(task.number)).unlink(missing_ok=True)  # it would vouch for the new file
    with _opened(path, atomic_path(path, overwrite=True)) as temporary, _threads(job):
        index = _write(job, task, items, path, temporary, report)
    with _writing(path), atomic_path(out / index_name(task.number), overwrite=True) as temporary:
        temporary.write_bytes(index.encode())
    return index


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """An OSError of this block is one line that names the shard."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{path}: expected to write this shard, found: {reason_of(error)}") from error


@contextmanager
def _opened(path: Path, context: AbstractContextManager[T]) -> Iterator[T]:
    """A file of a shard, whose own begin and end are ``_writing``, but not the block."""
    with _writing(path):
        value = context.__enter__()
    try:
        yield value
    except BaseException as error:
        with _writing(path):
            context.__exit__(type(error), error, error.__traceback__)
        raise
    with _writing(path):
        context.__exit__(None, None, None)


def _write(
    job: OpenJob, task: ShardTask, items: Iterator[Item], shard: Path, temporary: Path, report: Report
) -> ShardIndex:
    with _writing(shard):
        opening = temporary.open("wb")
    with _opened(shard, opening) as raw:
        file = _HashedFile(shard, raw)
        writer = open_writer(job.job.container, cast(BinaryIO, file), job.latent_shape, STORED[job.job.store])
        content = _Shard(job, writer)
        try:
            for batch in _batches(job, task, items, content.skipped, report):
                content.encode(batch)
            writer.close()
        except BaseException:
            writer.abandon()
            raise
    return ShardIndex(
        plan=job.digest,
        number=task.number,
        first=task.first,
        last=task.last,
        file_bytes=temporary.stat().st_size,
        sha256=file.digest.hexdigest(),
        member_bytes=writer.member_bytes,
        offsets=writer.offsets,
        labels=content.labels,
        skipped=content.skipped,
        statistics=content.statistics.state() if content.statistics.count else None,
    )


@contextmanager
def _threads(job: OpenJob) -> Iterator[None]:
    """As many as the job says, where they decide the rounding."""
    before = torch.get_num_threads()
    try:
        if job.on_cpu:
            torch.set_num_threads(job.job.threads)
        yield
    finally:
        torch.set_num_threads(before)


class _HashedFile(io.RawIOBase):
    """Writes through, in order, and keeps the sha256 of all of it. Raises as ``_writing`` for the shard ``path``."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.digest = hashlib.sha256()
        self._path = path
        self._file = file

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def write(self, content: Any) -> int:
        self.digest.update(content)
        with _writing(self._path):
            return self._file.write(content)


def finished_shard(job: OpenJob, task: ShardTask, out: Path) -> ShardIndex | None:
    """The index of a shard that is there, whole and of this plan by its index and its size; None if it is to be made.

    Its bytes are not read: ``verify`` does that.
    """
    path, name = out / index_name(task.number), shard_name(task.number, job.job.container)
    try:
        index = ShardIndex.decode(read_bytes(path), str(path))
        size = (out / name).stat().st_size
    except (TokenizedDataError, OSError):
        return None
    same = (index.plan, index.number, index.first, index.last) == (job.digest, task.number, task.first, task.last)
    return index if same and size == index.file_bytes else None


class _Piece(NamedTuple):
    item: CroppedImage
    number: int  # of the crop

    @property
    def crop(self) -> Crop:
        return self.item.crops[self.number]


def _batches(
    job: OpenJob, task: ShardTask, items: Iterator[Item], skipped: list[SkippedImage], report: Report
) -> Iterator[list[_Piece]]:
    """All crops of the shard, ``batch_size`` at a time; those of broken images are no gaps in the batches."""
    waiting: list[_Piece] = []
    reported = task.first
    for image in range(task.first, task.last):
        item = next(items)
        assert item.image == image, f"expected image {image}, read {item.image}"
        if isinstance(item, UnreadImage):
            raise UnreadImageError(item.line)
        if isinstance(item, SkippedImage):
            skipped.append(item)
            continue
        waiting += [_Piece(item, number) for number in range(len(item.crops))]
        while len(waiting) >= job.job.batch_size:
            batch, waiting = waiting[: job.job.batch_size], waiting[job.job.batch_size :]
            yield batch
            done = waiting[0].item.image if waiting else image + 1
            report(done - reported)
            reported = done
    if waiting:
        yield waiting
    report(task.last - reported)


class _Shard:
    """Encodes batches into a container, and gathers what the index will say of them."""

    def __init__(self, job: OpenJob, writer: ShardWriter) -> None:
        self.labels: list[int | None] = []
        self.skipped: list[SkippedImage] = []
        self.statistics = LatentStatistics()
        self._job, self._writer = job, writer

    def encode(self, batch: list[_Piece]) -> None:
        pixels = torch.from_numpy(np.stack([piece.crop.pixels for piece in batch])).to(self._job.encoder.device)
        x = images_to_tensor(pixels)
        ways = [self._stored(x, batch)]
        if self._job.job.protocol.flips:
            ways.append(self._stored(x.flip(-1), batch))
        for i, piece in enumerate(batch):
            for flipped, (mean, logvar) in enumerate(ways):
                meta = self._meta(piece, bool(flipped))
                self.labels.append(meta.label)
                self._writer.add(meta, mean[i], logvar[i])
        for mean, _ in ways:
            self.statistics.update(mean)

    def _stored(self, x: Tensor, batch: list[_Piece]) -> tuple[Tensor, Tensor]:
        """Mean and log-variance (B, c, h, w) as they are stored. Raises ValueError if one of them is not finite."""
        posterior, store = self._job.encoder.encode(x), self._job.job.store
        mean, logvar = (t.to(STORED[store]).cpu() for t in (posterior.mean, posterior.logvar))
        finite = (mean.isfinite() & logvar.isfinite()).flatten(1).all(1).tolist()
        if not all(finite):
            name = printable(self._job.source.full_name(batch[finite.index(False)].item.image))
            raise ValueError(
                f"{name}: expected a finite latent in {store}, found NaN or infinity: try --store bf16, or "
                "--dtype fp32 for the network"
            )
        return mean, logvar

    def _meta(self, piece: _Piece, flipped: bool) -> LatentMeta:
        item, crop, source = piece.item, piece.crop, self._job.source
        name, label = source.name(item.image), source.label(item.image)
        return LatentMeta(
            key=key_of(item.image, piece.number, flipped, name),
            source=name,
            image=item.image,
            label=label,
            class_name=None if label is None else source.classes[label],
            size=(item.height, item.width),
            resized=crop.resized,
            crop=(crop.top, crop.left, crop.pixels.shape[0], crop.pixels.shape[1]),
            flipped=flipped,
        )
