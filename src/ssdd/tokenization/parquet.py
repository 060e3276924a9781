"""Shards as Parquet files: a row for each latent, ``mean`` and ``logvar`` as the bytes of (c, h, w), fp16 or bf16.

Nothing is compressed, which gains nothing on latents, and row groups are small, so that any latent is read by one of
them. The bytes depend on the release of pyarrow, which the plan names.

Shapes: c latent channels, h x w latent grid.
"""

import functools
from collections.abc import Iterator
from types import ModuleType
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..text import one_safe_line
from .format import KEY, STORED, Shape, TokenizedDataError
from .records import AuditedLatent, Latent, ShardFile, StoredLatent

ROWS = 16
"""Latents in a row group: what is read for one of them."""
_OPEN_FILES, _KEPT_GROUPS = 64, 2


def pyarrow_version() -> str:
    return str(_package().__version__)


class ParquetWriter:
    """See ``ShardWriter``. A row group of latents is in memory."""

    def __init__(self, file: BinaryIO, shape: Shape, dtype: torch.dtype) -> None:
        pyarrow = _package()
        from pyarrow import parquet

        self._schema = _schema(pyarrow, shape, dtype)
        options = {"compression": "none", "use_dictionary": False, "write_statistics": False}
        self._table = pyarrow.Table
        self._file = parquet.ParquetWriter(file, self._schema, **options)
        self._rows: list[dict[str, Any]] = []
        self.offsets: list[int] = []  # the file itself has them
        self.member_bytes = 0
        self.info: dict[str, Any] | None = None

    def add(self, latent: Latent) -> None:
        sides = (*latent.size, *latent.resized, *latent.crop)
        self._rows.append(
            {
                "key": latent.key,
                "source": latent.source.encode("utf-8", "backslashreplace").decode(),  # names may be any bytes
                "image": latent.image,
                "label": latent.label,
                "class": latent.class_name and latent.class_name.encode("utf-8", "backslashreplace").decode(),
                **dict(zip(_SIDES, sides, strict=True)),
                "flipped": latent.flipped,
                "mean": _to_bytes(latent.mean),
                "logvar": _to_bytes(latent.logvar),
                "members": list(latent.members.items()),
            }
        )
        if len(self._rows) == ROWS:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._file.close()

    def abandon(self) -> None:
        self._file.is_open = False  # else it would close itself, and write, when it is collected

    def _flush(self) -> None:
        if self._rows:
            self._file.write_table(self._table.from_pylist(self._rows, schema=self._schema), row_group_size=ROWS)
            self._rows = []


class ParquetReader:
    """See ``ShardReader``."""

    def __init__(self, file: ShardFile) -> None:
        self._file = file

    def key(self, row: int) -> str:
        return self._checked(self._rows(row, ("key",))["key"][row % ROWS])

    def read(self, row: int, members: bool = False) -> StoredLatent:
        names = ("key", "mean", "logvar", *(["members"] if members else []))
        return self._latent(self._rows(row, names), row % ROWS)

    def stream(self) -> Iterator[StoredLatent]:
        return (self.read(row) for row in range(self._file.latents))

    def audit(self) -> Iterator[AuditedLatent]:
        for row in range(self._file.latents):
            columns, at = self._rows(row, ("key", "label", "class", "image", "mean", "logvar")), row % ROWS
            latent = self._latent(columns, at)
            class_of = columns["class"][at] if columns["label"][at] is None else columns["label"][at]
            yield AuditedLatent(latent, latent.key, class_of, columns["image"][at])

    def _rows(self, row: int, columns: tuple[str, ...]) -> dict[str, list[Any]]:
        file = self._file
        return _row_group(str(file.path), file.version, file.latents, file.shape, file.dtype, row // ROWS, columns)

    def _latent(self, columns: dict[str, list[Any]], at: int) -> StoredLatent:
        mean, logvar = (_from_bytes(columns[name][at], self._file) for name in ("mean", "logvar"))
        members = dict(columns["members"][at] or ()) if "members" in columns else {}
        return StoredLatent(self._checked(columns["key"][at]), mean, logvar, members)

    def _checked(self, key: str) -> str:
        if not KEY.fullmatch(key):
            raise TokenizedDataError(f"{self._file.path}: expected a latent's key, found {key[:80]!r}")
        return key


_SIDES = (
    "height",
    "width",
    "resized_height",
    "resized_width",
    "crop_top",
    "crop_left",
    "crop_height",
    "crop_width",
)


def _schema(pyarrow: ModuleType, shape: Shape, dtype: torch.dtype) -> Any:
    latent = pyarrow.binary(2 * shape[0] * shape[1] * shape[2])
    store = next(name for name, stored in STORED.items() if stored == dtype)
    fields = [
        pyarrow.field("key", pyarrow.string(), nullable=False),
        pyarrow.field("source", pyarrow.string(), nullable=False),
        pyarrow.field("image", pyarrow.int64(), nullable=False),
        pyarrow.field("label", pyarrow.int64()),
        pyarrow.field("class", pyarrow.string()),
        *(pyarrow.field(name, pyarrow.int32(), nullable=False) for name in _SIDES),
        pyarrow.field("flipped", pyarrow.bool_(), nullable=False),
        pyarrow.field("mean", latent, nullable=False),
        pyarrow.field("logvar", latent, nullable=False),
        pyarrow.field("members", pyarrow.map_(pyarrow.string(), pyarrow.binary()), nullable=False),
    ]
    return pyarrow.schema(fields, {"latent_shape": ",".join(map(str, shape)), "store": store})


def _to_bytes(tensor: Tensor) -> bytes:
    """The numbers in order, each two bytes, the lower first."""
    return tensor.contiguous().view(torch.int16).numpy().astype("<i2", copy=False).tobytes()


def _from_bytes(content: bytes, file: ShardFile) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=file.dtype).view(file.shape)


# ---- reading: the last files stay open, and the last row groups stay read, in each process ---------------------------


@functools.lru_cache(maxsize=_OPEN_FILES)
def _opened(path: str, version: tuple[int, ...], latents: int, shape: Shape, dtype: torch.dtype) -> Any:
    """Its footer says that it is such a shard, of so many latents, and no group unpacks to more than the file has."""
    pyarrow = _package()
    from pyarrow import parquet

    try:
        opened = parquet.ParquetFile(path, pre_buffer=False)
        metadata, schema = opened.metadata, opened.schema_arrow
    except (pyarrow.ArrowException, ValueError) as error:
        raise TokenizedDataError(f"{path}: expected a Parquet file, found {_line(error)}") from error
    sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    expected = _schema(pyarrow, shape, dtype)
    without_members = expected.remove(len(expected) - 1)  # of the first format
    if not (schema.equals(expected) or schema.equals(without_members)) or schema.metadata != expected.metadata:
        raise TokenizedDataError(f"{path}: expected the columns of a shard of {dtype} {shape}, found others")
    if sizes != [min(ROWS, latents - first) for first in range(0, latents, ROWS)]:
        raise TokenizedDataError(f"{path}: expected {latents} latents, {ROWS} a row group, found {metadata.num_rows}")
    columns = (metadata.row_group(i).column(k) for i in range(len(sizes)) for k in range(metadata.num_columns))
    if any(column.compression != "UNCOMPRESSED" or "DICTIONARY" in "".join(column.encodings) for column in columns):
        raise TokenizedDataError(f"{path}: expected columns without compression and dictionaries, found others")
    return opened


@functools.lru_cache(maxsize=_KEPT_GROUPS)
def _row_group(
    path: str,
    version: tuple[int, ...],
    latents: int,
    shape: Shape,
    dtype: torch.dtype,
    number: int,
    columns: tuple[str, ...],
) -> dict[str, list[Any]]:
    """Columns by name. No threads: they do not live through a fork."""
    pyarrow = _package()
    opened = _opened(path, version, latents, shape, dtype)
    try:
        there = [name for name in columns if name in opened.schema_arrow.names]
        table = opened.read_row_group(number, columns=there, use_threads=False)
        table.validate(full=True)
        return {name: table.column(name).to_pylist() for name in there}
    except (pyarrow.ArrowException, ValueError, OSError) as error:
        raise TokenizedDataError(f"{path}, row group {number}: expected {columns}, found {_line(error)}") from error


def _line(error: Exception) -> str:
    return one_safe_line(str(error))[:120]


def _package() -> ModuleType:
    try:
        import pyarrow
    except ImportError as error:
        raise ImportError("Parquet shards need pyarrow: pip install 'ssdd[parquet]'") from error
    return pyarrow
