"""The tables of a report: quality, differences between rows, distances between sets, cost, over-smoothing, colour."""

import math
from collections.abc import Sequence

from ..results import precision_reference
from ..spectrum import COLOURS
from ..tables import Estimate
from .html import Html, estimate, join, number, table, tag, text
from .view import Better, Metric, RowView, View, metric

_HIDDEN = ("mse", "mae", "high_frequency_ratio", *(f"colour_shift_{colour}" for colour in COLOURS))
_DISTANCES = ("frechet", "kid", "precision", "recall", "density", "coverage")
_DETAIL = "high_frequency_ratio"


def quality(view: View) -> Html:
    """Means and intervals of every image metric, the best of each marked."""
    names = [name for name in view.image_metrics if not name.startswith("colour_shift_")]
    order = [*(n for n in ("pooled_psnr", *names) if n not in _HIDDEN), _DETAIL, "mae", "mse"]
    metrics = [metric(name) for name in dict.fromkeys(order) if name in names]
    values = [[v.estimate(m.name) for m in metrics] for v in view.rows]
    rows = [
        [v.label, *(estimate(e, m.digits) for e, m in zip(line, metrics, strict=True))]
        for v, line in zip(view.rows, values, strict=True)
    ]
    return table(["", *map(_heading, metrics)], rows, _best([[e.mean for e in line] for line in values], metrics))


def differences(view: View) -> Html:
    """Each row less the first, crop by crop; and rows in lower precision less their like. Empty with one row."""
    first = view.rows[0]
    parts = []
    if len(view.rows) > 1:
        parts.append(_minus([(v, first, v.label) for v in view.rows[1:]], view))
    references = [(v, precision_reference(view.comparison, v.row)) for v in view.rows]
    pairs = [(v, next(o for o in view.rows if o.row is r)) for v, r in references if r is not None]
    if pairs:
        parts.append(tag("h3", "What lower precision costs"))
        parts.append(_minus([(v, other, f"{v.label} less {other.label}") for v, other in pairs], view))
    return join(parts)


def _minus(pairs: Sequence[tuple[RowView, RowView, str]], view: View) -> Html:
    metrics = [metric(n) for n in view.image_metrics if n not in (*_HIDDEN, "pooled_psnr")]
    metrics += [metric(n) for n in (_DETAIL,) if n in view.image_metrics]
    rows = []
    for v, other, label in pairs:
        found = v.row.table.minus(other.row.table)
        cells = [
            join([estimate(found[m.name], m.digits), _surer(found[m.name], m.better)])
            for m in metrics
            if m.name in found
        ]
        rows.append([label, *cells])
    return table(["", *map(_heading, metrics)], rows)


def _surer(found: Estimate, better: Better) -> Html:
    """What the interval of a difference says. Of a ratio that is best at one a difference alone says nothing."""
    if better in ("one", "zero") or not (math.isfinite(found.low) and math.isfinite(found.high)):
        return Html("")
    if found.low <= 0 <= found.high:
        return tag("small", "no clear difference")
    return tag("small", "better" if (found.mean > 0) == (better == "higher") else "worse")


def distances(view: View) -> Html:
    """A table for each extractor; empty without any."""
    parts = []
    for extractor in view.comparison.extractors:
        metrics = [metric(name, extractor.name) for name in _DISTANCES]
        values = [[v.distance(extractor.name, m.name) for m in metrics] for v in view.rows]
        rows: list[list[str]] = []
        for v, line in zip(view.rows, values, strict=True):
            cells = [number(value, m.digits) for value, m in zip(line, metrics, strict=True)]
            if not math.isnan(line[0]) and not v.reliable(extractor.name):
                cells[0] = Html(f"{cells[0]}*")
            error = v.distance(extractor.name, "kid_standard_error")
            if error >= 5e-6:  # of subsets; of few crops all are the same
                cells[1] = Html(f"{cells[1]}<small>± {number(error, 5)}</small>")
            rows.append([v.label, *cells])
        parts.append(tag("h3", extractor.name))
        parts.append(table(["", *map(_heading, metrics)], rows, _best(values, metrics)))
        if any("*" in line[1] for line in rows):
            note = (
                f"* of fewer crops than a feature has numbers ({extractor.width}): compare it within this table only."
            )
            parts.append(tag("p", note, class_="note"))
    return join(parts)


def cost(view: View) -> Html:
    """Latents, parameters, operations and throughput."""
    height, width = view.comparison.size
    headings = [
        "",
        "Latent c × h × w",
        "Tokens",
        "Bytes of a latent",
        "Bits a pixel",
        "Parameters, M",
        "of the decoder, M",
    ]
    headings += [f"{part}, GFLOP at {height} × {width}" for part in ("Encode", "Decode")]
    headings += ["Encode, images/s", "Decode, images/s"]
    rows = []
    for v in view.rows:
        row, contestant = v.row, v.row.entry.contestant
        pixels = row.table.column("pixels")
        mean_pixels = float(pixels.mean()) if len(pixels) and not row.table.invalid else math.nan
        flops = row.flops or (math.nan, math.nan)
        rows.append(
            [
                v.label,
                " × ".join(map(str, row.latent_shape)) if row.latent_shape else "–",
                "–" if v.tokens is None else f"{v.tokens:,}",
                number(v.latent_bytes, 0),
                number(8 * v.latent_bytes / (view.crop_pixels or mean_pixels), 3),
                number(contestant.parameters / 1e6 if contestant.parameters else math.nan, 2),
                number(contestant.decoder_parameters / 1e6 if contestant.decoder_parameters else math.nan, 2),
                *(number(count / 1e9, 2) for count in flops),
                *(number(rate, 2 if rate < 100 else 0) for rate in (v.encode_rate, v.decode_rate)),
            ]
        )
    return table(headings, rows)


def over_smoothing(view: View) -> Html:
    """The ratio of detail energy of each row, and the verdict that its interval allows."""
    rows = [[v.label, estimate(v.estimate(_DETAIL), 3), verdict(v.estimate(_DETAIL))] for v in view.rows]
    return Html(
        table(["", "Detail energy over the original's", "Verdict"], rows).replace("<table>", '<table class="words">')
    )


def verdict(ratio: Estimate) -> str:
    """What the 95 % interval of ``high_frequency_ratio`` says of a row."""
    if not (math.isfinite(ratio.low) and math.isfinite(ratio.high)):
        return "Not defined on these crops."
    sample = f"{ratio.count} crop{'' if ratio.count == 1 else 's'}"
    if ratio.high < 1:
        return f"Smoothed: {_percent(1 - ratio.mean)} of the detail energy is lost (the whole interval is below 1)."
    if ratio.low > 1:
        return (
            f"More detail energy than the original, by {_percent(ratio.mean - 1)} (the whole interval is above 1): "
            "noise, ringing or invented texture."
        )
    return f"Indistinguishable from the original at this sample of {sample} (the interval holds 1)."


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def colour(view: View) -> Html:
    """Mean shift of each channel, in 8-bit levels."""
    metrics = [metric(f"colour_shift_{name}") for name in COLOURS]
    rows = [[v.label, *(estimate(v.estimate(m.name), m.digits) for m in metrics)] for v in view.rows]
    return table(["", *(name.capitalize() for name in COLOURS)], rows)


def _heading(of: Metric) -> Html:
    return Html(f"{text(of.heading)}&nbsp;{of.arrow}")


def _best(values: Sequence[Sequence[float]], metrics: Sequence[Metric]) -> list[tuple[int, int]]:
    """(row, column) of the best mean of each metric, columns from 1, for there are labels; none where all rows are
    equal."""
    found = []
    for k, m in enumerate(metrics):
        column = [m.badness(line[k]) for line in values]
        if math.isfinite(min(column)) and min(column) < max(column):
            found += [(i, k + 1) for i, bad in enumerate(column) if bad == min(column)]
    return found
