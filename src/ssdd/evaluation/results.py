"""A comparison as text for people and as a dictionary for programs; every number with the choices behind it."""

import math
import statistics
from typing import Any

import torch

from .. import __version__
from .compare import Comparison, Row
from .image_metrics import DESCRIPTIONS

_DIGITS = {"pooled_psnr": 2, "psnr": 2, "mse": 5, "mae": 4}
_SHOWN = ("pooled_psnr", "psnr", "ssim_uniform_7", "ssim_gaussian_11", "high_frequency_ratio")


def as_dict(comparison: Comparison) -> dict[str, Any]:
    """JSON types alone: protocol, data, software, and for each row its numbers, intervals and single crops.

    What is infinite (the PSNR of equal images) or not defined is None.
    """
    found = {
        "protocol": comparison.protocol.describe(),
        "data": {**comparison.census.describe(), "skipped": [s.reason for s in comparison.census.skipped]},
        "software": {"ssdd": __version__, "torch": torch.__version__},
        "metrics": DESCRIPTIONS,
        "extractors": [
            {"name": e.name, "width": e.width, "sha256": e.sha256, "preprocessing": e.preprocessing}
            for e in comparison.extractors
        ],
        "rows": [_row(row) for row in comparison.rows],
    }
    return _plain(found)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(v) for name, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _row(row: Row) -> dict[str, Any]:
    contestant = row.entry.contestant
    keys = row.table.keys
    return {
        "name": row.entry.label,
        "steps": row.entry.steps,
        "model": contestant.describe(),
        "parameters": contestant.parameters,
        "decoder_parameters": contestant.decoder_parameters,
        "latent_bytes": statistics.fmean(row.latent_bytes),
        "encode_images_per_second": 1 / seconds(row.encode_seconds),
        "decode_images_per_second": 1 / seconds(row.decode_seconds),
        "image_metrics": {name: vars(estimate) for name, estimate in row.table.summary().items()},
        "distances": row.distances,
        "invalid": [str(key) for key in row.table.invalid],
        "crops": {
            "key": [str(key) for key in keys],
            **{name: row.table.column(name).tolist() for name in row.table.names},
        },
    }


def as_text(comparison: Comparison) -> str:
    """A table, and below it the protocol. Intervals are of 95 %, by the bootstrap over images."""
    found = comparison.census.describe()
    summaries = [row.table.summary() for row in comparison.rows]
    lpips = [n for n in summaries[0] if n.startswith("lpips_")]
    extractors = [e.name for e in comparison.extractors]
    headings = ["", *(_heading(n) for n in (*_SHOWN[:2], *_SHOWN[2:4], *lpips, _SHOWN[4]))]
    headings += [f"FD {name.partition('-')[0]}" for name in extractors]
    headings += ["bytes", "decoder M", "encode/s", "decode/s"]
    lines = [headings]
    for row, summary in zip(comparison.rows, summaries, strict=True):
        cells = [row.entry.label]
        for name in (*_SHOWN[:2], *_SHOWN[2:4], *lpips, _SHOWN[4]):
            estimate = summary.get(name)
            digits = _DIGITS.get(name, 3)
            half = (estimate.high - estimate.low) / 2 if estimate else 0.0
            cells.append(f"{estimate.mean:.{digits}f} ±{half:.{digits}f}" if estimate else "-")
        for name in extractors:
            distance = row.distances.get(name, {})
            mark = "" if distance.get("frechet_reliable") else "*"
            cells.append(f"{distance['frechet']:.2f}{mark}" if distance else "-")
        cells += [
            f"{statistics.fmean(row.latent_bytes):,.0f}",
            f"{row.entry.contestant.decoder_parameters / 1e6:.1f}",
            f"{1 / seconds(row.encode_seconds):.2f}",
            f"{1 / seconds(row.decode_seconds):.2f}",
        ]
        lines.append(cells)
    widths = [max(len(line[i]) for line in lines) for i in range(len(headings))]
    text = [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    ]
    notes = [f"{comparison.protocol.name}: {found['crops']} crops of {found['images']} images"]
    notes.append(f"{found['skipped_images']} skipped, {found['enlarged_images']} enlarged; ± half of the 95 % interval")
    if any("*" in cell for line in lines[1:] for cell in line):
        notes.append("* fewer crops than the feature has numbers: compare it within this table only")
    for row in comparison.rows:
        if row.table.invalid:
            notes.append(f"{row.entry.label}: {len(row.table.invalid)} reconstructions are not finite, and left out")
    notes += [f"{name}: {value}" for name, value in comparison.protocol.describe().items() if name != "protocol"]
    notes += [f"extractor {e.name}: {e.preprocessing}; sha256 {e.sha256[:16]}" for e in comparison.extractors]
    notes.append(f"fingerprint of the crops: {found['fingerprint']}")
    return "\n".join([*text, "", *notes])


def seconds(times: list[float]) -> float:
    """Median per image over the batches; the first one warms up where there are more."""
    return statistics.median(times[1:] or times)


def _heading(name: str) -> str:
    short = {
        "pooled_psnr": "PSNR pooled",
        "psnr": "PSNR mean",
        "ssim_uniform_7": "SSIM 7x7",
        "ssim_gaussian_11": "SSIM 11x11",
        "high_frequency_ratio": "detail",
    }
    return short.get(name, name.replace("lpips_", "LPIPS-"))
