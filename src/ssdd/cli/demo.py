"""``ssdd demo``: sample photographs through the embedded model, on one sheet and in one table."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .common import EncoderOptions, Paths, check_outputs, require
from .reconstruct import describe

if TYPE_CHECKING:
    import numpy as np

    from ..autoencoder.codec import EncodedImage
    from ..data.find import ImageFile
    from ..evaluation.pairs import ImageMetrics

STEPS = (1, 8)
SHEET = "demo.png"
_PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")


@dataclass(frozen=True)
class Demo:
    """Reconstruct photographs at 1 and 8 steps: write OUT/demo.png and print a table."""

    paths: Paths = ()
    """Your own images, folders, patterns, @list.txt, -, instead of scikit-image's photographs."""
    out: Path = Path("ssdd-demo")
    """Folder for the sheet and the reconstructions."""
    overwrite: bool = False
    """Replace existing files."""
    model: EncoderOptions = field(default_factory=EncoderOptions)


@dataclass(frozen=True)
class Row:
    """One line of the table: a way to reconstruct, its metrics over the images, seconds an image."""

    name: str
    metrics: "list[ImageMetrics]"
    seconds: float


OPTIONS = Demo


def run(options: Demo) -> int:
    from tqdm.auto import tqdm

    from ..autoencoder.codec import decode_image, encode_image
    from ..data.images import read_image, save_image
    from ..evaluation.pairs import ImageComparison, bicubic_baseline

    files = _images(options.paths)
    names = [SHEET, *(f"{f.output_stem}.png" for f in files)]
    check_outputs(options.out, names, new=[] if options.overwrite else names)
    images = [(f.output_stem, read_image(f.path)) for f in files]
    autoencoder = options.model.load()
    options.model.optimize_for(autoencoder, len(images) * len(STEPS))
    compare = ImageComparison(autoencoder.device)
    target = options.out / SHEET

    bar = tqdm(total=len(images) * len(STEPS), unit="image")
    encoded = [encode_image(autoencoder, image, options.model.model) for _, image in images]
    columns: list[list[np.ndarray]] = []
    rows: list[Row] = []
    for steps in STEPS:
        results, begin = [], time.perf_counter()
        for e in encoded:
            results.append(decode_image(autoencoder, e, steps))
            bar.update()
        seconds = time.perf_counter() - begin
        columns.append(results)
        metrics = [compare(i, r) for (_, i), r in zip(images, results, strict=True)]
        rows.append(Row(f"{steps} step{'s' if steps > 1 else ''}", metrics, seconds / len(images)))
    bar.close()
    factor = autoencoder.spatial_factor
    baseline = [compare(i, bicubic_baseline(i, factor)) for _, i in images]
    rows.append(Row(f"bicubic / {factor}", baseline, 0.0))

    for i, (name, _) in enumerate(images):
        save_image(options.out / f"{name}.png", columns[0][i], overwrite=options.overwrite)
    save_image(target, _sheet(images, columns, rows, compare.lpips_network), overwrite=options.overwrite)
    print(_table(rows, images, encoded, autoencoder.config.latent_channels, compare.lpips_network))
    print(f"sheet: {target}")
    return 0


def _images(paths: tuple[str, ...]) -> "Sequence[ImageFile]":
    from ..data.find import find_images

    if paths:
        return require(find_images(paths), "images", paths)
    photographs = sample_photographs()
    if not photographs:
        raise ImportError('the sample photographs come with scikit-image: pip install "ssdd[demo]", or name your own')
    return find_images(photographs)


def sample_photographs() -> list[Path]:
    """Return scikit-image's photographs, which are in the public domain; none where it is not installed."""
    try:
        import skimage
    except ImportError:
        return []
    return [Path(skimage.__file__).parent / "data" / name for name in _PHOTOGRAPHS]


def _sheet(
    images: "list[tuple[str, np.ndarray]]", columns: "list[list[np.ndarray]]", rows: list[Row], network: str | None
) -> "np.ndarray":
    """Original, one column per number of steps, difference of the last."""
    from ..evaluation.sheet import Panel, difference, sheet

    panels = []
    for i, (name, image) in enumerate(images):
        results = [Panel(c[i], describe(r.metrics[i], network)) for c, r in zip(columns, rows, strict=False)]
        last = Panel(difference(image, columns[-1][i]), "|original - reconstruction| x 4")
        panels.append([Panel(image, f"{name}, {image.shape[1]} x {image.shape[0]}"), *results, last])
    names = [r.name for r in rows[: len(columns)]]
    return sheet(panels, ["original", *names, f"difference, {names[-1]}"])


def _table(
    rows: list[Row],
    images: "list[tuple[str, np.ndarray]]",
    encoded: "list[EncodedImage]",
    channels: int,
    network: str | None,
) -> str:
    """Means over the images, and what a latent weighs against the pixels."""
    from ..evaluation.pairs import mean_metrics

    lpips = f"LPIPS-{network}" if network else "LPIPS"
    lines = [f"{'':14}{'PSNR dB':>9}{'SSIM':>8}{lpips:>16}{'s / image':>11}"]
    for row in rows:
        mean = mean_metrics(row.metrics)
        values = [f"{mean.psnr:.2f}", *("-" if v is None else f"{v:.3f}" for v in (mean.ssim, mean.lpips))]
        seconds = f"{row.seconds:.2f}" if row.seconds else "-"
        lines.append(f"{row.name:14}{values[0]:>9}{values[1]:>8}{values[2]:>16}{seconds:>11}")
    pixels = sum(i.size for _, i in images)
    latent = sum(e.mean.numel() * 2 for e in encoded)
    lines.append(
        f"latents: {latent:,} bytes (16 bits a number) for {pixels:,} bytes of pixels, 1 : {pixels / latent:.0f}"
    )
    if network is None:
        lines.append("LPIPS left out: no backbone in the torch hub cache (TORCH_HOME)")
    return "\n".join(lines)
