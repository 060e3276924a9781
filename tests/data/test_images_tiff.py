"""TIFF files of every kind: the right pixels, or a refusal that names the tag."""

import io
import itertools
import struct
import zlib

import numpy as np
import PIL
import pytest
import tifffile

from ssdd.data.images import ImageError, read_image

HEIGHT, WIDTH = 21, 37
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, SEPARATED, YCBCR, LAB = 0, 1, 2, 3, 5, 6, 8
NONE, DEFLATE, PACKBITS = 1, 8, 32773
COLOURS = {RGB: 3, SEPARATED: 4, YCBCR: 3, LAB: 3}


def packed(samples, bits, order):
    if bits >= 8 and bits & (bits - 1) == 0:
        return samples.astype(f"{order}u{bits // 8}").tobytes()
    planes = samples.astype(np.int64)[:, None] >> np.arange(bits - 1, -1, -1) & 1
    return np.packbits(planes.astype(np.uint8)).tobytes()


def make_tiff(
    levels, bits, kind, order="<", planar=1, compression=NONE, predictor=1, extra=(), tile=0, fill=1, tags=(), keep=None
):
    """A TIFF file of unsigned levels (h, w, samples). ``keep``: so many strips have data, the others none."""
    height, width, samples = levels.shape

    def piece(block):
        block = block.astype(np.int64)
        if predictor == 2:
            block[:, 1:] = np.diff(block, axis=1) % (1 << bits)
        data = b"".join(packed(row.ravel(), bits, order) for row in block)
        if compression == DEFLATE:
            data = zlib.compress(data)
        if compression == PACKBITS:
            parts = [data[i : i + 128] for i in range(0, len(data), 128)]
            data = b"".join(bytes([len(part) - 1]) + part for part in parts)
        return bytes(int(f"{byte:08b}"[::-1], 2) for byte in data) if fill == 2 else data

    planes = [levels] if planar == 1 else [levels[:, :, [i]] for i in range(samples)]
    pieces = []
    for plane in planes:
        if tile:
            plane = np.pad(plane, ((0, -height % tile), (0, -width % tile), (0, 0)))
            corners = itertools.product(range(0, height, tile), range(0, width, tile))
            pieces += [piece(plane[y : y + tile, x : x + tile]) for y, x in corners]
        else:
            pieces += [piece(plane[y : y + 8]) for y in range(0, height, 8)]
    if keep is not None:
        pieces[keep:] = [b""] * (len(pieces) - keep)
    entries = {256: [width], 257: [height], 258: [bits] * samples, 259: [compression], 262: [kind], 277: [samples]}
    entries |= {284: [planar], 317: [predictor], 266: [fill], 338: list(extra)} | dict(tags)
    entries |= {322: [tile], 323: [tile], 325: [len(p) for p in pieces]} if tile else {278: [8]}
    entries[325 if tile else 279] = [len(p) for p in pieces]
    entries[324 if tile else 273] = [0] * len(pieces)
    entries = {tag: values for tag, values in sorted(entries.items()) if values}
    wide = (273, 279, 324, 325)
    sizes = {tag: len(v) * (4 if tag in wide else 2) for tag, v in entries.items()}
    start = 8 + 2 + 12 * len(entries) + 4
    first_piece = start + sum(size for size in sizes.values() if size > 4)
    places = (first_piece + np.cumsum([0, *map(len, pieces)])[:-1]).tolist()
    entries[324 if tile else 273] = places
    directory, behind = struct.pack(order + "H", len(entries)), b""
    for tag, values in entries.items():
        data = struct.pack(f"{order}{len(values)}{'I' if tag in wide else 'H'}", *values)
        directory += struct.pack(order + "HHI", tag, 4 if tag in wide else 3, len(values))
        if len(data) > 4:
            directory += struct.pack(order + "I", start + len(behind))
            behind += data
        else:
            directory += data.ljust(4, b"\0")
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8)
    return head + directory + bytes(4) + behind + b"".join(pieces)


def gradient(samples, bits):
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    part = [(x / WIDTH * 0.6 + y / HEIGHT * 0.3 + 0.1 * k) % 1 for k in range(samples)]
    return np.rint(np.stack(part, axis=-1) * ((1 << bits) - 1)).astype(np.int64)


def colours_of(levels, bits, kind, extra=(), palette=None):
    """What a viewer shows on white, in float."""
    parts = levels / ((1 << bits) - 1)
    colours = COLOURS.get(kind, 1)
    if kind == WHITE_IS_ZERO:
        rgb = 1 - parts[:, :, :1].repeat(3, axis=2)
    elif kind == BLACK_IS_ZERO:
        rgb = parts[:, :, :1].repeat(3, axis=2)
    elif kind == PALETTE:
        rgb = np.array(palette).reshape(3, -1).T[levels[:, :, 0]] / 65535
    elif kind == SEPARATED:
        rgb = (1 - parts[:, :, :3]) * (1 - parts[:, :, 3:4])
    else:
        rgb = parts[:, :, :3]
    if extra and extra[0]:
        alpha = parts[:, :, colours : colours + 1]
        rgb = rgb * (alpha if extra[0] == 2 else 1) + 1 - alpha
    return 255 * rgb


def read(content):
    return read_image(io.BytesIO(content), name="a.tif")


READ = [
    *((WHITE_IS_ZERO, bits, ()) for bits in (1, 2, 4, 8, 16)),
    *((BLACK_IS_ZERO, bits, ()) for bits in (1, 2, 4, 8, 12, 16)),
    *((BLACK_IS_ZERO, 8, extra) for extra in ((0,), (2,)) if extra == (2,) or int(PIL.__version__.split(".")[0]) > 12),
    *((RGB, 8, extra) for extra in ((), (0,), (1,), (2,), (0, 0), (1, 0), (2, 0))),
    *((RGB, 16, extra) for extra in ((), (0,), (1,), (2,))),
    *((PALETTE, bits, ()) for bits in (1, 2, 4, 8)),
    *((SEPARATED, bits, ()) for bits in (8, 16)),
]
ALL = set(READ) | set(
    itertools.product(
        (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, SEPARATED),
        (1, 4, 6, 8, 10, 12, 16, 32),
        ((), (0,), (1,), (2,), (2, 0)),
    )
)


@pytest.mark.parametrize(("kind", "bits", "extra"), sorted(ALL))
def test_right_pixels_or_a_refusal(kind, bits, extra):
    if kind == PALETTE and bits > 8:
        pytest.skip("a palette has at most 256 colours")
    levels = gradient(COLOURS.get(kind, 1) + len(extra), bits)
    if extra and extra[0] == 1:
        colours = COLOURS.get(kind, 1)
        levels[:, :, :colours] = levels[:, :, :colours] * levels[:, :, [colours]] // ((1 << bits) - 1)
    palette = (np.random.default_rng(0).integers(0, 256, 3 << bits) * 257).tolist() if kind == PALETTE else None
    expected = colours_of(levels, bits, kind, extra, palette)
    tags = {320: palette} if palette else {}
    ways = [(*way, 1, 1) for way in itertools.product("<>", (1, 2), (NONE, DEFLATE), (0, 16))]
    ways += [("<", 1, PACKBITS, 0, 1, 1), ("<", 1, NONE, 0, 1, 2), (">", 2, DEFLATE, 0, 1, 2)]
    if bits in (8, 16, 32):
        ways += [(*way, 2, 1) for way in itertools.product("<>", (1, 2), (DEFLATE,), (0, 16))]
    for order, planar, compression, tile, predictor, fill in ways:
        how = f"{order} planar {planar} compression {compression} predictor {predictor} tile {tile} fill order {fill}"
        content = make_tiff(levels, bits, kind, order, planar, compression, predictor, extra, tile, fill, tags)
        try:
            image = read(content)
        except ImageError as error:
            if (kind, bits, extra) in READ and (order, planar, fill) == ("<", 1, 1):
                pytest.fail(f"{how}: a common kind is refused: {error}")
            continue
        # 16-bit colour that was multiplied by its opacity is divided in 8 bits
        assert np.abs(image - expected).max() < 2.5, f"{how}: wrong pixels"


def test_the_files_of_this_test_are_what_they_seem():
    for order, planar, tile in itertools.product("<>", (1, 2), (0, 16)):
        for bits, kind, samples in ((8, RGB, 3), (16, RGB, 3), (16, BLACK_IS_ZERO, 1)):
            levels = gradient(samples, bits)
            content = make_tiff(levels, bits, kind, order, planar, DEFLATE, tile=tile)
            array = tifffile.imread(io.BytesIO(content)).reshape(
                (samples, HEIGHT, WIDTH) if planar == 2 else levels.shape
            )
            array = np.moveaxis(array, 0, -1) if planar == 2 else array
            assert np.array_equal(array, levels), f"{order} {planar} {tile} {bits}"


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"compression": "zlib", "predictor": True}])
@pytest.mark.parametrize("dtype", ["u1", "u2", "i1", "i2", "i4", "u4", "f2", "f4", "f8"])
def test_what_tifffile_writes(order, big, options, dtype):
    rows = np.linspace(0, 1, WIDTH, dtype=np.float32)[None].repeat(HEIGHT, axis=0)
    white = 1.0 if dtype[0] == "f" else np.iinfo(dtype).max >> 8 << 8  # which float32 can hold
    for colours, layout in ((1, None), (3, "contig"), (3, "separate")):
        levels = (rows if colours == 1 else np.stack([rows, 1 - rows, rows / 2], axis=-1)) * white
        stored = np.moveaxis(levels, -1, 0) if layout == "separate" else levels
        file = io.BytesIO()
        how = {"photometric": "minisblack" if colours == 1 else "rgb", "planarconfig": layout}
        try:
            tifffile.imwrite(file, stored.astype(dtype), byteorder=order, bigtiff=big, **how, **options)
        except (ValueError, KeyError):
            continue  # tifffile needs another package for it
        try:
            image = read(file.getvalue())
        except ImageError:
            common = dtype in ("u1", "u2") or (dtype == "f4" and colours == 1)
            assert not common or (big and order == ">"), "a common kind is refused"
            continue
        assert dtype in ("u1", "u2", "f4"), "levels without a white are guessed"
        expected = 255 * (levels / (1.0 if dtype == "f4" else np.iinfo(dtype).max)).reshape(HEIGHT, WIDTH, colours)
        assert np.abs(image - expected).max() <= 1, f"{colours} {layout}: wrong pixels"


@pytest.mark.parametrize("order", ["<", ">"])
def test_predictor_of_floats(order):
    levels = np.linspace(0, 1, WIDTH, dtype=">f4")
    planes = levels.view(np.uint8).reshape(-1, 4).T.ravel()  # first the highest byte of each, then the next
    row = np.diff(planes, prepend=np.uint8(0)).tobytes()
    stored = np.frombuffer(row, f"{order}u4").astype(np.int64).reshape(1, -1, 1)
    tags = {339: [3], 317: [3], 257: [1]}
    content = make_tiff(stored, 32, BLACK_IS_ZERO, order, compression=DEFLATE, tags=tags)
    assert np.array_equal(read(content)[0, :, 0], np.rint(255 * levels)), "wrong levels"


@pytest.mark.parametrize("compression", [NONE, DEFLATE])
@pytest.mark.parametrize("horizontal", [1, 2])
def test_ycbcr_with_fewer_chroma_samples(compression, horizontal):
    """One line of luma, and chroma of the same colour all over: 2 x 1 luma samples share one of each."""
    luma, (blue, red) = np.arange(0, 240, 4), (100, 160)
    units = luma.reshape(-1, horizontal)
    data = np.column_stack([units, np.full(len(units), blue), np.full(len(units), red)]).ravel()
    tags = {530: [horizontal, 1], 257: [1], 256: [luma.size], 258: [8, 8, 8], 277: [3], 278: [1], 279: None}
    samples = np.pad(data, (0, -data.size % 3)).reshape(1, -1, 3)
    content = make_tiff(samples, 8, YCBCR, compression=compression, tags={k: v for k, v in tags.items() if v})
    expected = np.stack(
        [luma + 1.402 * (red - 128), luma - 0.344 * (blue - 128) - 0.714 * (red - 128), luma + 1.772 * (blue - 128)],
        axis=-1,
    ).clip(0, 255)
    assert np.abs(read(content)[0] - expected).max() <= 2, "the samples are taken for whole pixels"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"bits": 10, "kind": BLACK_IS_ZERO}, "BitsPerSample (10,)"),
        ({"bits": 8, "kind": BLACK_IS_ZERO, "tags": {339: [2]}}, "SampleFormat (2,)"),
        ({"bits": 8, "kind": RGB, "samples": 4}, "SamplesPerPixel 4"),
        ({"bits": 8, "kind": 9, "samples": 3}, "PhotometricInterpretation 9"),
        ({"bits": 8, "kind": SEPARATED, "samples": 4, "tags": {332: [2]}}, "InkSet 2"),
        ({"bits": 8, "kind": BLACK_IS_ZERO, "samples": 2, "extra": (2,), "planar": 2}, "PlanarConfiguration 2"),
        ({"bits": 8, "kind": BLACK_IS_ZERO, "samples": 2, "extra": (1,)}, "ExtraSamples (1,)"),
    ],
)
def test_a_refusal_names_the_tag(options, named):
    levels = gradient(options.pop("samples", 1), options["bits"])
    with pytest.raises(ImageError) as caught:
        read(make_tiff(levels, **options))
    assert str(caught.value).startswith("a.tif: expected"), "the message does not begin with the file"
    assert named in str(caught.value), "the message does not name the tag"


@pytest.mark.parametrize("compression", [NONE, DEFLATE])
@pytest.mark.parametrize("tile", [0, 16])
def test_missing_strips_and_tiles(compression, tile):
    with pytest.raises(ImageError, match="of 3 strips" if not tile else "of 6 strips or tiles"):
        read(make_tiff(gradient(1, 8), 8, BLACK_IS_ZERO, compression=compression, tile=tile, keep=2))


def test_other_readers_of_tiff_files_are_left_alone():
    from PIL import TiffImagePlugin

    read(make_tiff(gradient(3, 16), 16, RGB, planar=2))
    assert not TiffImagePlugin.READ_LIBTIFF, "a setting of Pillow stays changed"
