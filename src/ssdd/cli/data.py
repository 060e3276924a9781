"""``ssdd data check``: reads every image that training would read, and says what is there."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..runtime.files import write_json
from ..runtime.text import bars_are_off
from .common import ERROR, SKIPPED, Paths, Workers, check_outputs, print_json
from .parse import Heading, subcommands

SHEET, REPORT = "contact-sheet.jpg", "report.json"


@dataclass(frozen=True)
class Check:
    """Read every image once; name the broken ones, count and measure the others.

    Exit status: 3 if any is broken, or if images are left out, of formats that are not read, links that lead nowhere; 1
    if none can be read.
    """

    paths: Paths
    """Folders, uncompressed tar files, hf:OWNER/NAME[:SPLIT], hf:./folder[:SPLIT]; patterns, @list.txt, -."""
    out: Path | None = None
    """Folder for contact-sheet.jpg (up to 64 evenly spaced images) and report.json."""
    workers: Workers = 2
    """Processes that read; 0 reads in this one."""
    overwrite: bool = False
    """Replace existing files."""
    json: bool = False
    """Print the report as JSON instead of text."""


def choose_options(arguments: list[str]) -> tuple[Any, list[str]]:
    """Return the commands of ``data``."""
    kind = Check if arguments[:1] == ["check"] else Heading
    return subcommands({"check": ("Read every image once; name the broken ones, count the others.", kind)}), arguments


def run(options: Check) -> int:
    import numpy as np
    from tqdm.auto import tqdm

    from ..data.check import Summary, inspect
    from ..data.find import describe_left_out, images_left_out
    from ..data.images import printable, save_image
    from ..data.report import SHEET_IMAGES, contact_sheet, describe, report
    from ..data.sources import open_source

    names = [SHEET, REPORT]
    if options.out is not None:
        check_outputs(options.out, names, new=[] if options.overwrite else names)
    source = open_source(options.paths)
    shown = np.unique(np.linspace(0, len(source) - 1, min(SHEET_IMAGES, len(source))).round().astype(int)).tolist()
    summary, thumbnails = Summary(), []
    with tqdm(total=len(source), unit="image", disable=len(source) < 2 or bars_are_off()) as bar:
        for found in inspect(source, options.workers, shown if options.out is not None else ()):
            bar.update()
            summary.add(found)
            if found.broken is not None:
                bar.write(f"broken {found.broken}", file=sys.stderr)
            if found.thumbnail is not None:
                thumbnails.append((found.thumbnail, source.name(found.index)))
    repeated = summary.duplicates()
    content = report(options.paths, source, summary, repeated)
    if options.json:
        print_json(content)
    else:
        print("\n".join(describe(summary, len(repeated))))
        if source.left_out:
            print(f"\n{describe_left_out(source.left_out)}")
    if options.out is not None:
        if thumbnails:
            save_image(options.out / SHEET, contact_sheet(thumbnails), overwrite=options.overwrite)
        write_json(options.out / REPORT, content, options.overwrite)
        if not options.json:
            print(f"\n{f'{SHEET} and ' if thumbnails else ''}{REPORT} in {printable(str(options.out))}")
    if not summary.readable:
        return ERROR
    return SKIPPED if summary.broken or images_left_out(source.left_out) else 0
