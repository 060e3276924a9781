"""Pieces of a page: what comes from data is escaped unless it is ``Html`` already. Nothing refers to another file."""

import base64
import html
import math
from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import Any

from ...data.images import printable
from ..tables import Estimate


class Html(str):
    """Text that is markup; all other text is escaped where it enters a page."""


def text(value: Any) -> Html:
    """Any value as one line of text, markup in it made harmless, characters that do not print shown by their codes."""
    if isinstance(value, Html):
        return value
    line = str(value)
    return Html(html.escape(printable(line) if line else ""))


def join(parts: Iterable[Any], separator: str = "") -> Html:
    """Each part escaped unless it is Html; the separator as it is."""
    return Html(separator.join(text(part) for part in parts))


def tag(name: str, *content: Any, **attributes: Any) -> Html:
    """An element. ``class_`` stands for class; attributes that are None are left out."""
    pairs = "".join(f' {k.rstrip("_")}="{text(v)}"' for k, v in attributes.items() if v is not None)
    return Html(f"<{name}{pairs}>{join(content)}</{name}>")


def image(data: bytes, kind: str, alt: str, class_: str | None = None) -> Html:
    """kind: png, jpeg, svg+xml."""
    uri = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    style = f' class="{text(class_)}"' if class_ else ""
    return Html(f'<img{style} alt="{text(alt)}" src="{uri}">')


def table(headings: Sequence[Any], rows: Sequence[Sequence[Any]], best: Iterable[tuple[int, int]] = ()) -> Html:
    """The first cell of each row is its name. best: (row, column) of cells to stand out, both from 0."""
    marked = set(best)
    head = tag("tr", *(tag("th", heading, scope="col") for heading in headings))
    lines = []
    for i, (name, *cells) in enumerate(rows):
        found = [tag("td", cell, class_="best" if (i, k) in marked else None) for k, cell in enumerate(cells, 1)]
        lines.append(tag("tr", tag("th", name, scope="row"), *found))
    return tag("div", tag("table", tag("thead", head), tag("tbody", *lines)), class_="scroll", tabindex="0")


def definitions(pairs: Iterable[tuple[Any, Any]]) -> Html:
    """Names and what they stand for."""
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs))


def number(value: float, digits: int) -> Html:
    """With so many digits after the point; a dash for NaN."""
    if math.isnan(value):
        return Html("–")
    if math.isinf(value):
        return Html("∞" if value > 0 else "−∞")
    return Html(f"{value:,.{digits}f}".replace("-", "−"))


def estimate(found: Estimate, digits: int) -> Html:
    """The mean, and below it the interval."""
    if not (math.isfinite(found.low) and math.isfinite(found.high)):
        return number(found.mean, digits)
    interval = f"{number(found.low, digits)} … {number(found.high, digits)}"
    return Html(f"{number(found.mean, digits)}<small>{interval}</small>")


def page(title: str, body: Html) -> str:
    """A whole file. Its policy lets a browser load nothing and run nothing, whatever is in the body."""
    style = files(__package__).joinpath("report.css").read_text(encoding="utf-8")
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        "<!DOCTYPE html>\n"
        '<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )
