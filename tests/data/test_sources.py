"""Several sources as one, found by their paths."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssdd.data.images import ImageError
from ssdd.data.sources import ConcatSource, FolderSource, open_source
from tests.images import png, write_tar

Picture = Callable[..., np.ndarray]


class Numbers:
    """A source that answers with its own name and index."""

    def __init__(self, label: str, length: int) -> None:
        self.label, self.length = label, length

    def __len__(self) -> int:
        return self.length

    def name(self, index: int) -> str:
        assert 0 <= index < self.length, f"asked for {index} of {self.length}"
        return f"{self.label}{index}"

    def content(self, index: int) -> bytes:
        return self.name(index).encode()

    def read(self, index: int) -> np.ndarray:
        return np.array([ord(self.label), index])


def test_concatenation_is_indexed_through() -> None:
    source = ConcatSource([Numbers("a", 2), Numbers("b", 0), Numbers("c", 1), Numbers("d", 3)])
    names = [source.name(i) for i in range(len(source))]
    assert names == ["a0", "a1", "c0", "d0", "d1", "d2"], "an index leads to another source"
    read = [f"{chr(letter)}{index}" for letter, index in (source.read(i) for i in range(len(source)))]
    assert read == names, "the image is not the one of the name"
    assert [source.content(i).decode() for i in range(len(source))] == names, "the bytes are not those of the name"
    for index in (-1, 6):
        with pytest.raises(IndexError, match=f"expected an index from 0 to 5, found {index}"):
            source.read(index)
    assert len(ConcatSource([])) == 0, "no source at all has images"


def test_open_source(tmp_path: Path, picture: Picture) -> None:
    (tmp_path / "folder").mkdir()
    Image.fromarray(picture(8, 8, 1)).save(tmp_path / "folder" / "x.png")
    tar = write_tar(tmp_path / "shard-000", {"y.png": png(picture(8, 8, 2))})
    source = open_source([str(tar), tmp_path / "folder"])
    assert [len(source), source.name(1)] == [2, str(tmp_path / "folder" / "x.png")], "not in the order of the paths"
    assert np.array_equal(source.read(0), picture(8, 8, 2)), "a tar file without the suffix is not read"


def test_open_source_of_image_files(tmp_path: Path, picture: Picture) -> None:
    for i in range(3):
        Image.fromarray(picture(8, 8, i)).save(tmp_path / f"{i}.png")
    source = open_source([f"{tmp_path}/[12].png", tmp_path / "0.png"])
    assert [source.key(i) for i in range(len(source))] == ["1.png", "2.png", "0.png"]
    assert np.array_equal(source.read(1), picture(8, 8, 2))


def test_open_source_without_images(tmp_path: Path) -> None:
    empty = write_tar(tmp_path / "empty.tar", {"a.txt": b""})
    with pytest.raises(ImageError, match=r"nowhere: expected a folder or a tar file of images, or an image, found"):
        open_source([tmp_path, tmp_path / "nowhere"])
    for paths in ([tmp_path], [empty], []):
        with pytest.raises(ImageError, match=r"expected images in .+, found none"):
            open_source(paths)


def test_open_source_knows_the_kinds(tmp_path: Path, picture: Picture, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is a data set of Hugging Face is told by ``hf:``, or by the files that ``save_to_disk`` leaves."""
    opened: list[str] = []

    def stand_in(path: str) -> FolderSource:
        opened.append(path)
        return FolderSource(tmp_path / "folder")

    monkeypatch.setattr("ssdd.data.sources.HuggingFaceSource", stand_in)
    monkeypatch.chdir(tmp_path)
    for name, marks in (("folder", ()), ("one", ("dataset_info.json", "state.json")), ("two", ("dataset_dict.json",))):
        Path(name).mkdir()
        for mark in marks:
            (Path(name) / mark).touch()
    Image.fromarray(picture(8, 8)).save("folder/a.png")
    open_source(["hf:owner/name:test", "one", tmp_path / "two", "folder"])
    assert opened == ["hf:owner/name:test", "hf:./one", f"hf:{tmp_path / 'two'}"], "folders and data sets are confused"


def test_data_set_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"hf:owner/name:train: .*pip install 'ssdd\[data\]'"):
        open_source(["hf:owner/name"])
