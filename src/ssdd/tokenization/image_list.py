"""The images of folders, single tar files and data sets, listed once: memory-mapped files in the output folder.

Every process opens them in milliseconds, however many images there are.
"""

import fnmatch
import hashlib
import io
import json
import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from ..data.find import check_left_out, images_in_folder
from ..data.folder import file_content
from ..data.hugging_face import HuggingFaceSource, is_saved_dataset
from ..data.images import ImageError, printable, read_image
from ..data.sources import ImageSource, open_source
from .crops import CropProtocol
from .format import Label
from .inputs import is_remote, remote_content
from .labels import NO_LABEL, LabelColumn, LabelFile
from .sources import CAPTION, Annotation, FoundImage, LabelRule, Place, file_version, folder_of, read_place, tar_images

FOLDER = "images.index"
_ROW = np.dtype(
    [("source", "<u4"), ("label", "<i4"), ("offset", "<i8"), ("size", "<i8"), ("member", "<i8"), ("members", "<u2")]
)
"""A path's number, a class, a place in a tar file or a row of a data set, and which ``_MEMBER`` are of its sample."""
_MEMBER = np.dtype([("extension", "<u2"), ("offset", "<i8"), ("size", "<i8")])
Kind = Literal["folder", "tar", "remote", "dataset"]


@dataclass(frozen=True)
class ListedSource:
    """A path that holds images."""

    kind: Kind
    path: str


@dataclass(frozen=True)
class ListInfo:
    """What is known of all images together.

    shapes: how many images are cropped to each of the protocol's shapes; they stand in this order.
    """

    images: int
    classes: list[str]
    names_sha256: str
    extensions: list[str]
    shapes: list[int]
    captions: bool


class Texts:
    """Strings one after the other, in few bytes each."""

    def __init__(self) -> None:
        self.bytes, self.ends = bytearray(), array("q", [0])

    def add(self, text: str) -> None:
        self.bytes += text.encode("utf-8", "surrogateescape")
        self.ends.append(len(self.bytes))

    def __getitem__(self, i: int) -> bytes:
        return bytes(self.bytes[self.ends[i] : self.ends[i + 1]])

    def taken(self, order: np.ndarray) -> "Texts":
        """Return the strings in another order."""
        found = Texts()
        for i in order.tolist():
            found.bytes += self[i]
            found.ends.append(len(found.bytes))
        return found

    def save(self, folder: Path, name: str) -> None:
        np.save(folder / f"{name}.npy", np.frombuffer(self.bytes, np.uint8))
        np.save(folder / f"{name}-ends.npy", np.asarray(self.ends))


def make_list(
    folder: Path,
    paths: Sequence[str],
    only: str | None = None,
    rule: LabelRule = "auto",
    labels: LabelFile | None = None,
    protocol: CropProtocol | None = None,
) -> ListInfo:
    """List images into a new folder.

    Args:
        only: a pattern like ``caltech101/*`` for names; ``*`` stands for slashes as well.
        rule: ``folder``: classes are required; ``none``: not wanted; ``auto``: if there are at least two.
        protocol: with buckets the images are ordered by their shape, for which each is opened.

    Raises:
        ImageError: a path that cannot be read as images.
        ValueError: no name fits ``only``, or there are no classes though they are required.
    """
    names, captions, classes, fixed = Texts(), Texts(), LabelColumn(), list[list[str]]()
    columns = {name: array("q") for name in ("source", "offset", "size", "member", "members")}
    members = {name: array("q") for name in ("extension", "offset", "size")}
    extensions: dict[str, int] = {}
    sources, shapes, first_name, order = list[ListedSource](), array("i"), None, array("q")
    left_out: Counter[str] = Counter()
    noted = 0
    buckets = protocol is not None and protocol.bucket_step is not None
    for number, path in enumerate(paths):
        opened = _open(path, left_out)
        sources.append(opened.source)
        fixed.append(opened.classes)
        for image in opened.images:
            first_name = first_name or image.name
            if only is not None and not fnmatch.fnmatchcase(image.name, only):
                continue
            note = Annotation(None, None) if labels is None else labels[image.name]
            noted += note != Annotation(None, None)
            names.add(image.name)
            captions.add(note.caption or "")
            label = note.label if labels is not None and labels.has_labels else image.label
            classes.add(None if rule == "none" else label)
            row = number, image.place.offset, image.place.size, len(members["size"]), len(image.members)
            for column, value in zip(columns.values(), row, strict=True):
                column.append(value)
            for extension, place in image.members.items():
                member = extensions.setdefault(extension, len(extensions)), place.offset, place.size
                for column, value in zip(members.values(), member, strict=True):
                    column.append(value)
            if buckets and protocol is not None:
                shapes.append(_shape(protocol, opened.read, image))
        added = range(len(order), len(columns["size"]))
        order.extend(sorted(added, key=names.__getitem__) if opened.source.kind == "tar" else added)
    check_left_out(paths, len(names.ends) - 1, left_out)
    if not len(names.ends) - 1:
        if first_name is None:
            raise ImageError(f"expected images in {', '.join(map(printable, paths))}, found none")
        raise ValueError(f"expected names like {only!r} (--only), found none; the first name is {first_name!r}")
    if labels is not None and not noted:
        raise ValueError(f"expected names like {first_name!r} in the file of labels, found none of the images in it")
    if rule == "folder" and not classes.kinds:
        raise ValueError(f"expected images in folders that name their class in {', '.join(paths)}, found none")
    longest = max(fixed, key=len)  # whole numbers go up to the largest that a data set has
    if any(known != longest[: len(known)] for known in fixed):
        raise ValueError("expected data sets with the same classes, found different ones: tokenize each by itself")
    numbers, names_of_classes = classes.numbered(longest if all(fixed) else ())
    if rule == "auto" and classes.kinds < 2 and (labels is None or not labels.has_labels):
        numbers, names_of_classes = np.full_like(numbers, NO_LABEL), []
    table = np.zeros(len(numbers), _ROW)
    for name, column in columns.items():
        table[name] = column
    table["label"] = numbers
    new_order, counts = np.asarray(order), [len(table)]
    if buckets and protocol is not None:
        of_each = np.asarray(shapes)[new_order]
        new_order = new_order[np.argsort(of_each, kind="stable")]
        counts = np.bincount(of_each, minlength=len(protocol.shapes)).tolist()
    table, names, captions = table[new_order], names.taken(new_order), captions.taken(new_order)
    info = ListInfo(
        images=len(table),
        classes=names_of_classes,
        names_sha256=_digest(names, table["label"]),
        extensions=list(extensions),
        shapes=counts,
        captions=labels is not None and labels.has_captions,
    )
    folder.mkdir(parents=True)
    np.save(folder / "images.npy", table)
    extra = np.zeros(len(members["size"]), _MEMBER)
    for name, column in members.items():
        extra[name] = column
    np.save(folder / "members.npy", extra)
    names.save(folder, "names")
    if info.captions:
        captions.save(folder, "captions")
    written = {**asdict(info), "sources": [[s.kind, *_version_of(s)] for s in sources]}
    (folder / "list.json").write_text(json.dumps(written, indent=1) + "\n")
    return info


def _digest(names: Texts, labels: np.ndarray) -> str:
    digest = hashlib.sha256()
    for i, label in enumerate(labels.tolist()):
        digest.update(b"%s\0%d\0" % (names[i], label))
    return digest.hexdigest()


@dataclass(frozen=True)
class _Opened:
    """A path while its images are listed: them, the classes that it fixes, and what reads the file of one of them."""

    source: ListedSource
    images: Iterable[FoundImage]
    read: Callable[[FoundImage], bytes]
    classes: list[str] = field(default_factory=list)


def _open(path: str, left_out: Counter[str]) -> _Opened:
    """Open a path; ``left_out`` counts files that are no images."""
    if is_remote(path):
        name = "/".join(path.split("://", 1)[1].split("/")[-2:])  # with the folder that may name its class
        image = FoundImage(name, folder_of(name) or None)
        return _Opened(ListedSource("remote", path), [image], lambda _: remote_content(path))
    if Path(path).is_file() and not path.endswith(".npz"):
        tar, version = Path(path), file_version(Path(path))
        images = tar_images(tar, printable(path), left_out)
        return _Opened(ListedSource("tar", path), images, lambda i: read_place(tar, version, i.place, i.name))
    if Path(path).is_dir() and not is_saved_dataset(Path(path)):
        names, others = images_in_folder(Path(path))
        left_out.update(others)
        prefix, top = _prefix(path), Path(path).resolve().name
        listed = (FoundImage(name, folder_of(name) or top or None) for name in names)
        return _Opened(ListedSource("folder", path), listed, lambda image: file_content(prefix + image.name))
    data = open_source([path]).sources[0]
    source = ListedSource("dataset", path)
    return _Opened(source, _rows(data), lambda image: data.content(image.place.offset), _fixed(data))


def _version_of(source: ListedSource) -> list[int]:
    """Size and time of change of a tar file, whose members are known by their places; nothing of others."""
    if source.kind != "tar":
        return []
    found = Path(source.path).stat()
    return [found.st_size, found.st_mtime_ns]


def _prefix(path: str) -> str:
    return "" if path == "." else f"{Path(path)}".rstrip("/") + "/"  # the current folder's names have no such prefix


def _rows(source: ImageSource) -> Iterator[FoundImage]:
    classes: Sequence[Label] = source.classes() if isinstance(source, HuggingFaceSource) else [None] * len(source)
    return (FoundImage(source.name(i).rsplit("/", 1)[-1], classes[i], Place(i, 0)) for i in range(len(source)))


def _fixed(source: ImageSource) -> list[str]:
    return source.class_names() if isinstance(source, HuggingFaceSource) else []


def _shape(protocol: CropProtocol, content: Callable[[FoundImage], bytes], image: FoundImage) -> int:
    """The bucket of an image by its header; any for one that cannot be read, which is skipped later."""
    try:
        with Image.open(io.BytesIO(content(image))) as opened:
            turned = opened.getexif().get(0x0112, 1) >= 5
            width, height = opened.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return 0
    return protocol.shape_of(*((width, height) if turned else (height, width)))


class ImageList:
    """The images that ``make_list`` listed, opened by memory maps.

    Args:
        paths: where the data lie now, as many as were listed.

    Attributes:
        info: of all of them.
    """

    def __init__(self, folder: Path, paths: Sequence[str]) -> None:
        content = json.loads((folder / "list.json").read_text())
        listed = content.pop("sources")
        self.info = ListInfo(**content)
        if len(listed) != len(paths):
            raise ValueError(f"expected the {len(listed)} paths whose images were listed, found {len(paths)}")
        self.sources = [ListedSource(kind, path) for (kind, *_), path in zip(listed, paths, strict=True)]
        for source, (_, *version) in zip(self.sources, listed, strict=True):
            if version and Path(source.path).is_file() and version != _version_of(source):
                raise ValueError(
                    f"{printable(source.path)}: expected the tar file as it was listed, found a changed one: a command "
                    "without --part, or part 0, lists it again"
                )
        self.rows = np.load(folder / "images.npy", mmap_mode="r")
        self.members = np.load(folder / "members.npy", mmap_mode="r")
        self._texts = {
            name: (np.load(folder / f"{name}.npy", mmap_mode="r"), np.load(folder / f"{name}-ends.npy", mmap_mode="r"))
            for name in ("names", *(["captions"] if self.info.captions else []))
        }
        self._opened: dict[int, ImageSource] = {}

    def text(self, kind: str, i: int) -> str:
        """Return the name or the caption of an image."""
        content, ends = self._texts[kind]
        return content[ends[i] : ends[i + 1]].tobytes().decode("utf-8", "surrogateescape")

    def ranges(self, shard_images: int) -> Iterator[tuple[int, int]]:
        """Return [first, last) of each shard: so many images, all of one shape."""
        begin = 0
        for count in self.info.shapes:
            for first in range(begin, begin + count, shard_images):
                yield first, min(first + shard_images, begin + count)
            begin += count

    def source(self, i: int) -> ListedSource:
        return self.sources[int(self.rows[i]["source"])]

    def dataset(self, i: int) -> ImageSource:
        """Return the open data set that holds an image."""
        number = int(self.rows[i]["source"])
        if number not in self._opened:
            self._opened[number] = open_source([self.sources[number].path]).sources[0]
        return self._opened[number]


class ListedImages:
    """See ``ShardImages``: a part [first, last) of a list."""

    def __init__(self, images: ImageList, first: int, last: int) -> None:
        self.left_out: Counter[str] = Counter()  # named when the list was made
        self.input_bytes: int | None = None
        self._list, self._first, self._last = images, first, last

    def __len__(self) -> int:
        return self._last - self._first

    def name(self, i: int) -> str:
        return self._list.text("names", self._first + i)

    def place(self, i: int) -> str:
        source, name = self._list.source(self._first + i), self.name(i)
        if source.kind == "folder":
            return _prefix(source.path) + name
        if source.kind == "tar":
            return f"{source.path}:{name}"
        return source.path if source.kind == "remote" else self._list.dataset(self._first + i).name(self._row(i).offset)

    def label(self, i: int) -> Label:
        label = int(self._list.rows[self._first + i]["label"])
        return None if label == NO_LABEL else label

    def read(self, i: int) -> np.ndarray:
        source, place = self._list.source(self._first + i), self.place(i)
        if source.kind == "folder":
            return read_image(place)
        if source.kind == "dataset":
            return self._list.dataset(self._first + i).read(self._row(i).offset)
        content = remote_content(source.path) if source.kind == "remote" else self._in_tar(source, self._row(i), place)
        return read_image(io.BytesIO(content), name=place)

    def members(self, i: int) -> dict[str, bytes]:
        k = self._first + i
        first, count = int(self._list.rows[k]["member"]), int(self._list.rows[k]["members"])
        found: dict[str, bytes] = {}
        for row in self._list.members[first : first + count]:
            place = Place(int(row["offset"]), int(row["size"]))
            found[self._list.info.extensions[row["extension"]]] = self._in_tar(
                self._list.source(k), place, self.place(i)
            )
        if self._list.info.captions and (caption := self._list.text("captions", k)):
            found[CAPTION] = caption.encode()
        return found

    def is_gone(self, i: int) -> bool:
        source = self._list.source(self._first + i)
        path = self.place(i) if source.kind == "folder" else source.path
        return source.kind in ("folder", "tar") and not os.path.lexists(path)

    def _row(self, i: int) -> Place:
        row = self._list.rows[self._first + i]
        return Place(int(row["offset"]), int(row["size"]))

    def _in_tar(self, source: ListedSource, place: Place, name: str) -> bytes:
        path = Path(source.path)
        return read_place(path, file_version(path), place, name)
