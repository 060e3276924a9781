"""Tar files by index: read in place, whole or not at all; data, never instructions."""

import io
import itertools
import os
import pickle
import sys
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader

from ssdd.data.images import ImageError
from ssdd.data.loader import CropStream
from ssdd.data.tar import TarSource
from tests.images import member, png, write_tar

Picture = Callable[..., np.ndarray]
Tree = Callable[[Path], dict[str, bytes]]


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


@pytest.mark.parametrize(("mode", "kind"), [("w:gz", "gzip"), ("w:bz2", "bzip2"), ("w:xz", "xz")])
def test_compressed_tar_is_refused(tmp_path: Path, picture: Picture, mode: str, kind: str) -> None:
    path = write_tar(tmp_path / "a.tar", {"a.png": png(picture(8, 8))}, mode)
    with pytest.raises(ImageError, match="expected an uncompressed tar file") as caught:
        TarSource(path)
    assert str(path) in str(caught.value), "the file is not named"
    assert f"found {kind} compression: decompress it first" in str(caught.value), "the user does not learn what to do"
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


@pytest.mark.parametrize("damage", ["a hole", "two files"])
def test_more_behind_the_end_is_refused(tmp_path: Path, picture: Picture, damage: str) -> None:
    """A download with a block of zeros in it, and two files put together: photographs would be missing."""
    path = write_tar(tmp_path / "a.tar", {f"{i}.png": png(picture(16, 16, i)) for i in range(3)})
    content = path.read_bytes()
    with tarfile.open(path) as tar:
        second = tar.getmembers()[1].offset
    path.write_bytes(content + content if damage == "two files" else content[:second] + bytes(512) + content[second:])
    with pytest.raises(ImageError, match=r"a\.tar: expected nothing behind the end of the tar file at byte \d+, found"):
        TarSource(path)
    path.write_bytes(content + bytes(1 << 20))
    assert len(TarSource(path)) == 3


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


def tar_bytes(contents: dict[str, bytes], **options: object) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **options) as tar:  # type: ignore[call-overload]
        for name, content in contents.items():
            tar.addfile(member(name, size=len(content)), io.BytesIO(content))
    return buffer.getvalue()


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_dialect_is_read_as_tarfile_reads_it(tmp_path: Path, kind: int) -> None:
    """Long and foreign names, times with fractions, comments for all members, folders: the same names and bytes."""
    names = ["plain.png", "d/" * 60 + "long.png", "./dot.png", "a b.JPG", "é/日本.png", "empty.png", "x.txt"]
    if kind != tarfile.USTAR_FORMAT:
        names += ["y" * 150 + ".webp", "z/" + "w" * 300 + ".png"]
    with tarfile.open(tmp_path / "a.tar", "w", format=kind, pax_headers={"comment": "by hand"}) as tar:
        for i, name in enumerate(names):
            content = bytes([i]) * (0 if name.startswith("empty") else 500 + 100 * i)
            mtime = 1.5 if kind == tarfile.PAX_FORMAT and i % 2 else 7
            tar.addfile(member(name, size=len(content), mtime=mtime), io.BytesIO(content))
            tar.addfile(member(f"folder-{i}.png", type=tarfile.DIRTYPE))
    source = TarSource(tmp_path / "a.tar")
    with tarfile.open(tmp_path / "a.tar") as tar:
        expected = {m.name: tar.extractfile(m).read() for m in tar if m.isreg() and not m.name.endswith(".txt")}
    assert {n: source.content(i) for i, n in enumerate(local(source))} == expected, "other members, or other bytes"


def test_global_header_that_renames_all_members(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT, pax_headers={"path": "same.png"}) as tar:
        tar.addfile(member("a.png", size=3), io.BytesIO(b"one"))
        tar.addfile(member("b.png", size=3), io.BytesIO(b"two"))
    source = TarSource(tmp_path / "a.tar")
    assert local(source) == ["same.png", "same.png"], "not the names that tar itself would show"
    assert [source.content(i) for i in range(2)] == [b"one", b"two"], "members of one name are in another order"


def test_sparse_members_are_passed_over(tmp_path: Path, picture: Picture) -> None:
    """Their bytes in the file are not their content."""
    sparse = member("sparse.png", type=tarfile.GNUTYPE_SPARSE)
    path = write_tar(tmp_path / "a.tar", {"good.png": png(picture(9, 9))}, others=(sparse,))
    assert local(TarSource(path)) == ["good.png"], "a sparse member is listed, or hides the one behind it"


def header_with_size(field: bytes) -> bytes:
    """The header of a regular member ``a.png`` with these 12 bytes for its size, and the right checksum."""
    header = bytearray(member("a.png").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = field
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def test_size_in_binary(tmp_path: Path, picture: Picture) -> None:
    """As tar writes it from 8 GiB on."""
    content = png(picture(8, 8))
    header = header_with_size(b"\x80" + len(content).to_bytes(11, "big"))
    (tmp_path / "a.tar").write_bytes(header + content.ljust(-(-len(content) // 512) * 512, b"\0") + bytes(1024))
    assert TarSource(tmp_path / "a.tar").content(0) == content, "another size"


def test_negative_size_is_damage(tmp_path: Path) -> None:
    """It would send a naive reader back to the same header for ever."""
    (tmp_path / "a.tar").write_bytes(header_with_size(b"-0000001000\0") + bytes(2048))
    with pytest.raises(ImageError, match=r"a\.tar: expected a complete tar file"):
        TarSource(tmp_path / "a.tar")


def test_webdataset_shard(tmp_path: Path, picture: Picture) -> None:
    """key.jpg, key.cls, key.json side by side, each after a header with its time, as webdataset's writer does it."""
    with tarfile.open(tmp_path / "shard-000000.tar", "w") as tar:
        for i in range(3):
            sample = {"cls": b"7", "jpg": png(picture(8 + i, 9, i)), "json": b"{}"}
            for extension, content in sample.items():
                info = member(f"train/{i:06d}.{extension}", size=len(content), mtime=1.25e9 + 0.123)
                tar.addfile(info, io.BytesIO(content))
    source = TarSource(tmp_path / "shard-000000.tar")
    assert local(source) == [f"train/{i:06d}.jpg" for i in range(3)], "samples are missing, or labels are images"
    for i in range(3):
        assert np.array_equal(source.read(i), picture(8 + i, 9, i)), f"sample {i} is another image"


@pytest.fixture
def imagenet(tmp_path: Path, picture: Picture) -> Path:
    """In the layout of ImageNet's training images: a tar file for each class inside one tar file."""
    classes = {
        f"n0{c}.tar": tar_bytes({f"n0{c}_{i}.JPEG": png(picture(8 + c, 9 + i, c)) for i in range(3)}) for c in (2, 1)
    }
    return write_tar(tmp_path / "train.tar", classes)


def test_tar_of_tars(imagenet: Path, picture: Picture, tree: Tree) -> None:
    before = tree(imagenet.parent)
    source = TarSource(imagenet)
    expected = [f"n0{c}.tar/n0{c}_{i}.JPEG" for c, i in itertools.product((1, 2), range(3))]
    assert local(source) == expected, "images are missing, or in another order"
    for index, (c, i) in enumerate(itertools.product((1, 2), range(3))):
        assert np.array_equal(source.read(index), picture(8 + c, 9 + i, c)), f"{expected[index]} is another image"
    assert tree(imagenet.parent) == before, "something was unpacked"


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_inside_an_inner_tar(tmp_path: Path, kind: int) -> None:
    """Headers that are left to ``tarfile``, at places that are not the file's start."""
    names = {f"{letter * 120}.png": letter.encode() for letter in "ab"}
    path = write_tar(tmp_path / "o.tar", {"first.png": b"1", "in.tar": tar_bytes(names, format=kind), "z.png": b"2"})
    source = TarSource(path)
    found = {name: source.content(i) for i, name in enumerate(local(source))}
    assert found == {"first.png": b"1", "z.png": b"2"} | {f"in.tar/{n}": c for n, c in names.items()}, "lost its way"


@pytest.mark.parametrize("damage", ["cut", "no end", "a header", "too long a member", "not a tar", "empty", "gzip"])
def test_damaged_inner_tar_is_refused(tmp_path: Path, damage: str) -> None:
    """One line that names both files, and not a class that is silently shorter than it should be."""
    inner = tar_bytes({f"{i}.png": b"x" * 700 for i in range(3)})
    inner = {
        "cut": inner[:2000],
        "no end": inner[: 3 * 1536],
        "a header": inner[:1546] + b"\xff" + inner[1547:],
        "too long a member": tar_bytes({"a.png": b"x" * 5000})[:1024],
        "not a tar": b"text " * 200,
        "empty": b"",
        "gzip": b"\x1f\x8b" + bytes(1000),
    }[damage]
    path = write_tar(tmp_path / "o.tar", {"in.tar": inner, "z.tar": tar_bytes({"z.png": b"x"})})
    with pytest.raises(ImageError, match=r"o\.tar:in\.tar: expected (a complete|an uncompressed) tar file") as caught:
        TarSource(path)
    assert "\n" not in str(caught.value), "not one line"


def test_tars_two_levels_deep_are_refused(tmp_path: Path) -> None:
    """They are not read; the user is told instead of missing their images."""
    deep = tar_bytes({"b.tar": tar_bytes({"c.tar": tar_bytes({"d.png": b"x"})})})
    (tmp_path / "a.tar").write_bytes(deep)
    with pytest.raises(ImageError, match=r"a\.tar:b\.tar: expected images, found one more tar file, c\.tar"):
        TarSource(tmp_path / "a.tar")


@pytest.mark.parametrize("vanished", [False, True])
def test_file_changed_after_opening_is_an_image_error(tmp_path: Path, picture: Picture, vanished: bool) -> None:
    """So that the image is counted and named like other unreadable ones."""
    source = TarSource(write_tar(tmp_path / "a.tar", {"a.png": png(picture(16, 16))}))
    source.path.unlink() if vanished else os.truncate(source.path, 700)
    line = r"a readable tar file, found No such" if vanished else r"\d+ bytes at byte 512, found 188: the tar file"
    with pytest.raises(ImageError, match=rf"a\.tar:a\.png: expected {line}"):
        source.read(0)


def test_more_tars_than_open_files(tmp_path: Path) -> None:
    """A data set of thousands of shards, where a process may have a thousand files open, or fewer."""
    resource = pytest.importorskip("resource", reason="limits on open files are set otherwise here")
    sources = [TarSource(write_tar(tmp_path / f"{i}.tar", {"a.png": bytes([i])})) for i in range(200)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + 150, hard))
    try:
        found = [source.content(0) for source in sources]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert found == [bytes([i]) for i in range(200)], "a shard is read in place of another"


def test_tar_written_again_is_not_mixed_up(tmp_path: Path) -> None:
    """A source opened on the new file reads the new file, although the old one is still open."""
    path = write_tar(tmp_path / "a.tar", {"a.png": b"old"})
    assert TarSource(path).content(0) == b"old"
    path.unlink()
    write_tar(path, {"a.png": b"new"})
    assert TarSource(path).content(0) == b"new", "bytes of a file that is no longer there"


def test_index_is_small(tmp_path: Path) -> None:
    """It is pickled, or forked, into every worker: a million images must not be a million Python objects."""
    path = write_tar(tmp_path / "a.tar", {f"class/{i:04d}.png": b"" for i in range(2000)})
    size = len(pickle.dumps(TarSource(path)))
    assert size < 2000 * (14 + 24) + 2000, f"expected 24 bytes and the name for each image, found {size / 2000:.0f}"


def test_other_members_are_named(tmp_path: Path, picture: Picture) -> None:
    """Labels and formats that are not read, links too; an image without an extension is one."""
    contents = {"a.jpe": png(picture(8, 8)), "b": png(picture(8, 8)), "c": b"text", "d.heic": b"", "a.cls": b"1"}
    contents |= {"e.cls": b"1", ".hidden.heic": b"", "._a.jpe": b""}
    links = (member("f.png", type=tarfile.SYMTYPE, linkname="a.jpe"),)
    source = TarSource(write_tar(tmp_path / "a.tar", contents, others=links))
    assert local(source) == ["a.jpe", "b"], "an image is left out, or another file taken"
    assert source.left_out == {".cls": 2, ".heic": 1, "link": 1, "without extension": 1}, "not named, or miscounted"
    outer = TarSource(write_tar(tmp_path / "outer.tar", {"in.tar": (tmp_path / "a.tar").read_bytes()}))
    assert local(outer) == ["in.tar/a.jpe", "in.tar/b"], "of a tar file inside, others"
    assert outer.left_out == source.left_out, "of a tar file inside, miscounted"


def test_threads_read_their_own_files(tmp_path: Path) -> None:
    """More tar files than stay open: a file must not be closed, and its number given to another, while it is read."""
    sources = []
    for i in range(200):
        content = bytes([i]) * 200_000
        sources.append(TarSource(write_tar(tmp_path / f"{i}.tar", {"a.png": content})))
    wrong = []

    def read(seed: int) -> None:
        for i in np.random.default_rng(seed).integers(0, len(sources), 1500).tolist():
            try:
                content = sources[i].content(0)
            except ImageError as error:
                wrong.append(str(error))
                continue
            if content.count(i) != 200_000:
                wrong.append(f"{i}: the bytes of {content[0]}")

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert not wrong, f"{len(wrong)} reads went wrong, the first: {wrong[0]}"
