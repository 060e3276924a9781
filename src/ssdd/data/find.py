"""Images among files: which files are images, where they are, and what is left out."""

import functools
import glob
import itertools
import logging
import multiprocessing
import os
import sys
import unicodedata
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .images import ImageError, format_of, printable, readable_formats, reason_of

_LOG = logging.getLogger(__name__)

_SUFFIXES = (
    ".jpg .jpeg .jpe .jif .jfif .mpo .png .apng .webp .gif .bmp .tif .tiff .ppm .pgm .pbm .pnm .pfm "
    ".jp2 .j2k .j2c .jpc .jpf .jpx .avif .avifs"
)
IMAGE_SUFFIXES = frozenset(_SUFFIXES.split())
"""The extensions, in lower case, by which an image is known."""

# With a package for Pillow these are read.
_PLUGINS = {"HEIF": ("pillow-heif", (".heic", ".heif", ".hif")), "JXL": ("pillow-jxl-plugin", (".jxl",))}
_OTHER_SUFFIXES = ".3fr .arw .cr2 .cr3 .dds .dng .eps .exr .hdr .icns .ico .jxr .nef .orf .pcx .psd .raf .rw2 .svg .tga"
MOST_NAMES = 1_000_000
"""Names that braces of one path may stand for."""

_NO_SUFFIX, BROKEN_LINK, LINK = "without extension", "broken link", "link"
_MOST_KINDS = 12


@dataclass(frozen=True)
class ImageFile:
    """An image to read, with the names by which it and what is made of it are known.

    Attributes:
        path: Where the file is.
        name: Its path in the given folder, with `/`, or the file's name; unique among those found together.
        output_stem: Relative path without suffix for outputs; unique, even where case does not count; no part
            of it is hidden, `..` or absolute. It may contain dots: append to it.
    """

    path: Path
    name: str
    output_stem: str


def expand(paths: Iterable[str | Path]) -> list[str]:
    """Return the paths that these stand for, in order.

    ``@FILE`` lists one a line, ``-`` or ``@-`` standard input; ``{000..123}`` and ``{a,b}`` are expanded, and so are
    patterns such as ``photos/**/*.png``, to sorted names. Raises `ImageError` for a list that is missing or empty, and
    for a pattern that nothing fits.
    """
    return [found for path in expand_lists(paths) for found in matching(path)]


def expand_lists(paths: Iterable[str | Path]) -> list[str]:
    """Return the same without expanding patterns."""
    return [each for path in paths for named in _listed(os.fspath(path)) for each in _braces(named)]


def _listed(path: str) -> list[str]:
    if path != "-" and not path.startswith("@"):
        return [path]
    name = path.removeprefix("@")
    try:
        lines = _standard_input() if name == "-" else Path(name).read_text("utf-8-sig", "surrogateescape")
    except (OSError, UnicodeDecodeError) as error:
        raise ImageError(
            f"{printable(name)}: expected a list of paths, one a line, found {reason_of(error)}"
        ) from error
    found = [line.strip() for line in lines.splitlines() if line.strip()]
    if not found:
        raise ImageError(f"{printable(name)}: expected a list of paths, one a line, found none")
    return found


@functools.cache
def _standard_input() -> str:
    """Return all of it, which can be read once only."""
    if sys.stdin is None:
        raise OSError("standard input, which is closed")
    return sys.stdin.read()


def _braces(path: str) -> list[str]:
    if "{" not in path or Path(path).exists():
        return [path]
    from braceexpand import braceexpand

    try:
        found = list(itertools.islice(braceexpand(path), MOST_NAMES + 1))
    except ValueError as error:
        raise ImageError(f"{printable(path)}: expected balanced braces, found others") from error
    if len(found) > MOST_NAMES:
        raise ImageError(f"{printable(path)}: expected at most {MOST_NAMES:,} names of one pattern, found more")
    return found


def matching(path: str) -> list[str]:
    """Return the sorted names that fit a pattern; a path that is none or is there, by itself. Raises ImageError."""
    if not glob.has_magic(path) or "://" in path or path.startswith("hf:") or os.path.lexists(path):
        return [path]
    if found := sorted(glob.glob(path, recursive=True)):
        return found
    raise ImageError(f"{printable(path)}: expected files that fit this pattern, found none")


def find_images(paths: Sequence[str | Path]) -> list[ImageFile]:
    """List the images that `paths` stand for (see `expand`), in their order, each file once.

    A file is taken whatever its extension. Of a folder, all that `images_in_folder` finds. Equal names from several
    places are told apart by their folder's name, then by a number; images that differ in their extension alone keep
    it in `output_stem`. A line of the log names what was left out. Raises `ImageError` for a path that does not exist,
    a folder that cannot be read, and folders in which all files were left out.
    """
    if isinstance(paths, (str, os.PathLike)):
        raise TypeError(f"expected a sequence of paths, found the single path {os.fspath(paths)!r}")
    found: dict[str, tuple[Path, str, str]] = {}  # absolute path: path, name, name after its folder's name
    left_out: Counter[str] = Counter()
    for given in map(Path, expand(paths)):
        if not os.path.lexists(given):
            label = printable(str(given))
            raise ImageError(f"{label}: expected an image or a folder, found nothing at this path")
        is_folder = os.path.isdir(given)
        folder = given if is_folder else given.parent
        absolute = os.path.abspath(folder)
        owner = os.path.basename(absolute) or "root"
        names, others = images_in_folder(given) if is_folder else ([given.name], Counter())
        left_out += others
        for name in names:
            found.setdefault(f"{absolute}/{name}", (folder / name, name, f"{owner}/{name}"))
    check_left_out(paths, len(found), left_out)
    files = list(found.values())
    count = Counter(name for _, name, _ in files)
    names = _numbered((long if count[name] > 1 else name for _, name, long in files), key=str)
    stems = _output_stems(names)
    return [ImageFile(path, name, stem) for (path, *_), name, stem in zip(files, names, stems, strict=True)]


def images_in_folder(folder: Path) -> tuple[list[str], Counter[str]]:
    """Return the images of a folder and its subfolders by their paths in it, sorted, and what else is there.

    Hidden files and folders are passed over. Links to folders are followed, each real folder once, under its own name
    if it lies in the folder itself. Raises `ImageError` for a folder that cannot be read.
    """
    names: list[str] = []
    left_out: Counter[str] = Counter()
    visited: set[tuple[int, int]] = set()
    folders, linked = [""], deque[str]()
    while folders or linked:
        inner = folders.pop() if folders else linked.popleft()
        try:
            state = os.stat(folder / inner)
            if (state.st_dev, state.st_ino) in visited:
                continue
            visited.add((state.st_dev, state.st_ino))
            with os.scandir(folder / inner) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            label = printable(str(error.filename or folder))
            raise ImageError(f"{label}: expected a readable folder, found {reason_of(error)}") from error
        for entry in entries:
            name = f"{inner}/{entry.name}" if inner else entry.name
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                (linked if entry.is_symlink() else folders).append(name)
            elif (kind := _kind_of_entry(entry)) is None:
                names.append(name)
            else:
                left_out[kind] += 1
    return sorted(names), left_out


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _kind_of_entry(entry: os.DirEntry[str]) -> str | None:
    def first_bytes() -> bytes:
        if not entry.is_file():  # a pipe would wait for its writer
            return b""
        with open(entry.path, "rb") as file:
            return file.read(16)

    if entry.is_symlink() and not os.path.exists(entry.path):
        return BROKEN_LINK
    return kind_left_out(entry.name, first_bytes)


def is_image_file(path: str) -> bool:
    """Return whether a path is that of a file that `images_in_folder` takes for an image."""

    def first_bytes() -> bytes:
        with open(path, "rb") as file:
            return file.read(16)

    return os.path.isfile(path) and kind_left_out(os.path.basename(path), first_bytes) is None


def kind_left_out(name: str, first_bytes: Callable[[], bytes]) -> str | None:
    """Return None for an image, and for another file what it is counted as: its extension.

    A file without an extension is an image if its ``first_bytes``, 16 of them, say so.
    """
    suffix = os.path.splitext(name)[1].lower()
    if suffix in _known_suffixes():
        return None
    if suffix:
        return printable(suffix)
    try:
        return None if format_of(first_bytes()) else _NO_SUFFIX
    except OSError:
        return _NO_SUFFIX


@functools.cache
def _known_suffixes() -> frozenset[str]:
    return IMAGE_SUFFIXES.union(*(suffixes for kind, (_, suffixes) in _PLUGINS.items() if kind in readable_formats()))


def describe_left_out(left_out: Counter[str]) -> str:
    """Return "3 other files left out: .heic 2 (read with the package pillow-heif), .txt 1", on one line."""
    parts = []
    for kind, count in left_out.most_common(_MOST_KINDS):
        package = next((package for package, suffixes in _PLUGINS.values() if kind in suffixes), None)
        parts.append(f"{kind} {count:,}" + (f" (read with the package {package})" if package else ""))
    if more := sum(left_out.values()) - sum(count for _, count in left_out.most_common(_MOST_KINDS)):
        parts.append(f"others {more:,}")
    total = sum(left_out.values())
    return f"{total:,} other file{'s' * (total != 1)} left out: {', '.join(parts)}"


def images_left_out(left_out: Counter[str]) -> int:
    """Return how many of these are images all the same, by their extensions, or links that lead nowhere."""
    images = {BROKEN_LINK, LINK, *_OTHER_SUFFIXES.split()}.union(*(suffixes for _, suffixes in _PLUGINS.values()))
    return sum(count for kind, count in left_out.items() if kind in images)


def check_left_out(paths: Iterable[str | Path], images: int, left_out: Counter[str]) -> None:
    """Log a line that names what was left out beside so many images. Raise `ImageError` if it was everything."""
    if not left_out.total():
        return
    places, line = ", ".join(printable(str(path)) for path in paths), describe_left_out(left_out)
    if not images:
        raise ImageError(f"expected images in {places}, found none; {line}")
    if multiprocessing.parent_process() is None and os.environ.get("RANK", "0") == "0":  # once, not by every process
        _LOG.warning("%s: %s", places, line)


def _same_file_key(name: str) -> str:
    """Return a key that is equal for names that some file system (macOS, Windows) takes for the same file."""
    return unicodedata.normalize("NFC", name).casefold()


def _output_stems(names: list[str]) -> list[str]:
    # Leading dots go: they hide a file, and `.` and `..` are made of nothing else.
    safe = ["/".join(part.lstrip(".") or "image" for part in name.split("/")) for name in names]
    split = [os.path.splitext(name) for name in safe]
    short = [stem if suffix.lower() in _known_suffixes() else stem + suffix for stem, suffix in split]
    count = Counter(map(_same_file_key, short))
    kept = (long if count[_same_file_key(s)] > 1 else s for s, long in zip(short, safe, strict=True))
    return _numbered(kept, key=_same_file_key)


def _numbered(names: Iterable[str], key: Callable[[str], str]) -> list[str]:
    taken: set[str] = set()
    last: Counter[str] = Counter()
    result = []
    for name in names:
        unique = name
        while key(unique) in taken:
            last[name] += 1
            stem, suffix = os.path.splitext(name)
            unique = f"{stem}-{last[name] + 1}{suffix}"
        taken.add(key(unique))
        result.append(unique)
    return result
