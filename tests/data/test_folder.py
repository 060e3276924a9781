"""Images in folders."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssdd.data.images import ImageError
from ssdd.data.sources import FolderSource

Picture = Callable[..., np.ndarray]


def test_folder(tmp_path: Path, picture: Picture) -> None:
    for i, name in enumerate(("b.png", "a/c.png", "a.webp", ".hidden.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(picture(8, 8, i)).save(tmp_path / name, lossless=True)
    (tmp_path / "notes.txt").touch()
    source = FolderSource(tmp_path)
    names = [source.name(i) for i in range(len(source))]
    assert names == [str(tmp_path / n) for n in ("a.webp", "a/c.png", "b.png")], "other files, or another order"
    for i, seed in enumerate((2, 1, 0)):
        assert np.array_equal(source.read(i), picture(8, 8, seed)), f"index {i} is another image"
    (tmp_path / "b.png").write_text("text")
    with pytest.raises(ImageError, match=r"b\.png"):
        source.read(2)


def test_content_is_the_file(tmp_path: Path, picture: Picture) -> None:
    Image.fromarray(picture(8, 8)).save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")
    source = pickle.loads(pickle.dumps(FolderSource(tmp_path)))
    assert source.content(0) == (tmp_path / "a.png").read_bytes(), "not the file's bytes"
    with pytest.raises(ImageError, match=r"b\.png: expected an image file"):
        source.content(1)  # a pipe: would wait for ever
    (tmp_path / "a.png").unlink()
    with pytest.raises(ImageError, match=r"a\.png: expected an image file"):
        source.content(0)


def test_names_that_are_no_text(tmp_path: Path) -> None:
    """From old archives: bytes that are not UTF-8."""
    name = os.fsdecode(b"caf\xe9.png")
    try:
        (tmp_path / name).write_bytes(b"content")
    except OSError:
        pytest.skip("this file system takes UTF-8 names alone")
    source = FolderSource(tmp_path)
    assert source.name(0) == str(tmp_path / name), "the name was changed"
    assert source.content(0) == b"content", "the file is not found by its name"
