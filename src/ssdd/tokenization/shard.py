"""One shard: crops of its images, encoded in fixed batches, written as a file with its index.

Threads read and crop ahead, the encoder runs in this one, and another one copies and writes. A shard's bytes are a
function of the plan and the shard's number alone: not of other shards, of what was interrupted before, nor of how many
read.

Shapes: B crops of h' x w' pixels, c latent channels, h x w latent grid.
"""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..autoencoder.statistics import LatentStatistics
from ..data.images import ImageError, ImageReadError, printable
from ..data.pixels import images_to_tensor
from .containers import Latent, ShardWriter, open_writer
from .crops import Crop
from .format import (
    STORED,
    Container,
    Label,
    Moments,
    ShardIndex,
    SkippedImage,
    TokenizedDataError,
    escaped,
    index_name,
    key_of,
    shard_name,
)
from .output import Output, one_line
from .plan import OpenWork, ShardImages, ShardTask, Work
from .quarantine import ReadingNotes, crashing, reading_notes
from .sources import FoundImage

A = TypeVar("A")
B = TypeVar("B")

Report = Callable[[int], object]
"""Callback that receives the number of images just finished."""
_AGAIN = "run the same command again"
_CAPTION = "txt"
_BATCHES_AHEAD = 2


class InputShardError(ImageError):
    """An input shard that is none: the others can be made all the same."""


class UnreadImageError(OSError):
    """An image that was listed and cannot be read now, through no fault of its own: to skip it would be for ever."""


@dataclass(frozen=True)
class CroppedImage:
    """A crop to encode.

    Attributes:
        image: Where it is from.
        number: Of the image in the shard.
        size: Height and width of the image.
        members: Other members of its sample.
        crop: The crop.
        crop_number: Its number among the crops of the image.
    """

    image: FoundImage
    number: int
    size: tuple[int, int]
    members: dict[str, bytes]
    crop: Crop
    crop_number: int


def write_shard(job: OpenWork, task: ShardTask, report: Report) -> ShardIndex:
    """Make a shard and its index; what was there of it is replaced. The index appears last, and vouches for the shard.

    Args:
        job: What is to be done.
        task: The shard.
        report: Receives the number of images after each batch.

    Raises:
        UnreadImageError: An image that is lost or unreadable since it was listed.
        InputShardError: An input shard that is none. Broken images are in the index instead.
        ImageReadError: An input shard that cannot be read now.
        ValueError: A latent that is not finite as it is to be stored.
        OSError: Nothing can be written.
    """
    output = job.output
    output.remove(index_name(task.number))  # it would vouch for the new file
    with (
        _opened(job, task) as images,
        reading_notes(output.folder, job.digest, task.number) as (notes, suspects),
        _threads(job),
        output.writing(shard_name(task.number, job.plan.container)) as file,
    ):
        crashes = crashing(partial(_read_alone, job.work, task), suspects)
        index = _Shard(job, task, images, notes, crashes).write(file, report)
    output.write(index_name(task.number), index.encode())
    return index


@contextmanager
def _opened(job: OpenWork, task: ShardTask) -> Iterator[ShardImages]:
    opening = True
    try:
        with job.data.open(task) as images:
            opening = False
            yield images
    except ImageError as error:
        if not opening or isinstance(error, ImageReadError):
            raise
        raise InputShardError(str(error)) from error


def _read_alone(work: Work, task: ShardTask, number: int) -> None:
    with work.data().open(task) as images:
        image = images.image(number)
        image.source.read(image)


@contextmanager
def _threads(job: OpenWork) -> Iterator[None]:
    """Run with the job's number of threads: on a CPU it changes the rounding."""
    before = torch.get_num_threads()
    try:
        if job.encoder.device.type == "cpu":
            torch.set_num_threads(job.job.threads)
        yield
    finally:
        torch.set_num_threads(before)


def in_order(work: Callable[[A], B], items: Iterable[A], threads: int, ahead: int) -> Iterator[B]:
    """Yield ``work`` of each item in order, at most ``ahead`` of them done beforehand; without threads none."""
    if threads == 0:
        yield from map(work, items)
        return
    futures: deque[Future[B]] = deque()
    with ThreadPoolExecutor(threads, "ssdd-read") as pool:
        try:
            for item in items:
                futures.append(pool.submit(work, item))
                if len(futures) > ahead:
                    yield futures.popleft().result()
            while futures:
                yield futures.popleft().result()
        finally:
            for future in futures:
                future.cancel()


class _Shard:
    """A shard while it is made: reads and crops its images, encodes, stores, and gathers what its index says."""

    def __init__(
        self, job: OpenWork, task: ShardTask, images: ShardImages, notes: ReadingNotes, crashes: dict[int, str]
    ) -> None:
        self._job, self._task, self._images, self._notes, self._crashes = job, task, images, notes, crashes
        self._label = job.output.label(shard_name(task.number, job.plan.container))
        self._writer: ShardWriter | None = None
        self._labels: list[Label] = []
        self._skipped: list[SkippedImage] = []
        self._statistics = LatentStatistics()

    def write(self, file: BinaryIO, report: Report) -> ShardIndex:
        """Encode all crops into an open file. Reading and storing happen in other threads meanwhile."""
        size = self._job.job.batch_size
        items = in_order(self._read, range(self._images.count), self._job.work.readers, _BATCHES_AHEAD * size)
        pending: deque[Future[None]] = deque()
        threads = partial(torch.set_num_threads, torch.get_num_threads())
        with ThreadPoolExecutor(1, "ssdd-write", initializer=threads) as pool:
            try:
                for batch, done in self._batches(items, size):
                    if batch:
                        pending.append(pool.submit(self._store, file, batch, *self._encode(batch)))
                    while len(pending) > _BATCHES_AHEAD:
                        pending.popleft().result()
                    report(done)
                while pending:
                    pending.popleft().result()
                with one_line(self._label):
                    self._opened(file).close()
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                if self._writer is not None:
                    self._writer.abandon()
                raise
        return self._index(file)

    def _read(self, number: int) -> list[CroppedImage] | SkippedImage:
        """Return the crops of an image, in any thread. Raises UnreadImageError."""
        task, image = self._task, self._images.image(number)
        label = printable(str(image))
        if number in self._crashes:
            reason = f"{label}: expected an image, found one whose decoder ends the process by {self._crashes[number]}"
            return SkippedImage(task.first + number, image.name, reason)
        try:
            with self._notes.reading(number):
                pixels = image.source.read(image)
                numbers = (task.first + number,) if task.input is None else (task.number, number)
                crops = self._job.job.protocol.cut(pixels, numbers)
                members = image.source.members(image)
        except ImageError as error:
            if image.source.is_gone(image):
                line = f"{label}: expected the image that was listed, found none: put the data back and {_AGAIN}"
                raise UnreadImageError(line) from error
            if isinstance(error, ImageReadError):
                raise UnreadImageError(f"{error}: when it can be read, {_AGAIN}") from error
            return SkippedImage(task.first + number, image.name, str(error))
        except MemoryError as error:
            line = f"{label}: expected memory for this image, found too little: free some, or pass fewer --workers, and"
            raise UnreadImageError(f"{line} {_AGAIN}") from error
        if image.caption is not None:
            members[_CAPTION] = image.caption.encode()
        size = pixels.shape[0], pixels.shape[1]
        return [CroppedImage(image, number, size, members, crop, k) for k, crop in enumerate(crops)]

    def _batches(
        self, items: Iterator[list[CroppedImage] | SkippedImage], size: int
    ) -> Iterator[tuple[list[CroppedImage], int]]:
        """Yield all crops, ``size`` at a time, and how many images more are done; broken images leave no gaps."""
        waiting: list[CroppedImage] = []
        read = reported = 0
        for item in items:
            read += 1
            if isinstance(item, SkippedImage):
                self._skipped.append(item)
                continue
            waiting += item
            while len(waiting) >= size:
                batch, waiting = waiting[:size], waiting[size:]
                done = read - len({crop.number for crop in waiting})
                yield batch, done - reported
                reported = done
        yield waiting, read - reported

    def _encode(self, batch: list[CroppedImage]) -> tuple[list[tuple[Tensor, Tensor]], torch.cuda.Event | None]:
        """Return mean and log-variance (B, c, h, w) of the stored type, of the crops and, if asked for, mirrored ones.

        On a GPU they are on their way to the CPU until the event has passed.
        """
        device, store = self._job.encoder.device, STORED[self._job.job.store]
        pixels = torch.from_numpy(np.stack([item.crop.pixels for item in batch]))
        if device.type == "cuda":
            pixels = pixels.pin_memory()
        x = images_to_tensor(pixels.to(device, non_blocking=True))
        ways = []
        for crops in [x, x.flip(-1)] if self._job.job.protocol.flips else [x]:
            mean, logvar = (t.to(store).to("cpu", non_blocking=True) for t in self._job.encoder.encode(crops))
            ways.append((mean, logvar))
        ready = None
        if device.type == "cuda":
            ready = torch.cuda.Event()
            ready.record()
        return ways, ready

    def _store(
        self,
        file: BinaryIO,
        batch: list[CroppedImage],
        ways: list[tuple[Tensor, Tensor]],
        ready: torch.cuda.Event | None,
    ) -> None:
        """Write a batch, in the thread that writes. Raises ValueError if a latent is not finite."""
        if ready is not None:
            ready.synchronize()
        for mean, logvar in ways:
            finite = (mean.isfinite() & logvar.isfinite()).flatten(1).all(1).tolist()
            if not all(finite):
                raise ValueError(
                    f"{printable(str(batch[finite.index(False)].image))}: expected a finite latent in "
                    f"{self._job.job.store}, found NaN or infinity: try --store bf16, or --dtype fp32 for the network"
                )
        with one_line(self._label):
            writer = self._opened(file, ways[0][0])
            for i, item in enumerate(batch):
                for flipped, (mean, logvar) in enumerate(ways):
                    latent = self._latent(item, bool(flipped), mean[i], logvar[i])
                    self._labels.append(latent.identity)
                    writer.add(latent)
        for mean, _ in ways:
            self._statistics.update(mean)

    def _opened(self, file: BinaryIO, mean: Tensor | None = None) -> ShardWriter:
        """Return the writer, which is opened with the shape of the first batch; without any, with the plan's."""
        if self._writer is None:
            shape = self._job.plan.latent_shape if mean is None else (mean.shape[1], mean.shape[2], mean.shape[3])
            self._writer = open_writer(self._job.plan.container, file, shape, STORED[self._job.job.store])
        return self._writer

    def _latent(self, item: CroppedImage, flipped: bool, mean: Tensor, logvar: Tensor) -> Latent:
        crop, task, classes = item.crop, self._task, self._job.plan.classes
        name, label, number = escaped(item.image.name), item.image.label, task.first + item.number
        class_name = label
        if isinstance(label, int):
            class_name = classes[label] if label < len(classes) else None
        return Latent(
            key=key_of(None if task.input is None else task.number, number, item.crop_number, flipped, name),
            mean=mean,
            logvar=logvar,
            source=name,
            image=number,
            label=label if isinstance(label, int) else None,
            class_name=None if class_name is None else escaped(str(class_name)),
            size=item.size,
            resized=crop.resized,
            crop=(crop.top, crop.left, crop.pixels.shape[0], crop.pixels.shape[1]),
            flipped=flipped,
            members=item.members,
        )

    def _index(self, file: BinaryIO) -> ShardIndex:
        writer, task, job, statistics = self._writer, self._task, self._job, self._statistics
        assert writer is not None
        file_bytes = file.seek(0, os.SEEK_END)
        file.seek(0)
        return ShardIndex(
            plan=job.digest,
            number=task.number,
            first=task.first,
            last=task.first + self._images.count,
            file_bytes=file_bytes,
            sha256=hashlib.file_digest(file, "sha256").hexdigest(),  # type: ignore[arg-type]
            member_bytes=writer.member_bytes,
            offsets=writer.offsets,
            labels=self._labels,
            skipped=self._skipped,
            left_out=dict(self._images.left_out),
            classes=[escaped(name) for name in self._images.classes],
            statistics=Moments(**statistics.state()) if statistics.count else None,
            shape=None if writer.shape == job.plan.latent_shape else writer.shape,
            info=writer.info,
            input_bytes=self._images.input_bytes,
            made_by=job.made_by,
        )


def check_input(task: ShardTask, index: ShardIndex) -> None:
    """Raise ValueError if a shard was made of another input than this one, as its size on this machine tells."""
    path = task.input
    if path is not None and os.path.isfile(path) and index.input_bytes != os.path.getsize(path):
        raise ValueError(
            f"{printable(path)}: expected {index.input_bytes} bytes, of which shard {task.number} was made, found "
            f"{os.path.getsize(path)}: tokenize other data into another --out"
        )


def finished_shard(output: Output, digest: str, container: Container, number: int) -> ShardIndex | None:
    """Return the index of a shard that is there, whole and of this plan by its index and its size; else None.

    Its bytes are not read: ``verify`` does that.
    """
    try:
        index = ShardIndex.decode(output.read(index_name(number)), output.label(index_name(number)))
    except (TokenizedDataError, OSError):
        return None
    whole = (index.plan, index.number) == (digest, number)
    return index if whole and output.size(shard_name(number, container)) == index.file_bytes else None
