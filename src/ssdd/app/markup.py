"""Tables and rows of small pictures as HTML. Every text in it is escaped, for file names are anybody's words."""

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape

from PIL import Image

from ..data.pixels import Pixels
from .compare import Comparison, Failure, Reconstruction, Region

CSS = """
.gradio-container { width: 100%; min-width: 0; max-width: 1680px !important; }
#upload label { position: static; margin-bottom: 4px; }
#examples .gallery-container, #examples .grid-wrap { height: auto; min-height: 0; max-height: none; }
#examples .grid-container { grid-template-columns: repeat(4, 1fr); grid-auto-rows: auto; padding-top: 26px; }
#examples .thumbnail-item { aspect-ratio: 1; height: auto; }
#difference .image-frame, #difference .image-frame img { width: 100%; height: auto; }
#examples .caption-label { display: none; }
#divider { padding-block: 6px; }
@media (max-width: 480px) { .tab-container button { padding-inline: 6px !important; font-size: 14px !important; } }
.ssdd-table { overflow-x: auto; }
.ssdd-table table, .ssdd-table tr { border: none !important; }
.ssdd-table table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; margin: 0; }
.ssdd-table th, .ssdd-table td { padding: .45em .8em; text-align: right; white-space: nowrap;
  border: none !important; border-bottom: 1px solid var(--border-color-primary) !important;
  color: var(--body-text-color); }
.ssdd-table thead th { opacity: .75; font-weight: 500; }
.ssdd-table tbody th { font-weight: 600; }
.ssdd-table th:first-child, .ssdd-table td.reason { text-align: left; }
.ssdd-table td.reason { white-space: normal; color: var(--error-text-color, #b91c1c); }
.ssdd-table tr.shown th:first-child::before { content: "\\25B8\\A0"; }
.ssdd-table pre { font-size: 13px; margin: 0; color: var(--body-text-color); background: none; overflow: visible; }
.ssdd-note { color: var(--body-text-color); opacity: .75; margin: .5em 0; }
.ssdd-grid { display: grid; gap: 12px; grid-template-columns: repeat(auto-fill, minmax(min(45%, 180px), 1fr)); }
.ssdd-grid figure { margin: 0; }
.ssdd-grid img { width: 100%; display: block; image-rendering: pixelated; border-radius: 4px; }
.ssdd-grid img + img { margin-top: 4px; }
.ssdd-grid figcaption { color: var(--body-text-color); padding: .3em 0; overflow-wrap: anywhere; }
.ssdd-grid figcaption small { opacity: .75; }
"""


def metrics_table(comparison: Comparison, network: str | None, shown: str | None) -> str:
    """Return the table of a comparison: a row for each autoencoder, and a line about the picture.

    Args:
        comparison: with its results.
        network: of LPIPS; None leaves the column out.
        shown: label of the autoencoder whose row is marked.
    """
    on_gpu = any(result.peak_bytes is not None for result in comparison.reconstructions)
    headings = ["", "PSNR dB", "SSIM", *([f"LPIPS-{network}"] if network else []), "latent", "bytes", "steps"]
    headings += ["encode s", "decode s", *(["peak MiB"] if on_gpu else [])]
    head = "".join(f'<th scope="col">{heading}</th>' for heading in headings)
    rows = []
    for result in comparison.results:
        marked = ' class="shown"' if result.label == shown and len(comparison.results) > 1 else ""
        if isinstance(result, Failure):
            cells = f'<td class="reason" colspan="{len(headings) - 1}">{escape(result.reason)}</td>'
        else:
            cells = "".join(f"<td>{cell}</td>" for cell in _cells(result, network, on_gpu))
        rows.append(f'<tr{marked}><th scope="row">{escape(result.label)}</th>{cells}</tr>')
    height, width, _ = comparison.picture.shape
    note = f"{escape(comparison.title)}: {width} x {height} pixels, {comparison.picture.nbytes:,} bytes of pixels."
    if any(result.steps is None for result in comparison.reconstructions):
        note += " Models without a number of steps decode in their own way, whatever the slider says."
    if comparison.settings.latent_noise and any(result.latent is None for result in comparison.reconstructions):
        note += " Files get no noise."
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<div class="ssdd-table" tabindex="0">{table}</div><p class="ssdd-note">{note}</p>'


def _cells(result: Reconstruction, network: str | None, on_gpu: bool) -> list[str]:
    metrics = result.metrics
    cells = [f"{metrics.psnr:.2f}", _number(metrics.ssim), *([_number(metrics.lpips)] if network else [])]
    cells.append(result.latent_shape)
    cells += [f"{result.latent_bytes:,}", "-" if result.steps is None else str(result.steps)]
    cells += [f"{result.encode_seconds:.2f}", f"{result.decode_seconds:.2f}"]
    if on_gpu:
        cells.append("-" if result.peak_bytes is None else f"{result.peak_bytes / 2**20:,.0f}")
    return cells


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def preformatted(text: str) -> str:
    """Return a table of text."""
    return f'<div class="ssdd-table" tabindex="0"><pre>{escape(text)}</pre></div>'


def crops_grid(comparison: Comparison, region: Region, differences: Sequence[Pixels]) -> str:
    """Return the same square of the original and of each reconstruction, above the same square of its difference."""
    figures = [_figure([region.cut(comparison.picture)], "original")]
    for result, difference in zip(comparison.reconstructions, differences, strict=True):
        figures.append(_figure([region.cut(result.image), region.cut(difference)], result.label))
    note = "Below each reconstruction its difference to the original, four times as strong."
    return f'<div class="ssdd-grid">{"".join(figures)}</div><p class="ssdd-note">{note}</p>'


def channels_grid(channels: Iterable[tuple[Pixels, str]]) -> str:
    """Return the channels of a latent, each with its line."""
    figures = [_figure([image], f"channel {number}", line) for number, (image, line) in enumerate(channels)]
    return f'<div class="ssdd-grid">{"".join(figures)}</div>'


def _figure(images: Sequence[Pixels], caption: str, line: str = "") -> str:
    alternatives = [caption, f"{caption}, difference"]
    pictures = "".join(
        f'<img src="{_data_url(image)}" alt="{escape(alternative)}">'
        for image, alternative in zip(images, alternatives, strict=False)
    )
    small = f"<br><small>{escape(line.strip())}</small>" if line else ""
    return f"<figure>{pictures}<figcaption>{escape(caption)}{small}</figcaption></figure>"


def _data_url(image: Pixels) -> str:
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
