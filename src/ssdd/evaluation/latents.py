"""Statistics of a model's latents over a set of images, by a named protocol, and how far chance moves them.

Shapes: B crops of one size, c latent channels, h x w latent grid.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import __version__
from ..checkpoints.kl_vae import read_config
from ..checkpoints.places import find_model
from ..data.pixels import images_to_tensor
from ..files import atomic_path
from ..statistics import LatentStatistics
from .autoencoders import Autoencoder
from .protocols import Census, EvaluationSet, Progress, Protocol, crop_batches, draw_images, silent

SAVED_IN = ("AutoencoderSSDD", "AutoencoderKL")
"""The classes whose config.json has a place for the statistics."""


@dataclass(frozen=True)
class StandardErrors:
    """How far other images of the same kind would move means and standard deviations. NaN for a single image.

    mean, std: (c,) float64. Positions of one image are alike, so that images are counted, not positions.
    """

    mean: np.ndarray
    std: np.ndarray
    global_mean: float
    global_std: float


@dataclass(frozen=True)
class MeasuredLatents:
    """Whose latents, over what, and what they are like. limit: images drawn from the set, None for all of them."""

    autoencoder: Autoencoder
    protocol: Protocol
    census: Census
    statistics: LatentStatistics
    errors: StandardErrors
    limit: int | None


def latent_statistics(
    autoencoder: Autoencoder,
    evaluation_set: EvaluationSet,
    *,
    limit: int | None = None,
    batch_size: int = 16,
    workers: int = 2,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
) -> MeasuredLatents:
    """Return the statistics in float64 of the raw latents (mode of the posterior) of every crop of the set.

    Args:
        autoencoder: a model with a latent of numbers.
        evaluation_set: the images and the protocol that crops them.
        limit: so many images at most, drawn without repetition by the protocol's seed: the first ones of a folder
            are often all of one kind.
        batch_size, workers: no number depends on them, but for rounding.
        device: where the autoencoder's networks are.
        progress: goes round the images.

    Raises ValueError if no image is usable, a crop does not fit the model, the latent is no tensor, or not finite.
    """
    census, statistics, moments = Census(), LatentStatistics(), _Moments()
    indices = draw_images(len(evaluation_set), limit, evaluation_set.protocol.seed)
    for crops in crop_batches(evaluation_set, census, batch_size, workers, progress, indices):
        pixels = torch.from_numpy(np.stack([crop.pixels for crop in crops])).to(device)
        z = autoencoder.encode(images_to_tensor(pixels))
        if not isinstance(z, Tensor):
            raise ValueError(f"{autoencoder.name}: expected a model with a latent tensor, found none to measure")
        statistics.update(z, [f"{autoencoder.name}, {crop.key}" for crop in crops])
        moments.add([crop.key.image for crop in crops], z)
    census.check_used()
    return MeasuredLatents(
        autoencoder, evaluation_set.protocol, census, statistics, moments.standard_errors(statistics), limit
    )


class _Moments:
    """Mean and variance of each single crop, for the standard errors."""

    def __init__(self) -> None:
        self._images: list[int] = []
        self._counts: list[int] = []
        self._means: list[np.ndarray] = []
        self._variances: list[np.ndarray] = []

    def add(self, images: Sequence[int], z: Tensor) -> None:
        """Add latents (B, c, h, w) of crops of these B images."""
        values = z.cpu().double().flatten(2)
        self._images += images
        self._counts += [values.shape[2]] * len(values)
        self._means += [*values.mean(2).numpy()]
        self._variances += [*values.var(2, correction=0).numpy()]

    def standard_errors(self, whole: LatentStatistics) -> StandardErrors:
        """Return them by linearisation, all crops of an image together: the error of a mean m over N positions is
        sqrt(sum over images of (their sum of x - m)²) / N, that of a variance v the same of (x - m)² - v.
        """
        _, group = np.unique(self._images, return_inverse=True)
        counts = np.array(self._counts)[:, None]
        means, variances = np.stack(self._means), np.stack(self._variances)

        def errors(mean: Any, std: Any, pooled: bool) -> tuple[np.ndarray, np.ndarray]:
            first = counts * (means - mean)
            second = counts * (variances + (means - mean) ** 2 - std**2)
            if pooled:
                first, second = first.sum(1, keepdims=True), second.sum(1, keepdims=True)
            positions = whole.count * (whole.channels if pooled else 1)
            with np.errstate(divide="ignore", invalid="ignore"):  # one image; a channel that never changes
                return _spread(first, group) / positions, _spread(second, group) / positions / (2 * std)

        mean, std = errors(whole.mean.numpy(), whole.std.numpy(), pooled=False)
        global_mean, global_std = errors(whole.global_mean, np.float64(whole.global_std), pooled=True)
        return StandardErrors(mean, std, float(global_mean[0]), float(global_std[0]))


def _spread(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Return the standard error of the sum over rows (n, k) that come in groups: (k,)."""
    groups = int(group.max()) + 1
    sums = np.zeros((groups, values.shape[1]))
    np.add.at(sums, group, values)
    return np.sqrt((sums**2).sum(0) * groups / np.float64(groups - 1)) if groups > 1 else np.full(len(sums[0]), np.nan)


# ---- a model's config.json -------------------------------------------------------------------------------------------


def saved_folder(name: str) -> Path:
    """Return the folder whose config.json takes the statistics: of a model, a finished run or a pipeline's VAE.

    Raises ValueError, CheckpointError or PermissionError with one line where there is none that can.
    """
    if not Path(name).is_dir():
        raise ValueError(
            f"{name}: expected the folder of a model or of a finished run to save the statistics in, found none; put "
            "the model into a folder of yours first, with save_pretrained(FOLDER)"
        )
    folder = find_model(name, Path)
    if (kind := read_config(folder)["_class_name"]) not in SAVED_IN:
        raise ValueError(f"{name}: expected {' or '.join(SAVED_IN)} to save the statistics in, found {kind}")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder}: expected a folder that may be written to, found one that is read-only")
    return folder


@dataclass(frozen=True)
class Change:
    """Of one entry of a config.json; None for what was not there, or has no value."""

    before: Any
    after: Any


def save_statistics(folder: Path, entries: dict[str, Any]) -> dict[str, Change]:
    """Put measured statistics into the folder's config.json, all at once; everything else stays, in its order.

    Those of an AutoencoderKL are a map that pipelines undo, SDXL's by ``latents_std`` and ``scaling_factor`` one after
    the other: it gets ``scaling_factor`` and ``shift_factor`` alone, and no entries by channel. An AutoencoderSSDD
    gets all four, as measured ones.

    Returns the changes by entry. Raises OSError.
    """
    path = folder / "config.json"
    config = json.loads(path.read_text())
    if config["_class_name"] == "AutoencoderKL":
        entries = entries | {"latents_mean": None, "latents_std": None}
    elif "latents_convention" in config:
        entries = entries | {"latents_convention": "measured"}
    with atomic_path(path, overwrite=True) as temporary:
        temporary.write_text(json.dumps(config | entries, indent=2) + "\n")
    return {name: Change(config.get(name), value) for name, value in entries.items()}


# ---- for people and for programs -------------------------------------------------------------------------------------


def as_dict(measured: MeasuredLatents) -> dict[str, Any]:
    """Return the numbers, the config entries, protocol and data as JSON types; what is not defined is None."""
    statistics, errors = measured.statistics, measured.errors
    return {
        "name": measured.autoencoder.name,
        "model": measured.autoencoder.describe(),
        "config": statistics.config(),
        "channels": {
            "mean": statistics.mean.tolist(),
            "mean_standard_error": _plain(errors.mean),
            "std": statistics.std.tolist(),
            "std_standard_error": _plain(errors.std),
            "minimum": statistics.minimum.tolist(),
            "maximum": statistics.maximum.tolist(),
        },
        "global": {
            "mean": statistics.global_mean,
            "mean_standard_error": _plain([errors.global_mean])[0],
            "std": statistics.global_std,
            "std_standard_error": _plain([errors.global_std])[0],
        },
        "positions": statistics.count,
        "limit": measured.limit,
        "protocol": measured.protocol.describe(),
        "data": measured.census.describe(),
        "software": {"ssdd": __version__, "torch": torch.__version__},
    }


def _plain(values: Any) -> list[float | None]:
    return [float(v) if np.isfinite(v) else None for v in values]


def as_text(measured: MeasuredLatents, saved: dict[str, Change] | None = None) -> str:
    """Return a table of channels, the config entries (what became of them if saved) and the protocol."""
    statistics, errors = measured.statistics, measured.errors
    columns = (statistics.mean, errors.mean, statistics.std, errors.std, statistics.minimum, statistics.maximum)
    lines = [f"{'channel':8}{'mean':>12}{'± s.e.':>10}{'std':>12}{'± s.e.':>10}{'min':>12}{'max':>12}"]
    for channel, row in enumerate(zip(*(c.tolist() for c in columns), strict=True)):
        lines.append(_line(str(channel), *row))
    extremes = float(statistics.minimum.min()), float(statistics.maximum.max())
    overall = statistics.global_mean, errors.global_mean, statistics.global_std, errors.global_std
    lines += [_line("all", *overall, *extremes), ""]
    if saved is None:
        lines += [f"{name:20}{_short(value)}" for name, value in statistics.config().items()]
    else:
        lines += [f"{name:20}{_short(change.before)}  ->  {_short(change.after)}" for name, change in saved.items()]
    found = measured.census.describe()
    lines += [
        "",
        f"{measured.protocol.name}: {statistics.count:,} positions of {found['crops']:,} crops of {found['images']:,} "
        f"images, {found['skipped_images']} skipped, {found['enlarged_images']} enlarged",
        "s.e.: standard error, by the differences between images",
        f"crop: {measured.protocol.describe()['crop']}",
        f"fingerprint of the crops: {found['fingerprint']}",
    ]
    return "\n".join(lines)


def _line(name: str, mean: float, mean_error: float, std: float, std_error: float, low: float, high: float) -> str:
    errors = ("-" if np.isnan(e) else f"±{e:.4f}" for e in (mean_error, std_error))
    return f"{name:8}{mean:12.4f}{next(errors):>10}{std:12.4f}{next(errors):>10}{low:12.3f}{high:12.3f}"


def _short(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_short, value))}]"
    return f"{value:.5g}" if isinstance(value, (int, float)) else "none" if value is None else str(value)
