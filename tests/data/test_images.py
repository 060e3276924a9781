"""Reading images: every kind of file becomes upright RGB, and every pixel is the file's own."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from ssdd.data.images import ImageError, pil_to_image, read_image
from tests.images import encode, one_line, photo, read

EXIF_ORIENTATION = 0x0112


def make_png(rows, depth, colour_type, chunks=()):
    """A PNG file from packed rows, for depths that Pillow does not write."""

    def chunk(name, content):
        body = name + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour_type]
    width = len(rows[0]) * 8 // (depth * samples)
    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour_type, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [chunk(b"IHDR", header), *(chunk(*c) for c in chunks), chunk(b"IDAT", data), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def make_tiff(levels, order="<"):
    """A one-row gray TIFF of `levels` in their own type and the byte order `order`."""
    data = levels.astype(levels.dtype.newbyteorder(order)).tobytes()
    sample_format = {"u": 1, "i": 2, "f": 3}[levels.dtype.kind]
    tags = {256: levels.size, 257: 1, 258: 8 * levels.itemsize, 259: 1, 262: 1, 273: 0, 277: 1, 278: 1}
    tags |= {279: len(data), 339: sample_format}
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    # Type 4 (32 bits) for every tag needs no care for the byte order of short values.
    entries = b"".join(struct.pack(order + "HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    magic = b"II" if order == "<" else b"MM"
    return magic + struct.pack(order + "HIH", 42, 8, len(tags)) + entries + bytes(4) + data


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP", "JPEG2000"])
def test_lossless_formats_are_exact(tmp_path, kind):
    path = tmp_path / "image.any"
    path.write_bytes(encode(photo(), kind, **({"lossless": True} if kind == "WEBP" else {})))
    for source in (path, str(path), io.BytesIO(path.read_bytes())):
        image = read_image(source)
        assert image.dtype == np.uint8, f"{kind}: not uint8"
        assert np.array_equal(image, photo()), f"{kind}: the pixels are not those of the file"
    assert image.flags.writeable, "the caller cannot work on the array"
    assert image.flags.c_contiguous, "the array is not contiguous"


@pytest.mark.parametrize("kind", ["JPEG", "AVIF"])
def test_lossy_formats_are_close(kind):
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow cannot write {kind}")
    smooth = np.array(Image.fromarray(photo(4, 6)).resize((48, 32), Image.Resampling.BICUBIC))
    error = np.abs(read(encode(smooth, kind, quality=95)).astype(int) - smooth).mean()
    assert error < 5, f"{kind}: the pixels are not those of the file"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied_once(kind, orientation):
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    content = encode(photo(), kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB"))
    image = read(content)
    assert np.array_equal(image, expected), "the image is not upright"
    assert image.flags.c_contiguous, "a turned image is a view with strange strides"


def test_jpeg_orientation_turns_a_phone_photo_upright():
    """Orientation 6: the first row of the file is the right-hand column of the scene."""
    stored = np.zeros((16, 32, 3), np.uint8)
    stored[:8] = 255
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    image = read(encode(stored, "JPEG", exif=exif))
    assert image.shape == (32, 16, 3), "the sides are not swapped"
    assert image[:, 8:].min() > 200, "the photo is turned the wrong way"
    assert image[:, :8].max() < 50, "the photo is turned the wrong way"


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_unreadable_exif_does_not_lose_the_photo(monkeypatch):
    content = encode(photo(), "PNG", exif=b"Exif\0\0MM\0*garbage and more garbage")
    assert np.array_equal(read(content), photo()), "a photo with damaged metadata is refused or turned"

    def getexif(self):
        raise struct.error("unpack requires a buffer of 4 bytes")

    monkeypatch.setattr(Image.Image, "getexif", getexif)
    assert np.array_equal(read(encode(photo(), "BMP")), photo()), "an error in the metadata loses the photo"


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_gray_depths_span_black_to_white(bits):
    packed = {1: 0b01_000000, 2: 0b00_11_0000, 4: 0b0000_1111}
    row = bytes([0, 255]) if bits == 8 else bytes([packed[bits]])
    image = read(make_png([row], bits, 0))
    assert image[0, 0].tolist() == [0, 0, 0], f"{bits}-bit black is not black"
    assert image[0, 1].tolist() == [255, 255, 255], f"{bits}-bit white is not white"


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "PPM"])
def test_one_bit_files(kind):
    bits = np.indices((9, 13)).sum(0) % 2 == 0
    image = read(encode(Image.fromarray(bits), kind))
    assert np.array_equal(image, np.where(bits, 255, 0)[..., None].repeat(3, 2)), f"{kind}: not two colours"


LEVELS = np.array([0, 128, 129, 1000, 32767, 32768, 65406, 65407, 65535], np.uint16)
SCALED = np.rint(LEVELS / 65535 * 255)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(make_png([LEVELS.astype(">u2").tobytes()], 16, 0), id="png"),
        pytest.param(make_tiff(LEVELS, "<"), id="tiff-little-endian"),
        pytest.param(make_tiff(LEVELS, ">"), id="tiff-big-endian"),
        pytest.param(b"P5 9 1 65535\n" + LEVELS.astype(">u2").tobytes(), id="pgm"),
    ],
)
def test_16_bit_gray_is_scaled_with_rounding(content):
    image = read(content)
    assert np.array_equal(image[0], SCALED[:, None].repeat(3, 1)), "16-bit levels are clipped, cut or swapped"


@pytest.mark.parametrize("levels", [np.array([-1, 5]), np.array([0, 65536])])
def test_integer_levels_outside_16_bits_are_refused(levels):
    with pytest.raises(ImageError) as caught:
        pil_to_image(Image.fromarray(levels.astype(np.int32)[None]), name="depth")
    one_line(caught, "depth", "[0, 65535]", f"{levels[0]} to {levels[1]}")


def test_16_bit_colour():
    colours = np.array([0, 0xFFFF, 0x80FF, 0x0100, 0xFF00, 0x00FF], ">u2")
    image = read(make_png([colours.tobytes()], 16, 2))
    assert image.tolist() == [[[0, 255, 128], [1, 255, 0]]], "16-bit colour does not keep its high bytes"


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        ([0.0, 0.25, 0.5, 1.0], [0, 64, 128, 255]),
        ([0.0, 0.4, 100.6, 255.0], [0, 0, 101, 255]),
        ([-0.4, 0.0, 2.0, 255.5], [0, 0, 2, 255]),
        ([0.0, 0.0, 0.0, 0.0], [0, 0, 0, 0]),
        ([-1e-6, 0.0, 0.0, 1.0], [0, 0, 0, 255]),
    ],
)
@pytest.mark.parametrize("order", ["<", ">"])
def test_float_gray(levels, expected, order):
    image = read(make_tiff(np.array(levels, np.float32), order))
    assert image[0, :, 1].tolist() == expected, "float levels are scaled by the wrong range"


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), -3.0, 300.0])
def test_float_levels_without_meaning_are_refused(bad):
    with pytest.raises(ImageError) as caught:
        read(make_tiff(np.array([0, bad, 0.5], np.float32)), name="scan.tif")
    one_line(caught, "scan.tif", "[0, 1] or [0, 255]")


def test_transparency_is_composited_on_white():
    pixels = np.array([[[200, 0, 0, 255], [200, 0, 0, 0], [200, 0, 100, 128]]], np.uint8)
    image = read(encode(pixels, "PNG"))
    assert image[0, :2].tolist() == [[200, 0, 0], [255, 255, 255]], "full or no opacity is not exact"
    assert np.abs(image[0, 2].astype(int) - [227, 127, 177]).max() <= 1, "half opacity is not a half"
    gray = read(encode(Image.fromarray(pixels).convert("LA"), "PNG"))
    assert gray[0, 1].tolist() == [255, 255, 255], "gray with opacity is not composited"
    webp = read(encode(pixels, "WEBP", lossless=True))
    assert webp[0, 1].tolist() == [255, 255, 255], "WebP's opacity is not composited"


@pytest.mark.parametrize(
    ("rows", "depth", "colour_type", "key"),
    [
        pytest.param([bytes([0b01_000000])], 1, 0, struct.pack(">H", 1), id="gray-1"),
        pytest.param([bytes([0b00_01_0000])], 2, 0, struct.pack(">H", 1), id="gray-2"),
        pytest.param([bytes([0x01])], 4, 0, struct.pack(">H", 1), id="gray-4"),
        pytest.param([bytes([0, 1])], 8, 0, struct.pack(">H", 1), id="gray-8"),
        pytest.param([struct.pack(">HH", 0, 1000)], 16, 0, struct.pack(">H", 1000), id="gray-16"),
        pytest.param([bytes([0, 0, 0, 9, 8, 7])], 8, 2, struct.pack(">HHH", 9, 8, 7), id="rgb-8"),
        pytest.param(
            [struct.pack(">6H", 0, 0, 0, 999, 888, 777)],
            16,
            2,
            struct.pack(">HHH", 999, 888, 777),
            id="rgb-16",
        ),
    ],
)
def test_transparent_colour_of_a_png(rows, depth, colour_type, key):
    image = read(make_png(rows, depth, colour_type, [(b"tRNS", key)]))
    assert image[0, 1].tolist() == [255, 255, 255], "the transparent colour is drawn"
    assert image[0, 0].tolist() == [0, 0, 0], "an opaque colour became transparent"


def test_palettes():
    palette = [(b"PLTE", bytes([255, 0, 0, 0, 255, 0, 0, 0, 255]))]
    plain = read(make_png([bytes([0, 1, 2])], 8, 3, palette))
    assert plain.tolist() == [[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], "indices are taken for colours"
    clear = read(make_png([bytes([0, 1, 2])], 8, 3, [*palette, (b"tRNS", bytes([0]))]))
    assert clear.tolist() == [[[255, 255, 255], [0, 255, 0], [0, 0, 255]]], "a transparent entry is drawn"
    gif = Image.new("P", (2, 1))
    gif.putpalette([10, 20, 30, 40, 50, 60])
    gif.putpixel((1, 0), 1)
    assert read(encode(gif, "GIF", transparency=0)).tolist() == [[[255, 255, 255], [40, 50, 60]]], "GIF"


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk(kind):
    """Cyan ink is cyan, not its negative (Adobe's JPEG files store the inverse)."""
    image = read(encode(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), kind))
    assert image[8, 8, 0] < 30, "cyan is not cyan"
    assert image[8, 8, 1:].min() > 225, "cyan is not cyan"


@pytest.mark.parametrize("mode", ["YCbCr", "LAB"])
def test_other_colour_spaces_in_tiff(mode):
    content = encode(Image.new(mode, (4, 4), (128, 128, 128)), "TIFF")
    pixel = read(content)[0, 0].astype(int)
    assert np.ptp(pixel) <= 3, f"{mode}: gray is not gray"
    assert abs(pixel[0] - 122) <= 10, f"{mode}: middle gray is not middle gray"


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBX", "RGBA", "CMYK", "HSV", "YCbCr", "LA", "RGBa"])
def test_every_mode_of_pillow_becomes_rgb(mode):
    image = pil_to_image(Image.new(mode, (3, 2)))
    assert image.dtype == np.uint8, f"{mode}: not uint8"
    assert image.shape == (2, 3, 3), f"{mode}: not HWC"


def test_hsv():
    red = Image.fromarray(np.array([[[200, 10, 20]]], np.uint8)).convert("HSV")
    assert np.abs(pil_to_image(red)[0, 0].astype(int) - [200, 10, 20]).max() <= 5, "HSV is taken for RGB"


@pytest.mark.parametrize(
    ("kind", "options"), [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {}), ("MPO", {})]
)
def test_first_frame_of_several(kind, options):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    content = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    error = np.abs(read(content).astype(int) - [255, 0, 0]).max()
    assert error <= 3, f"{kind}: not the first frame"


def test_stream_is_read_from_its_start_and_left_open(tmp_path):
    stream = io.BytesIO(encode(photo(), "PNG"))
    stream.seek(0, os.SEEK_END)
    assert np.array_equal(read_image(stream), photo()), "a stream that was just written is not rewound"
    assert not stream.closed, "the caller's stream was closed"
    (tmp_path / "a.tif").write_bytes(encode(photo(), "TIFF", compression="tiff_lzw"))
    with (tmp_path / "a.tif").open("rb") as file:
        assert np.array_equal(read_image(file), photo()), "a file object is not read"
        assert not file.closed, "the caller's file was closed"


def test_stream_that_cannot_seek():
    class Pipe(io.BytesIO):
        def seekable(self):
            return False

        def seek(self, *args):
            raise io.UnsupportedOperation("seek")

    assert np.array_equal(read_image(Pipe(encode(photo(), "PNG"))), photo()), "a pipe is not read"


def test_name_in_errors(tmp_path):
    path = tmp_path / "bad.png"
    path.write_bytes(b"bad")
    with pytest.raises(ImageError) as caught:
        read_image(path)
    one_line(caught, path)
    with pytest.raises(ImageError) as caught:
        read_image(path, name="shard.tar:bad.png")
    one_line(caught, "shard.tar:bad.png")
    with pytest.raises(ImageError) as caught:
        read(b"bad")
    one_line(caught, "<stream>")
    with path.open("rb") as file, pytest.raises(ImageError) as caught:
        read_image(file)
    one_line(caught, path)


def test_hostile_file_name_keeps_the_message_on_one_line(tmp_path):
    path = tmp_path / "two\nlines\x1b[31m.png"
    path.write_bytes(b"bad")
    with pytest.raises(ImageError) as caught:
        read_image(path)
    one_line(caught, "two\\nlines")
