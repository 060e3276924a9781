"""A comparison as text for people and as a dictionary for programs; every number with the choices behind it."""

import math
import statistics
from typing import Any

import diffusers
import torch
import torchvision

from .. import __version__
from ..text import aligned
from .compare import Comparison, Row
from .image_metrics import DESCRIPTIONS
from .tables import Estimate

_DIGITS = {"pooled_psnr": 2, "psnr": 2, "mse": 5, "mae": 4}
_HEADINGS = {
    "pooled_psnr": "PSNR pooled",
    "psnr": "PSNR mean",
    "ssim_uniform_7": "SSIM 7x7",
    "ssim_gaussian_11": "SSIM 11x11",
    "high_frequency_ratio": "detail",
    "dreamsim": "DreamSim",
}


def as_dict(comparison: Comparison) -> dict[str, Any]:
    """JSON types alone: protocol, data, software, and for each row its numbers, intervals and single crops.

    What is infinite (the PSNR of equal images) or not defined is None.
    """
    height, width = comparison.size
    found = {
        "protocol": comparison.protocol.describe(),
        "data": {**comparison.census.describe(), "skipped": [s.reason for s in comparison.census.skipped]},
        "software": software(),
        "metrics": DESCRIPTIONS,
        "extractors": [
            {"name": e.name, "width": e.width, "sha256": e.sha256, "preprocessing": e.preprocessing}
            for e in comparison.extractors
        ],
        "other_metrics": {
            column: {"name": m.name, "sha256": m.sha256, "preprocessing": m.preprocessing}
            for column, m in comparison.other_metrics.items()
        },
        "flops_of_image": {"height": height, "width": width},
        "spectrum": {
            "cycles_per_pixel": comparison.original_spectrum.frequency.tolist(),
            "originals": comparison.original_spectrum.power.tolist(),
        },
        "rows": [_row(row, comparison.rows[0]) for row in comparison.rows],
    }
    return _plain(found)


def software() -> dict[str, str]:
    """Versions of what takes part in the numbers."""
    return {
        "ssdd": __version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "diffusers": diffusers.__version__,
    }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(v) for name, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _row(row: Row, first: Row) -> dict[str, Any]:
    contestant = row.entry.contestant
    keys = row.table.keys
    encoder = row.entry.encoder or contestant
    return {
        "name": row.entry.label,
        "steps": row.entry.steps,
        "model": contestant.describe(),
        "encoder_dtype": encoder.describe()["dtype"],
        "parameters": contestant.parameters,
        "decoder_parameters": contestant.decoder_parameters,
        "encode_flops": row.flops and row.flops[0],
        "decode_flops": row.flops and row.flops[1],
        "latent_shape": row.latent_shape,
        "latent_bytes": statistics.fmean(row.latent_bytes),
        "encode_images_per_second": 1 / seconds(row.encode_seconds),
        "decode_images_per_second": 1 / seconds(row.decode_seconds),
        "image_metrics": _estimates(row.table.summary()),
        "minus_first_row": {} if row is first else _estimates(row.table.minus(first.table)),
        "distances": row.distances,
        "spectrum": row.spectrum.power.tolist(),
        "invalid": [str(key) for key in row.table.invalid],
        "crops": {
            "key": [str(key) for key in keys],
            **{name: row.table.column(name).tolist() for name in row.table.names},
        },
    }


def _estimates(found: dict[str, Estimate]) -> dict[str, dict[str, float]]:
    return {name: vars(estimate) for name, estimate in found.items()}


def as_text(comparison: Comparison) -> str:
    """A table, and below it the protocol. Intervals are of 95 %, by the bootstrap over images."""
    summaries = [row.table.summary() for row in comparison.rows]
    names = _shown(summaries[0])
    extractors = [e.name for e in comparison.extractors]
    height, width = comparison.size
    headings = ["", *(heading(name) for name in names), *(f"FD {name.partition('-')[0]}" for name in extractors)]
    headings += ["latent", "bytes", "decoder M", "decode GFLOP", "encode/s", "decode/s"]
    lines = [headings]
    for row, summary in zip(comparison.rows, summaries, strict=True):
        cells = [row.entry.label, *(_cell(name, summary.get(name)) for name in names)]
        for name in extractors:
            distance = row.distances.get(name, {})
            mark = "" if distance.get("frechet_reliable") else "*"
            cells.append(f"{distance['frechet']:.2f}{mark}" if distance else "-")
        cells += [
            "x".join(map(str, row.latent_shape)) if row.latent_shape else "-",
            f"{statistics.fmean(row.latent_bytes):,.0f}",
            f"{row.entry.contestant.decoder_parameters / 1e6:.1f}",
            f"{row.flops[1] / 1e9:,.1f}" if row.flops else "-",
            f"{1 / seconds(row.encode_seconds):.2f}",
            f"{1 / seconds(row.decode_seconds):.2f}",
        ]
        lines.append(cells)
    text = aligned(lines)
    found = comparison.census.describe()
    notes = [f"{comparison.protocol.name}: {found['crops']} crops of {found['images']} images"]
    notes.append(f"{found['skipped_images']} skipped, {found['enlarged_images']} enlarged; ± half of the 95 % interval")
    if any("*" in cell for line in lines[1:] for cell in line):
        notes.append("* fewer crops than the feature has numbers: compare it within this table only")
    for row in comparison.rows:
        if row.table.invalid:
            notes.append(f"{row.entry.label}: {len(row.table.invalid)} reconstructions are not finite, and left out")
    notes += _precision(comparison)
    notes.append(f"FLOPs: of one image of {height} x {width}, a multiplication and an addition are two")
    notes += [f"{name}: {value}" for name, value in comparison.protocol.describe().items() if name != "protocol"]
    notes += [f"extractor {e.name}: {e.preprocessing}; sha256 {e.sha256[:16]}" for e in comparison.extractors]
    notes += [
        f"{heading(column)} is {m.name}: {m.preprocessing}; sha256 {m.sha256[:16]}"
        for column, m in comparison.other_metrics.items()
    ]
    dtypes = {row.entry.label: row.entry.contestant.describe()["dtype"] for row in comparison.rows}
    notes.append("dtype: " + ", ".join(f"{label} {dtype}" for label, dtype in dtypes.items()))
    notes.append(", ".join(f"{name} {version}" for name, version in software().items()))
    notes.append(f"fingerprint of the crops: {found['fingerprint']}")
    return "\n".join([*text, "", *notes])


def _shown(summary: dict[str, Estimate]) -> list[str]:
    """The metrics of the text table, in its order."""
    of_networks = [name for name in summary if name.startswith("lpips_") or name == "dreamsim"]
    names = ["pooled_psnr", "psnr", "ssim_uniform_7", "ssim_gaussian_11", *of_networks, "high_frequency_ratio"]
    return [name for name in names if name in summary]


def _cell(name: str, estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    digits = _DIGITS.get(name, 3)
    return f"{estimate.mean:.{digits}f} ±{(estimate.high - estimate.low) / 2:.{digits}f}"


def _precision(comparison: Comparison) -> list[str]:
    """What lower precision costs: of each row that decodes another one's latents."""
    lines = []
    for row in comparison.rows:
        reference = precision_reference(comparison, row)
        if reference is not None:
            found = row.table.minus(reference.table)
            shifts = ", ".join(f"{c} {found[f'colour_shift_{c}'].mean:+.3f}" for c in ("red", "green", "blue"))
            change = found["psnr"]
            lines.append(
                f"{row.entry.label} minus {reference.entry.label}: PSNR {change.mean:+.3f} dB "
                f"[{change.low:+.3f}, {change.high:+.3f}]; colour, 8-bit levels: {shifts}"
            )
    return lines


def precision_reference(comparison: Comparison, row: Row) -> Row | None:
    """The row of the same latents and steps whose decoder has the encoder's precision; None for such a row itself."""
    if row.entry.encoder is None:
        return None
    same = (r for r in comparison.rows if r.entry.contestant is row.entry.encoder and r.entry.steps == row.entry.steps)
    return next(same, None)


def seconds(times: list[float]) -> float:
    """Median per image over the batches; the first one warms up where there are more."""
    return statistics.median(times[1:] or times)


def heading(name: str) -> str:
    """Of a metric's column."""
    return _HEADINGS.get(name, name.replace("lpips_", "LPIPS-"))
