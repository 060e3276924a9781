"""All figures of a comparison as image files, each with what it shows and how to read it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import plots
from .canvas import Format, saved, styled
from .view import View, metric

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class FigureFile:
    """name: for a file or an anchor. caption: a sentence or two on how to read it. data: of ``file_format``."""

    name: str
    title: str
    caption: str
    data: bytes
    file_format: Format


def draw_figures(view: View, file_format: Format = "svg") -> list[FigureFile]:
    """Those that the comparison has something for; the same bytes for the same comparison.

    Raises ImportError, with what to install, if there is no matplotlib.
    """
    found = []
    with styled():
        for name, title, caption, plot in _figures(view):
            figure = plot(view)
            if figure is not None:
                found.append(FigureFile(name, title, caption, saved(figure, file_format), file_format))
    return found


def _figures(view: View) -> list[tuple[str, str, str, "Callable[[View], Figure | None]"]]:
    quality, extractor = view.headline
    heading = metric(quality, extractor).heading + (f" ({extractor})" if extractor else "")
    towards = "bottom" if metric(quality).better == "lower" else "top"
    return [
        (
            "speed-quality",
            "Speed and quality",
            f"Images decoded a second on this machine against {heading}: the best corner is {towards} right. Points of "
            "one model at several numbers of steps are joined.",
            plots.speed_and_quality,
        ),
        (
            "step-sweep",
            "Number of decoding steps",
            "Each step costs one pass of the decoder. Bands are 95 % intervals over images; all rows share the same "
            "crops, so two rows may differ for sure although their bands overlap.",
            plots.step_sweep,
        ),
        (
            "spectrum",
            "Radial power spectrum",
            "Energy of luma by fineness of detail, mean over all crops. Below, each row over the originals: under the "
            "line detail is lost, above it there is more than there was. The detail ratio of the tables is that of all "
            "energy right of half of Nyquist.",
            plots.spectrum,
        ),
        (
            "compression",
            "Quality and size of the latent",
            f"{heading} against what is stored of an image. Fewer tokens make a generator on the latents cheaper; "
            "fewer bits leave the decoder less to go by.",
            plots.compression,
        ),
        (
            "sorted-crops",
            "All crops, sorted",
            "Each curve is one row's crops from worst to best, so that a mean does not hide how bad the worst ones "
            "are. At one place two curves may show two different crops.",
            plots.sorted_crops,
        ),
    ]
