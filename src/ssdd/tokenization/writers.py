"""What shards are written as: each container behind one writer and one reader.

A new one is a class for each side (see ``records``), an entry here and one in ``format.SUFFIXES``.
"""

from typing import BinaryIO

import torch

from .format import Container, Shape
from .records import ShardFile, ShardReader, ShardWriter


def open_writer(container: Container, file: BinaryIO, shape: Shape, dtype: torch.dtype) -> ShardWriter:
    """Raises ImportError, with the extra that is missing, for a container that cannot be written here."""
    if container == "parquet":
        from .parquet import ParquetWriter

        return ParquetWriter(file, shape, dtype)
    if container == "lightningdit":
        from .lightningdit import LightningDiTWriter

        return LightningDiTWriter(file, shape, dtype)
    if container == "mds":
        from .mds import MDSWriter

        return MDSWriter(file, shape, dtype)
    from .tar import TarWriter

    return TarWriter(file)


def open_reader(container: Container, file: ShardFile) -> ShardReader:
    """Raises ImportError, with the extra that is missing, or ValueError, for a container that cannot be read here."""
    if container == "mds":
        raise ValueError(f"{file.path}: expected shards that are read here, found MDS: read them by mosaicml-streaming")
    if container == "parquet":
        from .parquet import ParquetReader

        return ParquetReader(file)
    if container == "lightningdit":
        from .lightningdit import LightningDiTReader

        return LightningDiTReader(file)
    from .tar import TarReader

    return TarReader(file)


def writer_version(container: Container) -> str | None:
    """Return the package that decides a container's bytes, with its version. Raises ImportError where it is missing."""
    if container == "parquet":
        from .parquet import pyarrow_version

        return f"pyarrow {pyarrow_version()}"
    if container == "mds":
        from .mds import streaming_version

        return f"mosaicml-streaming {streaming_version()}"
    return None
