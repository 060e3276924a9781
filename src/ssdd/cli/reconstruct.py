"""``ssdd reconstruct``: photographs through the autoencoder and back, with metrics."""

import csv
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..runtime.files import OutputExists, atomic_path
from .common import (
    ERROR,
    SKIPPED,
    Count,
    EncoderOptions,
    Paths,
    Seed,
    check_outputs,
    for_each,
    is_kept,
    is_own_result,
    print_json,
    require,
)

if TYPE_CHECKING:
    from ..data.find import ImageFile
    from ..evaluation.pairs import ImageMetrics

METRICS = "metrics.csv"
_COLUMNS = ["image", "psnr_db", "ssim_gaussian_11", "lpips", "seconds", "made_by"]


@dataclass(frozen=True)
class Reconstruct:
    """Reconstruct images: write OUT/NAME.png, a sheet OUT/sheets/NAME.png beside the original, and OUT/metrics.csv.

    Reconstructions that are there are kept, so that the same command goes on where it was stopped.
    """

    paths: Paths
    """Images, folders of images, patterns, @list.txt, -."""
    out: Path
    """Folder for the results."""
    steps: Count | None = None
    """Decoding steps; the model's default if not given."""
    seed: Seed | None = None
    """Seed of the noise that decoding starts from; the model's own if not given."""
    sheets: bool = True
    """Write side-by-side sheets."""
    overwrite: bool = False
    """Replace existing files."""
    json: bool = False
    """Print metrics of each image and their mean as JSON instead of text."""
    model: EncoderOptions = field(default_factory=EncoderOptions)


OPTIONS = Reconstruct


@dataclass(frozen=True)
class Result:
    """What became of one image.

    Attributes:
        image: its name.
        metrics: of its reconstruction.
        seconds: that took; None if it was there before.
        made_by: see ``is_kept``.
    """

    image: str
    metrics: "ImageMetrics"
    seconds: float | None
    made_by: str


def run(options: Reconstruct) -> int:
    from ..data.find import find_images

    found_files = find_images(options.paths)
    files = [file for file in found_files if not is_own_result(file.path, options.out)]
    require(files, "images", options.paths)  # before the seconds of the imports below

    from ..autoencoder.codec import decode_image, encode_image
    from ..data.images import read_image, save_image
    from ..evaluation.decoders import LatentDecoder
    from ..evaluation.pairs import ImageComparison, mean_metrics
    from ..evaluation.sheet import Panel, difference, sheet
    from ..evaluation.weights import sha256

    images = [f"{f.output_stem}.png" for f in files]
    sheets = [f"sheets/{name}" for name in images] if options.sheets else []
    check_outputs(options.out, [*images, *sheets, METRICS], photographs=[file.path for file in files])
    todo = sum(options.overwrite or not (options.out / name).exists() for name in images)
    autoencoder, identity = options.model.load(), options.model.identify()
    decoder = LatentDecoder(autoencoder, identity)
    _ = decoder.sha256  # of the weights as they were saved, before any are made ready for full speed
    if options.seed is not None:
        decoder.set_noise_seed(options.seed)
    earlier = {} if options.overwrite else _read_metrics(options.out / METRICS)
    options.model.optimize_for(autoencoder, todo)
    compare = ImageComparison(autoencoder.device)
    results: list[Result] = []

    def reconstruct(file: "ImageFile") -> None:
        target = options.out / f"{file.output_stem}.png"
        page = options.out / "sheets" / target.relative_to(options.out)
        image, seconds = read_image(file.path), None
        source = f"photograph {sha256(file.path)[:12]}, encoder {(identity.encoder_sha256 or '')[:12]}"
        made_by = decoder.describe_decoding(options.model.model, options.steps, source)
        draw = options.sheets and not is_kept(page, made_by, options.overwrite)
        if is_kept(target, made_by, options.overwrite):
            result = read_image(target)
        else:
            started = time.perf_counter()
            encoded = encode_image(autoencoder, image, options.model.model)
            result = decode_image(autoencoder, encoded, options.steps)
            seconds = time.perf_counter() - started
            save_image(target, result, overwrite=options.overwrite, made_by=made_by)
        metrics = compare(image, result)
        if draw:
            panels = [
                Panel(image, file.name),
                Panel(result, describe(metrics, compare.lpips_network)),
                Panel(difference(image, result), "|original - reconstruction| x 4"),
            ]
            heads = ["original", "reconstruction", "difference"]
            drawn = sheet([panels], heads, panel_width=min(1024, image.shape[1]))
            save_image(page, drawn, overwrite=options.overwrite, made_by=made_by)
        results.append(Result(file.name, metrics, seconds, made_by))

    failed = for_each(files, lambda f: str(f.path), reconstruct)
    if failed:
        print(f"reconstructed {len(results)} of {len(files)} files; {failed} failed", file=sys.stderr)
    if not results:
        return ERROR
    write_metrics(options.out / METRICS, results, earlier)
    mean = mean_metrics([result.metrics for result in results])
    if options.json:
        rows = [
            {"image": result.image, **asdict(result.metrics), "seconds": result.seconds, "made_by": result.made_by}
            for result in results
        ]
        found = {"out": str(options.out), "lpips_network": compare.lpips_network, "failed": failed}
        print_json({**found, "mean": mean, "images": rows})
    else:
        kept = sum(result.seconds is None for result in results)
        before = f" ({kept:,} {'was' if kept == 1 else 'were'} there before)" if kept else ""
        print(f"{len(results)} images in {options.out}{before}: mean {describe(mean, compare.lpips_network)}")
    return SKIPPED if failed else 0


def _read_metrics(path: Path) -> dict[str, list[str]]:
    """Return the lines of the table that is there, by image. Raises OutputExists for a table of somebody else."""
    if not path.exists():
        return {}
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            heading, *rows = csv.reader(file)
    except (OSError, ValueError, csv.Error):
        heading, rows = [], []
    if heading != _COLUMNS or any(len(row) != len(_COLUMNS) for row in rows):
        raise OutputExists(f"{path} exists already; pass --overwrite to replace it")
    return {row[0]: row for row in rows}


def describe(metrics: "ImageMetrics", network: str | None) -> str:
    """One line: PSNR, SSIM (11 x 11 Gaussian), and LPIPS with its network where there is one."""
    parts = [f"PSNR {metrics.psnr:.2f} dB"]
    if metrics.ssim is not None:
        parts.append(f"SSIM {metrics.ssim:.3f}")
    if metrics.lpips is not None:
        parts.append(f"LPIPS-{network} {metrics.lpips:.3f}")
    return ", ".join(parts)


def write_metrics(path: Path, results: Sequence[Result], earlier: dict[str, list[str]]) -> None:
    """Write a line for each image, empty where a metric is undefined.

    Args:
        path: of the table.
        results: of this command; what was there before keeps its seconds.
        earlier: lines of the table that is there, by image; those of other images are kept.
    """
    table = dict(earlier)
    for result in results:
        numbers = ["" if v is None else f"{v:.6g}" for v in (*astuple(result.metrics), result.seconds)]
        if result.seconds is None and result.image in earlier:
            numbers[-1] = earlier[result.image][_COLUMNS.index("seconds")]
        table[result.image] = [result.image, *numbers, result.made_by]
    with (
        atomic_path(path, overwrite=True) as temporary,
        # Names that are not UTF-8 keep their bytes.
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        writer.writerows(table.values())
