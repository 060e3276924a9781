"""Reconstructions, or samples, that another program wrote: compared without a model.

Shapes: B crops of one size, H x W pixels.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ..data.images import ImageError
from ..data.sources import ImageSource, open_source
from .image_metrics import Rounded
from .protocols import CropKey, EvaluationSet, Protocol

FOLDER = "folder:"


def images_path(name: str) -> str | None:
    """Return the path of ``folder:PATH`` or ``FILE.npz``, and None for the name of anything else."""
    if name.startswith(FOLDER):
        return name.removeprefix(FOLDER)
    return name if name.endswith(".npz") and Path(name).is_file() else None


class SavedImages:
    """Images that stand beside the originals of a set: paired where the names agree, whatever the extension.

    A file is what ``reconstruction_name`` calls a crop, or else a whole image, which is cropped as its original is
    unless it has the size of the crop already. As a set they are compared in any case: ``all_paired`` where each file
    is one of these, and then crop by crop as a model's.

    Raises:
        ValueError: an image is the partner of several originals.
    """

    parameters = decoder_parameters = 0
    steps = None

    def __init__(self, path: str, originals: ImageSource, protocol: Protocol) -> None:
        self.path, self.name = path, Path(path).name
        self.source = open_source([path])
        self.set = EvaluationSet(self.source, protocol)
        self._originals = originals
        self._places = {_stem(self.source.key(i)): i for i in range(len(self.source))}
        stems = Counter(_stem(originals.key(i)) for i in range(len(originals)))
        if shared := next((stem for stem, n in stems.items() if n > 1 and stem in self._places), None):
            raise ValueError(f"{path}: expected one original for each image, found {stems[shared]} called {shared}")
        files = [[self._file(i, k) for k in range(protocol.crops)] for i in range(len(originals))]
        self.digest = _digest(self.source)
        self.pairs = sum(of_image[0] is not None for of_image in files)
        used = {file[0] for of_image in files for file in of_image if file is not None}
        self.all_paired = len(used) == len(self.source)

    def describe(self) -> dict[str, Any]:
        """Return what the report says of it, as ``Autoencoder.describe`` does."""
        return {
            "kind": "images",
            "source": self.path,
            "dtype": "uint8",
            "steps": None,
            "sha256": {"images": self.digest},
            "latent": "none",
            "images": len(self.source),
            "pairs": self.pairs,
        }

    def flops(self, height: int, width: int, steps: int | None = None) -> None:
        """Return None: nothing is computed."""

    def partners(self, keys: Sequence[CropKey], height: int, width: int) -> tuple[Rounded, list[str]]:
        """Return the images of these names, uint8 (B, H, W, 3), and the reasons of those that cannot be read.

        Crops without an image of their name and size are not valid.
        """
        images, valid, broken = np.zeros((len(keys), height, width, 3), np.uint8), np.zeros(len(keys), bool), []
        for i, key in enumerate(keys):
            try:
                image = self._partner(key, height, width)
            except ImageError as error:
                broken.append(str(error))
                continue
            if image is not None:
                images[i], valid[i] = image, True
        return Rounded(images, valid), broken

    def _file(self, image: int, crop: int) -> tuple[int, bool] | None:
        """Return which image is the partner of a crop, and whether it is that crop's alone."""
        name = self._originals.key(image)
        own = self._places.get(_stem(reconstruction_name(name, crop)))
        whole = self._places.get(_stem(name))
        if own is not None:
            return own, True
        return None if whole is None else (whole, crop == 0)

    def _partner(self, key: CropKey, height: int, width: int) -> np.ndarray | None:
        found = self._file(key.image, key.crop)
        if found is None:
            return None
        index, is_own = found
        image = self.source.read(index)
        if is_own and image.shape[:2] == (height, width):
            return image
        if self.set.refusal(image):
            return None
        crop = list(self.set.crops(image, key.image))[key.crop]
        return crop if crop.shape[:2] == (height, width) else None


def reconstruction_name(name: str, crop: int = 0) -> str:
    """Return where a reconstruction is saved: the original's name, without what could lead out of the folder."""
    parts = [re.sub(r"[^\w. -]+", "_", part).lstrip(".") or "_" for part in re.split(r"[/\\]", name)]
    stem = "/".join(parts).rpartition(".")[0] or "/".join(parts)
    return f"{stem}{f'_{crop}' if crop else ''}.png"


def _digest(source: ImageSource) -> str:
    """Return the sha256 of all images, in hexadecimal: the same folder may have others tomorrow."""
    digest = hashlib.sha256()
    for i in range(len(source)):
        digest.update(source.key(i).encode(errors="surrogateescape"))
        try:
            digest.update(source.content(i))
        except ImageError:  # pixels in an array, or unreadable
            with suppress(ImageError):
                digest.update(source.read(i).tobytes())
    return digest.hexdigest()


def _stem(key: str) -> str:
    return str(PurePosixPath(key).with_suffix(""))
