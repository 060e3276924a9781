"""Image sources: folders and tar files by index; tar files are data, never instructions."""

import io
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from ssdd.data.images import ImageError
from ssdd.data.loader import CropStream
from ssdd.data.sources import ConcatSource, FolderSource, TarSource, open_source

Picture = Callable[..., np.ndarray]
Tree = Callable[[Path], dict[str, bytes]]


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


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


def local(source: TarSource) -> list[str]:
    """The names of the members, without the tar file's."""
    return [source.name(i).removeprefix(f"{source.path}:") for i in range(len(source))]


def test_tar_is_read_by_index(tmp_path: Path, picture: Picture) -> None:
    """Sorted by name whatever the order in the file; other files beside the images (labels) are passed over."""
    contents = {f"{i:03d}.png": png(picture(8 + i, 9, i)) for i in (2, 0, 1)}
    contents |= {"000.json": b"{}", "1.cls": b"7", "png": b"", "z.JPEG": png(picture(8, 20))}
    source = TarSource(write_tar(tmp_path / "a.tar", contents))
    assert local(source) == ["000.png", "001.png", "002.png", "z.JPEG"], "other members, or another order"
    for i in (2, 0, 1, 0):
        assert np.array_equal(source.read(i), picture(8 + i, 9, i)), f"index {i} is another image"


def test_tar_names_do_no_harm(tmp_path: Path, picture: Picture, tree: Tree) -> None:
    """Members that would leave the folder if they were extracted: they are read, and nothing is written."""
    names = ["../up.png", str(tmp_path / "absolute.png"), "a/../../b.png", "x" * 200 + ".png", "日本.png"]
    (tmp_path / "in").mkdir()
    tar = write_tar(tmp_path / "in" / "a.tar", {name: png(picture(8, 8, i)) for i, name in enumerate(names)})
    before = tree(tmp_path)
    source = TarSource(tar)
    assert sorted(local(source)) == sorted(names), "a regular image was left out"
    for i, name in enumerate(local(source)):
        assert np.array_equal(source.read(i), picture(8, 8, names.index(name))), f"{name} is another image"
    assert tree(tmp_path) == before, "a member was extracted"


def test_only_regular_members_are_listed(tmp_path: Path, picture: Picture) -> None:
    """Links (which could lead to any file of the machine), devices, pipes and folders called like images."""
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(picture(8, 8)))
    kinds = {"sym": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE, "char": tarfile.CHRTYPE, "block": tarfile.BLKTYPE}
    kinds |= {"fifo": tarfile.FIFOTYPE, "dir": tarfile.DIRTYPE}
    others = tuple(member(f"{name}.png", type=kind, linkname=str(secret)) for name, kind in kinds.items())
    source = TarSource(write_tar(tmp_path / "a.tar", {"good.png": png(picture(9, 9))}, others=others))
    assert local(source) == ["good.png"], "something that is no regular file is listed"


def test_hidden_members_are_skipped_as_in_a_folder(tmp_path: Path, picture: Picture) -> None:
    """macOS packs a hidden ``._photo.jpg``, which is no image, with every photograph."""
    good = png(picture(8, 8))
    names = ["./photos/a.png", "photos/._a.png", "._b.png", ".thumbs/c.png"]
    source = TarSource(write_tar(tmp_path / "a.tar", dict.fromkeys(names, good)))
    assert local(source) == ["./photos/a.png"], "hidden members count as photographs, or photographs as hidden"


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_compressed_tar_is_refused(tmp_path: Path, picture: Picture, mode: str) -> None:
    path = write_tar(tmp_path / "a.tar", {"a.png": png(picture(8, 8))}, mode)
    with pytest.raises(ImageError, match="expected an uncompressed tar file") as caught:
        TarSource(path)
    assert str(path) in str(caught.value), "the file is not named"
    assert "\n" not in str(caught.value), "not one line"


@pytest.mark.parametrize("content", [b"", b"no tar file at all" * 100, b"\0" * 100])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(ImageError, match=r"a\.tar: expected an uncompressed tar file"):
        TarSource(tmp_path / "a.tar")


@pytest.mark.parametrize("place", ["in the data", "in the padding", "in a header", "before a header", "at the end"])
def test_cut_tar_is_refused(tmp_path: Path, picture: Picture, place: str) -> None:
    """A download that stopped: better no training than one on a part of the data."""
    path = write_tar(tmp_path / "a.tar", {f"{i}.png": png(picture(40, 40, i)) for i in range(3)})
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
        end = tar.offset
    size = {
        "in the data": last.offset_data + last.size // 2,
        "in the padding": end - 1,
        "in a header": last.offset_data - 100,
        "before a header": last.offset,
        "at the end": end,
    }[place]
    os.truncate(path, size)
    with pytest.raises(ImageError, match=r"a\.tar: expected (a complete|an uncompressed) tar file, found"):
        TarSource(path)


def test_damaged_header_is_refused(tmp_path: Path, picture: Picture) -> None:
    """Without this the photographs behind the damage would be missing, and nobody would know."""
    path = write_tar(tmp_path / "a.tar", {f"{i}.png": png(picture(16, 16, i)) for i in range(3)})
    with tarfile.open(path) as tar:
        second = tar.getmembers()[1].offset
    with path.open("r+b") as file:
        file.seek(second + 10)
        file.write(b"\xff")
    with pytest.raises(ImageError, match=rf"expected a complete tar file, found it .*damaged at byte {second}"):
        TarSource(path)


def test_corrupt_member_is_named(tmp_path: Path, picture: Picture) -> None:
    """One bad photograph raises when it is read, not when the file is opened, and does not touch the others."""
    good = png(picture(16, 16))
    contents = {"a.png": good, "b.png": good[: len(good) // 2], "c.jpg": b"text", "d.png": b"", "e.png": good}
    source = TarSource(write_tar(tmp_path / "a.tar", contents))
    assert len(source) == 5, "a member is missing"
    for i, name in ((1, "b.png"), (2, "c.jpg"), (3, "d.png")):
        with pytest.raises(ImageError) as caught:
            source.read(i)
        assert str(caught.value).startswith(f"{tmp_path / 'a.tar'}:{name}: "), "the member is not named"
    for i in (0, 4):
        assert np.array_equal(source.read(i), picture(16, 16)), "a good member cannot be read any more"


def test_tar_shortened_after_opening(tmp_path: Path, picture: Picture) -> None:
    source = TarSource(write_tar(tmp_path / "a.tar", {"a.png": png(picture(16, 16))}))
    os.truncate(source.path, 600)
    with pytest.raises(ImageError):
        source.read(0)


def test_pickled_source_reads_the_same(tmp_path: Path, picture: Picture) -> None:
    """As sent to a worker that was spawned: the descriptor of this process means nothing there."""
    source = TarSource(write_tar(tmp_path / "a.tar", {f"{i}.png": png(picture(8, 8, i)) for i in range(3)}))
    source.read(0)
    copies = [pickle.loads(pickle.dumps(source)) for _ in range(2)]
    for i in (2, 0, 1):
        assert all(np.array_equal(c.read(i), picture(8, 8, i)) for c in (*copies, source)), "copies disturb each other"


def test_forked_workers_read_the_same(tmp_path: Path, picture: Picture) -> None:
    """Workers that inherit an open file do not move one another's place in it."""
    source = TarSource(write_tar(tmp_path / "a.tar", {f"{i:02d}.png": png(picture(16, 16, i)) for i in range(24)}))
    source.read(0)
    stream = CropStream(source, 16, 1.0, False, seed=0)
    loader = DataLoader(stream, sampler=list(range(24)), batch_size=1, num_workers=2)
    found = {batch[0].permute(1, 2, 0).numpy().tobytes() for batch in loader}
    assert found == {picture(16, 16, i).tobytes() for i in range(24)}, "a worker read other pixels"


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


class Numbers:
    """A source that answers with its own name and index."""

    def __init__(self, label: str, length: int) -> None:
        self.label, self.length = label, length

    def __len__(self) -> int:
        return self.length

    def name(self, index: int) -> str:
        assert 0 <= index < self.length, f"asked for {index} of {self.length}"
        return f"{self.label}{index}"

    def read(self, index: int) -> np.ndarray:
        return np.array([ord(self.label), index])


def test_concatenation_is_indexed_through() -> None:
    source = ConcatSource([Numbers("a", 2), Numbers("b", 0), Numbers("c", 1), Numbers("d", 3)])
    names = [source.name(i) for i in range(len(source))]
    assert names == ["a0", "a1", "c0", "d0", "d1", "d2"], "an index leads to another source"
    read = [f"{chr(letter)}{index}" for letter, index in (source.read(i) for i in range(len(source)))]
    assert read == names, "the image is not the one of the name"
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


def test_open_source_without_images(tmp_path: Path) -> None:
    empty = write_tar(tmp_path / "empty.tar", {"a.txt": b""})
    with pytest.raises(ImageError, match=r"nowhere: expected a folder or a tar file of images, found nothing there"):
        open_source([tmp_path, tmp_path / "nowhere"])
    for paths in ([tmp_path], [empty], []):
        with pytest.raises(ImageError, match=r"expected images in .+, found none"):
            open_source(paths)
