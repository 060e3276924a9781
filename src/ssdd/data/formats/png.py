"""PNG files: whole, and without what is no part of the picture."""

import struct
import zlib

from . import UnfitFileError

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PICTURE = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_TURNS_IT = (b"Raw profile type exif", b"XML:com.adobe.xmp")  # texts in which Pillow looks for an orientation
_LONGEST_TEXT = 1 << 20
_LARGEST_PROFILE = 1 << 24


def picture_of(content: bytes) -> tuple[bytes, bytes | None]:
    """Return the file without texts and other metadata of any size, and its colour profile.

    What says how the picture is turned stays, up to a megabyte. Raises UnfitFileError.
    """
    kept: list[bytes | memoryview] = [_SIGNATURE]
    profile = None
    view, at, name = memoryview(content), len(_SIGNATURE), b""
    while name != b"IEND":
        length, name = struct.unpack_from(">I4s", content, at) if at + 8 <= len(content) else (len(content), b"")
        chunk, at = view[at : at + 12 + length], at + 12 + length
        if at > len(content):
            raise UnfitFileError("expected a complete image, found a PNG file without its end")
        whole = zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")
        if name in _PICTURE:
            if not whole:
                raise UnfitFileError(f"expected a complete image, found a PNG file whose {name.decode()} is damaged")
            kept.append(chunk)
        elif whole and name == b"iCCP":
            profile = _inflated(_behind_keyword(chunk)[1:], _LARGEST_PROFILE)
        elif whole and length <= _LONGEST_TEXT and (name == b"eXIf" or _turns_it(name, chunk)):
            kept.append(chunk)
    return b"".join(kept), profile


def _turns_it(name: bytes, chunk: memoryview) -> bool:
    if name not in (b"tEXt", b"zTXt", b"iTXt") or not bytes(chunk[8:40]).startswith(_TURNS_IT):
        return False
    rest = _behind_keyword(chunk)
    return name == b"tEXt" or (
        rest[:1] == b"\0" and (name == b"iTXt" or _inflated(rest[1:], _LONGEST_TEXT) is not None)
    )


def _behind_keyword(chunk: memoryview) -> bytes:
    return bytes(chunk[8:-4]).partition(b"\0")[2]


def _inflated(data: bytes, limit: int) -> bytes | None:
    """Return at most so many bytes; None for more, and for damaged data."""
    inflater = zlib.decompressobj()
    try:
        inflated = inflater.decompress(data, limit)
    except zlib.error:
        return None
    return inflated if inflater.eof else None
