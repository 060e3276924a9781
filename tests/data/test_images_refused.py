"""Images that cannot be used: one clear line instead of made-up pixels, a crash or a wait."""

import errno
import io
import os
import struct
import threading
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from ssdd.data.images import ImageError, ImageReadError, read_image
from tests.images import encode, one_line, photo, read

EXIF_ORIENTATION = 0x0112


@pytest.mark.parametrize(
    ("content", "part"),
    [
        pytest.param(b"", "empty", id="empty"),
        pytest.param(b"hello, world" * 9, "expected an image", id="text"),
        pytest.param(b"P", "bad", id="one-byte"),
        pytest.param(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "expected an image", id="svg"),
        pytest.param(b"%PDF-1.4\n%%EOF", "expected an image", id="pdf"),
        pytest.param(
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
            "expected an image",
            id="eps",
        ),
        pytest.param(b"8BPS" + bytes(60), "expected an image", id="psd"),
        pytest.param(b"\x89PNG\r\n\x1a\n" + bytes(64), "complete image", id="png-header-only"),
        pytest.param(b"\xff\xd8\xff" + bytes(64), "complete image", id="jpeg-header-only"),
    ],
)
def test_bytes_that_are_no_image(tmp_path, content, part):
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    with pytest.raises(ImageError) as caught:
        read_image(path)
    one_line(caught, path, part)


def test_eps_never_reaches_an_interpreter(monkeypatch):
    """Even with every plugin of Pillow loaded, an EPS file (a program) is refused unseen."""
    from PIL import EpsImagePlugin

    def run(*args, **kwargs):
        pytest.fail("an EPS file was handed to Ghostscript")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", run)
    Image.init()
    with pytest.raises(ImageError, match="expected an image"):
        read(encode(photo(), "EPS"))


def test_paths_that_are_no_file(tmp_path):
    with pytest.raises(ImageError) as caught:
        read_image(tmp_path)
    one_line(caught, tmp_path, "a folder")
    for missing in (tmp_path / "missing.png", tmp_path / "a" / "b.png"):
        with pytest.raises(ImageError) as caught:
            read_image(missing)
        one_line(caught, missing, "nothing at this path")
    for impossible in ("nul\0byte.png", "x" * 5000 + ".png"):
        with pytest.raises(ImageError) as caught:
            read_image(impossible)
        one_line(caught, "readable")


def test_pipes_and_devices_do_not_hang(tmp_path):
    fifo = tmp_path / "pipe.png"
    os.mkfifo(fifo)
    for path in (fifo, "/dev/zero"):
        outcome = []

        def attempt(path=path, outcome=outcome):
            try:
                read_image(path)
            except ImageError as error:
                outcome.append(str(error))

        thread = threading.Thread(target=attempt, daemon=True)
        thread.start()
        thread.join(timeout=10)
        assert outcome, f"{path}: waits for ever, or is taken for an image"
        assert "device, pipe" in outcome[0], f"{path}: {outcome[0]}"


def test_permission_denied(tmp_path):
    path = tmp_path / "secret.png"
    path.write_bytes(encode(photo(), "PNG"))
    path.chmod(0)
    user = os.geteuid()
    if user == 0:  # root may read everything, so be nobody for a moment
        os.seteuid(65534)
    try:
        with pytest.raises(ImageError) as caught:
            read_image(path)
    finally:
        os.seteuid(user)
    one_line(caught, path, "Permission denied")


def test_too_many_pixels_are_refused_from_the_header(monkeypatch):
    def load(self):
        pytest.fail("the pixels were decoded before they were counted")

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + header
    chunks = (struct.pack(">I", 0) + name + struct.pack(">I", zlib.crc32(name)) for name in (b"IDAT", b"IEND"))
    bomb = start + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + b"".join(chunks)
    with pytest.raises(ImageError) as caught:
        read(bomb, name="bomb.png")
    one_line(caught, "bomb.png", "100000 x 100000", 1 << 28)


def test_max_pixels_is_the_exact_limit_and_leaves_pillows_alone():
    content, before = encode(photo(20, 30), "PNG"), Image.MAX_IMAGE_PIXELS
    assert read(content, max_pixels=600).shape == (20, 30, 3), "an image of just the limit is refused"
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM"):
        with pytest.raises(ImageError, match="at most 599 pixels, found 30 x 20"):
            read(encode(photo(20, 30), kind), max_pixels=599)
    assert before == Image.MAX_IMAGE_PIXELS, "the limit of the whole process was changed"


@pytest.mark.filterwarnings("error")
def test_large_images_below_the_limit_cause_no_warning(monkeypatch):
    """Pillow's own limit is lower than ours; it must neither warn nor refuse in our place."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for kind in ("PNG", "JPEG", "BMP", "PPM", "JPEG2000"):
        assert read(encode(photo(), kind)).shape == (24, 36, 3), f"{kind}: refused by Pillow's limit"


def sample_files():
    gray, big = Image.fromarray(photo()).convert("L"), photo(64, 48)
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    animation = {"save_all": True, "append_images": [Image.fromarray(photo(seed=1))]}
    samples = {
        "png": encode(photo(), "PNG"),
        "png-palette": encode(Image.fromarray(photo()).quantize(16), "PNG"),
        "png-exif": encode(photo(), "PNG", exif=exif),
        "apng": encode(photo(), "PNG", **animation),
        "jpeg": encode(photo(), "JPEG"),
        "jpeg-progressive": encode(photo(), "JPEG", progressive=True, exif=exif),
        "jpeg-gray": encode(gray, "JPEG"),
        "gif": encode(gray, "GIF"),
        "gif-animation": encode(Image.fromarray(photo()).quantize(16), "GIF", **animation),
        "webp": encode(photo(), "WEBP"),
        "webp-lossless": encode(photo(), "WEBP", lossless=True, exif=exif),
        "tiff": encode(photo(), "TIFF"),
        "tiff-lzw": encode(photo(), "TIFF", compression="tiff_lzw"),
        "tiff-pages": encode(photo(), "TIFF", **animation),
        "bmp": encode(photo(), "BMP"),
        "ppm": encode(photo(), "PPM"),
        "jpeg2000": encode(big, "JPEG2000", no_jp2=True, tile_size=(32, 32)),
    }
    if "AVIF" in Image.SAVE:
        samples["avif"] = encode(photo(), "AVIF")
    return samples


SAMPLES = sample_files()
SEVERAL_FRAMES = ("apng", "gif-animation", "tiff-pages")


def read_or_refuse(content, name):
    """The pixels, or None where the file is refused; anything else fails the test, whatever it is."""
    began = time.perf_counter()
    try:
        image, message = read(content, name=name, max_pixels=1 << 20), name
    except ImageError as error:
        image, message = None, str(error)
    except Exception as error:
        pytest.fail(f"{name}: {type(error).__name__} instead of ImageError: {error}")
    assert time.perf_counter() - began < 10, f"{name}: hangs"
    assert message.startswith(name), f"{name}: the message does not begin with the file: {message}"
    assert message.isprintable(), f"{name}: the message is not one line: {message!r}"
    if image is not None:
        assert image.dtype == np.uint8, f"{name}: not uint8"
        assert image.ndim == 3, f"{name}: not HWC"
        assert image.shape[2] == 3, f"{name}: not RGB"
    return image


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", SAMPLES)
def test_truncated_files_lose_no_pixel_in_silence(kind):
    """A file cut anywhere is refused, unless every pixel of the first frame is there and in its place."""
    content = SAMPLES[kind]
    whole = read(content)
    cuts = {*np.linspace(0, len(content) - 1, 60, dtype=int).tolist()}
    cuts |= set(range(max(0, len(content) - 24), len(content)))
    for cut in sorted(cuts):
        image = read_or_refuse(content[:cut], f"{kind} cut at {cut}")
        if image is not None:
            assert np.array_equal(image, whole), f"{kind}: cut at {cut} of {len(content)}, pixels are made up"
    first_half = content[: len(content) // (8 if kind in SEVERAL_FRAMES else 2)]
    assert read_or_refuse(first_half, kind) is None, f"{kind}: half an image is accepted"


def test_jpeg2000_cut_between_tiles():
    """OpenJPEG fills the tiles that are missing after such a cut with black."""
    content = SAMPLES["jpeg2000"]
    start_of_tile = b"\xff\x90\x00\x0a"
    positions = [i for i in range(len(content)) if content.startswith(start_of_tile, i)]
    assert len(positions) == 4, "the sample has no tiles to cut between"
    for position in positions:
        with pytest.raises(ImageError):
            read(content[: position + 2])


@pytest.mark.parametrize("missing", [1, 4, 12])
def test_png_without_its_end_is_refused(missing):
    """What follows the pixels, such as the orientation, may be gone as well."""
    with pytest.raises(ImageError):
        read(SAMPLES["png"][:-missing])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", SAMPLES)
def test_damaged_files_are_read_or_refused(kind):
    """Random damage leads to an image or to ImageError: to no other exception, and to no endless loop."""
    rng = np.random.default_rng(zlib.crc32(kind.encode()))
    content = SAMPLES[kind]
    refused = 0
    for attempt in range(120):
        damaged = bytearray(content)
        # Every other file is hit in its header, where the structure is.
        reach = len(damaged) if attempt % 2 else min(len(damaged), 160)
        for position in rng.integers(0, reach, rng.integers(1, 6)):
            damaged[position] = rng.choice([0, 255, rng.integers(256)])
        if attempt % 3 == 0:
            at, count = int(rng.integers(reach)), int(rng.integers(1, 40))
            damaged[at : at + count] = rng.bytes(int(rng.integers(0, 40)))
        refused += read_or_refuse(bytes(damaged), f"{kind} damage {attempt}") is None
    assert refused > 0, f"{kind}: no damage is ever noticed"


@pytest.mark.parametrize(
    "error", [MemoryError(), OverflowError("x"), struct.error("x"), zlib.error("x"), SyntaxError()]
)
def test_any_exception_of_a_decoder_becomes_an_image_error(monkeypatch, error):
    def load(self):
        raise error

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)
    with pytest.raises(ImageError) as caught:
        read(SAMPLES["png"], name="a.png")
    one_line(caught, "a.png", str(error) or type(error).__name__)


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (OSError(errno.EIO, "Input/output error"), True),
        (OSError(errno.ESTALE, "Stale file handle"), True),
        (OSError(errno.EMFILE, "Too many open files"), True),
        (OSError("broken data stream"), False),  # Pillow's, of the file's content
        (OSError(errno.ENOENT, "No such file"), False),
        (ValueError("no image"), False),
    ],
)
def test_errors_that_may_pass_are_told_from_those_of_the_image(error, passes):
    class Stream(io.BytesIO):
        reads = 0

        def read(self, size=-1):
            self.reads += 1
            if self.reads > 1:
                raise error
            return super().read(size)

    with pytest.raises(ImageError) as caught:
        read_image(Stream(SAMPLES["png"]), name="a.png")
    one_line(caught, "a.png", getattr(error, "strerror", None) or str(error))
    assert isinstance(caught.value, ImageReadError) == passes


def test_keyboard_interrupt_is_not_swallowed(monkeypatch):
    def load(self):
        raise KeyboardInterrupt

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)
    with pytest.raises(KeyboardInterrupt):
        read(SAMPLES["png"])
