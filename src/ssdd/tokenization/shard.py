"""One shard: crops of a fixed range of images, encoded in fixed batches, written as a tar file with its index.

A shard's bytes are a function of the job and the shard's number alone: not of other shards, of what was interrupted
before, nor of how many processes read.

Shapes: B crops of S x S pixels, c latent channels, h x w latent grid.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..data.images import ImageError, printable
from ..data.loader import start_worker
from ..data.pixels import images_to_tensor
from ..files import atomic_path
from ..statistics import LatentStatistics
from .crops import Crop, CropProtocol
from .format import (
    LATENT,
    META,
    STORED,
    ShardIndex,
    SkippedImage,
    TokenizedDataError,
    index_name,
    key_of,
    latent_bytes,
    read_bytes,
    shard_name,
)
from .plan import OpenJob, ShardTask
from .source import LabelledSource


class CroppedImage(NamedTuple):
    """An image's number, the sides of the photograph, and its crops."""

    image: int
    height: int
    width: int
    crops: tuple[Crop, ...]


Item = CroppedImage | SkippedImage


class CropReader(Dataset[Item]):
    """Maps an image's number to its crops, or to why there are none."""

    def __init__(self, source: LabelledSource, protocol: CropProtocol) -> None:
        self.source, self.protocol = source, protocol

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, image: int) -> Item:
        name = self.source.name(image)
        try:
            pixels = self.source.read(image)
            crops = self.protocol.cut(pixels, image, self.source.full_name(image))
        except ImageError as error:
            return SkippedImage(image, name, str(error))
        except MemoryError:
            return SkippedImage(image, name, f"{printable(name)}: expected an image that fits memory, found a larger")
        return CroppedImage(image, pixels.shape[0], pixels.shape[1], crops)


def read_images(job: OpenJob, images: Iterable[int], workers: int = 0) -> Iterator[Item]:
    """The items of these images in their order, read and cropped ahead by ``workers`` processes (0: by this one)."""
    options: dict[str, Any] = {"batch_size": None, "collate_fn": _unchanged, "worker_init_fn": start_worker}
    reader = CropReader(job.source, job.job.protocol)
    yield from DataLoader(reader, sampler=list(images), num_workers=workers, **options)


def _unchanged(item: Any) -> Any:
    return item


def write_shard(job: OpenJob, task: ShardTask, out: Path, items: Iterator[Item] | None = None) -> ShardIndex:
    """Makes a shard and its index in the folder ``out``; what was there of it is replaced.

    The index appears last: a shard with an index is complete.

    Args:
        items: of the shard's images in their order, from where they are read ahead; read here by default.

    Raises ImageError never: broken images are in the index. Raises ValueError for a latent that is not finite as it
    is to be stored, OSError where nothing can be written.
    """
    items = read_images(job, range(task.first, task.last)) if items is None else items
    path = out / shard_name(task.number)
    (out / index_name(task.number)).unlink(missing_ok=True)  # it would vouch for the new tar file
    with atomic_path(path, overwrite=True) as temporary:
        with temporary.open("wb") as file:
            writer = _Writer(job, file)
            _encode(job, task, items, writer)
            writer.tar.close()
        with temporary.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        size = temporary.stat().st_size
    index = ShardIndex(
        plan=job.digest,
        number=task.number,
        first=task.first,
        last=task.last,
        tar_bytes=size,
        sha256=sha256,
        member_bytes=writer.member_bytes,
        offsets=writer.offsets,
        labels=writer.labels,
        skipped=writer.skipped,
        statistics=writer.statistics.state() if writer.statistics.count else None,
    )
    with atomic_path(out / index_name(task.number), overwrite=True) as temporary:
        temporary.write_bytes(index.encode())
    return index


def finished_shard(out: Path, task: ShardTask, digest: str) -> ShardIndex | None:
    """The index of a shard that is there, whole and of this plan by its index and its size; None if it is to be made.

    Its bytes are not read: ``verify`` does that.
    """
    path = out / index_name(task.number)
    try:
        index = ShardIndex.decode(read_bytes(path), str(path))
        size = (out / shard_name(task.number)).stat().st_size
    except (TokenizedDataError, OSError):
        return None
    same = (index.plan, index.number, index.first, index.last) == (digest, task.number, task.first, task.last)
    return index if same and size == index.tar_bytes else None


class _Piece(NamedTuple):
    item: CroppedImage
    number: int  # of the crop

    @property
    def crop(self) -> Crop:
        return self.item.crops[self.number]


def _encode(job: OpenJob, task: ShardTask, items: Iterator[Item], writer: "_Writer") -> None:
    """All crops of the shard, ``batch_size`` at a time; those of broken images are no gaps in the batches."""
    waiting: list[_Piece] = []
    for image in range(task.first, task.last):
        item = next(items)
        assert item.image == image, f"expected image {image}, read {item.image}"
        if isinstance(item, SkippedImage):
            writer.skipped.append(item)
            continue
        waiting += [_Piece(item, number) for number in range(len(item.crops))]
        while len(waiting) >= job.job.batch_size:
            batch, waiting = waiting[: job.job.batch_size], waiting[job.job.batch_size :]
            _encode_batch(job, batch, writer)
    if waiting:
        _encode_batch(job, waiting, writer)


def _encode_batch(job: OpenJob, batch: list[_Piece], writer: "_Writer") -> None:
    pixels = torch.from_numpy(np.stack([piece.crop.pixels for piece in batch])).to(job.encoder.device)
    x = images_to_tensor(pixels)
    ways = [_stored(job, x, batch)]
    if job.job.protocol.flips:
        ways.append(_stored(job, x.flip(-1), batch))
    for i, piece in enumerate(batch):
        for flipped, (mean, logvar) in enumerate(ways):
            writer.add(piece, bool(flipped), mean[i], logvar[i])
    for mean, _ in ways:
        writer.statistics.update(mean)


def _stored(job: OpenJob, x: Tensor, batch: list[_Piece]) -> tuple[Tensor, Tensor]:
    """Mean and log-variance (B, c, h, w) as they are stored. Raises ValueError if one of them is not finite then."""
    posterior = job.encoder.encode(x)
    mean, logvar = (t.to(STORED[job.job.store]).cpu() for t in (posterior.mean, posterior.logvar))
    finite = (mean.isfinite() & logvar.isfinite()).flatten(1).all(1).tolist()
    if not all(finite):
        name = printable(job.source.full_name(batch[finite.index(False)].item.image))
        raise ValueError(
            f"{name}: expected a finite latent in {job.job.store}, found NaN or infinity: try --store bf16, or "
            "--dtype fp32 for the network"
        )
    return mean, logvar


class _Writer:
    """Members of a shard, in order, and what its index will say of them."""

    def __init__(self, job: OpenJob, file: io.BufferedWriter) -> None:
        self.tar = tarfile.TarFile(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT)
        self.offsets: list[int] = []
        self.labels: list[int | None] = []
        self.skipped: list[SkippedImage] = []
        self.member_bytes = 0
        self.statistics = LatentStatistics()
        self._source, self._classes = job.source, job.source.classes

    def add(self, piece: _Piece, flipped: bool, mean: Tensor, logvar: Tensor) -> None:
        """Mean and log-variance (c, h, w) of a crop, and a JSON member that says what it is."""
        item, crop = piece.item, piece.crop
        name, label = self._source.name(item.image), self._source.label(item.image)
        key = key_of(item.image, piece.number, flipped, name)
        content = latent_bytes(mean, logvar)
        self.member_bytes = len(content)  # the same for all: one shape, one type
        self.offsets.append(self.tar.offset)
        self.labels.append(label)
        self._write(key + LATENT, content)
        meta = {
            "key": key,
            "source": name,
            "image": item.image,
            "label": label,
            "class": None if label is None else self._classes[label],
            "size": [item.height, item.width],
            "resized": list(crop.resized),
            "crop": [crop.top, crop.left, *crop.pixels.shape[:2]],
            "flipped": flipped,
        }
        self._write(key + META, json.dumps(meta, separators=(",", ":")).encode())

    def _write(self, name: str, content: bytes) -> None:
        info = tarfile.TarInfo(name)  # time, owner and group are 0, and so the same everywhere
        info.size, info.mode = len(content), 0o644
        assert len(info.name) <= 100, "the index counts on headers of one block"
        self.tar.addfile(info, io.BytesIO(content))
