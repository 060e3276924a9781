"""The report as a whole: its parts in the order of a reader's questions."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...data.images import printable
from ...files import atomic_path
from ..compare import Comparison
from ..image_metrics import DESCRIPTIONS
from ..protocols import EvaluationSet
from ..results import software
from . import tables
from .canvas import check_matplotlib
from .figures import FigureFile, draw_figures
from .gallery import gallery
from .html import Html, definitions, image, join, page, tag, text
from .pictures import choose_crops, redraw
from .view import View, metric

_LISTED = 20
"""Skipped images and crops without a finite reconstruction that are named one by one."""

_FEW_IMAGES = 30


def write_report(
    comparison: Comparison, evaluation_set: EvaluationSet, path: str | os.PathLike[str], overwrite: bool = False
) -> None:
    """A comparison as one HTML file that needs no other file, no network and no script.

    The crops that it shows are read again from the set and reconstructed again. The same comparison gives the same
    bytes. An existing file stays as it is unless ``overwrite``.

    Raises:
        ImportError: there is no matplotlib; the message says what to install.
        ValueError: the set no longer has a crop that was compared.
        OutputExists, OSError: see ``atomic_path``.
    """
    check_matplotlib()
    with atomic_path(Path(path), overwrite) as temporary:
        temporary.write_bytes(render_report(comparison, evaluation_set).encode())


def render_report(comparison: Comparison, evaluation_set: EvaluationSet) -> str:
    """The text of that file. Raises as ``write_report`` does, but for files."""
    view = View(comparison)
    figures = draw_figures(view)
    choices = choose_crops(view)
    shown = redraw(comparison, evaluation_set, [choice.key for choice in choices])
    sections = [
        ("results", "Results", _results(view)),
        ("figures", "Figures", _figures(figures)),
        ("smoothing", "Over-smoothing and colour", _smoothing(view)),
        ("crops", "Worst and best crops", join([_ranked_by(view), gallery(view, choices, shown)])),
        ("method", "How this was measured", _method(view)),
    ]
    contents = tag("nav", *(Html(f'<a href="#{name}">{text(title)}</a>') for name, title, _ in sections))
    body = [tag("header", tag("h1", "Autoencoders side by side"), _lead(view), contents), _warnings(view)]
    body += [tag("section", tag("h2", title), part, id=name) for name, title, part in sections]
    return page(f"{comparison.protocol.name}: {', '.join(v.label for v in view.rows)}", join(body, "\n"))


def _lead(view: View) -> Html:
    found = view.comparison.census.describe()
    rows = f"{len(view.rows)} row{'' if len(view.rows) == 1 else 's'}"
    of_what = f"{found['crops']:,} crops of {found['images']:,} images"
    return tag("p", f"{rows} on the same {of_what}, by the protocol {view.comparison.protocol.name}.", class_="lead")


def _warnings(view: View) -> Html:
    lines = list(_warning_lines(view))
    if not lines:
        return Html("")
    return tag(
        "div",
        tag("strong", "Before you quote a number"),
        tag("ul", *(tag("li", line) for line in lines)),
        class_="warnings",
    )


def _warning_lines(view: View) -> Iterator[Any]:
    comparison = view.comparison
    census, found = comparison.census, comparison.census.describe()
    if census.skipped:
        reasons = [skipped.reason for skipped in census.skipped]
        yield join([f"{len(reasons)} skipped, no number is about them: ", _listed(reasons)])
    if found["enlarged_images"]:
        yield f"{found['enlarged_images']} smaller than the crops and enlarged for them: those have no fine detail."
    for v in view.rows:
        if v.row.table.invalid:
            names = [str(key) for key in v.row.table.invalid]
            yield join([f"{v.label}: {len(names)} not finite, and left out of all its numbers: ", _listed(names)])
        psnr = v.estimate("psnr")
        if psnr.infinite:
            yield f"{v.label}: {psnr.infinite} equal to their originals; the mean PSNR is of the others."
    for extractor in comparison.extractors:
        if not all(v.reliable(extractor.name) for v in view.rows):
            yield (
                f"{found['crops']} crops are too few for a Fréchet distance on the {extractor.width} numbers of "
                f"{extractor.name} that others could compare with theirs."
            )
    if found["images"] < _FEW_IMAGES:
        yield f"Intervals from {found['images']} images are rough."


def _listed(names: list[str]) -> Html:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return Html("; ".join(text(name) for name in names[:_LISTED]) + more)


def _results(view: View) -> Html:
    parts = [
        tag("h3", "Quality"),
        tables.quality(view),
        tag(
            "p",
            "Means over crops, below them 95 % intervals by the bootstrap over images. Shaded: the best mean of a "
            "column, sure or not.",
            class_="note",
        ),
    ]
    changes = tables.differences(view)
    if changes:
        parts.append(tag("h3", Html(f"Differences to {text(view.rows[0].label)}")))
        parts.append(
            tag(
                "p",
                "Crop by crop, so that the images' own difficulty cancels: these intervals, not those "
                "above, tell whether two rows differ.",
                class_="note",
            )
        )
        parts.append(changes)
    return join([*parts, tables.distances(view), tag("h3", "Cost"), tables.cost(view), tag("p", _COST, class_="note")])


_COST = (
    "A latent's number counts as 16 bits. A multiplication and an addition are two operations. Images a second: the "
    "median over batches, on the machine of this run."
)


def _figures(figures: list[FigureFile]) -> Html:
    kinds = {"svg": "svg+xml", "png": "png"}
    return tag(
        "div",
        *(
            tag(
                "figure",
                tag("h3", f.title),
                image(f.data, kinds[f.file_format], f"{f.title}. {f.caption}"),
                tag("figcaption", f.caption),
                id=f"figure-{f.name}",
            )
            for f in figures
        ),
        class_="figures",
    )


def _smoothing(view: View) -> Html:
    return join(
        [
            tag(
                "p",
                "Does a decoder smooth detail away, or invent it? The ratio compares the energy of luma above half of "
                "Nyquist’s frequency with the originals’, of all crops together. At 1 there is as much fine detail as "
                "there was; that it is the right detail, only LPIPS, SSIM and the crops below can tell.",
            ),
            tables.over_smoothing(view),
            tag("h3", "Colour shift"),
            tag("p", "Mean of reconstruction less original, in levels of 255, by channel.", class_="note"),
            tables.colour(view),
        ]
    )


def _ranked_by(view: View) -> Html:
    return tag("p", f"Ranked by {metric(view.ranking).heading} of {view.rows[0].label}.")


def _method(view: View) -> Html:
    comparison = view.comparison
    data = comparison.census.describe()
    parts = [
        tag("h3", "Protocol"),
        definitions((_words(name), value) for name, value in comparison.protocol.describe().items()),
        tag("h3", "Data"),
        definitions(
            (_words(name), _code(value) if name == "fingerprint" else f"{value:,}") for name, value in data.items()
        ),
        tag(
            "p",
            "The fingerprint is a hash of all crops: whoever has the same one measured on the same pixels.",
            class_="note",
        ),
        tag("h3", "Rows"),
    ]
    for v in view.rows:
        described = [(_words(name), _described(value)) for name, value in v.row.entry.contestant.describe().items()]
        parts.append(
            definitions(
                [("row", tag("strong", v.label)), ("decoding steps", "–" if v.steps is None else v.steps), *described]
            )
        )
    if comparison.extractors:
        parts.append(tag("h3", "Feature extractors"))
        for e in comparison.extractors:
            parts.append(
                definitions(
                    [
                        ("name", tag("strong", e.name)),
                        ("width", e.width),
                        ("preprocessing", e.preprocessing),
                        ("sha256", _code(e.sha256)),
                    ]
                )
            )
    parts += [tag("h3", "Metrics"), definitions((n.rstrip("_"), value) for n, value in DESCRIPTIONS.items())]
    for column, m in comparison.other_metrics.items():
        parts.append(
            definitions(
                [
                    ("metric", tag("strong", metric(column).heading)),
                    ("name", m.name),
                    ("preprocessing", m.preprocessing),
                    ("sha256", _code(m.sha256)),
                ]
            )
        )
    parts += [tag("h3", "Software"), definitions(software().items())]
    return join(parts)


def _words(name: str) -> str:
    return printable(str(name)).replace("_", " ")


def _code(value: Any) -> Html:
    return tag("code", value)


def _described(value: Any) -> Any:
    """Of a contestant: a dictionary is of hashes by file name."""
    if isinstance(value, dict):
        lines = [tag("div", name, ": ", _code(digest)) for name, digest in value.items()]
        return join(lines) if lines else "–"
    return "–" if value is None else value
