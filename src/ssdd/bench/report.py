"""Measurements as tables for people and as JSON."""

from collections.abc import Mapping
from typing import Any

from ..text import aligned
from .memory import MemoryRows
from .setting import Key, key_of
from .throughput import Speed, Speeds

SECONDS, BYTES = "median_seconds", "peak_bytes"
"""The figures by which rows are compared with earlier ones: less is better."""
_MIB = 1 << 20
_NONE = "-"


def speed_table(found: Speeds, of: str = "images") -> str:
    """Rows with their shares and ratios; ``of`` is what is counted: images, or updates of a training."""
    head = ["", "px", "batch", f"{of}/s", "spread", "GFLOP", "of first", "GFLOP/s", "of peak"]
    with_memory = any(row.memory is not None for row in found.rows)
    lines = [[*head, *(["peak MiB"] if with_memory else []), "speed"]]
    for row in found.rows:
        first = found.reference(row)
        rate = row.images_per_second if of == "images" else 1 / row.times.median
        cells = [row.name, str(row.size), str(row.batch), f"{rate:.4g}", f"±{100 * row.times.spread:.0f} %"]
        cells += [f"{row.gflop:,.1f}", _NONE if first is None else f"{row.gflop / first.gflop:.2f}"]
        cells += [f"{row.flops / 1e9:,.0f}", f"{100 * row.flops / found.peak:.0f} %"]
        if with_memory:
            cells.append(_NONE if row.memory is None else f"{row.memory / _MIB:,.0f}")
        lines.append([*cells, _NONE if first is None else f"{row.times.ratio(first.times):.2f}x"])
    skipped = [f"skipped: {line}" for line in found.skipped]
    peak = f"quickest matrix product or convolution in this precision: {found.peak / 1e9:,.0f} GFLOP/s (peak)"
    notes = f"GFLOP of one image; ratios are to {found.first}"
    return "\n".join([*aligned(lines), *skipped, "", f"{peak}; {notes}", found.setting.line()])


def speed_dict(found: Speeds) -> dict[str, Any]:
    """All of it, with every round."""
    return {
        "setting": found.setting.as_dict(),
        "peak_flops_per_second": found.peak,
        "first": found.first,
        "rows": [_speed_row(row, found) for row in found.rows],
        "skipped": found.skipped,
    }


def _speed_row(row: Speed, found: Speeds) -> dict[str, Any]:
    first = found.reference(row)
    return {
        "name": row.name,
        "size": row.size,
        "batch": row.batch,
        "seconds_per_call": row.times.rounds,
        SECONDS: row.times.median,
        "spread": row.times.spread,
        "images_per_second": row.images_per_second,
        "gflop_per_image": row.gflop,
        "gflop_against_first": None if first is None else row.gflop / first.gflop,
        "gflop_per_second": row.flops / 1e9,
        "share_of_peak": row.flops / found.peak,
        "peak_bytes": row.memory,
        "speed_against_first": None if first is None else row.times.ratio(first.times),
    }


def memory_table(found: MemoryRows) -> str:
    """Peak memory of each row, and how much that is of an image's own size."""
    lines = [["", "px", "batch", "tiling", "peak MiB", "bytes a pixel"]]
    for row in found.rows:
        pixels = row.batch * row.size**2
        cells = [row.name, str(row.size), str(row.batch), row.tiling]
        lines.append([*cells, f"{row.peak_bytes / _MIB:,.0f}", f"{row.peak_bytes / pixels:,.0f}"])
    skipped = [f"skipped: {line}" for line in found.skipped]
    note = "peak of one call above the weights, each row in a process of its own"
    return "\n".join([*aligned(lines), *skipped, "", note, found.setting.line()])


def memory_dict(found: MemoryRows) -> dict[str, Any]:
    """All of it."""
    rows = [{**vars(row), "peak_bytes": row.peak_bytes} for row in found.rows]
    return {"setting": found.setting.as_dict(), "rows": rows, "skipped": found.skipped}


def against_table(now: dict[str, Any], then: Mapping[Key, float], figure: str) -> str:
    """Ratios to an earlier file, of the rows that both have: above 1 it is better now.

    now: of ``speed_dict`` or ``memory_dict``. Raises ValueError if there is no row in common.
    """
    common = [row for row in now["rows"] if key_of(row) in then]
    if not common:
        raise ValueError("expected a contender, size and batch that the earlier file has too, found none")
    what = "faster" if figure == SECONDS else "less memory"
    lines = [["", "px", "batch", *(["tiling"] if figure == BYTES else []), what]]
    for row in common:
        name, size, batch, tiling = key_of(row)
        cells = [name, str(size), str(batch), *([tiling] if figure == BYTES else [])]
        lines.append([*cells, f"{then[key_of(row)] / row[figure]:.2f}x"])
    return "\n".join(aligned(lines))
