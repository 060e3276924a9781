"""Names, fields and limits of tokenized data: a folder of shards, an index beside each, a plan and a manifest.

Everything that reads trusts none of it. Shapes: c latent channels, h x w latent grid.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..statistics import LatentStatistics

FORMAT = "ssdd-latents-1"
PLAN, MANIFEST = "plan.json", "manifest.json"
STORED = {"fp16": torch.float16, "bf16": torch.bfloat16}
"""Types that mean and log-variance are stored in."""

Container = Literal["tar", "parquet"]
CONTAINERS: tuple[Container, ...] = ("tar", "parquet")
Shape = tuple[int, int, int]
"""(c, h, w)."""

BLOCK = 512
"""Bytes of a tar header, which the content follows."""
SHARD = re.compile(rf"shard-[0-9]{{6}}\.({'|'.join(CONTAINERS)})")
KEY = re.compile(r"[0-9]{9}-c[0-9]{1,4}f?-[A-Za-z0-9_]{1,48}")
"""Number of the image, of its crop, f if mirrored, what is left of its name: no dots, which end a webdataset key."""
LATENT, META = ".safetensors", ".json"
MOST_IMAGES, MOST_SHARDS = 10**9, 10**6
_MOST_JSON_BYTES = 1 << 30
_MOST_VALUES = 1 << 28


class TokenizedDataError(ValueError):
    """Tokenized data that cannot be used; one line with the file, what was expected and what was found."""


def shard_name(number: int, container: Container) -> str:
    return f"shard-{number:06d}.{container}"


def index_name(number: int) -> str:
    """Of the JSON file beside a shard: what is in it, and where."""
    return f"shard-{number:06d}.json"


def key_of(image: int, crop: int, flipped: bool, name: str) -> str:
    """Key of a latent: unique by its numbers; the image's own name, made harmless, only helps people."""
    stem = Path(name.rsplit(":", 1)[-1]).stem
    safe = re.sub(r"[^A-Za-z0-9_]+", "_", stem)[:48].strip("_") or "image"
    return f"{image:09d}-c{crop}{'f' if flipped else ''}-{safe}"


def encode_json(content: Any) -> bytes:
    """The bytes of a JSON file: the same content, the same bytes."""
    return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()


def decode_json(content: bytes, label: str) -> dict[str, Any]:
    """Raises TokenizedDataError unless it is a JSON object."""
    try:
        found = json.loads(content, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise TokenizedDataError(f"{label}: expected JSON, found {str(error)[:100]}") from error
    if not isinstance(found, dict):
        raise TokenizedDataError(f"{label}: expected a JSON object, found {type(found).__name__}")
    return found


def _refuse(word: str) -> None:
    raise ValueError(f"{word}, which is no JSON")


def read_bytes(path: Path) -> bytes:
    """A JSON file whole. Raises FileNotFoundError, or TokenizedDataError for something else or an absurd size."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: expected this file of tokenized data, found none")
    if not path.is_file() or path.stat().st_size > _MOST_JSON_BYTES:
        raise TokenizedDataError(f"{path}: expected a JSON file of at most {_MOST_JSON_BYTES} bytes, found another")
    return path.read_bytes()


def whole(content: Mapping[str, Any], key: str, label: str, low: int, high: int) -> int:
    """``content[key]``, an integer in [low, high]. Raises TokenizedDataError."""
    value = content.get(key)
    if type(value) is not int or not low <= value <= high:
        raise TokenizedDataError(f"{label}: expected {key} from {low} to {high}, found {str(value)[:60]}")
    return value


def listed(content: Mapping[str, Any], key: str, label: str, kind: type | tuple[type, ...]) -> list[Any]:
    """``content[key]``, a list of values of this very type. Raises TokenizedDataError."""
    value = content.get(key)
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, list) or not all(type(v) in kinds for v in value):
        raise TokenizedDataError(f"{label}: expected {key}, a list of {' or '.join(k.__name__ for k in kinds)}")
    return value


def text(content: Mapping[str, Any], key: str, label: str, pattern: str = r".*") -> str:
    """``content[key]``, a string of this pattern. Raises TokenizedDataError."""
    value = content.get(key)
    if not isinstance(value, str) or not re.fullmatch(pattern, value, re.DOTALL):
        raise TokenizedDataError(f"{label}: expected {key} like {pattern}, found {str(value)[:60]!r}")
    return value


SHA256 = r"[0-9a-f]{64}"


def sha256_of(content: Any) -> str:
    """Of a JSON value, in hexadecimal."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


# ---- one latent ------------------------------------------------------------------------------------------------------


def latent_bytes(mean: Tensor, logvar: Tensor) -> bytes:
    """A safetensors member: ``mean`` and ``logvar``, (c, h, w)."""
    return save({"mean": mean.contiguous(), "logvar": logvar.contiguous()})


def parse_latent(content: bytes, shape: Shape, dtype: torch.dtype, label: str) -> tuple[Tensor, Tensor]:
    """Mean and log-variance as they are stored. Raises TokenizedDataError for other names, types or shapes."""
    try:
        tensors = load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise TokenizedDataError(
            f"{label}: expected safetensors, found {' '.join(str(error).split())[:100]}"
        ) from error
    found = {name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()}
    if found != dict.fromkeys(("mean", "logvar"), (dtype, shape)):
        raise TokenizedDataError(f"{label}: expected mean and logvar, {dtype} {shape}, found {str(found)[:200]}")
    return tensors["mean"], tensors["logvar"]


def read_shape(content: Mapping[str, Any], label: str) -> Shape:
    """(c, h, w). Raises TokenizedDataError."""
    values = listed(content, "latent_shape", label, int)
    if len(values) != 3 or min(values) < 1 or max(values) > 2**16 or values[0] * values[1] * values[2] > _MOST_VALUES:
        raise TokenizedDataError(f"{label}: expected latent_shape (c, h, w), found {str(values)[:60]}")
    return values[0], values[1], values[2]


# ---- the index of a shard --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SkippedImage:
    """An image that has no latent: its number, its name, and the line that says why."""

    image: int
    name: str
    reason: str


@dataclass(frozen=True)
class ShardIndex:
    """What is in a shard, and where.

    plan: digest of the plan that it was made by. first, last: its images are [first, last). file_bytes, sha256: of the
    shard's file. member_bytes: of each safetensors member of a tar file; offsets: of their headers; 0 and none for
    Parquet, which has its own. labels: of each latent. statistics: of the stored means (``LatentStatistics.state``);
    None for an empty shard.
    """

    plan: str
    number: int
    first: int
    last: int
    file_bytes: int
    sha256: str
    member_bytes: int
    offsets: list[int]
    labels: list[int | None]
    skipped: list[SkippedImage]
    statistics: dict[str, Any] | None

    @property
    def images(self) -> int:
        """Those that have latents."""
        return self.last - self.first - len(self.skipped)

    @property
    def latents(self) -> int:
        return len(self.labels)

    def encode(self) -> bytes:
        content = {"format": FORMAT, **asdict(self)}
        # A line a field: thousands of offsets would have a line each.
        lines = ",\n".join(f" {json.dumps(k)}: {json.dumps(v, allow_nan=False)}" for k, v in content.items())
        return f"{{\n{lines}\n}}\n".encode()

    @classmethod
    def decode(cls, content: bytes, label: str) -> "ShardIndex":
        """Raises TokenizedDataError where the fields are no index or contradict one another."""
        found = decode_json(content, label)
        text(found, "format", label, re.escape(FORMAT))
        first = whole(found, "first", label, 0, MOST_IMAGES)
        index = cls(
            plan=text(found, "plan", label, SHA256),
            number=whole(found, "number", label, 0, MOST_SHARDS),
            first=first,
            last=whole(found, "last", label, first + 1, MOST_IMAGES),
            file_bytes=whole(found, "file_bytes", label, 1, 1 << 50),
            sha256=text(found, "sha256", label, SHA256),
            member_bytes=whole(found, "member_bytes", label, 0, 1 << 31),
            offsets=listed(found, "offsets", label, int),
            labels=listed(found, "labels", label, (int, type(None))),
            skipped=[_skipped(entry, label) for entry in listed(found, "skipped", label, dict)],
            statistics=_statistics(found, label),
        )
        ends = [offset + BLOCK + index.member_bytes for offset in index.offsets]
        starts = [*index.offsets, index.file_bytes]
        if index.offsets and (starts[0] < 0 or any(e > s for e, s in zip(ends, starts[1:], strict=True))):
            raise TokenizedDataError(
                f"{label}: expected offsets in order within {index.file_bytes} bytes, found others"
            )
        skipped = [s.image for s in index.skipped]
        inside = all(first <= i < index.last for i in skipped) and len(set(skipped)) == len(skipped)
        placed = len(index.offsets) in (0, index.latents)
        if not placed or not inside or bool(index.latents) != bool(index.statistics):
            raise TokenizedDataError(f"{label}: expected as many labels as latents, and skipped images of the shard")
        return index


def _skipped(entry: dict[str, Any], label: str) -> SkippedImage:
    image = whole(entry, "image", label, 0, MOST_IMAGES)
    return SkippedImage(image, text(entry, "name", label), text(entry, "reason", label))


def _statistics(content: Mapping[str, Any], label: str) -> dict[str, Any] | None:
    value = content.get("statistics")
    if value is not None and not isinstance(value, dict):
        raise TokenizedDataError(f"{label}: expected statistics or null, found {type(value).__name__}")
    try:
        _ = value and LatentStatistics.from_state(value)
    except ValueError as error:
        raise TokenizedDataError(f"{label}: {error}") from error
    return value
