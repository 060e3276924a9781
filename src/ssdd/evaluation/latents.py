"""Statistics of a model's latents over a set of images, by a named protocol, and how far chance moves them.

Shapes: B crops of one size, c latent channels, h x w latent grid.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import __version__
from ..autoencoder.statistics import LatentStatistics
from ..checkpoints.config import read_config
from ..checkpoints.places import find_model
from ..data.pixels import images_to_tensor
from ..runtime.files import write_json
from ..runtime.text import as_json
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

    Raises:
        ValueError: no image is usable, a crop does not fit the model, the latent is no tensor, or not finite.
    """
    census, statistics, protocol = Census(), LatentStatistics(), evaluation_set.protocol
    images: list[int] = []
    counts: list[int] = []
    means: list[np.ndarray] = []
    variances: list[np.ndarray] = []
    indices = draw_images(len(evaluation_set), limit, protocol.seed)
    for crops in crop_batches(evaluation_set, census, batch_size, workers, progress, indices):
        pixels = torch.from_numpy(np.stack([crop.pixels for crop in crops])).to(device)
        z = autoencoder.encode(images_to_tensor(pixels))
        if not isinstance(z, Tensor):
            raise ValueError(f"{autoencoder.name}: expected a model with a latent tensor, found none to measure")
        statistics.update(z, [f"{autoencoder.name}, {crop.key}" for crop in crops])
        values = z.cpu().double().flatten(2)  # (B, c, h * w)
        images += [crop.key.image for crop in crops]
        counts += [values.shape[2]] * len(crops)
        means += [*values.mean(2).numpy()]
        variances += [*values.var(2, correction=0).numpy()]
    census.check_used()
    errors = _standard_errors(statistics, np.array(images), np.array(counts), np.stack(means), np.stack(variances))
    return MeasuredLatents(autoencoder, protocol, census, statistics, errors, limit)


def _standard_errors(
    whole: LatentStatistics, images: np.ndarray, counts: np.ndarray, means: np.ndarray, variances: np.ndarray
) -> StandardErrors:
    """Return the standard errors by linearisation, all crops of an image together.

    The error of a mean m over N positions is sqrt(sum over images of (their sum of x - m)²) / N, that of a variance v
    the same of (x - m)² - v.

    Args:
        whole: statistics of all crops.
        images, counts: (n,) of each crop, its image and its number of positions.
        means, variances: (n, c) of each crop.
    """

    def errors(mean: Any, std: Any, pooled: bool) -> tuple[np.ndarray, np.ndarray]:
        first = counts[:, None] * (means - mean)
        second = counts[:, None] * (variances + (means - mean) ** 2 - std**2)
        if pooled:
            first, second = first.sum(1, keepdims=True), second.sum(1, keepdims=True)
        positions = whole.count * (whole.channels if pooled else 1)
        with np.errstate(divide="ignore", invalid="ignore"):  # one image; a channel that never changes
            return _spread(first, images) / positions, _spread(second, images) / positions / (2 * std)

    mean, std = errors(whole.mean.numpy(), whole.std.numpy(), pooled=False)
    global_mean, global_std = errors(whole.global_mean, np.float64(whole.global_std), pooled=True)
    return StandardErrors(mean, std, float(global_mean[0]), float(global_std[0]))


def _spread(values: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Return the standard error of the sum over crops (n, k), those of an image together: (k,)."""
    _, group = np.unique(images, return_inverse=True)
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
    config = read_config(folder)
    if config.get("batch_norm_mean") is not None:
        raise ValueError(
            f"{name}: expected a model without a batch norm to save the statistics in, found one that normalises its "
            "latents by FLUX.2's, whatever other statistics say"
        )
    if (kind := config["_class_name"]) not in SAVED_IN:
        raise ValueError(f"{name}: expected {' or '.join(SAVED_IN)} to save the statistics in, found {kind}")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder}: expected a folder that may be written to, found one that is read-only")
    return folder


def save_statistics(folder: Path, entries: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Put measured statistics into the folder's config.json, all at once; everything else stays, in its order.

    Those of an AutoencoderKL are a map that pipelines undo, SDXL's by ``latents_std`` and ``scaling_factor`` one after
    the other: it gets ``scaling_factor`` and ``shift_factor`` alone, and no entries by channel. An AutoencoderSSDD
    gets all four, as measured ones.

    Returns:
        By entry the value before and after; None for what was not there, or has no value.
    """
    path = folder / "config.json"
    config = json.loads(path.read_text())
    if config["_class_name"] == "AutoencoderKL":
        entries = entries | {"latents_mean": None, "latents_std": None}
    elif "latents_convention" in config:
        entries = entries | {"latents_convention": "measured"}
    write_json(path, config | entries)
    return {name: (config.get(name), value) for name, value in entries.items()}


# ---- for people and for programs -------------------------------------------------------------------------------------


def as_dict(measured: MeasuredLatents) -> dict[str, Any]:
    """Return the numbers, the config entries, protocol and data as JSON types; what is not defined is None."""
    statistics, errors = measured.statistics, measured.errors
    found = {
        "name": measured.autoencoder.name,
        "model": measured.autoencoder.describe(),
        "config": statistics.config(),
        "channels": {
            "mean": statistics.mean.tolist(),
            "mean_standard_error": errors.mean.tolist(),
            "std": statistics.std.tolist(),
            "std_standard_error": errors.std.tolist(),
            "minimum": statistics.minimum.tolist(),
            "maximum": statistics.maximum.tolist(),
        },
        "global": {
            "mean": statistics.global_mean,
            "mean_standard_error": errors.global_mean,
            "std": statistics.global_std,
            "std_standard_error": errors.global_std,
        },
        "positions": statistics.count,
        "limit": measured.limit,
        "protocol": measured.protocol.describe(),
        "data": measured.census.describe(),
        "software": {"ssdd": __version__, "torch": torch.__version__},
    }
    return as_json(found)


def as_text(measured: MeasuredLatents, saved: dict[str, tuple[Any, Any]] | None = None) -> str:
    """Return a table of channels, the config entries (what became of them if saved) and the protocol."""
    statistics, errors = measured.statistics, measured.errors
    columns = (statistics.mean, errors.mean, statistics.std, errors.std, statistics.minimum, statistics.maximum)
    rows = {str(i): row for i, row in enumerate(zip(*(column.tolist() for column in columns), strict=True))}
    extremes = float(statistics.minimum.min()), float(statistics.maximum.max())
    rows["all"] = (statistics.global_mean, errors.global_mean, statistics.global_std, errors.global_std, *extremes)
    lines = [f"{'channel':8}{'mean':>12}{'± s.e.':>10}{'std':>12}{'± s.e.':>10}{'min':>12}{'max':>12}"]
    for name, (mean, mean_error, std, std_error, low, high) in rows.items():
        first, second = ("-" if np.isnan(error) else f"±{error:.4f}" for error in (mean_error, std_error))
        lines.append(f"{name:8}{mean:12.4f}{first:>10}{std:12.4f}{second:>10}{low:12.3f}{high:12.3f}")
    lines.append("")
    if saved is None:
        lines += [f"{name:20}{_short(value)}" for name, value in statistics.config().items()]
    else:
        lines += [f"{name:20}{_short(before)}  ->  {_short(after)}" for name, (before, after) in saved.items()]
    data = measured.census.describe()
    lines += [
        "",
        f"{measured.protocol.name}: {statistics.count:,} positions of {data['crops']:,} crops of {data['images']:,} "
        f"images, {data['skipped_images']} skipped, {data['enlarged_images']} enlarged",
        "s.e.: standard error, by the differences between images",
        f"crop: {measured.protocol.describe()['crop']}",
        f"fingerprint of the crops: {data['fingerprint']}",
    ]
    return "\n".join(lines)


def _short(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_short, value))}]"
    return f"{value:.5g}" if isinstance(value, (int, float)) else "none" if value is None else str(value)
