"""What is to be done, in plain values: any process, on any machine, can do a part of it by them."""

import platform
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from ..data.hugging_face import stream_shards, write_stream_shard
from ..dtypes import Dtype
from .crops import CropProtocol
from .format import MOST_SHARDS, Container, DataInfo, MadeBy, ModelInfo, Plan, Store, plain
from .image_list import ImageList, ListedImages
from .inputs import is_remote, is_shard, is_stream_shard, local_copy, split_columns
from .labels import LabelFile
from .model import LatentEncoder
from .sources import LabelRule, ParquetShard, ShardImages, TarShard
from .writers import writer_version

SHARD_IMAGES = 1024
"""Usual number of images a shard."""


@dataclass(frozen=True)
class TokenizeJob:
    """Plain values that everything follows from.

    Attributes:
        paths: data, as ``inputs.expand`` and ``open_source`` take them.
        only: a pattern for names. labels: see ``make_list``. label_file: see ``LabelFile``.
        model, encoder: see ``LatentEncoder``. dtype: of its network.
        protocol: the crops.
        store: fp16 or bf16, of mean and log-variance. container: what shards are written as.
        shard_images: images a shard, broken ones counted; None: tar and Parquet files, if there are several or they lie
            elsewhere, make a shard each, and other images come 1024 a shard.
        batch_size: crops that are encoded together. threads: of the network on a CPU, in each process that encodes.
            Both decide the last digits, and are no matter of the machine.
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


@dataclass(frozen=True)
class ShardTask:
    """A shard to make: its number, and its images: [first, last) of the list, or those of an input shard."""

    number: int
    first: int = 0
    last: int = 0
    input: str | None = None


def label_rule(job: TokenizeJob) -> str:
    """Return the rule of the labels, or the SHA-256 of their file."""
    return job.labels if job.label_file is None else sha256(Path(job.label_file).read_bytes()).hexdigest()


class InputShards:
    """Tar and Parquet files that make a shard each. Nothing of them is read before its turn."""

    def __init__(self, job: TokenizeJob, paths: Sequence[str]) -> None:
        self._job, self.paths = job, paths

    @cached_property
    def _labels(self) -> LabelFile | None:
        return None if self._job.label_file is None else LabelFile(self._job.label_file)

    def tasks(self) -> Iterator[ShardTask]:
        for number, path in enumerate(self.paths):
            yield ShardTask(number, input=path)

    def describe(self) -> tuple[DataInfo, list[str]]:
        """Return what identifies the data, and the classes of a data set that states them; others are known later."""
        names = "\n".join(path.rsplit("/", 1)[-1] for path in self.paths)
        digest = sha256(names.encode("utf-8", "surrogateescape")).hexdigest()
        job = self._job
        streams = {path.rpartition("#")[0] if is_stream_shard(path) else "" for path in self.paths}
        classes = [stream_shards(stream)[1] if stream and job.labels != "none" else [] for stream in streams]
        same = classes[0] if all(names == classes[0] for names in classes) and job.label_file is None else []
        return DataInfo(list(job.paths), job.only, label_rule(job), None, len(self.paths), digest), same

    @contextmanager
    def open(self, task: ShardTask) -> Iterator[ShardImages]:
        """The images of a shard; a remote file is copied to this machine while they are used."""
        assert task.input is not None
        if is_stream_shard(task.input):
            stream, _, number = task.input.rpartition("#")
            with tempfile.TemporaryDirectory(prefix="ssdd-") as folder:
                local = Path(folder) / "shard.parquet"
                image, label = write_stream_shard(stream, int(number), local)
                shard = ParquetShard(local, task.input, image, label, self._job.labels, self._labels, self._keeps)
                shard.input_bytes = None  # of our own copy
                yield shard
            return
        path, columns = split_columns(task.input)
        with local_copy(path) as local:
            if path.endswith(".parquet"):
                named = columns.get("image"), columns.get("label")
                yield ParquetShard(local, path, *named, self._job.labels, self._labels, self._keeps)
            else:
                yield TarShard(local, path, self._job.labels, self._labels, self._keeps)

    def _keeps(self, name: str) -> bool:
        return self._job.only is None or fnmatchcase(name, self._job.only)


class ListedData:
    """Images of a list, some of them a shard."""

    def __init__(self, job: TokenizeJob, images: ImageList) -> None:
        self._job, self._images = job, images

    def tasks(self) -> Iterator[ShardTask]:
        for number, (first, last) in enumerate(self._images.ranges(self._job.shard_images or SHARD_IMAGES)):
            yield ShardTask(number, first, last)

    def describe(self) -> tuple[DataInfo, list[str]]:
        """Return what identifies the data, and the classes."""
        info, shards = self._images.info, sum(1 for _ in self.tasks())
        job = self._job
        found = DataInfo(list(job.paths), job.only, label_rule(job), info.images, shards, info.names_sha256)
        return found, info.classes

    @contextmanager
    def open(self, task: ShardTask) -> Iterator[ShardImages]:
        """The images of a shard."""
        yield ListedImages(self._images, task.first, task.last)


Data = InputShards | ListedData


def input_shards(job: TokenizeJob, paths: Sequence[str]) -> bool:
    """Whether each of these paths makes a shard. Raises ValueError where some do and others cannot."""
    elsewhere = [
        path
        for path in paths
        if is_remote(path) or is_stream_shard(path) or split_columns(path)[0].endswith(".parquet")
    ]
    shards = [path for path in paths if is_shard(path) and (len(paths) > 1 or path in elsewhere)]
    one_each = len(shards) == len(paths) and job.shard_images is None
    if not one_each and (found := [path for path in shards if path in elsewhere]):
        raise ValueError(
            f"{found[0]}: expected shards alone, each of which makes one, found other data or --shard-images with them"
        )
    if one_each and job.protocol.bucket_step is not None:
        raise ValueError("expected images that are listed for --buckets, found input shards: pass --shard-images")
    if len(paths) > MOST_SHARDS:
        raise ValueError(f"expected at most {MOST_SHARDS} shards, found {len(paths)}")
    return one_each


def made_by(job: TokenizeJob, device: torch.device) -> MadeBy:
    """Return what the last digits of latents depend on, in this process."""
    if device.type == "cuda":
        name, threads = torch.cuda.get_device_name(device), None
    else:
        name, threads = f"{device.type} {torch.backends.cpu.get_cpu_capability()} {platform.machine()}", job.threads
    return MadeBy(str(torch.__version__), name, job.dtype, threads, job.batch_size, writer_version(job.container))


def check_size(job: TokenizeJob, encoder: LatentEncoder) -> None:
    """Raises ValueError for crops that do not fit the encoder."""
    factor = encoder.spatial_factor
    wrong = [side for shape in job.protocol.shapes for side in shape if side % factor]
    if wrong:
        raise ValueError(f"expected a size that is a multiple of {factor}, as {job.model} needs it, found {wrong[0]}")


def make_plan(job: TokenizeJob, data: Data, encoder: LatentEncoder) -> Plan:
    """Raises ValueError for too many shards."""
    factor, size = encoder.spatial_factor, job.protocol.size
    info, classes = data.describe()
    if info.shards > MOST_SHARDS:
        raise ValueError(f"expected at most {MOST_SHARDS} shards, found {info.shards}: make them larger")
    return Plan(
        model=ModelInfo(**encoder.describe()),
        data=info,
        classes=classes,
        protocol=job.protocol.describe(),
        latent_shape=(encoder.latent_channels, size // factor, size // factor),
        store=job.store,
        container=job.container,
        shard_images=None if isinstance(data, InputShards) else job.shard_images or SHARD_IMAGES,
        made_by=made_by(job, encoder.device),
    )


class OpenJob:
    """A plan with its data and its encoder: one of it in each process that makes shards."""

    def __init__(self, job: TokenizeJob, plan: Plan, data: Data, encoder: LatentEncoder) -> None:
        self.job, self.plan, self.data, self.encoder = job, plan, data, encoder
        self.digest = plan.digest
        self.made_by = made_by(job, encoder.device)

    @property
    def on_cpu(self) -> bool:
        return self.encoder.device.type == "cpu"


@dataclass(frozen=True)
class Work:
    """What a process needs to make any shard of a set.

    paths: the input shards, or where the data of the list lie. image_list: its folder; None for input shards.
    readers: threads that read and crop ahead of the encoder.
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

    def open(self, device: torch.device | str) -> OpenJob:
        """Raises ValueError if the encoder is another one than the plan's."""
        encoder = LatentEncoder(self.job.model, device, self.job.dtype, self.job.encoder)
        if encoder.sha256 != self.plan.model.encoder_sha256:
            raise ValueError(
                f"expected the encoder of {self.job.model} that the command began with, found another in one of its "
                "processes: it changed, or is another on that machine"
            )
        return OpenJob(self.job, self.plan, self.data(), encoder)


def differences(there: Plan, here: Plan) -> list[str]:
    """``protocol.size is 256 there, 128 here`` for each value of two plans that makes them different sets."""
    return _differences(there.compared(), here.compared())


def rounding_differences(there: MadeBy, here: MadeBy) -> list[str]:
    """The same of what only the last digits depend on."""
    return _differences(plain(there), plain(here))


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
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
