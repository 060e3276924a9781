"""Tokenized data as a data set: any latent by its number, or all of them in order.

Shapes: c latent channels, h x w latent grid.
"""

import json
import re
from bisect import bisect
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load
from torch.utils.data import Dataset, default_collate

from ..checkpoints.config import STATISTICS
from ..checkpoints.identity import LatentIdentity, identify
from ..data.packages import require
from ..data.tar import file_version
from .containers import ShardFile, ShardReader, StoredLatent, open_reader
from .format import STORED, Label, Manifest, Shape, ShardIndex, TokenizedDataError, plain, shard_name
from .labels import NO_LABEL
from .manifest import plan_digest, read_index, read_manifest
from .tar import stored_as

_OPEN_SHARDS = 2048
"""Shards whose places and labels are in memory, in each process: 16 bytes a latent, 64 MB for all of a million."""


class LatentDataset(Dataset[dict[str, Any]]):
    """The latents in a finished folder of ``ssdd tokenize``.

    ``data[i]`` reads one latent from its place in a shard: a dict with

    - ``mean``, ``logvar``: float32 (c, h, w), of a raw latent's posterior,
    - ``label``: int64 scalar, index into ``classes``, -1 for none,
    - ``key``: str, unique in the set,
    - and, as str or bytes, the members of its sample that were asked for.

    Memory grows by 16 bytes a latent, up to those of 2,048 shards. It can be sent to worker processes, forked or
    spawned. Nothing in the folder is trusted: sizes, types, shapes and names are checked, and the checksums by
    ``verify``.

    Attributes:
        folder: Where it lies.
        manifest: The content of ``manifest.json``.
        model: Whose latents they are.
        digest: SHA-256 of the plan that the set was made by; the same set, made again, has it too.
        classes: Names by label; empty without labels.
        latent_shape: (c, h, w); of sets with buckets that of a square.
        statistics: ``scaling_factor``, ``shift_factor``, ``latents_mean``, ``latents_std`` of these latents.
    """

    def __init__(
        self, folder: str | Path, *, members: Sequence[str] = (), expect: str | LatentIdentity | None = None
    ) -> None:
        """
        Args:
            folder: Of ``ssdd tokenize``.
            members: Extensions, such as ``txt``, of other members of the samples to read.
            expect: Whose latents these have to be: a model's name, an identity (see ``checkpoints.identity``), or the
                SHA-256 of the encoder, of which four digits or more will do.

        Raises:
            FileNotFoundError, TokenizedDataError: No finished set, a shard that is missing or of another size, or
                latents of another encoder than was expected.
        """
        self.folder, self._members = Path(folder), tuple(members)
        self._manifest: Manifest = read_manifest(self.folder)
        model = self._manifest.model
        if expect is not None:
            _check_encoder(self.folder, model, expect)
        self.model = model
        self.manifest: dict[str, Any] = plain(self._manifest)
        self.classes = self._manifest.classes
        self.latent_shape = self._manifest.latent_shape
        values = {name: self.manifest["statistics"][name] for name in STATISTICS}
        self.statistics = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        self._numbers: dict[Label, int] = {name: number for number, name in enumerate(self.classes)}
        self.digest = plan_digest(self._manifest)
        self._ends = np.cumsum([entry.latents for entry in self._manifest.shards])
        self._open: OrderedDict[int, tuple[ShardReader, np.ndarray]] = OrderedDict()
        for number, entry in enumerate(self._manifest.shards):
            _check_size(self.folder / shard_name(number, self._manifest.container), entry.bytes)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Raise IndexError, ValueError for a damaged shard, OSError for one that cannot be read."""
        shard, row = self._locate(index)
        reader, labels = self._shard(shard)
        return self._item(reader.read(row, bool(self._members)), int(labels[row]))

    def label(self, index: int) -> int | None:
        """Return the label of a latent without reading it."""
        shard, row = self._locate(index)
        label = int(self._shard(shard)[1][row])
        return None if label == NO_LABEL else label

    def key(self, index: int) -> str:
        """Return the key of a latent without reading it. Raises as ``data[index]``."""
        shard, row = self._locate(index)
        return self._shard(shard)[0].key(row)

    def ranges_of_shapes(self) -> list[tuple[Shape, range]]:
        """Return each shape (c, h, w) and the numbers of its latents: one, or with buckets as many as there are.

        The shards of a shape follow one another, so that few of their indices have to be read.
        """
        if self._manifest.protocol.get("bucket_step") is None:
            return [(self.latent_shape, range(len(self)))]
        numbers = [number for number, entry in enumerate(self._manifest.shards) if entry.latents]
        found, start, first = list[tuple[Shape, range]](), 0, 0
        while first < len(numbers):
            shape = self._shape_of(numbers[first])
            first = bisect(numbers, False, lo=first, key=lambda number: self._shape_of(number) != shape)
            end = int(self._ends[numbers[first - 1]])
            found.append((shape, range(start, end)))
            start = end
        return found

    def _shape_of(self, number: int) -> Shape:
        return read_index(self.folder, number, self._manifest, self.digest).shape or self.latent_shape

    def stream(self) -> Iterator[dict[str, Any]]:
        """Return all latents in order, each shard read from its begin to its end. Raises ValueError, OSError."""
        for number in range(len(self._ends)):
            reader, labels = self._shard(number)
            for latent, label in zip(reader.stream(bool(self._members)), labels, strict=True):
                yield self._item(latent, int(label))

    def as_webdataset(self, **options: Any) -> Any:
        """Return the set as a ``webdataset.WebDataset`` of the same dicts, for streaming.

        Args:
            options: Options of ``WebDataset``, such as ``shardshuffle=100`` or ``nodesplitter``.

        Raises:
            ImportError: The package webdataset is missing.
            ValueError: The shards are no tar files.
        """
        if self._manifest.container != "tar":
            raise ValueError(f"{self.folder}: expected tar shards for webdataset, found {self._manifest.container}")
        webdataset = require("webdataset", "as_webdataset needs the package", "webdataset")
        shards = [str(self.folder / entry.name) for entry in self._manifest.shards if entry.latents]
        stream = webdataset.WebDataset(shards, **{"shardshuffle": False, "empty_check": False, **options})
        return stream.map(self._from_sample)

    def _from_sample(self, sample: dict[str, Any]) -> dict[str, Any]:
        tensors, meta = load(sample["safetensors"]), json.loads(sample["json"])
        found = {name: sample[stored_as(name)] for name in self._members if stored_as(name) in sample}
        latent = StoredLatent(sample["__key__"], tensors["mean"], tensors["logvar"], found)
        return self._item(latent, self._number(meta["class"] if meta["label"] is None else meta["label"]))

    def _item(self, latent: StoredLatent, label: int) -> dict[str, Any]:
        return {
            "mean": latent.mean.float(),
            "logvar": latent.logvar.float(),
            "label": torch.tensor(label),
            "key": latent.key,
            **{name: _text(latent.members.get(name)) for name in self._members},
        }

    def _number(self, label: Label) -> int:
        if label is None or not self.classes:
            return NO_LABEL
        listed = self._manifest.shard_images is not None  # its numbers were known beforehand
        return label if listed and isinstance(label, int) else self._numbers[str(label)]

    def _shard(self, number: int) -> tuple[ShardReader, np.ndarray]:
        """Return a shard, opened, and the labels of its latents; the last few stay open."""
        if number not in self._open:
            index = read_index(self.folder, number, self._manifest, self.digest)
            try:
                labels = np.array([self._number(label) for label in index.labels], np.int64)
            except KeyError as error:
                raise TokenizedDataError(
                    f"{self.folder}: expected the classes of the manifest, found {error}"
                ) from error
            self._open[number] = open_shard(self.folder, index, self._manifest), labels
            if len(self._open) > _OPEN_SHARDS:
                self._open.popitem(last=False)
        return self._open[number]

    def _locate(self, index: int) -> tuple[int, int]:
        """Return the number of the shard, and the row in it."""
        if not 0 <= index < len(self):
            raise IndexError(f"expected an index from 0 to {len(self) - 1}, found {index}")
        shard = int(np.searchsorted(self._ends, index, side="right"))
        return shard, index - int(self._ends[shard - 1] if shard else 0)


def _check_encoder(folder: Path, model: LatentIdentity, expect: str | LatentIdentity) -> None:
    digest = model.encoder_sha256 or ""
    if isinstance(expect, str) and re.fullmatch("[0-9a-fA-F]{4,64}", expect):
        fits, expected = digest.startswith(expect.lower()), f"the encoder {expect[:12]}"
    elif expect == "":
        raise ValueError("expected a model, an identity or the digits of an encoder's SHA-256, found nothing")
    else:
        identity = identify(expect) if isinstance(expect, str) else expect
        fits, expected = model.same_encoder(identity), str(identity)
    if not fits:
        raise TokenizedDataError(f"{folder}: expected latents of {expected}, found those of {model}")


def _text(content: bytes | None) -> str | bytes | None:
    try:
        return None if content is None else content.decode()
    except UnicodeDecodeError:
        return content


def collate_fn(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Collate latents whose members may be missing: tensors are stacked, everything else is a list."""
    columns = {name: [item.get(name) for item in items] for name in items[0]}
    return {
        name: default_collate(values) if isinstance(values[0], torch.Tensor) else values
        for name, values in columns.items()
    }


def open_shard(folder: Path, index: ShardIndex, manifest: Manifest) -> ShardReader:
    """Return a shard of a finished set. Raises FileNotFoundError, or TokenizedDataError for one of another size."""
    path = folder / shard_name(index.number, manifest.container)
    _check_size(path, index.file_bytes)
    file = ShardFile(
        path=path,
        version=file_version(path),
        latents=index.latents,
        shape=index.shape or manifest.latent_shape,
        dtype=STORED[manifest.store],
        offsets=np.array(index.offsets, np.int64),
        member_bytes=index.member_bytes,
    )
    return open_reader(manifest.container, file)


def _check_size(path: Path, size: int) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected this shard, found none: run ssdd tokenize again")
    if (found := path.stat().st_size) != size:
        raise TokenizedDataError(
            f"{path}: expected {size} bytes, found {found}: run ssdd tokenize again to make it anew"
        )
