"""A small result of an evaluation, made without any model: what tests of reports and figures are about."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ssdd.evaluation.metrics import COSTS, DETAIL_WEIGHT, IMAGE_METRICS, Metric
from ssdd.evaluation.results import PICTURES, Crops, Evaluation, Picture, Row
from ssdd.evaluation.spectrum import FREQUENCIES

HOSTILE = '<script>alert("1")<img src=x onerror=alert(1)>&amp;$\\frac{$_'
"""A name for files and models: markup, an entity, and mathematics that cannot be set."""

OWN_METRIC = Metric("flatness", "Flatness <b>", 1, "lower", "of the user's own code")

EXTRACTOR = {
    "name": "inception-torch-fidelity",
    "title": "Inception",
    "width": 2048,
    "sha256": "ab" * 32,
    "preprocessing": "299 x 299 <b>",
    "frechet_name": "FID-8",
}

LABELS = ["demo, 1 step", "demo, 2 steps", HOSTILE]
IMAGES, CROPS_PER_IMAGE = 4, 2
_SIDE = 64


def make_evaluation(folder: Path) -> Evaluation:
    """Return three rows on eight crops of four images, with pictures of two crops in the folder.

    The rows are a model with 1 and 2 steps, and one of another, hostile name that has no finite reconstruction of crop
    3. The first row is equal to the original of crop 5. Numbers are random, worse for later rows.
    """
    count = IMAGES * CROPS_PER_IMAGE
    crops = Crops(
        np.repeat(np.arange(IMAGES), CROPS_PER_IMAGE),
        np.tile(np.arange(CROPS_PER_IMAGE), IMAGES),
        [f"{i // CROPS_PER_IMAGE}{HOSTILE if i == 3 else ''}.png" for i in range(count)],
        {"pixels": np.full(count, float(_SIDE**2)), DETAIL_WEIGHT: np.linspace(1, 2, count)},
    )
    evaluation = Evaluation(
        protocol={"protocol": "test-v1", "crop": "the middle <i>", "crop_size": _SIDE, "seed": 0},
        data={
            "images": IMAGES,
            "crops": count,
            "enlarged_images": 1,
            "skipped_images": 1,
            "fingerprint": "cd" * 32,
            "skipped": [f"9{HOSTILE}.jpg: expected an image"],
            "sources": ["photographs"],
            "limit": None,
            "reference": None,
        },
        metrics={**IMAGE_METRICS, OWN_METRIC.name: OWN_METRIC},
        extractors=[EXTRACTOR],
        size=(_SIDE, _SIDE),
        crops=crops,
        frequencies=FREQUENCIES.tolist(),
        spectrum=_spectrum(1.0),
    )
    for k, label in enumerate(LABELS):
        evaluation.add(make_row(label, k, evaluation))
    evaluation.pictures = [_picture(folder, 3, ["worst of demo, 1 step by MSE"]), _picture(folder, 0, ["best"])]
    del evaluation.pictures[0].files[HOSTILE]
    (folder / PICTURES / "3-2.png").unlink()
    return evaluation


def make_row(label: str, k: int, evaluation: Evaluation, **changes: Any) -> Row:
    """Return row number k: 0 and 1 are of one model with 1 and 2 steps, later ones of others without a choice."""
    count, random = len(evaluation.crops), np.random.default_rng(k)
    mse = random.uniform(0.8, 1.2, count) * 0.001 * (k + 1)
    mse[5] = 0 if k == 0 else mse[5]
    with np.errstate(divide="ignore"):
        psnr = -10 * np.log10(mse)
    values = {
        "psnr": psnr,
        "ssim_uniform_7": 1 - 30 * mse,
        "ssim_gaussian_11": 1 - 40 * mse,
        "high_frequency_ratio": random.uniform(0.5, 0.8, count) + 0.3 * k,
        "weave": random.uniform(0.9, 1.1, count),
        "mae": np.sqrt(mse) / 2,
        "mse": mse,
        **{f"colour_shift_{name}": random.normal(k, 0.5, count) for name in ("red", "green", "blue")},
        OWN_METRIC.name: random.uniform(0, 1, count) + k,
    }
    valid = np.ones(count, bool)
    if k == 2:
        valid[3] = False
        values = {name: np.where(valid, column, np.nan) for name, column in values.items()}
    costs: dict[str, float | None] = {name: 10.5 * (i + k + 1) for i, name in enumerate(COSTS)}
    row = Row(
        label=label,
        name="demo" if k < 2 else label,
        group=max(0, k - 1),
        steps=k + 1 if k < 2 else None,
        precision_of=None,
        model={"kind": "SSDD", "dtype": "float32", "sha256": {"model.safetensors": "ef" * 32}, "encoder": None},
        latent_shape=[4, 8, 8] if k < 2 else [16, 4, 4],
        costs=costs | {"peak_memory": None, "bits_per_pixel": 1.0 if k < 2 else 0.5, "decode_rate": 40.0 / (k + 1)},
        values=values,
        valid=valid,
        spectrum=_spectrum(1 / (k + 1)),
        distances={
            EXTRACTOR["name"]: {
                "count": 8 - (k == 2),
                "subset": 8 - (k == 2),
                "frechet": 12.345 + k,
                "kid": 0.00125,
                "kid_standard_error": 0.0005,
                "kid_subsets": 100,
                "kid_subset_size": 7,
                "precision": 0.811,
                "recall": 0.722,
                "density": 0.933,
                "coverage": 0.644,
                "neighbors": 5,
            }
        },
    )
    for name, value in changes.items():
        setattr(row, name, value)
    return row


def _spectrum(factor: float) -> list[float]:
    """Return a power law, NaN in the bands that such small images do not have."""
    return np.where(FREQUENCIES < 1 / _SIDE, np.nan, factor * FREQUENCIES**-2).tolist()


def _picture(folder: Path, crop: int, reasons: list[str]) -> Picture:
    """Save a crop, and for each row the crop with a square of wrong colors at (20, 10)."""
    picture = Picture(crop, reasons, {"": f"{PICTURES}/{crop}.png"})
    original = np.random.default_rng(crop).integers(0, 200, (_SIDE, _SIDE, 3), np.uint8)
    (folder / PICTURES).mkdir(parents=True, exist_ok=True)
    Image.fromarray(original).save(folder / picture.files[""])
    for k, label in enumerate(LABELS):
        picture.files[label] = f"{PICTURES}/{crop}-{k}.png"
        made = original.copy()
        made[20:52, 10:42] += np.uint8(10 * (k + 1))
        Image.fromarray(made).save(folder / picture.files[label])
    return picture
