"""Colour profiles: every picture as sRGB."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

from ssdd.data.images import read_image

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def make_profile(space, **tags):
    """A version 2 ICC profile: of a colour space, with the given tags as bytes."""
    tags = {
        "desc": b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(78),
        "wtpt": xyz(0.9642, 1, 0.8249),
    } | tags
    start = 128 + 4 + 12 * len(tags)
    table, data = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        table += name.encode() + struct.pack(">II", start + len(data), len(content))
        data += content + bytes(-len(content) % 4)
    device = b"prtr" if space == "CMYK" else b"mntr"
    header = struct.pack(">I", start + len(data)) + b"lcms\x02\x10\0\0" + device + space.encode().ljust(4) + b"XYZ "
    header = (header + bytes(12) + b"acsp").ljust(68, b"\0") + xyz(0.9642, 1, 0.8249)[8:]
    return header.ljust(128, b"\0") + table + data


def xyz(*values):
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(v * 65536) for v in values))


def curve(*values):
    """A gamma, or a table of 16 bits."""
    if len(values) == 1:
        return b"curv" + bytes(4) + struct.pack(">IH", 1, round(values[0] * 256))
    return b"curv" + bytes(4) + struct.pack(f">I{len(values)}H", len(values), *values)


def rgb_profile(*primaries, gamma=2.2, tone=None):
    tone = tone or curve(gamma)
    colorants = {f"{c}XYZ": xyz(*p) for c, p in zip("rgb", primaries, strict=True)}
    return make_profile("RGB", **colorants, **{f"{c}TRC": tone for c in "rgb"})


SRGB_PRIMARIES = (0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141)
ADOBE_RGB = rgb_profile((0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609), (0.1492, 0.0632, 0.7446), gamma=2.19921875)
SWAPPED = rgb_profile(*SRGB_PRIMARIES[::-1])


def picture(mode="RGB"):
    y, x = np.mgrid[0:24, 0:36]
    image = Image.fromarray(np.stack([60 + 5 * x, 60 + 6 * y, 90 + 2 * x + 2 * y], axis=-1).astype(np.uint8))
    return image.convert(mode)


def encode(image, kind, profile, **options):
    file = io.BytesIO()
    image.save(file, kind, icc_profile=profile, **options)
    return file.getvalue()


def read(content):
    return read_image(io.BytesIO(content))


LOSSLESS = [("PNG", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("WEBP", {"lossless": True})]


@pytest.mark.parametrize(("kind", "options"), [*LOSSLESS, ("JPEG", {"quality": 95}), ("AVIF", {"quality": 95})])
def test_a_profile_is_applied_in_every_format(kind, options):
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow cannot write {kind}")
    plain = read(encode(picture(), kind, None, **options))
    transform = ImageCms.buildTransform(
        io.BytesIO(ADOBE_RGB), ImageCms.createProfile("sRGB"), "RGB", "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC
    )
    expected = np.asarray(ImageCms.applyTransform(Image.fromarray(plain), transform)).astype(int)
    converted = read(encode(picture(), kind, ADOBE_RGB, **options))
    assert np.abs(converted - plain.astype(int)).max() > 10, "the profile changes nothing"
    assert np.abs(converted - expected).max() <= 1, "not the colours of the profile"
    assert converted.flags.writeable, "the caller cannot work on the array"


def test_colours_and_white_and_black():
    """Channels by a profile of sRGB's primaries in the other order: red is blue; white and black stay."""
    colours = np.array([[[255, 0, 0], [0, 255, 0], [255, 255, 255], [0, 0, 0]]], np.uint8)
    shown = read(encode(Image.fromarray(colours), "PNG", SWAPPED)).astype(int)
    assert np.abs(shown - [[[0, 0, 255], [0, 255, 0], [255, 255, 255], [0, 0, 0]]]).max() <= 2


@pytest.mark.parametrize(("kind", "options"), [*LOSSLESS, ("JPEG", {"quality": 95})])
def test_pixels_without_a_profile_or_with_that_of_srgb_stay(kind, options):
    plain = read(encode(picture(), kind, None, **options))
    assert np.array_equal(read(encode(picture(), kind, SRGB, **options)), plain), "sRGB is converted to sRGB"


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
@pytest.mark.parametrize("tone", [1.0, 1.8])
def test_gray_profiles(mode, tone):
    profile = make_profile("GRAY", kTRC=curve(tone))
    levels = np.arange(0, 256, 5, dtype=np.uint8)[None]
    wide = Image.fromarray(levels.astype(np.uint16) * 257)
    image = wide if mode == "I;16" else Image.fromarray(levels).convert(mode)
    light = (levels[0] / 255) ** tone
    expected = 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    shown = read(encode(image, "PNG", profile))[0].astype(int)
    assert np.abs(shown - expected[:, None]).max() <= 2, "gray levels are not those of the profile"


def cmyk_profile():
    """Inks that turn white to the colour of the first channel's complement: all four only darken."""
    grid = np.stack(np.meshgrid(*[np.linspace(0, 1, 2)] * 4, indexing="ij"), axis=-1).reshape(-1, 4)
    light = (1 - grid[:, :3]) * (1 - grid[:, 3:])
    lightness = light.mean(axis=1)
    lab = np.stack([lightness * 65280, np.full(16, 32768), np.full(16, 32768)], axis=-1)  # neutral: L*, a*, b*
    identity = np.array([0, 65535], ">u2").tobytes()
    table = b"mft2" + bytes(4) + bytes([4, 3, 2, 0]) + struct.pack(">9i", *(65536 * np.eye(3, dtype=int)).ravel())
    table += struct.pack(">HH", 2, 2) + identity * 4 + lab.astype(">u2").tobytes() + identity * 3
    profile = bytearray(make_profile("CMYK", A2B0=table, A2B1=table))
    profile[20:24] = b"Lab "
    return bytes(profile)


@pytest.mark.parametrize("kind", ["TIFF", "JPEG"])
def test_cmyk_profiles(kind):
    """By this profile all inks are gray; without it cyan is cyan."""
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    assert np.ptp(read(encode(cyan, kind, None))[8, 8].astype(int)) > 200, "cyan is not cyan without the profile"
    shown = read(encode(cyan, kind, cmyk_profile()))[8, 8].astype(int)
    assert np.ptp(shown) <= 2, "the inks are not those of the profile"
    assert 100 < shown[0] < 200, "the inks are not those of the profile"
    white = read(encode(Image.new("CMYK", (16, 16)), kind, cmyk_profile()))
    assert white.min() >= 254, "white is not white"


@pytest.mark.parametrize(
    ("mode", "profile"),
    [
        pytest.param("RGB", b"no profile", id="broken"),
        pytest.param("RGB", ADOBE_RGB[:200], id="cut"),
        pytest.param("RGB", make_profile("RGB"), id="without colours"),
        pytest.param("RGB", make_profile("GRAY", kTRC=curve(1.0)), id="gray for colours"),
        pytest.param("L", cmyk_profile(), id="inks for gray"),
        pytest.param("RGB", rgb_profile(*SRGB_PRIMARIES, tone=curve(0, 0)), id="all black"),
        pytest.param("RGB", rgb_profile(*SRGB_PRIMARIES, tone=curve(65535, 0)), id="inverted"),
    ],
)
def test_profiles_that_cannot_be_used_are_ignored(mode, profile):
    plain = read(encode(picture(mode), "PNG", None))
    assert np.array_equal(read(encode(picture(mode), "PNG", profile)), plain), "the picture is changed or lost"


def test_a_gray_picture_with_a_profile_of_colours():
    plain = read(encode(picture("L"), "PNG", None))
    linear = rgb_profile(*SRGB_PRIMARIES, gamma=1.0)
    shown = read(encode(picture("L"), "PNG", linear)).astype(int)
    assert (shown > plain).mean() > 0.9, "the profile is not applied"
    assert np.abs(np.diff(shown, axis=2)).max() <= 1, "gray is not gray any more"


def test_transparency_stays_white():
    pixels = np.array([[[200, 90, 30, 255], [200, 90, 30, 0]]], np.uint8)
    shown = read(encode(Image.fromarray(pixels), "PNG", ADOBE_RGB))
    opaque = read(encode(Image.fromarray(pixels[:, :, :3]), "PNG", ADOBE_RGB))
    assert shown[0, 0].tolist() == opaque[0, 0].tolist(), "the profile is not applied beside transparency"
    assert shown[0, 1].tolist() == [255, 255, 255], "white is not white"
