"""The images of folders, single tar files and data sets, listed once: memory-mapped files in the output folder.

Every process opens them in milliseconds, however many images there are.
"""

import hashlib
import json
import os
import struct
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..data.find import check_left_out
from ..data.images import ImageError, ImageReadError, printable, read_header
from ..data.names import PackedNames
from .crops import CropProtocol
from .labels import NO_LABEL, LabelColumn
from .sources import LISTED, FoundImage, Place, Selection, listed_source

FOLDER = "images.index"
LIST = "list.json"
_IMAGE = np.dtype(
    [("source", "<u4"), ("label", "<i4"), ("offset", "<i8"), ("size", "<i8"), ("member", "<i8"), ("members", "<u2")]
)
"""A path's number, a class, a place in a tar file or a row of a data set, and which ``_MEMBER`` are of its sample."""
_MEMBER = np.dtype([("extension", "<u2"), ("offset", "<i8"), ("size", "<i8")])
_PACK_IMAGE, _PACK_MEMBER = struct.Struct("<IiqqqH").pack, struct.Struct("<Hqq").pack


@dataclass(frozen=True)
class ListInfo:
    """What is known of all images together.

    Attributes:
        images: Their number.
        classes: Names of the classes by number.
        names_sha256: Digest of their names and classes, in order.
        extensions: Those of members, by number.
        shapes: How many images are cropped to each of the protocol's shapes; they stand in this order.
        captions: Whether there are captions.
    """

    images: int
    classes: list[str]
    names_sha256: str
    extensions: list[str]
    shapes: list[int]
    captions: bool


def make_list(
    folder: Path, paths: Sequence[str], selection: Selection | None = None, protocol: CropProtocol | None = None
) -> ListInfo:
    """List images into a new folder.

    Args:
        folder: Is made.
        paths: What holds the images.
        selection: Which are taken. Its rule ``folder`` requires classes; ``auto`` gives some if there are at least two.
        protocol: With buckets the images are ordered by their shape, for which each is opened.

    Raises:
        ImageError: A path that cannot be read as images.
        ValueError: No name fits ``only``, or there are no classes though they are required.
    """
    selection = selection or Selection()
    labels, buckets = selection.labels, protocol if protocol is not None and protocol.bucket_step is not None else None
    names, captions, classes = PackedNames(), PackedNames(), LabelColumn()
    rows, members, extensions = bytearray(), bytearray(), dict[str, int]()
    shapes, order, left_out = array("i"), array("q"), Counter[str]()
    seen, first_name, is_annotated = 0, "", labels is None
    sources = [listed_source(path) for path in paths]
    for number, source in enumerate(sources):
        for image in source.images(left_out):
            seen, first_name = seen + 1, first_name or image.name
            if not selection.takes(image.name):
                continue
            is_annotated = is_annotated or (labels is not None and image.name in labels)
            image = selection.annotated(image)
            names.append(image.name)
            captions.append(image.caption or "")
            classes.add(image.label)
            place, member = image.place, len(members) // _MEMBER.itemsize
            rows += _PACK_IMAGE(number, 0, place.offset, place.size, member, len(image.members))
            for extension, place in image.members.items():
                members += _PACK_MEMBER(extensions.setdefault(extension, len(extensions)), place.offset, place.size)
            if buckets is not None:
                shapes.append(_shape(buckets, image))
        added = range(len(order), len(names))
        order.extend(sorted(added, key=names.encoded) if source.kind == "tar" else added)
    check_left_out(paths, seen, left_out)
    if not first_name:
        raise ImageError(f"expected images in {', '.join(map(printable, paths))}, found none")
    if not len(names):
        raise ValueError(
            f"expected names like {selection.only!r} (--only), found none; the first name is {first_name!r}"
        )
    if not is_annotated:
        raise ValueError(f"expected names like {first_name!r} in the file of labels, found none of the images in it")
    if selection.rule == "folder" and not classes.kinds:
        raise ValueError(f"expected images in folders that name their class in {', '.join(paths)}, found none")
    from_file = labels is not None and labels.has_labels
    stated = [] if from_file or selection.rule == "none" else [source.classes for source in sources]
    longest = max(stated, key=len, default=())  # whole numbers go up to the largest of a data set
    if any(list(order) != list(longest[: len(order)]) for order in stated):
        raise ValueError("expected data sets with the same classes, found different ones: tokenize each by itself")
    numbers, class_names = classes.numbered(longest if all(map(len, stated)) else ())
    if selection.rule == "auto" and classes.kinds < 2 and not from_file:
        numbers, class_names = np.full_like(numbers, NO_LABEL), []
    in_order, counts = np.asarray(order), [len(names)]
    if buckets is not None:
        shape_of = np.asarray(shapes)[in_order]
        in_order = in_order[np.argsort(shape_of, kind="stable")]
        counts = np.bincount(shape_of, minlength=len(buckets.shapes)).tolist()
    table = np.frombuffer(rows, _IMAGE)
    table["label"] = numbers
    digest, class_numbers = hashlib.sha256(), numbers.tolist()
    for i in in_order.tolist():
        digest.update(b"%s\0%d\0" % (names.encoded(i), class_numbers[i]))
    has_captions = labels is not None and labels.has_captions
    info = ListInfo(len(names), class_names, digest.hexdigest(), list(extensions), counts, has_captions)
    folder.mkdir(parents=True)
    np.save(folder / "images.npy", table[in_order])
    np.save(folder / "members.npy", np.frombuffer(members, _MEMBER))
    names.taken(in_order.tolist()).save(folder, "names")
    if info.captions:
        captions.taken(in_order.tolist()).save(folder, "captions")
    listed = {**asdict(info), "sources": [[source.kind, *_version_of(source.kind, source.path)] for source in sources]}
    (folder / LIST).write_text(json.dumps(listed, indent=1) + "\n")
    return info


def _version_of(kind: str, path: str) -> list[int]:
    """Return size and time of change of a tar file, whose members are known by their places; nothing of others."""
    if kind != "tar":
        return []
    state = os.stat(path)
    return [state.st_size, state.st_mtime_ns]


def _shape(protocol: CropProtocol, image: FoundImage) -> int:
    """Return the bucket of an image by its header; any for a broken one, which is skipped later.

    Raises ImageReadError where it cannot be read now.
    """
    try:
        header = read_header(image.source.content(image), name=str(image))
    except ImageReadError:
        raise
    except ImageError:
        return 0
    return protocol.shape_of(header.height, header.width)


class ImageList:
    """The images that ``make_list`` listed, opened by memory maps.

    Args:
        folder: The list.
        paths: Where the data lie now, as many as were listed.

    Attributes:
        info: What is known of all of them.
    """

    def __init__(self, folder: Path, paths: Sequence[str]) -> None:
        content = json.loads((folder / LIST).read_text())
        listed = content.pop("sources")
        self.info = ListInfo(**content)
        if len(listed) != len(paths):
            raise ValueError(f"expected the {len(listed)} paths whose images were listed, found {len(paths)}")
        for (kind, *version), path in zip(listed, paths, strict=True):
            if version and Path(path).is_file() and version != _version_of(kind, path):
                raise ValueError(
                    f"{printable(path)}: expected the tar file as it was listed, found a changed one: a command "
                    "without --part, or part 0, lists it again"
                )
        self._sources = [LISTED[kind](path) for (kind, *_), path in zip(listed, paths, strict=True)]
        self._rows, self._members = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("images", "members"))
        self._names = PackedNames.open(folder, "names")
        self._captions = PackedNames.open(folder, "captions") if self.info.captions else None

    def image(self, i: int) -> FoundImage:
        """Return an image; its class is a number."""
        row, extensions = self._rows[i], self.info.extensions
        first = int(row["member"])
        members = {
            extensions[member["extension"]]: Place(int(member["offset"]), int(member["size"]))
            for member in self._members[first : first + int(row["members"])]
        }
        return FoundImage(
            source=self._sources[row["source"]],
            name=self._names[i],
            label=None if row["label"] == NO_LABEL else int(row["label"]),
            place=Place(int(row["offset"]), int(row["size"])),
            members=members,
            caption=None if self._captions is None else self._captions[i] or None,
        )

    def ranges(self, shard_images: int) -> Iterator[tuple[int, int]]:
        """Yield [first, last) of each shard: so many images, all of one shape."""
        begin = 0
        for count in self.info.shapes:
            for first in range(begin, begin + count, shard_images):
                yield first, min(first + shard_images, begin + count)
            begin += count
