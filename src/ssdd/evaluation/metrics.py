"""Every number of an evaluation: its name, unit, digits and direction, how it is computed, and where it is shown.

A metric is one entry in one of three tables: ``IMAGE_METRICS`` are of a crop and its reconstruction, ``SET_METRICS`` of
two sets of features, ``COSTS`` of an autoencoder at work. A user's own is an image metric, ``file.py:NAME``.

Shapes: B batch, H x W pixels.
"""

import logging
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from ..checkpoints.own_code import OWN_CODE, load_own, one_line
from ..objectives import LPIPSNetwork
from ..objectives.perceptual import LPIPS, backbone_path, backbone_url
from .image_metrics import (
    GAUSSIAN_WINDOW,
    LPIPS_LEAST,
    UNIFORM_WINDOW,
    Images,
    as_tensor,
    colour_shift,
    lpips,
    psnr,
    squared_and_absolute_error,
    ssim_gaussian,
    ssim_uniform,
)
from .spectrum import Spectra, detail_ratio, spectra
from .weights import MissingWeights, hub_file, sha256

logger = logging.getLogger(__name__)

Better = Literal["higher", "lower", "one", "zero", "none"]
"""Which values are better: a ratio is best at one, a shift at zero; ``none``: a plain fact."""

ARROWS = {"higher": "↑", "lower": "↓", "one": "→ 1", "zero": "→ 0", "none": ""}


@dataclass(frozen=True)
class Metric:
    """One number.

    Attributes:
        name: key in results.
        heading: heading of its column.
        digits: digits after the point.
        better: which values are better.
        description: how it is computed, in a sentence.
        compute: function, for an image metric from ``ImagePairs`` to (B,) float64, for a cost from ``RowFacts`` to a
            number.
        shortest: shorter side of images, in pixels, from which an image metric is defined.
        weight: column by which crops count in the mean; by default all count the same.
        in_text: whether the printed table has a column for it; JSON and report have all.
    """

    name: str
    heading: str
    digits: int
    better: Better
    description: str
    compute: Callable[[Any], Any] | None = None
    shortest: int = 1
    weight: str | None = None
    in_text: bool = True

    def describe(self) -> dict[str, Any]:
        """Return what a saved result needs to show it, JSON types alone."""
        names = ("heading", "digits", "better", "description", "weight", "in_text")
        return {name: getattr(self, name) for name in names}

    def badness(self, value: float) -> float:
        """Return a number that is smaller for a better value; infinite for NaN."""
        if math.isnan(value):
            return math.inf
        return {"higher": -value, "one": abs(value - 1), "zero": abs(value)}.get(self.better, value)

    def format(self, value: float | None) -> str:
        """Return the value with its digits; a dash where there is none."""
        return "-" if value is None or math.isnan(value) else f"{value:,.{self.digits}f}"


def _by_name(*metrics: Metric) -> dict[str, Metric]:
    return {metric.name: metric for metric in metrics}


class ImagePairs:
    """Originals and reconstructions of one size, uint8 (B, H, W, 3) on one device, and what several metrics need."""

    def __init__(self, original: Images, reconstruction: Images, original_spectra: Spectra | None = None) -> None:
        self.original, self.reconstruction = original, reconstruction
        if original_spectra is not None:
            self.original_spectra = original_spectra

    @cached_property
    def errors(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean squared and mean absolute error of values in [0, 1]: two of (B,)."""
        return squared_and_absolute_error(self.original, self.reconstruction)

    @cached_property
    def original_spectra(self) -> Spectra:
        return spectra(self.original)

    @cached_property
    def spectra(self) -> Spectra:
        return spectra(self.reconstruction)

    @cached_property
    def shift(self) -> np.ndarray:
        """Mean shift of red, green and blue in 8-bit levels: (B, 3)."""
        return colour_shift(self.original, self.reconstruction)


DETAIL_WEIGHT = "high_frequency_energy"
"""Column with each original's energy of detail: smooth crops, whose ratio is rounding, hardly count."""

COLOURS = ("red", "green", "blue")


def _shift_of(channel: int, name: str) -> Metric:
    description = f"mean of reconstruction - original in 8-bit levels, {name}"
    return Metric(f"colour_shift_{name}", f"Shift of {name}, levels", 2, "zero", description,
                  lambda pairs: pairs.shift[:, channel], in_text=False)  # fmt: skip


# In the order of the table. pooled_psnr has no value of a crop: it is made of the mean of mse.
IMAGE_METRICS = _by_name(
    Metric("pooled_psnr", "PSNR pooled", 2, "higher",
           "10 log10(1 / MSE) in dB of the MSE over all pixels of all images"),
    Metric("psnr", "PSNR mean", 2, "higher",
           "10 log10(1 / MSE) per image in dB, mean over the images that are not equal to their originals",
           lambda pairs: psnr(pairs.errors[0])),
    Metric("ssim_uniform_7", "SSIM 7x7", 3, "higher",
           "scikit-image's default: 7 x 7 uniform window, sample covariance, per channel, windows inside",
           lambda pairs: ssim_uniform(pairs.original, pairs.reconstruction), shortest=UNIFORM_WINDOW),
    Metric("ssim_gaussian_11", "SSIM 11x11", 3, "higher",
           "Wang et al. 2004: 11 x 11 Gaussian window of sigma 1.5, per channel, windows inside",
           lambda pairs: ssim_gaussian(pairs.original, pairs.reconstruction), shortest=GAUSSIAN_WINDOW),
    Metric("high_frequency_ratio", "detail", 3, "one",
           "energy of luma above half of Nyquist's frequency over the originals', of all crops",
           lambda pairs: detail_ratio(pairs.spectra.high, pairs.original_spectra.high), weight=DETAIL_WEIGHT),
    Metric("weave", "weave", 2, "one",
           "power of luma at a period of 2 pixels over that of slightly coarser patterns; about 1 in photographs",
           lambda pairs: pairs.spectra.weave, shortest=32),
    Metric("mae", "MAE", 4, "lower", "mean absolute error of values in [0, 1]",
           lambda pairs: pairs.errors[1], in_text=False),
    Metric("mse", "MSE", 5, "lower", "mean squared error of values in [0, 1]",
           lambda pairs: pairs.errors[0], in_text=False),
    *(_shift_of(channel, name) for channel, name in enumerate(COLOURS)),
)  # fmt: skip

_SET = "of the features of originals and reconstructions"
SET_METRICS = _by_name(
    Metric("frechet", "FD", 2, "lower",
           f"Fréchet distance of Gaussians (Heusel et al. 2017) {_SET}; the heading has the number of images, and only "
           "numbers from as many images can be compared"),
    Metric("kid", "KID", 5, "lower",
           f"unbiased squared MMD with the kernel (x'y / D + 1)^3 (Binkowski et al. 2018) {_SET}"),
    Metric("cmmd", "CMMD", 3, "lower",
           f"squared MMD with a Gaussian kernel of sigma 10, times 1000 (Jayasumana et al. 2024) {_SET}"),
    Metric("precision", "Precision", 3, "higher",
           "share of reconstructions within the originals' manifold (Kynkäänniemi et al. 2019)", in_text=False),
    Metric("recall", "Recall", 3, "higher",
           "share of originals within the reconstructions' manifold", in_text=False),
    Metric("density", "Density", 3, "higher",
           "originals' balls around a reconstruction, mean, by k (Naeem et al. 2020)", in_text=False),
    Metric("coverage", "Coverage", 3, "higher",
           "share of the originals' balls with a reconstruction inside", in_text=False),
)  # fmt: skip


@dataclass(frozen=True)
class Decoding:
    """What one batch cost.

    Attributes:
        encode_seconds, decode_seconds: per image.
        latent_bytes: of each image.
        latent_shape: (c, h, w), None without a tensor.
        peak_memory: bytes on a GPU above what lay there before; NaN on a CPU.
    """

    encode_seconds: float
    decode_seconds: float
    latent_bytes: list[int]
    latent_shape: list[int] | None
    peak_memory: float


@dataclass(frozen=True)
class RowFacts:
    """What the costs of a row are computed from.

    Attributes:
        parameters: of both networks and of the decoder.
        flops: FLOPs to encode and to decode one image, None without networks.
        pixels: mean number of pixels of an image.
        decodings: what each batch cost.
    """

    parameters: tuple[int, int]
    flops: tuple[int, int] | None
    pixels: float
    decodings: Sequence[Decoding]

    @property
    def latent_bytes(self) -> float:
        sizes = [size for decoding in self.decodings for size in decoding.latent_bytes]
        return float(np.mean(sizes)) if sizes else math.nan

    @property
    def peak_memory(self) -> float:
        return max((decoding.peak_memory for decoding in self.decodings), default=math.nan)


def _rate(seconds: Sequence[float]) -> float:
    """Return images per second: the median over batches; the first one warms up where there are more."""
    times = seconds[1:] or seconds
    return 1 / max(float(np.median(times)), 1e-9) if times else math.nan


COSTS = _by_name(
    Metric("latent_bytes", "bytes", 0, "none", "of a latent, 16 bits a number, or of the file, mean over images",
           lambda facts: facts.latent_bytes),
    Metric("bits_per_pixel", "bits/px", 3, "none", "bits of a latent or file for each pixel",
           lambda facts: 8 * facts.latent_bytes / facts.pixels, in_text=False),
    Metric("parameters", "Parameters, M", 1, "none", "of encoder and decoder, in millions",
           lambda facts: facts.parameters[0] / 1e6, in_text=False),
    Metric("decoder_parameters", "decoder M", 1, "none", "parameters of the decoder, in millions",
           lambda facts: facts.parameters[1] / 1e6),
    Metric("encode_gflop", "encode GFLOP", 1, "none", "to encode one image; multiplication and addition are two",
           lambda facts: facts.flops[0] / 1e9 if facts.flops else math.nan, in_text=False),
    Metric("decode_gflop", "decode GFLOP", 1, "none", "to decode one image; multiplication and addition are two",
           lambda facts: facts.flops[1] / 1e9 if facts.flops else math.nan),
    Metric("encode_rate", "encode/s", 2, "higher", "images encoded a second: median over batches, on this machine",
           lambda facts: _rate([decoding.encode_seconds for decoding in facts.decodings])),
    Metric("decode_rate", "decode/s", 2, "higher",
           "images decoded a second: median over batches, on this machine, without drawing the noise",
           lambda facts: _rate([decoding.decode_seconds for decoding in facts.decodings])),
    Metric("peak_memory", "peak MiB", 0, "lower", "memory that decoding a batch takes on a GPU beside the weights",
           lambda facts: facts.peak_memory / 2**20, in_text=False),
)  # fmt: skip


def lpips_metric(network: LPIPSNetwork, device: torch.device | str = "cpu") -> Metric:
    """Return LPIPS with one backbone. Raises MissingWeights with one line where its weights cannot be had."""
    path = hub_file(f"LPIPS-{network}", backbone_url(network), download=True)
    try:
        net = LPIPS(network).to(device)
    except RuntimeError as error:  # tensors of another network
        raise MissingWeights(str(error)) from error
    return Metric(
        f"lpips_{network}",
        f"LPIPS-{network}",
        3,
        "lower",
        f"LPIPS v0.1 with {network} by torchmetrics in float32, images in [-1, 1], large ones by tiles; backbone's "
        f"sha256 {sha256(path)[:16]}",
        lambda pairs: lpips(net, pairs.original, pairs.reconstruction),
        shortest=LPIPS_LEAST,
    )


def cached_lpips(device: torch.device | str = "cpu", preferred: LPIPSNetwork | None = None) -> Metric | None:
    """Return LPIPS with a backbone that is in the cache, the preferred one if it is, or None.

    Nothing is downloaded; a damaged file is left out, with a line that names it.
    """
    for network in sorted(get_args(LPIPSNetwork), key=lambda network: network != preferred):
        if backbone_path(network).is_file():
            try:
                return lpips_metric(network, device)
            except MissingWeights as error:
                logger.warning("left out: %s", error)
    return None


def own_metric(spec: str, device: torch.device | str = "cpu") -> Metric:
    """Return a user's image metric.

    Args:
        spec: ``file.py:NAME`` or ``package.module:NAME``, a function of originals and reconstructions, uint8
            (B, H, W, 3) on the device, that returns (B,) numbers; or a class that makes such an object. It has an
            attribute ``better`` (higher, lower, one, zero, none), and may have ``heading``, ``digits`` and
            ``description``.
        device: where it runs, if it is an ``nn.Module``.

    Raises:
        ValueError, ImportError, OSError: with one line.
    """
    match = re.fullmatch(OWN_CODE, spec)
    if match is None:
        raise ValueError(f"expected a metric as file.py:NAME or package.module:NAME, found {spec!r}")
    path, name = match.groups()
    if name in IMAGE_METRICS:
        raise ValueError(f"{spec}: expected a name of its own, found that of a metric that is there: {name}")
    own = load_own(spec, path, name, make=False)
    if isinstance(own, type):
        own = own()
    better: Any = getattr(own, "better", None)
    if not callable(own) or better not in ARROWS:
        raise ValueError(
            f"{spec}: expected a function with an attribute better, one of {', '.join(ARROWS)}, found "
            f"{type(own).__name__} with better {better!r}"
        )
    if isinstance(own, torch.nn.Module):
        own = own.to(device).eval()

    def compute(pairs: ImagePairs) -> np.ndarray:
        try:
            values = torch.as_tensor(own(pairs.original, pairs.reconstruction)).double().cpu().numpy()
        except (Exception, SystemExit) as error:  # whatever the user's code raises
            raise ValueError(f"{spec}: {one_line(error)}") from error
        if values.shape != (len(pairs.original),):
            count = len(pairs.original)
            raise ValueError(f"{spec}: expected a number for each of {count} images, found {values.shape}")
        return values

    heading, digits = str(getattr(own, "heading", name)), int(getattr(own, "digits", 3))
    description = getattr(own, "description", f"of the user's own code, {Path(path).name}:{name}")
    return Metric(name, heading, digits, better, str(description), compute)


class BatchMetrics:
    """Image metrics of batches of pairs, on a device: our own, and others."""

    def __init__(self, device: torch.device | str = "cpu", others: Iterable[Metric] = ()) -> None:
        self.device = torch.device(device)
        self.metrics = dict(IMAGE_METRICS)
        for metric in others:
            if metric.name in self.metrics:
                raise ValueError(f"expected metrics of different names, found two called {metric.name}")
            self.metrics[metric.name] = metric

    def __call__(self, original: Images, reconstruction: Images) -> dict[str, np.ndarray]:
        """Return (B,) float64 by metric of uint8 (B, H, W, 3); what is not defined for so small an image is left out.

        Raises ValueError for two shapes, or other images than uint8.
        """
        return self.of(ImagePairs(as_tensor(original, self.device), as_tensor(reconstruction, self.device)))

    @torch.inference_mode()
    def of(self, pairs: ImagePairs) -> dict[str, np.ndarray]:
        """Return the same, of pairs on the device."""
        shorter = min(pairs.original.shape[1:3])
        return {
            name: np.asarray(metric.compute(pairs), np.float64)
            for name, metric in self.metrics.items()
            if metric.compute is not None and shorter >= metric.shortest
        }


def ordered(metrics: dict[str, Metric]) -> list[Metric]:
    """Return image metrics in the order of tables: those of networks before the ratios and the errors."""
    first = ("pooled_psnr", "psnr", "ssim_uniform_7", "ssim_gaussian_11")
    known = [metrics[name] for name in first if name in metrics]
    networks = [m for name, m in metrics.items() if name not in IMAGE_METRICS]
    rest = [m for name, m in metrics.items() if name in IMAGE_METRICS and name not in first]
    return [*known, *networks, *rest]
