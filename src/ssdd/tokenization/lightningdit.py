"""Shards as the safetensors files that LightningDiT's data set reads: ``latents``, ``latents_flip`` and ``labels``.

There is a row for each image: its latent, the mean of the posterior; that of the mirrored image; its class.
Log-variances are not kept. ``keys`` and ``images`` are ours, which LightningDiT does not look at. A shard is in memory
until it is written.

Shapes: N images, c latent channels, h x w latent grid.
"""

import json
from collections.abc import Iterator
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..text import one_safe_line
from .format import KEY, Shape, TokenizedDataError
from .records import AuditedLatent, Latent, ShardFile, StoredLatent

_NO_CLASS = -1
_LOGVAR = -30.0
"""Stands for a variance of none: the bound that diffusers has."""


class LightningDiTWriter:
    """See ``ShardWriter``. Latents come in pairs: an image, and the same one mirrored."""

    def __init__(self, file: BinaryIO, shape: Shape, dtype: torch.dtype) -> None:
        self._file, self._nothing = file, torch.zeros(0, *shape, dtype=dtype)
        self._latents: list[Latent] = []
        self.offsets: list[int] = []  # the file itself has them
        self.member_bytes = 0
        self.info: dict[str, Any] | None = None

    def add(self, latent: Latent) -> None:
        """Raises ValueError for a class without a number."""
        if latent.label is None and latent.class_name is not None:
            raise ValueError(
                f"{latent.key}: expected a class with a number, found {latent.class_name!r}: LightningDiT has numbers "
                "only; pass --shard-images, which lists the images first, or --labels none"
            )
        self._latents.append(latent)

    def close(self) -> None:
        straight, mirrored = self._latents[::2], self._latents[1::2]
        tensors = {
            "latents": torch.stack([latent.mean for latent in straight]) if straight else self._nothing,
            "latents_flip": torch.stack([latent.mean for latent in mirrored]) if mirrored else self._nothing,
            "labels": torch.tensor([_NO_CLASS if latent.label is None else latent.label for latent in straight]).long(),
            "images": torch.tensor([latent.image for latent in straight]).long(),
        }
        keys = [latent.key for latent in self._latents]
        self._file.write(save(tensors, {"keys": json.dumps(keys)}))

    def abandon(self) -> None:
        """Do nothing: nothing was written."""


class LightningDiTReader:
    """See ``ShardReader``."""

    def __init__(self, file: ShardFile) -> None:
        self._file = file

    def key(self, row: int) -> str:
        with self._open() as file:
            return self._keys(file)[row]

    def read(self, row: int, members: bool = False) -> StoredLatent:
        with self._open() as file:
            return self._latent(file, self._keys(file)[row], row)

    def stream(self) -> Iterator[StoredLatent]:
        return (latent.latent for latent in self.audit())

    def audit(self) -> Iterator[AuditedLatent]:
        with self._open() as file:
            keys, labels, images = (
                self._keys(file),
                file.get_tensor("labels").tolist(),
                file.get_tensor("images").tolist(),
            )
            for row, key in enumerate(keys):
                label = None if labels[row // 2] == _NO_CLASS else labels[row // 2]
                yield AuditedLatent(self._latent(file, key, row), key, label, images[row // 2])

    def _open(self) -> Any:
        try:
            return safe_open(self._file.path, "pt")
        except (SafetensorError, ValueError) as error:
            raise TokenizedDataError(
                f"{self._file.path}: expected safetensors, found {one_safe_line(str(error))[:100]}"
            ) from error

    def _keys(self, file: Any) -> list[str]:
        try:
            keys = json.loads((file.metadata() or {})["keys"])
        except (KeyError, ValueError, RecursionError) as error:
            raise TokenizedDataError(f"{self._file.path}: expected the keys of the latents, found none") from error
        rows = self._file.latents // 2
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        expected = {
            **dict.fromkeys(("latents", "latents_flip"), (rows, *self._file.shape)),
            **dict.fromkeys(("labels", "images"), (rows,)),
        }
        whole = isinstance(keys, list) and len(keys) == 2 * rows and all(isinstance(k, str) for k in keys)
        if not whole or shapes != expected or not all(KEY.fullmatch(key) for key in keys):
            raise TokenizedDataError(f"{self._file.path}: expected {expected} and {2 * rows} keys, found {shapes}")
        return list(keys)

    def _latent(self, file: Any, key: str, row: int) -> StoredLatent:
        mean: Tensor = file.get_slice("latents_flip" if row % 2 else "latents")[row // 2]
        if mean.dtype != self._file.dtype:
            raise TokenizedDataError(f"{self._file.path}: expected {self._file.dtype}, found {mean.dtype}")
        return StoredLatent(key, mean, torch.full_like(mean, _LOGVAR))
