"""Files whose damage Pillow does not mention: refused, and no file refused that is whole."""

import io
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ssdd.data.images import ImageError, read_image

END = b"\xff\xd9"


def photo(height=150, width=200):
    y, x = np.mgrid[0:height, 0:width]
    colours = np.stack([x * 200 / width, y * 200 / height, (x + 2 * y) % 200], axis=-1)
    noise = np.random.default_rng(0).integers(0, 40, colours.shape)
    return Image.fromarray((colours + noise).clip(0, 255).astype(np.uint8))


def encode(image, kind="JPEG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def read(content):
    return read_image(io.BytesIO(content), name="a.jpg")


def as_pillow_reads(content):
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


JPEGS = {
    "baseline": encode(photo()),
    "every chroma sample": encode(photo(), subsampling=0),
    "own codes": encode(photo(), optimize=True),
    "high quality": encode(photo(), quality=98),
    "progressive": encode(photo(), progressive=True),
    "restarts": encode(photo(), restart_marker_blocks=7),
    "restarts, progressive": encode(photo(), progressive=True, restart_marker_rows=1),
    "gray": encode(photo().convert("L")),
    "cmyk": encode(photo().convert("CMYK")),
    "one block": encode(photo().resize((8, 8))),
    "one pixel": encode(photo().resize((1, 1))),
    "flat": encode(Image.new("RGB", (700, 500), (9, 8, 7)), optimize=True),
}
LARGE = [name for name in JPEGS if name not in ("one block", "one pixel", "flat")]


@pytest.mark.parametrize("name", JPEGS)
@pytest.mark.parametrize("behind", [b"", bytes(3000), b"\xff\xd8 of another image"])
@pytest.mark.parametrize("before_end", [b"", bytes(3), bytes(3000), b"\xff\xff"])
def test_whole_jpegs_are_read_as_by_pillow(name, behind, before_end):
    content = JPEGS[name]
    assert content.endswith(END), "the test needs the end of the file"
    assert np.array_equal(read(content[:-2] + before_end + END + behind), as_pillow_reads(content))


@pytest.mark.parametrize("name", LARGE)
def test_cut_jpegs(name):
    """Cut, then as some programs repair it: with the end mark, with zeros, with both."""
    content = JPEGS[name]
    for share in (0.4, 0.5, 0.8, 0.95):
        kept = content[: int(share * len(content))]
        zeros = bytes(len(content) - len(kept))
        for mended in (kept, kept + END, kept + zeros, kept + zeros[2:] + END, kept + zeros * 5 + END):
            with pytest.raises(ImageError, match=r"^a\.jpg: expected a complete image, found"):
                read(mended)


@pytest.mark.parametrize("name", [name for name in LARGE if name != "progressive"])
def test_zeros_in_the_middle_of_a_jpeg(name):
    """A download into space that was reserved, of which one piece is missing."""
    content = JPEGS[name]
    for share in (0.4, 0.5, 0.6):
        at = int(share * len(content))
        with pytest.raises(ImageError, match="expected a complete image"):
            read(content[:at] + bytes(2048) + content[at + 2048 :])


def test_a_progressive_jpeg_without_its_last_scans():
    """Cut between two scans: every scan that is there is whole, and the image is a blurred one."""
    content = JPEGS["progressive"]
    starts = [found.start() for found in re.finditer(b"\xff\xc4|\xff\xda", content)]
    behind_first_scan = [at for at in starts if at > content.index(b"\xff\xda")]
    for at in behind_first_scan:
        with pytest.raises(ImageError, match="some of whose scans are missing"):
            read(content[:at] + END)


def make_png(content, *chunks):
    """The PNG file with more chunks behind its header."""
    added = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return content[:33] + added + content[33:]


PNG = encode(photo(), "PNG", compress_level=0)


@pytest.mark.parametrize(
    "chunk",
    [
        (b"tEXt", b"Comment\0" + b"long " * 1_000_000),
        (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(200 << 20), 1)),
        (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(bytes(200 << 20), 1)),
        (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(200 << 20), 1)),
        (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b"<x>" * 1_000_000),
        (b"iCCP", b"huge\0\0" + zlib.compress(bytes(200 << 20), 1)),
        (b"iCCP", b"cut\0\0" + zlib.compress(bytes(900))[:9]),
        (b"eXIf", bytes(3 << 20)),
        (b"zTXt", b"no end"),
        (b"prVt", b"of some program"),
    ],
)
def test_png_metadata_of_any_size(chunk):
    assert np.array_equal(read(make_png(PNG, chunk)), read(PNG)), "metadata lose or change the picture"


def test_an_orientation_in_a_png_text_is_still_found():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = exif.tobytes()
    text = f"\nexif\n{len(data)}\n{data.hex()}\n".encode()
    turned = read(make_png(PNG, (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text))))
    assert turned.shape == (200, 150, 3), "the picture is not upright"


def test_a_png_with_a_changed_byte():
    """Nothing is compressed here, so that only a checksum can tell."""
    damaged = bytearray(PNG)
    damaged[len(PNG) // 2] ^= 255
    with pytest.raises(ImageError, match="IDAT is damaged"):
        read(bytes(damaged))


def make_bmp(pixels, masks, header_size=108):
    """A 32-bit BMP file of blue, green, red and a fourth byte, uint8 (h, w, 4); masks of red, green, blue and alpha."""
    height, width = pixels.shape[:2]
    compression = 3 if masks else 0
    header = struct.pack("<IiiHHIIiiII", header_size, width, -height, 1, 32, compression, 0, 0, 0, 0, 0)
    header += struct.pack("<4I", *masks) if masks else b""
    header = header.ljust(header_size, b"\0")
    offset = 14 + len(header)
    return b"BM" + struct.pack("<IHHI", offset + pixels.nbytes, 0, 0, offset) + header + pixels.tobytes()


BGRA = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)


@pytest.mark.parametrize(
    ("fourth", "masks", "header_size", "expected"),
    [
        ([255, 0], BGRA, 108, [[3, 2, 1], [255, 255, 255]]),
        ([0, 0], BGRA, 108, [[3, 2, 1], [3, 2, 1]]),
        ([0, 0], BGRA, 124, [[3, 2, 1], [3, 2, 1]]),
        ([0, 7], (*BGRA[:3], 0), 108, [[3, 2, 1], [3, 2, 1]]),
        ([0, 7], None, 40, [[3, 2, 1], [3, 2, 1]]),
    ],
)
def test_the_fourth_byte_of_a_bmp(fourth, masks, header_size, expected):
    """Opacity where the header says so, unless it is 0 everywhere."""
    pixels = np.array([[[1, 2, 3, byte] for byte in fourth]], np.uint8)
    assert read(make_bmp(pixels, masks, header_size))[0].tolist() == expected
