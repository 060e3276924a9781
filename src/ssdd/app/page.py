"""The page: which controls it has, what they do, and what of it waits for the device.

Whatever runs a model shares one queue, ``device``, in which one event runs at a time. Looking at results does not wait.
"""

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.blocks import Block
from PIL import Image, ImageDraw, ImageOps

from ..data.images import ImageError, read_image
from ..data.pixels import Pixels
from ..evaluation.sheet import difference
from ..runtime.text import one_safe_line
from . import DEFAULT_PIXELS, MOST_SEED, MOST_STEPS
from . import folder as folders
from .compare import Comparison, Models, Region, Settings, compare, fit_picture, latent_channels
from .downloads import command_snippet, python_snippet, write_files
from .markup import channels_grid, crops_grid, metrics_table, preformatted

MOST_PHOTOGRAPHS = 64
"""The end of a slider."""

_SHOWN_CHANNELS, _KEPT_EXAMPLES = 64, 16  # channels of a latent, and comparisons of pictures that the page offers

Values = dict[Any, Any]
"""What an event gets: the values of the controls, by control."""

_KEPT_SESSION, _KEPT_FILES = 3600, 900  # seconds: of latents in memory, and of files in the cache
_OVERVIEW = 320  # pixels of its longer side
_DEVICE: dict[str, Any] = {"concurrency_id": "device", "concurrency_limit": 1, "api_visibility": "private"}
_LOOK: dict[str, Any] = {"show_progress": "hidden", "trigger_mode": "always_last", "api_visibility": "private"}


@dataclass(frozen=True)
class Options:
    """What the page was started with.

    Attributes:
        models: that can be chosen.
        chosen: labels of those that are chosen at first.
        examples: pictures on this machine that can be chosen by a click; the first one is shown at first.
        folders: of photographs that can be compared.
        cache: the folder for files that are downloaded.
        settings: of decoding, at first.
        pixels: that larger pictures are reduced to.
        max_pixels: of pictures that are read at all.
        megabytes: of the largest upload.
    """

    models: Models
    chosen: Sequence[str]
    examples: Sequence[Path]
    folders: Sequence[Path]
    cache: Path
    settings: Settings
    pixels: int = DEFAULT_PIXELS
    max_pixels: int = 1 << 26
    megabytes: int = 20


def build_page(options: Options) -> gr.Blocks:
    """Return the page, to be served by ``server.serve``."""
    with gr.Blocks(title="ssdd: image tokenizers side by side", delete_cache=(60, _KEPT_FILES)) as page:
        _Page(options).build(page)
    return page


class _Page:
    """The controls of the page, by the names that their events use."""

    def __init__(self, options: Options) -> None:
        self.options, self.models = options, options.models
        self._examples: dict[tuple[int, tuple[str, ...], Settings], Comparison] = {}

    # ---- layout --------------------------------------------------------------------------------------------------

    def build(self, page: gr.Blocks) -> None:
        """Lay the controls out and connect them."""
        self.page = page
        self.state = gr.State(None, time_to_live=_KEPT_SESSION)
        gr.Markdown(
            "# Image tokenizers side by side\nOne picture through several autoencoders: what is lost, and where?"
        )
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                self._build_controls()
            with gr.Column(scale=3, min_width=320):
                self._build_results()
        self._connect(page)

    def _build_controls(self) -> None:
        options, settings = self.options, self.options.settings
        self.upload = gr.File(
            label=f"Your picture (at most {options.megabytes} MB)", file_types=["image"], height=130, elem_id="upload"
        )
        pictures = [(Image.fromarray(read_image(path)), path.stem) for path in options.examples]
        thumbnails = [(ImageOps.fit(picture, (160, 160), Image.Resampling.LANCZOS), name) for picture, name in pictures]
        self.gallery = gr.Gallery(
            thumbnails,
            label="Or one of these",
            columns=4,
            height="auto",
            object_fit="cover",
            allow_preview=False,
            interactive=False,
            buttons=[],
            elem_id="examples",
            visible=bool(thumbnails),
        )
        self.labels = gr.CheckboxGroup(self.models.labels, value=list(options.chosen), label="Models", elem_id="models")
        self.steps = gr.Slider(
            1,
            MOST_STEPS,
            settings.steps,
            step=1,
            label="Decoding steps",
            info="of models that have a choice",
            elem_id="steps",
        )
        self.noise = gr.Slider(
            0,
            1,
            settings.latent_noise,
            step=0.05,
            label="Noise on the latent",
            info="in its standard deviations: what would a generator's error do?",
            elem_id="noise",
        )
        self.seed = gr.Slider(0, MOST_SEED, settings.seed, step=1, label="Seed of the noise", elem_id="seed")

    def _build_results(self) -> None:
        self.shown = gr.Radio([], label="Model shown", elem_id="shown", visible=False)
        with gr.Tabs():
            with gr.Tab("Compare"):
                self._build_compare()
            with gr.Tab("Zoom"):
                self._build_zoom()
            with gr.Tab("Latent"):
                self.channels = gr.HTML(elem_id="channels")
            if self.options.folders:
                with gr.Tab("Folder"):
                    self._build_folder()
            with gr.Tab("Download"):
                self._build_download()

    def _build_compare(self) -> None:
        with gr.Row():
            self.slider = gr.ImageSlider(
                label="original | reconstruction",
                format="png",
                interactive=False,
                elem_id="slider",
                max_height=620,
                min_width=280,
            )
            self.difference = gr.Image(
                label="difference x 4",
                format="png",
                interactive=False,
                elem_id="difference",
                buttons=["fullscreen"],
                min_width=280,
            )
        self.divider = gr.Slider(0, 100, 50, step=1, label="Divider, percent of the width", elem_id="divider")
        self.table = gr.HTML(elem_id="table")

    def _build_zoom(self) -> None:
        region = Region()
        with gr.Row():
            with gr.Column(scale=1, min_width=200):
                self.overview = gr.Image(
                    label="Click where to look", interactive=False, buttons=[], elem_id="overview", format="png"
                )
            with gr.Column(scale=2, min_width=260):
                self.x = gr.Slider(0, 100, region.x, step=1, label="Across, percent", elem_id="across")
                self.y = gr.Slider(0, 100, region.y, step=1, label="Down, percent", elem_id="down")
                self.zoom = gr.Slider(1, 16, region.zoom, step=0.5, label="Zoom", elem_id="zoom")
        self.crops = gr.HTML(elem_id="crops")

    def _build_folder(self) -> None:
        names = _folder_names(self.options.folders)
        with gr.Row():
            self.folder = gr.Dropdown(names, value=names[0], type="index", label="Folder", elem_id="folder")
            self.protocol = gr.Dropdown(list(folders.PROTOCOLS), value="paper-256-v1", label="Protocol")
            self.limit = gr.Slider(1, MOST_PHOTOGRAPHS, 8, step=1, label="Photographs at most", elem_id="limit")
        self.evaluate = gr.Button("Compare on the folder", variant="primary")
        self.folder_table = gr.HTML(elem_id="folder-table")
        self.report = gr.File(label="Evaluation report", interactive=False, visible=False, elem_id="report")

    def _build_download(self) -> None:
        self.prepare = gr.Button("Make the files", variant="primary")
        self.files = gr.File(label="Files", file_count="multiple", interactive=False, elem_id="files", visible=False)
        self.python = gr.Code(label="reproduce.py", language="python", interactive=False, elem_id="python")
        self.command = gr.Code(label="reproduce.sh", language="shell", interactive=False, elem_id="command")

    # ---- events --------------------------------------------------------------------------------------------------

    def _connect(self, page: gr.Blocks) -> None:
        choices: set[Block] = {self.labels, self.steps, self.seed, self.noise, self.shown, self.x, self.y, self.zoom}
        looks: list[Any] = [self.slider, self.difference, self.table, self.channels]
        squares: list[Any] = [self.overview, self.crops]
        outputs = [self.state, self.shown, *squares, self.python, self.command]
        device = {**_DEVICE, "outputs": outputs, "show_progress_on": [self.slider], "trigger_mode": "always_last"}
        changes = [self.labels.change, self.steps.change, self.seed.change, self.noise.change]
        compared = [
            self.upload.upload(self.on_upload, {self.upload, *choices}, **device),
            self.gallery.select(self.on_example, choices, **device),
            gr.on(changes, self.on_settings, {self.state, *choices}, **device),
        ]
        if self.options.examples:
            compared.append(page.load(self.on_load, choices, **device))
        for look in (self.shown.input, *(event.success for event in compared)):  # another model may be shown by now
            look(self.on_shown, {self.state, self.shown}, looks, **_LOOK)
        self.upload.upload(lambda: None, None, self.upload, **_LOOK)  # ready for the next one
        self.divider.change(lambda percent: gr.ImageSlider(slider_position=percent), self.divider, self.slider, **_LOOK)
        moves = [self.x.change, self.y.change, self.zoom.change]
        gr.on(moves, self.on_region, {self.state, self.x, self.y, self.zoom}, squares, **_LOOK)
        self.overview.select(self.on_click, self.state, [self.x, self.y], **_LOOK)
        self.prepare.click(self.on_prepare, {self.state, self.shown}, self.files, **_DEVICE)
        if self.options.folders:
            asked: set[Block] = {self.folder, self.protocol, self.limit, *choices}
            self.evaluate.click(self.on_folder, asked, [self.folder_table, self.report], **_DEVICE)

    def on_upload(self, values: Values, progress: gr.Progress = gr.Progress()) -> list[Any]:  # noqa: B008
        """Compare on a picture that was dropped."""
        path = Path(values[self.upload])
        if str(path) not in self.page.upload_file_set:  # a browser may name any file of the cache, such as a result
            raise _error("expected a picture that was dropped here, found another file: drop the picture again")
        try:
            picture = self._read(path)
        finally:
            path.unlink()
        return self._show(self._compare(picture, values[self.labels], self._settings(values), progress), values)

    def on_example(self, values: Values, event: gr.SelectData) -> list[Any]:
        """Compare on a picture that the page offers."""
        return self._show_example(event.index, values)

    def on_load(self, values: Values) -> list[Any]:
        """Compare on the first picture that the page offers."""
        return self._show_example(0, values)

    def on_settings(self, values: Values, progress: gr.Progress = gr.Progress()) -> list[Any]:  # noqa: B008
        """Decode the latents that are there again, and encode by models that are new."""
        if (comparison := values[self.state]) is None:
            raise _error("the picture is no longer kept here: drop it again")
        return self._show(self._compare(comparison, values[self.labels], self._settings(values), progress), values)

    def on_shown(self, values: Values) -> list[Any]:
        """Show another model's reconstruction, difference and latent."""
        comparison = values[self.state]
        return [gr.skip()] * 4 if comparison is None else self._looks(comparison, values[self.shown])

    def on_region(self, values: Values) -> list[Any]:
        """Show another square of all reconstructions."""
        comparison = values[self.state]
        return [gr.skip()] * 2 if comparison is None else self._squares(comparison, values)

    def on_click(self, comparison: Comparison | None, event: gr.SelectData) -> list[Any]:
        """Return where a click on the overview was, in percent."""
        if comparison is None:
            return [gr.skip()] * 2
        height, width = _overview_size(*comparison.picture.shape[:2])
        return [round(100 * event.index[0] / width), round(100 * event.index[1] / height)]

    def on_prepare(self, values: Values) -> Any:
        """Write the files of the reconstruction that is shown."""
        comparison = values[self.state]
        shown = None if comparison is None else comparison.shown(values[self.shown])
        if shown is None:
            raise _error("expected a reconstruction to download, found none: drop a picture and choose a model")
        folder = Path(tempfile.mkdtemp(dir=self.options.cache))
        paths = _or_error(lambda: write_files(folder, comparison, shown, self.models))
        return gr.File([str(path) for path in paths], visible=True)

    def on_folder(self, values: Values, progress: gr.Progress = gr.Progress()) -> list[Any]:  # noqa: B008
        """Evaluate the chosen models on a folder that the page was started with."""
        if (index := values[self.folder]) is None:
            raise _error("expected one of the folders that the page was started with, found none")
        folder, limit = self.options.folders[index], int(values[self.limit])
        labels, settings, protocol = values[self.labels], self._settings(values), values[self.protocol]
        out = Path(tempfile.mkdtemp(dir=self.options.cache))

        def bar(items: Iterable[Any], total: int) -> Iterable[Any]:
            return progress.tqdm(items, total=total, unit="img")

        result = _or_error(
            lambda: folders.evaluate_folder(self.models, folder, labels, settings, protocol, limit, out, bar)
        )
        report = gr.File(visible=False) if result.report is None else gr.File(str(result.report), visible=True)
        return [preformatted(result.text), report]

    # ---- from a picture to what is shown -------------------------------------------------------------------------

    def _read(self, path: Path) -> Comparison:
        """Read a picture that may be hostile; say on the page what is wrong with it."""
        options = self.options
        image = _or_error(lambda: read_image(path, name=path.name, max_pixels=options.max_pixels))
        picture = _or_error(lambda: fit_picture(image, options.pixels))
        reduced = image.shape[0] * image.shape[1] > options.pixels
        return Comparison(
            f"{path.name}, reduced from {image.shape[1]} x {image.shape[0]}" if reduced else path.name, picture
        )

    def _settings(self, values: Values) -> Settings:
        return Settings(int(values[self.steps]), int(values[self.seed]), float(values[self.noise]))

    def _compare(
        self, comparison: Comparison, labels: Sequence[str], settings: Settings, progress: gr.Progress | None = None
    ) -> Comparison:
        def report(done: int, label: str) -> None:
            if progress is not None:
                progress((done, len(labels)), desc=label, unit="models")

        return compare(self.models, comparison, labels, settings, report)

    def _show_example(self, index: int, values: Values) -> list[Any]:
        if not 0 <= index < len(self.options.examples):
            raise _error(f"expected one of {len(self.options.examples)} pictures, found number {index}")
        key = (index, tuple(values[self.labels]), self._settings(values))
        comparison = self._examples.get(key)
        if comparison is None:
            comparison = self._compare(self._read(self.options.examples[index]), key[1], key[2])
            if len(comparison.reconstructions) == len(comparison.results):  # what failed may go well another time
                self._examples[key] = comparison
                if len(self._examples) > _KEPT_EXAMPLES:
                    del self._examples[next(iter(self._examples))]
        return self._show(comparison, values)

    def _show(self, comparison: Comparison, values: Values) -> list[Any]:
        names = [result.label for result in comparison.reconstructions]
        # A model that was chosen while this one was at work stays chosen.
        chosen: dict[str, Any] = {} if values[self.shown] in names else {"value": next(iter(names), None)}
        radio = gr.Radio(names, visible=len(names) > 1, **chosen)
        snippets = [python_snippet(comparison, self.models), command_snippet(comparison, self.models)]
        return [comparison, radio, *self._squares(comparison, values), *snippets]

    def _looks(self, comparison: Comparison, label: str | None) -> list[Any]:
        """Return slider, difference, table and channels."""
        shown, network = comparison.shown(label), self.models.metrics.lpips_network
        table = metrics_table(comparison, network, None if shown is None else shown.label)
        if shown is None:
            return [gr.ImageSlider(value=None), None, table, ""]
        slider = gr.ImageSlider((comparison.picture, shown.image), label=f"original | {shown.label}")
        error = gr.Image(difference(comparison.picture, shown.image), label=f"difference of {shown.label} x 4")
        if shown.latent is None:
            return [slider, error, table, f"<p>{escape(shown.label)} makes no latent for a generator.</p>"]
        note = f"{shown.label}: latent of {shown.latent_shape} numbers"
        note += f", the first {_SHOWN_CHANNELS} channels" if len(shown.latent) > _SHOWN_CHANNELS else ""
        grid = channels_grid(latent_channels(shown.latent[:_SHOWN_CHANNELS]))
        return [slider, error, table, f'<p class="ssdd-note">{escape(note)}; black to white: mean ± 2.5 std.</p>{grid}']

    def _squares(self, comparison: Comparison, values: Values) -> list[Any]:
        """Return the overview with the square drawn in, and the squares."""
        region = Region(values[self.x], values[self.y], values[self.zoom])
        differences = [difference(comparison.picture, result.image) for result in comparison.reconstructions]
        return [_overview(comparison.picture, region), crops_grid(comparison, region, differences)]


def _folder_names(folders: Sequence[Path]) -> list[str]:
    """Return the last parts of paths, and the paths themselves where several have the same one."""
    short = [path.name for path in folders]
    return [s if s and short.count(s) == 1 else str(path) for s, path in zip(short, folders, strict=True)]


def _overview_size(height: int, width: int) -> tuple[int, int]:
    scale = _OVERVIEW / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _overview(picture: Pixels, region: Region) -> Image.Image:
    """Return the picture at the size of the overview, with the region's outline."""
    height, width = _overview_size(*picture.shape[:2])
    small = Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR)
    scale = width / picture.shape[1]
    box = [round(edge * scale) for edge in region.box(*picture.shape[:2])]
    draw = ImageDraw.Draw(small)
    draw.rectangle(box, outline="black", width=4)
    draw.rectangle([box[0] + 1, box[1] + 1, box[2] - 1, box[3] - 1], outline="white", width=2)
    return small


def _error(line: str) -> gr.Error:
    return gr.Error(escape(line), duration=20, print_exception=False)


def _or_error(work: Callable[[], Any]) -> Any:
    """Return what a call returns; show what it raises as one line on the page."""
    try:
        return work()
    except (ImageError, OSError, ValueError, ImportError, RuntimeError) as error:
        raise _error(one_safe_line(str(error)) or type(error).__name__) from error
