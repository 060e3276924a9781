"""What is written down about tokenized data: a plan, an index beside each shard, and a manifest, each a JSON file.

Nothing that is read is trusted: ``msgspec`` checks every field. Shapes: c latent channels, h x w latent grid.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import torch
from msgspec import Meta, Struct

from ..autoencoder.statistics import LatentStatistics
from ..checkpoints.identity import LatentIdentity
from ..runtime.text import one_safe_line

FORMAT: Literal["ssdd-latents-2"] = "ssdd-latents-2"
PLAN, MANIFEST = "plan.json", "manifest.json"
STORED = {"fp16": torch.float16, "bf16": torch.bfloat16}
"""Types that mean and log-variance are stored in."""

Container = Literal["tar", "parquet", "lightningdit", "mds"]
Store = Literal["fp16", "bf16"]
SUFFIXES: dict[Container, str] = {"tar": "tar", "parquet": "parquet", "lightningdit": "safetensors", "mds": "mds"}
"""File name extension of a shard."""
Label = int | str | None
"""A class by its number, or by its name where the numbers are not known until the whole set is."""

SHARD = re.compile(rf"shard-[0-9]{{6}}\.({'|'.join(SUFFIXES.values())})")
KEY = re.compile(r"(?P<shard>[0-9]{6})?(?P<image>[0-9]{9})-c[0-9]{1,4}f?-[A-Za-z0-9_]{1,48}")
"""[Number of the input shard,] number of the image, of its crop, f if mirrored, what is left of its name: no dots,
which end a webdataset key."""
MOST_SHARDS = 10**6

Count = Annotated[int, Meta(ge=0, le=1 << 50)]
Positive = Annotated[int, Meta(ge=1, le=1 << 50)]
Side = Annotated[int, Meta(ge=1, le=1 << 16)]
Shape = tuple[Side, Side, Side]
"""(c, h, w)."""
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
T = TypeVar("T")


class TokenizedDataError(ValueError):
    """Tokenized data that cannot be used; one line with the file, what was expected and what was found."""


# ---- the plan ------------------------------------------------------------------------------------------------------


class DataInfo(Struct, frozen=True):
    """What is tokenized.

    Attributes:
        paths: As they were given.
        only: The pattern for names.
        labels: The rule, or the SHA-256 of a file of labels.
        images: Number of images; None where input shards make a shard each.
        shards: Number of shards.
        names_sha256: Digest of the names of images or input shards, in order.
    """

    paths: list[str]
    only: str | None
    labels: str
    images: Count | None
    shards: Annotated[int, Meta(ge=1, le=MOST_SHARDS)]
    names_sha256: Sha256


class MadeBy(Struct, frozen=True):
    """What the last digits of latents depend on; ``writer``: the package that decides the bytes of a container."""

    torch: str
    device: str
    dtype: str
    threads: int | None
    batch_size: int
    writer: str | None = None


class Plan(Struct, frozen=True, kw_only=True):
    """Everything that decides a set.

    Attributes:
        classes: Names by label, where they are known beforehand.
        shard_images: Images a shard; None where each input shard makes one.
    """

    format: Literal["ssdd-latents-2"] = FORMAT
    model: LatentIdentity
    data: DataInfo
    classes: list[str]
    protocol: dict[str, Any]
    latent_shape: Shape
    store: Store
    container: Container
    shard_images: int | None
    made_by: MadeBy

    @property
    def digest(self) -> str:
        """SHA-256 of what makes two plans the same: not where data and model lie, nor what only rounding depends on."""
        return hashlib.sha256(json.dumps(self.compared(), sort_keys=True).encode()).hexdigest()

    def compared(self) -> dict[str, Any]:
        """Return the fields that two plans of the same set share."""
        fields = {name: value for name, value in plain(self).items() if name in Plan.__struct_fields__}
        if self.shard_images is None:
            fields["classes"] = []  # input shards state their classes by name, which are numbered at the end
        del fields["made_by"], fields["data"]["paths"]
        for name in ("name", "encoder", "scaling_factor", "shift_factor"):  # they change no latent
            del fields["model"][name]
        return fields


# ---- the index of a shard ------------------------------------------------------------------------------------------


class SkippedImage(Struct, frozen=True):
    """An image that has no latent: its number in the set or the input shard, its name, and the reason in one line."""

    image: Count
    name: str
    reason: str


class Moments(Struct, frozen=True):
    """``LatentStatistics.state`` of the stored means."""

    count: Positive
    mean: list[float]
    squares: list[float]
    minimum: list[float]
    maximum: list[float]

    def statistics(self) -> LatentStatistics:
        """Raise ValueError where they cannot be."""
        return LatentStatistics.from_state(plain(self))


class ShardIndex(Struct, frozen=True, kw_only=True):
    """What is in a shard, and where.

    Attributes:
        plan: Digest of the plan.
        number: Number of the shard.
        first, last: Its images are [first, last).
        file_bytes, sha256: Size and digest of the shard's file.
        member_bytes: Bytes of each latent in a tar file; 0 for other containers.
        offsets: Where each latent is in a tar file; none for other containers.
        labels: Class of each latent.
        skipped: Images without latents.
        left_out: Other files of an input shard, by their kind.
        classes: Names of the classes by number, of an input shard that states them.
        statistics: Those of the stored means; None for a shard without latents.
        shape: Shape of the latents; None for the plan's.
        info: What the container's own index says of the shard; None where there is none.
        input_bytes: Size of the input shard; None where images were listed.
        made_by: What its last digits depend on; None in the first format.
    """

    format: Literal["ssdd-latents-2"] = FORMAT
    plan: Sha256
    number: Annotated[int, Meta(ge=0, le=MOST_SHARDS)]
    first: Count
    last: Count
    file_bytes: Count
    sha256: Sha256
    member_bytes: Count
    offsets: list[Count]
    labels: list[Label]
    skipped: list[SkippedImage]
    left_out: dict[str, Count] = {}
    classes: list[str] = []
    statistics: Moments | None
    shape: Shape | None = None
    info: dict[str, Any] | None = None
    input_bytes: Count | None = None
    made_by: MadeBy | None = None

    @property
    def images(self) -> int:
        """Number of images that have latents."""
        return self.last - self.first - len(self.skipped)

    @property
    def latents(self) -> int:
        return len(self.labels)

    def encode(self) -> bytes:
        """Return the JSON file: a line a field, since thousands of offsets would have a line each."""
        lines = ",\n".join(f" {json.dumps(k)}: {json.dumps(v)}" for k, v in plain(self).items())
        return f"{{\n{lines}\n}}\n".encode()

    @classmethod
    def decode(cls, content: bytes, label: str) -> "ShardIndex":
        """Raise TokenizedDataError where the fields are no index or contradict one another."""
        index = decode(content, cls, label)
        if len(index.offsets) not in (0, index.latents) or bool(index.latents) != bool(index.statistics):
            raise TokenizedDataError(f"{label}: expected as many labels as latents, and their statistics")
        return index


# ---- the manifest --------------------------------------------------------------------------------------------------


class SetStatistics(Struct, frozen=True):
    """Statistics of the stored means of all latents: entries of a model's config, and per channel."""

    scaling_factor: float
    shift_factor: float
    latents_mean: list[float]
    latents_std: list[float]
    positions: Count
    mean: list[float]
    std: list[float]
    minimum: list[float]
    maximum: list[float]
    global_mean: float
    global_std: float

    @classmethod
    def of(cls, statistics: LatentStatistics) -> "SetStatistics":
        config: dict[str, Any] = {k: list(v) if isinstance(v, tuple) else v for k, v in statistics.config().items()}
        return cls(
            **config,
            positions=statistics.count,
            mean=statistics.mean.tolist(),
            std=statistics.std.tolist(),
            minimum=statistics.minimum.tolist(),
            maximum=statistics.maximum.tolist(),
            global_mean=statistics.global_mean,
            global_std=statistics.global_std,
        )


class ShardEntry(Struct, frozen=True):
    """A shard in the manifest: its counts, and sizes and sha256 of it and of its index."""

    name: str
    images: Count
    latents: Count
    bytes: Count
    sha256: Sha256
    index_sha256: Sha256


class Manifest(Plan, frozen=True, kw_only=True):
    """A finished set: its plan, with all classes, and what its shards come to.

    Attributes:
        skipped: The first ``MOST_SKIPPED`` images without latents; all are in the indices.
        skipped_images: Number of all images without latents.
        left_out: Other files of input shards, by their kind.
        unlabelled: Number of latents without a class.
    """

    images: Positive
    latents: Positive
    skipped: list[SkippedImage]
    skipped_images: Count
    left_out: dict[str, Count]
    statistics: SetStatistics
    shards: list[ShardEntry]
    unlabelled: Count = 0


MOST_SKIPPED = 1000


# ---- files ---------------------------------------------------------------------------------------------------------


def shard_name(number: int, container: Container) -> str:
    return f"shard-{number:06d}.{SUFFIXES[container]}"


def index_name(number: int) -> str:
    """Return the name of the JSON file beside a shard."""
    return f"shard-{number:06d}.json"


def key_of(shard: int | None, image: int, crop: int, flipped: bool, name: str) -> str:
    """Return the key of a latent: unique by its numbers; the image's own name, made harmless, only helps people.

    Args:
        shard: Number of the input shard, where images are counted in each of them.
        image: Number of the image.
        crop: Number of its crop.
        flipped: Whether it is mirrored.
        name: Name of the image.
    """
    stem = Path(name.rsplit(":", 1)[-1]).stem
    safe = re.sub(r"[^A-Za-z0-9_]+", "_", stem)[:48].strip("_") or "image"
    prefix = "" if shard is None else f"{shard:06d}"
    return f"{prefix}{image:09d}-c{crop}{'f' if flipped else ''}-{safe}"


def encode_json(content: Struct) -> bytes:
    """Return the bytes of a JSON file: the same content, the same bytes."""
    return (json.dumps(plain(content), indent=1) + "\n").encode()


def decode(content: bytes, kind: type[T], label: str) -> T:
    """Raise TokenizedDataError for anything but JSON of this kind."""
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise TokenizedDataError(
            f"{label}: expected {kind.__name__} as JSON, found: {one_safe_line(str(error))}"
        ) from error


def plain(content: Struct) -> dict[str, Any]:
    """Return a structure as JSON has it."""
    found: dict[str, Any] = _escaped(msgspec.to_builtins(content))
    return found


def escaped(text: str) -> str:
    """Return a name that may hold any bytes as text that JSON can hold."""
    return text.encode("utf-8", "backslashreplace").decode()


def _escaped(value: Any) -> Any:
    if isinstance(value, str):
        return escaped(value)
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    return {escaped(key): _escaped(item) for key, item in value.items()} if isinstance(value, dict) else value


def read_json(path: Path) -> bytes:
    """Return the content of a file. Raises FileNotFoundError, or OSError for something else."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: expected this file of tokenized data, found none")
    return path.read_bytes()
