"""``ssdd reconstruct``: photographs through the autoencoder and back, with metrics."""

import csv
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path

import tyro

from ..codec import decode_image, encode_image
from ..data.find import ImageFile, find_images
from ..data.images import read_image, save_image
from ..evaluation.pairs import ImageComparison, ImageMetrics, mean_metrics
from ..evaluation.sheet import Panel, difference, sheet
from ..files import atomic_path
from .common import EncoderOptions, check_outputs, for_each, parse_options, require, tile_if_large

METRICS = "metrics.csv"


@dataclass(frozen=True)
class Reconstruct:
    """Reconstruct images: writes OUT/NAME.png, a sheet OUT/sheets/NAME.png beside the original, and OUT/metrics.csv."""

    paths: tyro.conf.Positional[tuple[Path, ...]]
    """Images, or folders of images."""
    out: Path
    """Folder for the results."""
    steps: int | None = None
    """Decoding steps; the model's default if not given."""
    sheets: bool = True
    """Write side-by-side sheets."""
    overwrite: bool = False
    """Replace existing files."""
    model: EncoderOptions = field(default_factory=EncoderOptions)


def parse(arguments: Sequence[str]) -> Reconstruct:
    return parse_options(Reconstruct, "reconstruct", arguments)


def run(options: Reconstruct) -> int:
    files = require(find_images(options.paths), "images", options.paths)
    images = [f"{f.output_stem}.png" for f in files]
    sheets = [f"sheets/{name}" for name in images] if options.sheets else []
    check_outputs(options.out, [*images, *sheets, METRICS], new=[] if options.overwrite else [METRICS])
    autoencoder = options.model.load()
    compare = ImageComparison(autoencoder.device)
    results: list[tuple[str, ImageMetrics, float]] = []

    def reconstruct(file: ImageFile) -> None:
        target = options.out / f"{file.output_stem}.png"
        image = read_image(file.path)
        tile_if_large(autoencoder, *image.shape[:2])
        started = time.perf_counter()
        encoded = encode_image(autoencoder, image, options.model.model)
        result = decode_image(autoencoder, encoded, options.steps)
        seconds = time.perf_counter() - started
        save_image(target, result, overwrite=options.overwrite)
        metrics = compare(image, result)
        if options.sheets:
            panels = [
                Panel(image, file.name),
                Panel(result, describe(metrics, compare.lpips_network)),
                Panel(difference(image, result), "|original - reconstruction| x 4"),
            ]
            page = sheet([panels], ["original", "reconstruction", "difference"], panel_width=min(1024, image.shape[1]))
            save_image(options.out / "sheets" / f"{file.output_stem}.png", page, overwrite=options.overwrite)
        results.append((file.name, metrics, seconds))

    status = for_each(files, lambda f: str(f.path), reconstruct, "reconstructed")
    if results:
        write_metrics(options.out / METRICS, results, options.overwrite)
        mean = mean_metrics([m for _, m, _ in results])
        print(f"{len(results)} images in {options.out}: mean {describe(mean, compare.lpips_network)}")
    return status


def describe(metrics: ImageMetrics, network: str | None) -> str:
    """One line: PSNR, SSIM (11 x 11 Gaussian), and LPIPS with its network where there is one."""
    parts = [f"PSNR {metrics.psnr:.2f} dB"]
    if metrics.ssim is not None:
        parts.append(f"SSIM {metrics.ssim:.3f}")
    if metrics.lpips is not None:
        parts.append(f"LPIPS-{network} {metrics.lpips:.3f}")
    return ", ".join(parts)


def write_metrics(path: Path, results: list[tuple[str, ImageMetrics, float]], overwrite: bool) -> None:
    """One line per image; empty where a metric is undefined."""
    with (
        atomic_path(path, overwrite) as temporary,
        # Names that are not UTF-8 keep their bytes.
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["image", "psnr_db", "ssim_gaussian_11", "lpips", "seconds"])
        for name, metrics, seconds in results:
            values = (*astuple(metrics), seconds)
            writer.writerow([name, *("" if v is None else f"{v:.6g}" for v in values)])
