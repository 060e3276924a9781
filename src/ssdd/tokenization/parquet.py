"""Shards as Parquet files: a row for each latent, ``mean`` and ``logvar`` as the bytes of (c, h, w), fp16 or bf16.

Nothing is compressed, which gains nothing on latents, and row groups are small, so that any latent is read by one of
them. The bytes depend on the release of pyarrow, which the plan names.

Shapes: c latent channels, h x w latent grid.
"""

import functools
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..data import packages
from ..runtime.text import one_safe_line
from .containers import Latent, ShardFile, ShardReader, ShardWriter, StoredLatent
from .format import KEY, STORED, Shape, TokenizedDataError, escaped

ROWS = 16
"""Latents in a row group: what is read for one of them."""
_OPEN_FILES, _KEPT_GROUPS = 64, 2
_SIDES = (
    *("height", "width"),
    *("resized_height", "resized_width"),
    *("crop_top", "crop_left", "crop_height", "crop_width"),
)


class ParquetWriter(ShardWriter):
    """See ``ShardWriter``. A row group of latents is in memory."""

    def __init__(self, file: BinaryIO, shape: Shape, dtype: torch.dtype) -> None:
        super().__init__(file, shape, dtype)
        self._pyarrow, module = packages.parquet()
        self._schema = _schema(shape, dtype)
        options = {"compression": "none", "use_dictionary": False, "write_statistics": False}
        self._parquet = module.ParquetWriter(file, self._schema, **options)
        self._rows: list[dict[str, Any]] = []

    def add(self, latent: Latent) -> None:
        self._rows.append(
            {
                "key": latent.key,
                "source": escaped(latent.source),
                "image": latent.image,
                "label": latent.label,
                "class": latent.class_name and escaped(latent.class_name),
                **dict(zip(_SIDES, (*latent.size, *latent.resized, *latent.crop), strict=True)),
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
        self._parquet.close()

    def abandon(self) -> None:
        self._parquet.is_open = False  # else it would close itself, and write, when it is collected

    def _flush(self) -> None:
        if self._rows:
            table = self._pyarrow.Table.from_pylist(self._rows, schema=self._schema)
            self._parquet.write_table(table, row_group_size=ROWS)
            self._rows = []


class ParquetReader(ShardReader):
    """See ``ShardReader``."""

    def key(self, row: int) -> str:
        return self._checked(_row_group(self.file, row // ROWS, ("key",))["key"][row % ROWS])

    def read(self, row: int, whole: bool = False) -> StoredLatent:
        names = ("key", "mean", "logvar", *(("members", "label", "class", "image") if whole else ()))
        columns = _row_group(self.file, row // ROWS, names)
        cells = {name: column[row % ROWS] for name, column in columns.items()}
        mean, logvar = (
            torch.frombuffer(bytearray(cells[name]), dtype=self.file.dtype).view(self.file.shape)
            for name in ("mean", "logvar")
        )
        label = cells.get("class") if cells.get("label") is None else cells["label"]
        members = dict(cells.get("members") or ())
        return StoredLatent(self._checked(cells["key"]), mean, logvar, members, cells.get("image"), label)

    def _checked(self, key: str) -> str:
        if not KEY.fullmatch(key):
            raise TokenizedDataError(f"{self.file.path}: expected a latent's key, found {key[:80]!r}")
        return key


def _schema(shape: Shape, dtype: torch.dtype) -> Any:
    pyarrow, _ = packages.parquet()
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
    """Return the numbers in order, each two bytes, the lower first."""
    return tensor.contiguous().view(torch.int16).numpy().astype("<i2", copy=False).tobytes()


# ---- reading: the last files stay open, and the last row groups stay read, in each process ---------------------------


@functools.lru_cache(maxsize=_OPEN_FILES)
def _opened(file: ShardFile) -> Any:
    """Open a file whose footer says that it is such a shard, and that nothing in it unpacks to more than it has."""
    (pyarrow, parquet), path = packages.parquet(), file.path
    try:
        opened = parquet.ParquetFile(path, pre_buffer=False)
        metadata, schema = opened.metadata, opened.schema_arrow
    except (pyarrow.ArrowException, ValueError) as error:
        raise TokenizedDataError(f"{path}: expected a Parquet file, found {_line(error)}") from error
    expected = _schema(file.shape, file.dtype)
    if not schema.equals(expected) or schema.metadata != expected.metadata:
        raise TokenizedDataError(f"{path}: expected the columns of a shard of {file.dtype} {file.shape}, found others")
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    if [g.num_rows for g in groups] != [min(ROWS, file.latents - first) for first in range(0, file.latents, ROWS)]:
        raise TokenizedDataError(
            f"{path}: expected {file.latents} latents, {ROWS} a row group, found {metadata.num_rows}"
        )
    columns = (group.column(k) for group in groups for k in range(metadata.num_columns))
    if any(column.compression != "UNCOMPRESSED" or "DICTIONARY" in "".join(column.encodings) for column in columns):
        raise TokenizedDataError(f"{path}: expected columns without compression and dictionaries, found others")
    return opened


@functools.lru_cache(maxsize=_KEPT_GROUPS)
def _row_group(file: ShardFile, number: int, columns: tuple[str, ...]) -> dict[str, list[Any]]:
    """Return columns by name. No threads: they do not live through a fork."""
    opened, arrow_error = _opened(file), packages.parquet()[0].ArrowException
    try:
        names = [name for name in columns if name in opened.schema_arrow.names]
        table = opened.read_row_group(number, columns=names, use_threads=False)
        table.validate(full=True)
        return {name: table.column(name).to_pylist() for name in names}
    except (arrow_error, ValueError, OSError) as error:
        raise TokenizedDataError(
            f"{file.path}, row group {number}: expected {columns}, found {_line(error)}"
        ) from error


def _line(error: Exception) -> str:
    return one_safe_line(str(error))[:120]
