"""``ssdd demo``: sample photographs through the embedded models, on one sheet and in one table."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..checkpoints.embedded import embedded_names
from ..runtime.text import aligned
from .common import EncoderOptions, Paths, check_outputs, is_own_result, require
from .reconstruct import describe

if TYPE_CHECKING:
    import numpy as np
    from tqdm import tqdm

    from ..autoencoder import AutoencoderSSDD
    from ..autoencoder.codec import EncodedImage
    from ..data.find import ImageFile
    from ..evaluation.pairs import ImageComparison, ImageMetrics

EMBEDDED = "embedded"
STEPS = (1, 8)
"""Of the first model; the others decode in one."""
SHEET = "demo.png"
_PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")


@dataclass(frozen=True)
class DemoModelOptions(EncoderOptions):
    """Which autoencoders, and how they run."""

    model: str = EMBEDDED
    """embedded: those in the package; or the name of one, a folder, or a Hugging Face id."""

    def each(self) -> list["DemoModelOptions"]:
        """Return the options of each model."""
        return [replace(self, model=name) for name in embedded_names()] if self.model == EMBEDDED else [self]


@dataclass(frozen=True)
class Demo:
    """Reconstruct photographs, by the first model at 1 and 8 steps: write OUT/demo.png and print a table."""

    paths: Paths = ()
    """Your own images, folders, patterns, @list.txt, -, instead of scikit-image's photographs."""
    out: Path = Path("ssdd-demo")
    """Folder for the sheet and the reconstructions."""
    overwrite: bool = False
    """Replace existing files."""
    model: DemoModelOptions = field(default_factory=DemoModelOptions)


class Column(NamedTuple):
    """A way to reconstruct: a column of the sheet, and a line of the table by its metrics and seconds an image."""

    name: str
    images: "list[np.ndarray]"
    metrics: "list[ImageMetrics]"
    seconds: float | None


OPTIONS = Demo


def run(options: Demo) -> int:
    from tqdm.auto import tqdm

    from ..autoencoder.codec import encode_image
    from ..data.images import read_image, save_image
    from ..evaluation.pairs import ImageComparison, bicubic_baseline

    files = _images(options.paths, options.out)
    names = [SHEET, *(f"{f.output_stem}.png" for f in files)]
    check_outputs(options.out, names, new=[] if options.overwrite else names, photographs=[f.path for f in files])
    images = [(f.output_stem, read_image(f.path)) for f in files]
    models = options.model.each()
    compare = ImageComparison(options.model.torch_device())
    target = options.out / SHEET

    columns: list[Column] = []
    latents: list[str] = []
    encoded: list[EncodedImage] = []
    with tqdm(total=len(images) * (len(STEPS) + len(models) - 1), unit="image") as bar:
        for model in models:
            title = f"{model.model}, " if len(models) > 1 else ""
            autoencoder = model.load()
            steps = STEPS if model is models[0] else (1,)
            model.optimize_for(autoencoder, len(images) * len(steps))
            encoded = [encode_image(autoencoder, image, model.model) for _, image in images]
            latents.append(title + _weight(encoded, images))
            for n in steps:
                name = f"{title}{n} step{'s' if n > 1 else ''}"
                columns.append(_decode(autoencoder, encoded, n, name, images, compare, bar))
    factor = encoded[0].factor
    baseline = [bicubic_baseline(image, factor) for _, image in images]
    metrics = [compare(image, small) for (_, image), small in zip(images, baseline, strict=True)]
    rows = [*columns, Column(f"bicubic / {factor}", baseline, metrics, None)]

    made_by = f"ssdd demo --model {options.model.model}"
    for i, (name, _) in enumerate(images):
        save_image(options.out / f"{name}.png", columns[0].images[i], overwrite=options.overwrite, made_by=made_by)
    drawn = _sheet(images, columns, compare.lpips_network)
    save_image(target, drawn, overwrite=options.overwrite, made_by=made_by)
    print("\n".join([*_table(rows, compare.lpips_network), *latents]))
    if compare.lpips_network is None:
        print("LPIPS left out: no backbone in the torch hub cache (TORCH_HOME)")
    print(f"sheet: {target}")
    return 0


def _images(paths: tuple[str, ...], out: Path) -> "Sequence[ImageFile]":
    from ..data.find import find_images

    if paths:
        files = [file for file in find_images(paths) if not is_own_result(file.path, out)]
        return require(files, "images", paths)
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


def _decode(
    autoencoder: "AutoencoderSSDD",
    encoded: "Sequence[EncodedImage]",
    steps: int,
    name: str,
    images: "Sequence[tuple[str, np.ndarray]]",
    compare: "ImageComparison",
    bar: "tqdm[None]",
) -> Column:
    from ..autoencoder.codec import decode_image

    results, begin = [], time.perf_counter()
    for latent in encoded:
        results.append(decode_image(autoencoder, latent, steps))
        bar.update()
    seconds = (time.perf_counter() - begin) / len(encoded)
    metrics = [compare(image, result) for (_, image), result in zip(images, results, strict=True)]
    return Column(name, results, metrics, seconds)


def _weight(encoded: "Sequence[EncodedImage]", images: "Sequence[tuple[str, np.ndarray]]") -> str:
    """Say what latents weigh against the pixels."""
    pixels = sum(image.size for _, image in images)
    latent = sum(e.mean.numel() * 2 for e in encoded)
    return f"latents: {latent:,} bytes (16 bits a number) for {pixels:,} bytes of pixels, 1 : {pixels / latent:.0f}"


def _sheet(images: "Sequence[tuple[str, np.ndarray]]", columns: Sequence[Column], network: str | None) -> "np.ndarray":
    """Original, a column for each way, difference of the last."""
    from ..evaluation.sheet import Panel, difference, sheet

    panels = []
    for i, (name, image) in enumerate(images):
        results = [Panel(c.images[i], describe(c.metrics[i], network)) for c in columns]
        last = Panel(difference(image, columns[-1].images[i]), "|original - reconstruction| x 4")
        panels.append([Panel(image, f"{name}, {image.shape[1]} x {image.shape[0]}"), *results, last])
    names = [c.name for c in columns]
    return sheet(panels, ["original", *names, f"difference, {names[-1]}"])


def _table(columns: Sequence[Column], network: str | None) -> list[str]:
    """Return lines of means over the images."""
    from ..evaluation.pairs import mean_metrics

    rows = [["", "PSNR dB", "SSIM", f"LPIPS-{network}" if network else "LPIPS", "s / image"]]
    for column in columns:
        mean = mean_metrics(column.metrics)
        values = [(mean.psnr, 2), (mean.ssim, 3), (mean.lpips, 3), (column.seconds, 2)]
        rows.append([column.name, *("-" if value is None else f"{value:.{digits}f}" for value, digits in values)])
    return aligned(rows)
