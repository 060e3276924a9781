"""Shards as the safetensors files that LightningDiT's data set reads: ``latents``, ``latents_flip`` and ``labels``.

There is a row for each image: its latent, the mean of the posterior; that of the mirrored image; its class.
Log-variances are not kept. ``keys`` and ``images`` are ours, which LightningDiT does not look at. A shard is in memory
until it is written.

Shapes: N images, c latent channels, h x w latent grid.
"""

import functools
import json
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..nn.encoder import LOGVAR_RANGE
from ..runtime.text import one_safe_line
from .containers import Latent, ShardFile, ShardReader, ShardWriter, StoredLatent
from .format import KEY, Shape, TokenizedDataError
from .labels import NO_LABEL

_LOGVAR = LOGVAR_RANGE[0]
"""Stands for a variance of none."""


class LightningDiTWriter(ShardWriter):
    """See ``ShardWriter``. Latents come in pairs: an image, and the same one mirrored."""

    def __init__(self, file: BinaryIO, shape: Shape, dtype: torch.dtype) -> None:
        super().__init__(file, shape, dtype)
        self._latents: list[Latent] = []

    def add(self, latent: Latent) -> None:
        """Raise ValueError for a class without a number."""
        if latent.label is None and latent.class_name is not None:
            raise ValueError(
                f"{latent.key}: expected a class with a number, found {latent.class_name!r}: LightningDiT has numbers "
                "only; pass --shard-images, which lists the images first, or --labels none"
            )
        self._latents.append(latent)

    def close(self) -> None:
        straight, mirrored = self._latents[::2], self._latents[1::2]
        labels = [NO_LABEL if latent.label is None else latent.label for latent in straight]
        tensors = {
            "latents": self._stacked(straight),
            "latents_flip": self._stacked(mirrored),
            "labels": torch.tensor(labels, dtype=torch.int64),
            "images": torch.tensor([latent.image for latent in straight], dtype=torch.int64),
        }
        self.file.write(save(tensors, {"keys": json.dumps([latent.key for latent in self._latents])}))

    def _stacked(self, latents: list[Latent]) -> Tensor:
        """Return (N, c, h, w)."""
        if not latents:
            return torch.zeros(0, *self.shape, dtype=self.dtype)
        return torch.stack([latent.mean for latent in latents])


class LightningDiTReader(ShardReader):
    """See ``ShardReader``."""

    def key(self, row: int) -> str:
        return _opened(self.file)[1][row]

    def read(self, row: int, whole: bool = False) -> StoredLatent:
        file, keys = _opened(self.file)
        mean: Tensor = file.get_slice("latents_flip" if row % 2 else "latents")[row // 2]
        if mean.dtype != self.file.dtype:
            raise TokenizedDataError(f"{self.file.path}: expected {self.file.dtype}, found {mean.dtype}")
        label, image = (int(file.get_slice(name)[row // 2]) if whole else NO_LABEL for name in ("labels", "images"))
        label_or_none = None if label == NO_LABEL else label
        return StoredLatent(keys[row], mean, torch.full_like(mean, _LOGVAR), image=image, label=label_or_none)


@functools.lru_cache(maxsize=64)
def _opened(file: ShardFile) -> tuple[Any, list[str]]:
    """Open a file, which stays open in each process, and read the keys of its latents."""
    try:
        opened = safe_open(file.path, "pt")
        keys = json.loads((opened.metadata() or {})["keys"])
    except (SafetensorError, KeyError, ValueError, RecursionError) as error:
        line = one_safe_line(str(error))[:100]
        raise TokenizedDataError(f"{file.path}: expected safetensors with the keys of latents, found {line}") from error
    rows = file.latents // 2
    shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    expected = {
        **dict.fromkeys(("latents", "latents_flip"), (rows, *file.shape)),
        **dict.fromkeys(("labels", "images"), (rows,)),
    }
    if shapes != expected or len(keys) != 2 * rows or not all(KEY.fullmatch(str(key)) for key in keys):
        raise TokenizedDataError(f"{file.path}: expected {expected} and {2 * rows} keys, found {shapes}")
    return opened, keys
