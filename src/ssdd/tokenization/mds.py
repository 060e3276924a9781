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

from ..data.packages import require
from .containers import Latent, ShardWriter
from .format import Shape, escaped
from .labels import NO_LABEL

INDEX = "index.json"


class MDSWriter(ShardWriter):
    """See ``ShardWriter``. The package writes a file of its own, which is copied."""

    def __init__(self, file: BinaryIO, shape: Shape, dtype: torch.dtype) -> None:
        super().__init__(file, shape, dtype)
        self._folder = tempfile.TemporaryDirectory(prefix="ssdd-")
        latent = f"ndarray:float16:{','.join(map(str, shape))}"
        columns = {"key": "str", "source": "str", "class": "str", "members": "json", "label": "int64"}
        columns |= {"mean": latent, "logvar": latent}
        self._mds = streaming().MDSWriter(out=self._folder.name, columns=columns, size_limit=None, exist_ok=True)

    def add(self, latent: Latent) -> None:
        texts = {name: content.decode("utf-8", "replace") for name, content in latent.members.items()}
        self._mds.write(
            {
                "key": latent.key,
                "source": escaped(latent.source),
                "class": latent.class_name or "",
                "members": texts,
                "label": NO_LABEL if latent.label is None else latent.label,
                "mean": latent.mean.numpy(),
                "logvar": latent.logvar.numpy(),
            }
        )

    def close(self) -> None:
        self._mds.finish()
        shards = json.loads((Path(self._folder.name) / INDEX).read_text())["shards"]
        if shards:
            (self.info,) = shards
            self.file.write((Path(self._folder.name) / self.info["raw_data"]["basename"]).read_bytes())
        self._folder.cleanup()

    def abandon(self) -> None:
        self._folder.cleanup()


def index_of(shards: Iterable[tuple[str, dict[str, Any] | None]]) -> bytes:
    """Return the ``index.json`` of these shards: their names, and what the package said of each."""
    entries = [info | {"raw_data": info["raw_data"] | {"basename": name}} for name, info in shards if info is not None]
    return (json.dumps({"shards": entries, "version": 2}) + "\n").encode()


def streaming() -> Any:
    """Return mosaicml-streaming. Raises ImportError where it is missing."""
    return require("streaming", "MDS shards need mosaicml-streaming", "ssdd[mds]")
