"""TIFF files of the kinds whose pixels Pillow gets right, and the tag that is to blame for all others."""

import threading
from typing import Any, BinaryIO

import numpy as np
from PIL import Image
from PIL import TiffImagePlugin as Plugin

from . import UnfitFileError

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _SEPARATED, _YCBCR, _LAB = 0, 1, 2, 3, 5, 6, 8
_BITS = {
    _WHITE_IS_ZERO: (1, 2, 4, 8, 16),
    _BLACK_IS_ZERO: (1, 2, 4, 8, 12, 16),
    _RGB: (8, 16),
    _PALETTE: (1, 2, 4, 8),
    _SEPARATED: (8, 16),
    _YCBCR: (8,),
    _LAB: (8,),
}
_COLOURS = {_RGB: 3, _SEPARATED: 4, _YCBCR: 3, _LAB: 3}
_UNSIGNED, _FLOAT = 1, 3
_UNSPECIFIED, _PREMULTIPLIED, _ALPHA = 0, 1, 2
_OLD_JPEG = 6
_INK_SET, _INDEXED = 332, 346
_NAMES = {
    Plugin.PHOTOMETRIC_INTERPRETATION: "PhotometricInterpretation",
    Plugin.BITSPERSAMPLE: "BitsPerSample",
    Plugin.SAMPLESPERPIXEL: "SamplesPerPixel",
    Plugin.EXTRASAMPLES: "ExtraSamples",
    Plugin.SAMPLEFORMAT: "SampleFormat",
    Plugin.PLANAR_CONFIGURATION: "PlanarConfiguration",
    Plugin.COMPRESSION: "Compression",
    _INK_SET: "InkSet",
    _INDEXED: "Indexed",
}
_lock = threading.Lock()


def open_tiff(stream: BinaryIO) -> Plugin.TiffImageFile:
    """Open the first image of a TIFF file. Raises UnfitFileError."""
    header = stream.read(8)
    if header.startswith(b"MM\0\x2b"):  # which Pillow takes for a file of the older kind
        raise UnfitFileError("expected a TIFF file that Pillow can read, found a BigTIFF file in big-endian byte order")
    if header.startswith(b"II\x2b"):
        header += stream.read(8)
    tags = Plugin.ImageFileDirectory_v2(header)
    stream.seek(tags.next)
    tags.load(stream)
    if blamed := _blamed_tags(tags):
        raise UnfitFileError(_listed(tags, blamed))
    _check_pieces(tags)
    stream.seek(0)
    with _lock:  # libtiff reads plane by plane what Pillow's own reader takes for noise
        own, Plugin.READ_LIBTIFF = Plugin.READ_LIBTIFF, True
        try:
            image = Plugin.TiffImageFile(stream, "")
        except SyntaxError as error:
            raise UnfitFileError(_listed(tags, list(_NAMES))) from error
        finally:
            Plugin.READ_LIBTIFF = own
    if image.mode == "F":  # libtiff gives the machine's byte order, of which Pillow takes account for integers only
        (tile,) = image.tile
        image.tile = [tile._replace(args=("F;32NF", *(tile.args or ())[1:]))]
    return image


def levels_of(image: Plugin.TiffImageFile) -> Image.Image:
    """Return a loaded image, with 8 bits where Pillow leaves 12 bits or inverted 16 bits as they are."""
    white_is_zero = image.tag_v2[Plugin.PHOTOMETRIC_INTERPRETATION] == _WHITE_IS_ZERO
    white = (1 << image.tag_v2.get(Plugin.BITSPERSAMPLE, (1,))[0]) - 1
    if image.mode != "I;16" or (white == 65535 and not white_is_zero):
        return image
    levels = (np.asarray(image).astype(np.uint32) * 255 + white // 2) // white
    result = Image.fromarray((255 - levels if white_is_zero else levels).astype(np.uint8))
    result.info = image.info
    return result


def _listed(tags: Any, names: list[int]) -> str:
    found = ", ".join(f"{_NAMES[tag]} {tags[tag]}" for tag in names if tag in tags)
    return f"expected a kind of TIFF file whose pixels are read right, found {found or 'none of the tags that say it'}"


def _blamed_tags(tags: Any) -> list[int]:
    """Return the tags that together stand for pixels which Pillow gets wrong; none where it gets them right."""
    kind = tags.get(Plugin.PHOTOMETRIC_INTERPRETATION)
    bits, formats = set(tags.get(Plugin.BITSPERSAMPLE, (1,))), set(tags.get(Plugin.SAMPLEFORMAT, (_UNSIGNED,)))
    extra = tuple(tags.get(Plugin.EXTRASAMPLES, ()))
    colours = _COLOURS.get(kind, 1)
    samples = tags.get(Plugin.SAMPLESPERPIXEL, colours if tags.get(Plugin.COMPRESSION) == _OLD_JPEG else 1)
    if kind not in _BITS or tags.get(_INDEXED, 0) != 0:
        return [Plugin.PHOTOMETRIC_INTERPRETATION, _INDEXED]
    if formats != {_UNSIGNED} and (kind, bits, formats) != (_BLACK_IS_ZERO, {32}, {_FLOAT}):
        return [Plugin.SAMPLEFORMAT, Plugin.BITSPERSAMPLE, Plugin.PHOTOMETRIC_INTERPRETATION]
    if formats == {_UNSIGNED} and (len(bits) != 1 or not bits.issubset(_BITS[kind])):
        return [Plugin.BITSPERSAMPLE, Plugin.PHOTOMETRIC_INTERPRETATION]
    if samples != colours + len(extra):
        return [Plugin.SAMPLESPERPIXEL, Plugin.EXTRASAMPLES, Plugin.PHOTOMETRIC_INTERPRETATION]
    if not set(extra) <= {_UNSPECIFIED, _PREMULTIPLIED, _ALPHA} or (_PREMULTIPLIED in extra and kind != _RGB):
        return [Plugin.EXTRASAMPLES, Plugin.PHOTOMETRIC_INTERPRETATION]
    if tags.get(Plugin.PLANAR_CONFIGURATION, 1) != 1 and (kind == _YCBCR or (any(extra) and kind != _RGB)):
        return [Plugin.PLANAR_CONFIGURATION, Plugin.EXTRASAMPLES, Plugin.PHOTOMETRIC_INTERPRETATION]
    return [_INK_SET] if kind == _SEPARATED and tags.get(_INK_SET, 1) != 1 else []


def _check_pieces(tags: Any) -> None:
    """Raise UnfitFileError where strips or tiles are missing, which libtiff would leave black."""
    height, width = tags[Plugin.IMAGELENGTH], tags[Plugin.IMAGEWIDTH]
    if Plugin.TILEWIDTH in tags:
        sizes = tags.get(Plugin.TILEBYTECOUNTS)
        count = -(-width // max(1, tags[Plugin.TILEWIDTH])) * -(-height // max(1, tags[Plugin.TILELENGTH]))
    else:
        sizes = tags.get(Plugin.STRIPBYTECOUNTS)
        count = -(-height // max(1, tags.get(Plugin.ROWSPERSTRIP, height)))
    if tags.get(Plugin.PLANAR_CONFIGURATION, 1) != 1:
        count *= tags.get(Plugin.SAMPLESPERPIXEL, 1)
    if sizes is not None and tags.get(Plugin.COMPRESSION) != _OLD_JPEG:
        there = sum(size > 0 for size in sizes[:count])
        if there < count:
            raise UnfitFileError(
                f"expected a complete image, found a TIFF file with {there} of {count} strips or tiles"
            )
