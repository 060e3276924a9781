"""Pictures and files of them, for tests of whatever reads images."""

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ssdd.data.images import read_image


def photo(height: int = 24, width: int = 36, seed: int = 0) -> np.ndarray:
    """Smooth colours with some noise: no two rows, columns or channels alike."""
    y, x = np.mgrid[0:height, 0:width]
    colours = np.stack([x * 200 / width, y * 200 / height, (x + 2 * y) % 200], axis=-1)
    noise = np.random.default_rng(seed).integers(0, 40, colours.shape)
    return (colours + noise).clip(0, 255).astype(np.uint8)


def encode(image: np.ndarray | Image.Image, kind: str, **options: Any) -> bytes:
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(image: np.ndarray) -> bytes:
    return encode(image, "PNG")


def read(content: bytes, **options: Any) -> np.ndarray:
    return read_image(io.BytesIO(content), **options)


def one_line(caught: pytest.ExceptionInfo[BaseException], *parts: object) -> None:
    """The error is one printable line that holds `parts`."""
    message = str(caught.value)
    assert message.isprintable(), f"the message is not one printable line: {message!r}"
    for part in parts:
        assert str(part) in message, f"{part!r} is missing from the message: {message}"


def member(name: str, **attributes: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for key, value in attributes.items():
        setattr(info, key, value)
    return info


def write_tar(
    path: Path, contents: dict[str, bytes], mode: str = "w", others: tuple[tarfile.TarInfo, ...] = ()
) -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for info in others:
            tar.addfile(info)
        for name, content in contents.items():
            tar.addfile(member(name, size=len(content)), io.BytesIO(content))
    return path
