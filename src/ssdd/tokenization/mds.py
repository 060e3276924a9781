"""Shards as MDS files, which mosaicml-streaming reads, and the ``index.json`` that it looks for beside them.

Columns: ``key``, ``source``, ``class`` (empty for none), ``members`` (JSON: other members of the sample that are text,
by their extension), ``label`` (-1 for none), ``mean`` and ``logvar``, float16 (c, h, w).
"""

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from .format import Shape
from .records import Latent

INDEX = "index.json"


class MDSWriter:
    """See ``ShardWriter``. The package writes a file of its own, which is copied."""

    def __init__(self, file: BinaryIO, shape: Shape, dtype: torch.dtype) -> None:
        """Raises ImportError without the package."""
        streaming = _package()
        self._file, self._folder = file, tempfile.TemporaryDirectory(prefix="ssdd-")
        latent = f"ndarray:float16:{','.join(map(str, shape))}"
        columns = {"key": "str", "source": "str", "class": "str", "members": "json", "label": "int64"}
        columns |= {"mean": latent, "logvar": latent}
        self._writer = streaming.MDSWriter(out=self._folder.name, columns=columns, size_limit=None, exist_ok=True)
        self.offsets: list[int] = []  # the file itself has them
        self.member_bytes = 0
        self.info: dict[str, Any] | None = None

    def add(self, latent: Latent) -> None:
        texts = {name: content.decode("utf-8", "replace") for name, content in latent.members.items()}
        self._writer.write(
            {
                "key": latent.key,
                "source": latent.source.encode("utf-8", "backslashreplace").decode(),
                "class": latent.class_name or "",
                "members": texts,
                "label": -1 if latent.label is None else latent.label,
                "mean": latent.mean.numpy(),
                "logvar": latent.logvar.numpy(),
            }
        )

    def close(self) -> None:
        self._writer.finish()
        shards = json.loads((Path(self._folder.name) / INDEX).read_text())["shards"]
        if shards:
            (self.info,) = shards
            self._file.write((Path(self._folder.name) / self.info["raw_data"]["basename"]).read_bytes())
        self._folder.cleanup()

    def abandon(self) -> None:
        self._folder.cleanup()


def index_of(shards: Iterable[tuple[str, dict[str, Any] | None]]) -> bytes:
    """Return the ``index.json`` of these shards: their names, and what the package said of each."""
    entries = [info | {"raw_data": info["raw_data"] | {"basename": name}} for name, info in shards if info is not None]
    return (json.dumps({"shards": entries, "version": 2}) + "\n").encode()


def streaming_version() -> str:
    return str(_package().__version__)


def _package() -> Any:
    try:
        import streaming
    except ImportError as error:
        raise ImportError("MDS shards need mosaicml-streaming: pip install 'ssdd[mds]'") from error
    return streaming
