"""Image files to pixels, uint8 (H, W, 3), and back.

Every image enters through `read_image`, which either returns pixels that all come from the file or raises
`ImageError` with one line that a user can act on.
"""

import errno
import functools
import importlib
import io
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import numpy as np
from PIL import Image
from PIL import ImageFile as PilFile
from PIL.PngImagePlugin import PngInfo
from PIL.TiffImagePlugin import TiffImageFile

from ..runtime.files import atomic_path
from .colour import to_srgb
from .formats import UnfitFileError
from .formats.jpeg import load_jpeg
from .formats.png import picture_of
from .formats.tiff import levels_of, open_tiff
from .pixels import Pixels, check_pixels


def _limit() -> int:
    text = os.environ.get("SSDD_MAX_PIXELS", str(1 << 28))
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"SSDD_MAX_PIXELS: expected a number of pixels, found {text!r}")
    return int(text)


MAX_PIXELS = _limit()
"""The limit on width x height of all commands: beyond it a file is taken for a decompression bomb.

It is that of ``ssdd --max-pixels`` or the environment's ``SSDD_MAX_PIXELS``, by default 2^28, 16384 x 16384.
"""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "HEIF", "JXL")
"""What `read_image` decodes: raster formats with a signature. Nothing here runs a program (as EPS does).

Pillow needs the packages pillow-heif and pillow-jxl-plugin for the last two.
"""

COLOUR = "RGB, upright by EXIF, transparency on white, colour profiles converted to sRGB (torchvision ignores them)"
"""What becomes of the colours of every image, for reports."""

_MADE_BY = "ssdd"  # name of the text in a PNG file
_PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"

# Pillow decodes without complaint a file cut between two tiles. Compressed data cannot hold this mark.
_END_OF_CODESTREAM = b"\xff\xd9"

# suffix: Pillow's name, its options, the longest side that the format (as its library has it) can hold
_WRITERS: dict[str, tuple[str, dict[str, Any], int]] = {
    ".png": ("PNG", {}, 2**31 - 1),
    ".jpg": ("JPEG", {"quality": 95}, 65500),
    ".jpeg": ("JPEG", {"quality": 95}, 65500),
    ".webp": ("WEBP", {"lossless": True}, 16383),
}

_UPRIGHT: dict[int, Callable[[Pixels], Pixels]] = {  # EXIF orientation: the way back to upright
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a[::-1].transpose(1, 0, 2),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: a.transpose(1, 0, 2)[::-1],
}


Decoded = TypeVar("Decoded")

# What is wrong with a path itself, and so each time that it is read.
_PATH_ERRORS = (errno.ENOENT, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR)


class ImageHeader(NamedTuple):
    """What is known of an image before its pixels are decoded: Pillow's names, and its sides as a viewer shows it."""

    kind: str
    mode: str
    height: int
    width: int


class ImageError(ValueError):
    """An image that cannot be used: one line with the file, what was expected and what was found."""


class ImageReadError(ImageError):
    """The file system did not give the bytes of an image, which may be a good one: another attempt may read it."""


def read_failure(error: Exception, message: str) -> ImageError:
    """Return ImageReadError for an error of the file system that may pass, ImageError for what stays as it is."""
    passes = isinstance(error, OSError) and error.errno is not None and error.errno not in _PATH_ERRORS
    return (ImageReadError if passes else ImageError)(message)


def read_image(
    source: str | os.PathLike[str] | BinaryIO, *, name: str | None = None, max_pixels: int = MAX_PIXELS
) -> Pixels:
    """Read an image as uint8 RGB, shape (height, width, 3), upright.

    The EXIF orientation is applied (unreadable EXIF counts as none), transparency is composited on white, and
    of an animation or several pages the first is taken. 16-bit gray is scaled from [0, 65535] with rounding;
    16-bit colour keeps its high bytes; float gray is taken as [0, 1] where its maximum is at most 1, else as
    [0, 255]. Colours are those of the embedded profile, converted to sRGB, see `ssdd.data.colour.to_srgb`.

    Args:
        source: A path, or a binary stream, which is read from its start and not closed.
        name: What errors call the image; by default the path, or the stream's own name.
        max_pixels: The limit on width x height, checked before any pixel is decoded. Pillow's own limit,
            `2 * PIL.Image.MAX_IMAGE_PIXELS`, holds as well for GIF, TIFF and WebP, outside the commands.

    Raises:
        ImageError: No regular readable file; not an image in one of `FORMATS`; damaged or truncated such that
            pixels of the first frame are missing; a kind of TIFF file that Pillow gets wrong; too many pixels;
            gray levels outside their range. It is an `ImageReadError` where the file system is at fault, not the
            file.
    """
    if isinstance(source, (str, os.PathLike)):
        label = printable(name or os.fspath(source))
        with _open_file(source, label) as stream:
            return _decode_or_refuse(stream, label, partial(_decode, max_pixels=max_pixels))
    label = printable(name or str(getattr(source, "name", "<stream>")))
    return _decode_or_refuse(source, label, partial(_decode, max_pixels=max_pixels))


def read_header(content: bytes, *, name: str, max_pixels: int = MAX_PIXELS) -> ImageHeader:
    """Return what the header of an encoded image says; `read_image` takes it in the same way. Raises `ImageError`."""

    def header(stream: BinaryIO, kind: str, label: str) -> ImageHeader:
        image = _opened(stream, kind, label, max_pixels).image
        width, height = image.size if _orientation(image) < 5 else image.size[::-1]
        return ImageHeader(kind, image.mode, height, width)

    return _decode_or_refuse(io.BytesIO(content), printable(name), header)


def use_own_limit() -> None:
    """Lift Pillow's limit on pixels in this process: `read_image` has its own, of which this would be another."""
    Image.MAX_IMAGE_PIXELS = None


def pil_to_image(image: Image.Image, *, name: str = "<image>") -> Pixels:
    """Convert a Pillow image of any mode and profile to uint8 sRGB, shape (height, width, 3), as `read_image` does.

    The EXIF orientation is left alone. Raises `ImageError` for gray levels outside their range.
    """
    pixels, profile = _rgb(image, name), image.info.get("icc_profile")
    return to_srgb(pixels, image, profile) if profile else pixels


def _rgb(image: Image.Image, name: str) -> Pixels:
    if image.mode == "F" or image.mode.startswith("I"):
        gray = _float_levels(image, name) if image.mode == "F" else _integer_levels(image, name)
        return np.repeat(gray[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.new("RGB", image.size, "white")
        image.paste(rgba, mask=rgba)
    # `.copy()` makes it writable; `np.array` would ask Pillow for the bytes several times.
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB")).copy()


def save_image(
    path: str | os.PathLike[str], image: Pixels, *, overwrite: bool = False, made_by: str | None = None
) -> None:
    """Save pixels, uint8 (H, W, 3), atomically: `.png`, `.jpg` or `.jpeg` (quality 95), `.webp` (lossless).

    A PNG file keeps `made_by` as a text, for `read_made_by`.

    Raises `ImageError` for another suffix or a side that the format cannot hold, `ValueError` for another shape or
    type, `ssdd.runtime.files.OutputExists` where the file exists and `overwrite` is false.
    """
    label, suffix = printable(os.fspath(path)), Path(path).suffix.lower()
    if suffix not in _WRITERS:
        raise ImageError(f"{label}: expected a name in {', '.join(_WRITERS)}, found {suffix or 'no suffix'}")
    check_pixels(image)
    kind, options, longest = _WRITERS[suffix]
    if max(image.shape) > longest:
        raise ImageError(f"{label}: expected sides up to {longest} for {kind}, found {max(image.shape)}")
    if made_by is not None:
        text = PngInfo()
        text.add_itxt(_MADE_BY, made_by)
        options = {**options, "pnginfo": text}
    encoded = io.BytesIO()  # a file of Pillow's own would be cut off without an error where the disk is full
    Image.fromarray(image).save(encoded, format=kind, **options)
    with atomic_path(path, overwrite) as temporary:
        temporary.write_bytes(encoded.getvalue())


def read_made_by(path: str | os.PathLike[str]) -> str | None:
    """Return what `save_image` was told of who made a PNG file; None for any other file, and for one that was cut."""
    try:
        with _open_file(path, "") as file:
            file.seek(-len(_PNG_END), os.SEEK_END)
            if file.read() != _PNG_END:
                return None
            file.seek(0)
            with Image.open(file, formats=["PNG"]) as image:  # its texts are before its pixels, which are not read
                found = image.info.get(_MADE_BY)
    except Exception:  # whatever Pillow raises for a hostile file, which is none of ours
        return None
    return None if found is None else str(found)


def file_content(path: str) -> bytes:
    """Return the bytes of a regular file: no pipe, which would wait for its writer. Raises ImageError."""
    label = printable(path)
    with _open_file(path, label) as file:
        try:
            return file.read()
        except OSError as error:
            raise read_failure(error, f"{label}: expected a readable image file, found {reason_of(error)}") from error


def _open_file(path: str | os.PathLike[str], label: str) -> BinaryIO:
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode):
            return open(path, "rb")
    except FileNotFoundError as error:
        raise ImageError(f"{label}: expected an image file, found nothing at this path") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        raise read_failure(error, f"{label}: expected a readable image file, found {reason_of(error)}") from error
    # Not even opened: a pipe would wait for its writer, and a device may act.
    found = "a folder" if stat.S_ISDIR(mode) else "a device, pipe or socket"
    raise ImageError(f"{label}: expected an image file, found {found}")


def _decode_or_refuse(stream: BinaryIO, label: str, decode: Callable[[BinaryIO, str, str], Decoded]) -> Decoded:
    """Return what ``decode`` makes of the stream, its format and the label. Raises `ImageError`."""
    try:
        stream = stream if stream.seekable() else io.BytesIO(stream.read())
        stream.seek(0)
        prefix = stream.read(16)
        if not prefix:
            raise ImageError(f"{label}: expected an image, found an empty file")
        kind = format_of(prefix)
        if kind is None:
            raise ImageError(f"{label}: expected an image ({', '.join(readable_formats())}), found bytes {prefix!r}")
        return decode(stream, kind, label)
    except ImageError:
        raise
    except UnfitFileError as error:
        raise ImageError(f"{label}: {printable(str(error))}") from error
    except Exception as error:  # hostile bytes make the decoders raise nearly everything
        found = f"one that does not decode ({reason_of(error)})"
        raise read_failure(error, f"{label}: expected a complete image, found {found}") from error


def _decode(stream: BinaryIO, kind: str, label: str, max_pixels: int) -> Pixels:
    image = _loaded(_opened(stream, kind, label, max_pixels), kind, label)
    upright = _UPRIGHT[_orientation(image)]
    return np.ascontiguousarray(upright(pil_to_image(image, name=label)))


class _Opened(NamedTuple):
    image: PilFile.ImageFile
    content: bytes  # of some formats
    profile: bytes | None  # of a PNG file


def _opened(stream: BinaryIO, kind: str, label: str, max_pixels: int) -> _Opened:
    stream.seek(0)
    content, profile = b"", None
    if kind in ("PNG", "JPEG", "JPEG2000"):
        content = stream.read()
        stream.seek(0)
    if kind == "PNG":
        content, profile = picture_of(content)
        stream = io.BytesIO(content)
    # Not `Image.open`: its limit on pixels is a global, half of it only a warning, and not ours.
    image: PilFile.ImageFile = open_tiff(stream) if kind == "TIFF" else Image.OPEN[kind][0](stream, "")
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(f"{label}: expected at most {max_pixels} pixels, found {width} x {height}")
    return _Opened(image, content, profile)


def _loaded(opened: _Opened, kind: str, label: str) -> Image.Image:
    image, content, profile = opened
    raw_mode = image.tile[0][3] if image.tile else None
    if kind == "JPEG":
        load_jpeg(image, content)
    else:
        image.load()
    if kind == "JPEG2000" and _END_OF_CODESTREAM not in content:
        raise ImageError(f"{label}: expected a complete image, found a JPEG 2000 file without its end")
    if kind == "PNG":
        _scale_colour_key(image, raw_mode)
        image.info["icc_profile"] = profile
    if kind == "BMP" and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0):
        image.putalpha(255)  # as viewers do: the fourth byte of many writers means nothing
    return levels_of(image) if isinstance(image, TiffImageFile) else image


def readable_formats() -> tuple[str, ...]:
    """Return those of `FORMATS` that Pillow reads here, with its plugins."""
    _load_plugins()
    return tuple(kind for kind in FORMATS if kind in Image.OPEN)


@functools.cache
def _load_plugins() -> None:
    Image.init()
    with suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()
    with suppress(ImportError):
        importlib.import_module("pillow_jxl")


def format_of(prefix: bytes) -> str | None:
    """Return the one of `FORMATS` that a file with these 16 first bytes is in; None for anything else."""
    for kind in readable_formats():
        accept = Image.OPEN[kind][1]
        if accept is not None and accept(prefix) is True:  # a string says why this build cannot decode it
            return kind
    return None


def _scale_colour_key(image: PilFile.ImageFile, raw_mode: object) -> None:
    """Bring a PNG's transparent colour to the 8 bits of its pixels, as Pillow does for other depths only."""
    key = image.info.get("transparency")
    if raw_mode in ("L;2", "L;4") and isinstance(key, int):
        image.info["transparency"] = key * (85 if raw_mode == "L;2" else 17)
    elif raw_mode == "RGB;16B" and isinstance(key, tuple):
        image.info["transparency"] = tuple(level >> 8 for level in key)


def _orientation(image: Image.Image) -> int:
    """Return one of ``_UPRIGHT``."""
    try:
        found = int(image.getexif().get(0x0112, 1))
    except Exception:  # damaged metadata is common, and no reason to lose a photograph
        return 1
    return found if found in _UPRIGHT else 1


def _integer_levels(image: Image.Image, label: str) -> Pixels:
    raw = np.asarray(image).astype(np.int32)
    low, high = int(raw.min()), int(raw.max())
    if low < 0 or high > 65535:
        raise ImageError(f"{label}: expected gray levels in [0, 65535], found {low} to {high}")
    levels = ((raw + 128) // 257).astype(np.uint8)  # 65535 = 255 * 257
    if isinstance(key := image.info.get("transparency"), int):
        levels[raw == key] = 255
    return levels


def _float_levels(image: Image.Image, label: str) -> Pixels:
    raw = np.asarray(image)
    low, high = float(raw.min()), float(raw.max())  # NaN anywhere makes both NaN
    scale = 255.0 if high <= 1.0 else 1.0
    if not (low * scale >= -0.5 and high * scale <= 255.5):
        raise ImageError(f"{label}: expected float levels in [0, 1] or [0, 255], found {low:g} to {high:g}")
    return np.rint(raw * scale).clip(0, 255).astype(np.uint8)


def printable(text: str) -> str:
    """Keep a message on one line, whatever a file is called: other characters are escaped."""
    return text if text and text.isprintable() else repr(text)


def reason_of(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return printable(" ".join(text.split())[:160])
