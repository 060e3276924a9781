"""What is to be done, in plain values: any process, on any machine, can do a part of it by them."""

import platform
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from ..data.hugging_face import write_stream_shard
from ..data.remote import is_remote, local_copy
from ..runtime.dtypes import Dtype
from .containers import writer_version
from .crops import CropProtocol
from .format import MOST_SHARDS, Container, DataInfo, MadeBy, Plan, Store
from .image_list import ImageList
from .inputs import is_parquet, is_shard, is_stream_shard, split_columns
from .labels import LabelFile, LabelRule
from .model import LatentEncoder
from .output import Output, open_output
from .sources import FoundImage, Parquet, Selection, Source, Tar

SHARD_IMAGES = 1024
"""Usual number of images a shard."""


@dataclass(frozen=True)
class TokenizeJob:
    """Plain values that everything follows from.

    Attributes:
        paths: Data, as ``inputs.expand`` and ``open_source`` take them.
        model: See ``LatentEncoder``.
        protocol: The crops.
        only: A pattern for names.
        labels: See ``make_list``.
        label_file: See ``LabelFile``.
        store: Type of the stored mean and log-variance: fp16 or bf16.
        container: What shards are written as.
        dtype: Of the encoder.
        shard_images: Images a shard, broken ones counted; None: tar and Parquet files, if there are several or they lie
            elsewhere, make a shard each, and other images come 1024 a shard.
        batch_size: Crops that are encoded together.
        threads: Threads of the network on a CPU, in each process that encodes. Like the batch size they decide the last
            digits, and are no matter of the machine.
        encoder: See ``LatentEncoder``.
    """

    paths: tuple[str, ...]
    model: str
    protocol: CropProtocol = field(default_factory=CropProtocol)
    only: str | None = None
    labels: LabelRule = "auto"
    label_file: str | None = None
    store: Store = "fp16"
    container: Container = "tar"
    dtype: Dtype = "fp32"
    shard_images: int | None = None
    batch_size: int = 16
    threads: int = 1
    encoder: str | None = None

    def __post_init__(self) -> None:
        if not (1 <= (self.shard_images or 1) <= 10**6 and 1 <= self.batch_size <= 10**4):
            raise ValueError(
                "expected 1 to 1000000 images a shard and a batch of 1 to 10000 crops, found "
                f"{self.shard_images} and {self.batch_size}"
            )
        if not 1 <= self.threads <= 1024:
            raise ValueError(f"expected 1 to 1024 threads, found {self.threads}")
        if self.container == "mds" and (self.store != "fp16" or self.protocol.bucket_step is not None):
            raise ValueError("expected crops of one shape stored in fp16 with the format mds, found others")
        if self.container == "lightningdit" and (not self.protocol.flips or self.protocol.bucket_step is not None):
            raise ValueError(
                "expected crops of one shape and --flips with the format lightningdit, which has both of each"
            )

    def selection(self) -> Selection:
        """Raise ImageError for a file of labels that cannot be read."""
        return Selection(self.only, self.labels, None if self.label_file is None else LabelFile(self.label_file))

    def describe_data(self, images: int | None, shards: int, names_sha256: str) -> DataInfo:
        """Return what identifies the data: of a file of labels its SHA-256."""
        file = self.label_file
        labels = self.labels if file is None else sha256(Path(file).read_bytes()).hexdigest()
        return DataInfo(list(self.paths), self.only, labels, images, shards, names_sha256)


@dataclass(frozen=True)
class ShardTask:
    """A shard to make: its number, and its images: [first, last) of the list, or those of an input shard."""

    number: int
    first: int = 0
    last: int = 0
    input: str | None = None


@dataclass(frozen=True)
class ShardImages:
    """The images of a shard, by their numbers from 0; several threads may read them.

    Attributes:
        count: Their number.
        image: Returns one of them.
        left_out: Other files of an input shard, by their kind.
        input_bytes: Size of an input shard; None for images of a list.
        classes: Names of the classes by number, where an input shard states them and no file takes their place.
    """

    count: int
    image: Callable[[int], FoundImage]
    left_out: Counter[str] = field(default_factory=Counter)
    input_bytes: int | None = None
    classes: Sequence[str] = ()


class InputShards:
    """Tar and Parquet files, or shards of a stream, that make a shard each. Nothing is read before its turn."""

    def __init__(self, job: TokenizeJob, paths: Sequence[str]) -> None:
        self._job, self._paths = job, paths

    @cached_property
    def _selection(self) -> Selection:
        return self._job.selection()

    def tasks(self) -> Iterator[ShardTask]:
        return (ShardTask(number, input=path) for number, path in enumerate(self._paths))

    def describe(self) -> tuple[DataInfo, list[str]]:
        """Return what identifies the data; their classes are known when all shards are."""
        names = "\n".join(_name(path) for path in self._paths)
        digest = sha256(names.encode("utf-8", "surrogateescape")).hexdigest()
        return self._job.describe_data(None, len(self._paths), digest), []

    @contextmanager
    def open(self, task: ShardTask) -> Iterator[ShardImages]:
        """Yield the images of a shard; what lies elsewhere is copied to this machine while they are used."""
        assert task.input is not None
        path, columns = split_columns(task.input)
        if is_stream_shard(path):
            stream, _, number = path.rpartition("#")
            with tempfile.TemporaryDirectory(prefix="ssdd-") as folder:
                copy = Path(folder) / "shard.parquet"
                image, label = write_stream_shard(stream, int(number), copy)
                yield self._images(Parquet(str(copy), path, image, label, self._job.labels != "none"), None)
            return
        with local_copy(path) as local:
            source: Source = Tar(str(local), path)
            if is_parquet(path):
                named = columns.get("image"), columns.get("label")
                source = Parquet(str(local), path, *named, self._job.labels != "none")
            yield self._images(source, local.stat().st_size)

    def _images(self, source: Source, input_bytes: int | None) -> ShardImages:
        left_out, selection = Counter[str](), self._selection
        images = [selection.annotated(image) for image in source.images(left_out) if selection.takes(image.name)]
        classes = () if selection.labels is not None and selection.labels.has_labels else source.classes
        return ShardImages(len(images), images.__getitem__, left_out, input_bytes, classes)


def _name(path: str) -> str:
    """Return the last part of a path, without a query that does not choose data: that of a signed address changes."""
    chooses = is_stream_shard(path) or split_columns(path)[1]
    return (path if chooses else path.split("?")[0]).rsplit("/", 1)[-1]


class ListedData:
    """Images of a list, some of them a shard."""

    def __init__(self, job: TokenizeJob, images: ImageList) -> None:
        self._job, self._list = job, images

    def tasks(self) -> Iterator[ShardTask]:
        for number, (first, last) in enumerate(self._list.ranges(self._job.shard_images or SHARD_IMAGES)):
            yield ShardTask(number, first, last)

    def describe(self) -> tuple[DataInfo, list[str]]:
        """Return what identifies the data, and the classes."""
        info, shards = self._list.info, sum(1 for _ in self.tasks())
        return self._job.describe_data(info.images, shards, info.names_sha256), info.classes

    @contextmanager
    def open(self, task: ShardTask) -> Iterator[ShardImages]:
        """Yield the images of a shard."""
        yield ShardImages(task.last - task.first, lambda i: self._list.image(task.first + i))


Data = InputShards | ListedData


def input_shards(job: TokenizeJob, paths: Sequence[str]) -> bool:
    """Whether each of these paths makes a shard. Raises ValueError where some do and others cannot."""
    shards = [path for path in paths if is_shard(path)]
    never_listed = [p for p in shards if is_remote(p) or is_stream_shard(p) or is_parquet(p)]
    one_each = len(shards) == len(paths) and job.shard_images is None and (len(paths) > 1 or bool(never_listed))
    if not one_each and never_listed:
        raise ValueError(
            f"{never_listed[0]}: expected shards alone, each of which makes one, found other data or --shard-images "
            "with them"
        )
    if one_each and job.protocol.bucket_step is not None:
        raise ValueError("expected images that are listed for --buckets, found input shards: pass --shard-images")
    return one_each


def made_by(job: TokenizeJob, device: torch.device) -> MadeBy:
    """Return what the last digits of latents depend on, in this process."""
    if device.type == "cuda":
        name, threads = torch.cuda.get_device_name(device), None
    else:
        name, threads = f"{device.type} {torch.backends.cpu.get_cpu_capability()} {platform.machine()}", job.threads
    return MadeBy(str(torch.__version__), name, job.dtype, threads, job.batch_size, writer_version(job.container))


def check_size(job: TokenizeJob, encoder: LatentEncoder) -> None:
    """Raise ValueError for crops that do not fit the encoder."""
    factor = encoder.spatial_factor
    wrong = [side for shape in job.protocol.shapes for side in shape if side % factor]
    if wrong:
        raise ValueError(f"expected a size that is a multiple of {factor}, as {job.model} needs it, found {wrong[0]}")


def make_plan(job: TokenizeJob, data: Data, encoder: LatentEncoder) -> Plan:
    """Raise ValueError for too many shards."""
    factor, size = encoder.spatial_factor, job.protocol.size
    info, classes = data.describe()
    if info.shards > MOST_SHARDS:
        raise ValueError(f"expected at most {MOST_SHARDS} shards, found {info.shards}: make them larger")
    return Plan(
        model=encoder.identity,
        data=info,
        classes=classes,
        protocol=job.protocol.describe(),
        latent_shape=(encoder.latent_channels, size // factor, size // factor),
        store=job.store,
        container=job.container,
        shard_images=None if isinstance(data, InputShards) else job.shard_images or SHARD_IMAGES,
        made_by=made_by(job, encoder.device),
    )


@dataclass(frozen=True)
class Work:
    """What a process needs to make any shard of a set.

    Attributes:
        job: What was asked for.
        plan: That of the output.
        out: Where the output lies.
        paths: The input shards, or where the data of the list lie.
        image_list: Folder of the list; None for input shards.
        readers: Threads that read and crop ahead of the encoder.
    """

    job: TokenizeJob
    plan: Plan
    out: str
    paths: tuple[str, ...]
    image_list: str | None
    readers: int

    def data(self) -> Data:
        if self.image_list is None:
            return InputShards(self.job, self.paths)
        images = ImageList(Path(self.image_list), self.paths)
        if images.info.names_sha256 != self.plan.data.names_sha256:
            raise ValueError(f"{self.image_list}: expected the list of the plan, found another: run the command again")
        return ListedData(self.job, images)

    def open(self, device: torch.device | str) -> "OpenWork":
        """Raise ValueError if the encoder is another one than the plan's."""
        encoder = LatentEncoder(self.job.model, device, self.job.dtype, self.job.encoder)
        if encoder.identity.encoder_sha256 != self.plan.model.encoder_sha256:
            raise ValueError(
                f"expected the encoder of {self.job.model} that the command began with, found another in one of its "
                "processes: it changed, or is another on that machine"
            )
        return OpenWork(self, encoder)


class OpenWork:
    """Work with its data, its output and its encoder: one of it in each process that makes shards."""

    def __init__(self, work: Work, encoder: LatentEncoder) -> None:
        self.work, self.job, self.plan, self.encoder = work, work.job, work.plan, encoder
        self.data: Data = work.data()
        self.output: Output = open_output(work.out)
        self.digest = work.plan.digest
        self.made_by = made_by(work.job, encoder.device)


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Return ``protocol.size is 256 there, 128 here`` for each value that differs between two plans, or parts."""
    left, right = dict(_leaves(there)), dict(_leaves(here))
    return [
        f"{name} is {_short(left.get(name))} there, {_short(right.get(name))} here"
        for name in {**left, **right}
        if left.get(name) != right.get(name)
    ]


def _leaves(plan: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in plan.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _short(value: Any) -> str:
    words = str(value)
    return words if len(words) <= 40 else f"{words[:24]}..."
