"""``ssdd app``: a page on which a picture goes through several autoencoders, side by side."""

import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from ..app import DEFAULT_PIXELS, MOST_SEED, MOST_STEPS
from ..runtime.dtypes import Dtype
from .common import DEFAULT_MODEL, Count, ModelOptions, Paths, model_of_run
from .demo import sample_photographs


@dataclass(frozen=True)
class App:
    """Compare autoencoders on a picture in the browser: a page of this machine, until Ctrl-C."""

    paths: Paths = ()
    """Pictures to begin with, and folders of photographs that the page can compare."""
    models: tuple[str, ...] = (DEFAULT_MODEL,)
    """What can be chosen besides the embedded models and JPEG: model folders, runs, Hugging Face ids, .safetensors of
    the authors or in LDM's layout, jpeg:BYTES, bicubic:FACTOR, file.py:NAME."""
    encoder: str | None = None
    """Encoder of the models that have none: file.py:NAME, package.module:NAME, model folder, run, Hugging Face id,
    single .safetensors file."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 lets other machines in."""
    port: Annotated[int, Meta(ge=0, le=65535)] = 7860
    """Port to listen at."""
    share: bool = False
    """Make a public address through Gradio's servers, for everyone who knows it."""
    steps: Annotated[int, Meta(ge=1, le=MOST_STEPS)] = 1
    """Decoding steps at first."""
    seed: Annotated[int, Meta(ge=0, le=MOST_SEED)] = 0
    """Seed of the noise at first."""
    latent_noise: Annotated[float, Meta(ge=0, le=1)] = 0.0
    """Noise on the latents at first, in standard deviations of each."""
    pixels: Count = DEFAULT_PIXELS
    """Pictures with more pixels are reduced to so many."""
    max_pixels: Count = 1 << 26
    """Pictures with more pixels are refused."""
    max_megabytes: Count = 20
    """Files that are larger are refused."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1, ..."""
    dtype: Literal["auto"] | Dtype = "auto"
    """Precision of the networks; auto is fp32."""


OPTIONS = App


def run(options: App) -> int:
    from ..app.server import Address, private_cache, serve

    address = Address(options.host, options.port, options.share)
    with private_cache() as cache:
        page = _build(options, cache)
        with serve(page, address, options.max_megabytes) as url:
            if not address.is_local:
                print("other machines can open this page, and so let this one compute", file=sys.stderr)
            print(f"the page is at {url} until Ctrl-C", flush=True)
            _wait()
    return 0


def _wait() -> None:
    threading.Event().wait()


def _build(options: App, cache: Path):  # type: ignore[no-untyped-def]  # gradio is imported here, and not before
    try:
        from ..app.page import Options, build_page
    except ImportError as error:
        raise ImportError(f"the page needs gradio (pip install 'ssdd[app]'): {error}") from error
    from ..app.compare import JPEG_LABEL, Models, Settings, check_model_name
    from ..data.find import expand

    device = ModelOptions(device=options.device, dtype=options.dtype)
    names = list(dict.fromkeys(options.models))
    folders = {name: model_of_run(name) for name in names}
    for folder in folders.values():
        check_model_name(folder)
    models = Models(names, device.torch_device(), device.torch_dtype, options.encoder, folders)
    paths = list(dict.fromkeys(Path(path) for path in expand(options.paths)))
    pictures = [path for path in paths if not path.is_dir()]
    return build_page(
        Options(
            models,
            [*models.labels[: len(names)], JPEG_LABEL],
            [*pictures, *sample_photographs()],
            [path for path in paths if path.is_dir()],
            cache,
            Settings(options.steps, options.seed, options.latent_noise),
            options.pixels,
            options.max_pixels,
            options.max_megabytes,
        )
    )
