"""``ssdd data check``: reads every image that training would read, and says what is there."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from ..data.check import THUMBNAIL, Summary, inspect
from ..data.find import describe_left_out, images_left_out
from ..data.images import printable, save_image
from ..data.sources import ConcatSource, open_source
from ..files import atomic_path
from .common import check_outputs, parse_options

SHEET, REPORT = "contact-sheet.jpg", "report.json"

_USAGE = """usage: ssdd data check PATHS... [--out DIR] [--workers N] [--overwrite]

Read every image of folders, tar files and Hugging Face data sets: counts, sizes, duplicates, broken files.
ssdd data check --help explains the options."""

_SHEET_IMAGES, _SHEET_COLUMNS, _MARGIN, _CAPTION = 64, 8, 8, 18
_LISTED = 1000  # duplicates that the report names
_EDGES = (0, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096, 8192)
_BAR = 40


@dataclass(frozen=True)
class Check:
    """Read every image once; name the broken ones, count and measure the others.

    Exit status 1 if any is broken, or if images are left out: of formats that are not read, links that lead nowhere.
    """

    paths: tyro.conf.Positional[tuple[str, ...]]
    """Folders, uncompressed tar files, hf:OWNER/NAME[:SPLIT], hf:./folder[:SPLIT]."""
    out: Path | None = None
    """Folder for contact-sheet.jpg (up to 64 evenly spaced images) and report.json."""
    workers: int = 2
    """Processes that read; 0 reads in this one."""
    overwrite: bool = False
    """Replace existing files."""


def parse(arguments: Sequence[str]) -> Check:
    """``check PATHS... [OPTIONS]``. Wrong usage exits with status 2."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE)
        raise SystemExit(0 if arguments else 2)
    if arguments[0] != "check":
        _wrong_usage(f"expected the command check, found {arguments[0]!r}")
    options = parse_options(Check, "data check", arguments[1:])
    if not options.paths:
        _wrong_usage("expected folders, tar files or hf:OWNER/NAME, found no path on the command line")
    return options


def _wrong_usage(message: str) -> None:
    print(f"ssdd data: error: {message}", file=sys.stderr)
    raise SystemExit(2)


def run(options: Check) -> int:
    names = [SHEET, REPORT]
    if options.out is not None:
        check_outputs(options.out, names, new=[] if options.overwrite else names)
    source = open_source(options.paths)
    shown = np.unique(np.linspace(0, len(source) - 1, min(_SHEET_IMAGES, len(source))).round().astype(int)).tolist()
    summary, thumbnails = Summary(), []
    with tqdm(total=len(source), unit="image", disable=len(source) < 2) as bar:
        for found in inspect(source, options.workers, shown if options.out is not None else ()):
            bar.update()
            summary.add(found)
            if found.broken is not None:
                bar.write(f"broken {found.broken}", file=sys.stderr)
            if found.thumbnail is not None:
                thumbnails.append((found.thumbnail, source.name(found.index)))
    repeated = summary.duplicates()
    print("\n".join(describe(summary, len(repeated))))
    if source.left_out:
        print(f"\n{describe_left_out(source.left_out)}")
    if options.out is not None:
        if thumbnails:
            save_image(options.out / SHEET, contact_sheet(thumbnails), overwrite=options.overwrite)
        content = report(options.paths, source, summary, repeated)
        with atomic_path(options.out / REPORT, options.overwrite) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n")
        print(f"\n{f'{SHEET} and ' if thumbnails else ''}{REPORT} in {printable(str(options.out))}")
    return 1 if summary.broken or images_left_out(source.left_out) else 0


def describe(summary: Summary, duplicates: int) -> list[str]:
    """Lines for the terminal."""
    broken = len(summary.broken)
    lines = [
        f"{summary.readable + broken:,} images, {summary.total_bytes / 2**20:,.1f} MiB: "
        f"{summary.readable:,} readable, {broken:,} broken, {duplicates:,} duplicates of others"
    ]
    if not summary.readable:
        return lines
    sides = summary.shorter_sides()
    lines += [
        "",
        f"shorter side    {_spread(sides, '.0f')} px",
        f"width / height  {_spread(summary.aspect_ratios(), '.2f')}",
        "formats         " + ", ".join(f"{kind} {count:,}" for kind, count in summary.kinds.most_common()),
        "",
        "shorter side in pixels",
    ]
    for first, last, count in histogram(sides):
        bar = "#" * -(-count * _BAR // summary.readable)
        lines.append(f"{f'{first}-{last}' if last else f'{first}-':>11}  {count:>9,}  {bar}".rstrip())
    lines.append("")
    for limit, count in _smaller(sides).items():
        lines.append(f"smaller than {limit} px: {count:,} ({count / summary.readable:.1%})")
    return lines


def report(
    paths: Sequence[str], source: ConcatSource, summary: Summary, duplicates: Sequence[tuple[int, int]]
) -> dict[str, Any]:
    """The same for programs, and the names of what is broken or there twice."""
    sides = summary.shorter_sides()
    return {
        "paths": list(paths),
        "images": len(source),
        "readable": summary.readable,
        "bytes": summary.total_bytes,
        "shorter_side": _quantiles(sides),
        "aspect_ratio": _quantiles(summary.aspect_ratios()),
        "shorter_side_histogram": [{"from": a, "to": b, "images": n} for a, b, n in histogram(sides)],
        "smaller_than": {str(limit): count for limit, count in _smaller(sides).items()},
        "formats": dict(summary.kinds.most_common()),
        "broken": summary.broken,
        "left_out": dict(source.left_out.most_common()),
        "duplicates": len(duplicates),
        "duplicate_of": {source.name(i): source.name(first) for i, first in duplicates[:_LISTED]},
    }


def histogram(sides: np.ndarray) -> list[tuple[int, int | None, int]]:
    """First and last side (None: no limit) of each bin and the images in it, from the first to the last that has any.

    Empty for no image.
    """
    which = np.searchsorted(_EDGES, sides, side="right") - 1
    count = np.bincount(which, minlength=len(_EDGES))
    filled = np.flatnonzero(count)
    bins = range(int(filled[0]), int(filled[-1]) + 1) if len(filled) else range(0)
    return [(_EDGES[i], _EDGES[i + 1] - 1 if i + 1 < len(_EDGES) else None, int(count[i])) for i in bins]


def _smaller(sides: np.ndarray) -> dict[int, int]:
    return {limit: int((sides < limit).sum()) for limit in (128, 256, 512)}


def _quantiles(values: np.ndarray) -> dict[str, float] | None:
    if not len(values):
        return None
    return {"min": values.min().item(), "median": float(np.median(values)), "max": values.max().item()}


def _spread(values: np.ndarray, spec: str) -> str:
    return ", ".join(f"{name} {value:{spec}}" for name, value in (_quantiles(values) or {}).items())


def contact_sheet(thumbnails: Sequence[tuple[np.ndarray, str]]) -> np.ndarray:
    """Small pictures, uint8 (h, w, 3) with h, w <= THUMBNAIL, in rows, with the ends of their names below."""
    columns = min(_SHEET_COLUMNS, len(thumbnails))
    across, down = THUMBNAIL + _MARGIN, THUMBNAIL + _CAPTION + _MARGIN
    rows = -(-len(thumbnails) // columns)
    page = Image.new("RGB", (_MARGIN + columns * across, _MARGIN + rows * down), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(11)
    for i, (image, name) in enumerate(thumbnails):
        left, top = _MARGIN + i % columns * across, _MARGIN + i // columns * down
        height, width = image.shape[:2]
        page.paste(Image.fromarray(image), (left + (THUMBNAIL - width) // 2, top + (THUMBNAIL - height) // 2))
        caption = name.rsplit("/", 1)[-1].encode("ascii", "replace").decode()  # the font has few other letters
        draw.text((left, top + THUMBNAIL + 2), caption[-26:], "black", font)
    return np.asarray(page)
