"""What the commands share: options of the model, loading it, going through many files.

Nothing heavy is imported before it is needed: every command's help is there at once.
"""

import atexit
import errno
import functools
import json
import logging
import os
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import tyro
from msgspec import Meta

from ..runtime.dtypes import Dtype, torch_dtype
from ..runtime.files import OutputExists
from ..runtime.text import as_json, bars_are_off, one_safe_line

if TYPE_CHECKING:
    import torch

    from ..autoencoder import AutoencoderSSDD
    from ..checkpoints.identity import LatentIdentity

T = TypeVar("T")

logger = logging.getLogger(__name__)

DEFAULT_MODEL = "ssdd-f8c4-demo"
MANY_IMAGES = 100
"""From so many images on it pays to make a model ready for full speed (docs/performance.md)."""

Optimize = Literal["auto", "on", "off"]

ERROR, USAGE, SKIPPED = 1, 2, 3
"""Exit statuses: nothing more was done; wrong usage, before any work; all was done but for some inputs, named."""

Count = Annotated[int, Meta(ge=1)]
Seed = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Workers = Annotated[int, Meta(ge=0)]
Paths = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PATH ...")]


@dataclass(frozen=True)
class ModelOptions:
    """Which autoencoder, and how it runs."""

    model: str = DEFAULT_MODEL
    """Embedded name, folder, or Hugging Face id."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1, ..."""
    dtype: Literal["auto"] | Dtype = "auto"
    """Precision of the networks. auto: fp32, and bf16 for a decoder made ready for full speed, where the device
    computes in it."""
    optimize: Optimize = "auto"
    """Make the model ready for full speed, which takes half a minute the first time on a machine. auto: for 100 images
    and more. The images are more than 50 dB from those of fp32 without it."""

    def load(self) -> "AutoencoderSSDD":
        """Return the model in eval mode on its device.

        Raises OSError or ValueError with one line if it cannot be had.
        """
        from ..autoencoder import AutoencoderSSDD

        device = self.torch_device()
        return AutoencoderSSDD.from_pretrained(model_of_run(self.model), torch_dtype=self.torch_dtype).to(device).eval()

    @property
    def precision(self) -> Dtype:
        """Return the name of the precision of networks that are not optimised."""
        return "fp32" if self.dtype == "auto" else self.dtype

    @property
    def torch_dtype(self) -> "torch.dtype":
        """Return the precision of networks that are not optimised."""
        return torch_dtype(self.precision)

    def optimize_for(self, autoencoder: "AutoencoderSSDD", images: int) -> None:
        """Make a model ready for full speed if it is for many images; its encoder stays in float32 by default."""
        if pays(self.optimize, images):
            dtype = None if self.dtype == "auto" else self.torch_dtype
            autoencoder.optimize(dtype, can_compile_once(autoencoder.device), self.torch_dtype)

    def torch_device(self) -> "torch.device":
        """Return the device that ``device`` names. Raises ValueError if there is none of that name."""
        import torch

        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(self.device)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            no_gpu = self.device.startswith("cuda") and not torch.cuda.is_available()
            reason = "PyTorch finds no GPU here: take --device cpu" if no_gpu else str(error)
            raise ValueError(f"expected a device like cpu or cuda, found {self.device!r}: {reason}") from error
        return device


@dataclass(frozen=True)
class EncoderOptions(ModelOptions):
    """Which autoencoder, with which encoder, and how it runs."""

    encoder: str | None = None
    """Encoder of a model that has none: file.py:NAME, package.module:NAME, model folder, run, Hugging Face id, single
    .safetensors file, taef2."""

    def identify(self) -> "LatentIdentity":
        """Return the identity of the latents that the model makes. Raises as ``load``."""
        from msgspec import structs

        from ..checkpoints.identity import identify

        return structs.replace(identify(model_of_run(self.model), self.encoder), name=self.model)

    def load(self) -> "AutoencoderSSDD":
        """Return the model with its encoder.

        Raises OSError, ValueError or ImportError with one line if it cannot be had.
        """
        from ..autoencoder import AutoencoderSSDD
        from ..checkpoints.encoders import cast, encoder_beside, load_encoder
        from ..checkpoints.own_model import find_folder

        autoencoder = super().load()
        if (name := encoder_beside(self.model, autoencoder.config, self.encoder)) is not None:
            folder = find_folder(model_of_run(self.model), AutoencoderSSDD)
            encoder = load_encoder(name, self.model, autoencoder.config, folder)
            autoencoder.attach_encoder(cast(encoder, self.torch_dtype))
        return autoencoder


@functools.cache
def model_of_run(name: str) -> str:
    """Return the name of a model, or, for a run that is not finished, a folder with its newest checkpoint's model.

    That folder goes with the process; a line on standard error says at how many images the run is.
    """
    run = Path(name)
    checkpoints = any((run / "checkpoints").glob("[0-9]*[0-9]"))
    if not checkpoints or not (run / "config.json").is_file():
        return name
    from ..training.export import export_checkpoint, find_checkpoint

    checkpoint = find_checkpoint(run)
    images = int(checkpoint.name)
    if (run / "model").is_dir() and images >= _total_images(run):
        return name
    folder = Path(tempfile.mkdtemp(prefix="ssdd-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    model = folder / f"{run.resolve().name}@{images}" / "model"
    model.parent.mkdir()
    export_checkpoint(checkpoint, model)
    print(f"{name}: this run is not finished; its averaged model after {images:,} images is used", file=sys.stderr)
    return str(model)


def _total_images(run: Path) -> int:
    """Return how many images a run is to see; 0 where its settings cannot be read."""
    try:
        return int(json.loads((run / "config.json").read_text())["total_images"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return 0


def pays(optimize: Optimize, images: int) -> bool:
    """Return whether a model for so many images is to be made ready for full speed; log it."""
    if optimize == "off" or (optimize == "auto" and images < MANY_IMAGES):
        return False
    logger.info("the model is made ready for full speed (--optimize off: plain)")
    return True


def can_compile_once(device: "torch.device", one_size: bool = False) -> bool:
    """Return whether what is compiled serves all images.

    On a CPU that are the norms alone, for all sizes; elsewhere a network as a whole, again for each size.
    """
    return one_size or device.type == "cpu"


def for_each(items: Sequence[T], name: Callable[[T], str], work: Callable[[T], None]) -> int:
    """Do ``work`` on each item under a progress bar; one that fails is named and skipped.

    Returns how many failed. Raises OSError where no other item could be written either: a full disk or one that is
    read-only ends the command.
    """
    from tqdm.auto import tqdm

    from ..autoencoder.estimate import is_out_of_memory
    from ..autoencoder.tiling import tracked

    failed = 0
    with (
        tqdm(items, unit="file", disable=len(items) < 2 or bars_are_off()) as bar,
        tracked(lambda tiles: tqdm(tiles, unit="tile", leave=False)),
    ):
        for item in bar:
            try:
                work(item)
            except (OSError, ValueError, MemoryError, RuntimeError) as error:
                if _nothing_can_be_written(error) or (isinstance(error, RuntimeError) and not is_out_of_memory(error)):
                    raise
                if os.environ.get("SSDD_TRACEBACK"):
                    traceback.print_exc()
                failed += 1
                message, label = (" ".join(text.split()) for text in (str(error) or type(error).__name__, name(item)))
                line = message if message.startswith(f"{label}:") else f"{label}: {message}"
                bar.write(f"skipped {line}", file=sys.stderr)
    return failed


def summarize(verb: str, done: int, kept: int, failed: int, out: Path) -> int:
    """Say how many files were done, were there before, and failed. Return the exit status."""
    if failed:
        print(f"{verb} {done} of {done + failed} files; {failed} failed", file=sys.stderr)
    if done or kept:
        before = f" ({kept:,} {'was' if kept == 1 else 'were'} there before)" if kept else ""
        print(f"{verb} {done:,} {'file' if done == 1 else 'files'} into {out}{before}")
    if not failed:
        return 0
    return SKIPPED if done or kept else ERROR


def print_json(result: dict[str, Any]) -> None:
    """Print a result for programs: finite numbers, and null for what is not defined."""
    print(json.dumps(as_json(result), indent=1))


def missing(items: Sequence[T], result: Callable[[T], Path], overwrite: bool) -> list[T]:
    """Return the items whose result is not there yet; all of them with ``overwrite``."""
    return [item for item in items if overwrite or not result(item).exists()]


def is_kept(picture: Path, made_by: str, overwrite: bool) -> bool:
    """Return whether a PNG file is there already. Raises OutputExists for one that was not made alike.

    made_by: see ``LatentDecoder.describe_decoding``.
    """
    from ..data.images import read_made_by

    if overwrite or not os.path.lexists(picture):
        return False
    found = read_made_by(picture)
    if found is None or found.rpartition(": ")[2] != made_by.rpartition(": ")[2]:
        by = "" if found is None else f", by {one_safe_line(found)[:200]}"
        raise OutputExists(
            f"{picture} exists already{by}; choose another --out, or pass --overwrite to replace it by {made_by}"
        )
    return True


def is_own_result(path: Path, out: Path) -> bool:
    """Return whether an image was written to the folder ``out`` by a command that says so in its PNG files."""
    from ..data.images import read_made_by

    # Not Path.resolve, which raises for a link to itself.
    inside = Path(os.path.realpath(path)).is_relative_to(os.path.realpath(out))
    return inside and read_made_by(path) is not None


def _nothing_can_be_written(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, is that of a whole file system."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            return True
        error = error.__cause__
    return False


def run_training(command: str, train: Callable[[], Path]) -> int:
    """Run a training that returns its result's folder. Under torchrun one process speaks for all; each one warns.

    Returns the exit status: 0, or 128 and the number of the signal that stopped it.
    """
    from tqdm.contrib.logging import logging_redirect_tqdm

    from ..training.watch import TrainingStopped

    main = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(level=logging.INFO if main else logging.WARNING, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        with logging_redirect_tqdm():  # lines of their own, above the progress bar
            model = train()
    except TrainingStopped as stopped:
        if main:
            print(f"ssdd {command}: {stopped}", file=sys.stderr)
        return 128 + stopped.signal_number
    if main:
        print(f"trained model in {model}")
    return 0


def require(items: Sequence[T], what: str, paths: Sequence[str]) -> Sequence[T]:
    """Return the items, or a ValueError if there are none."""
    if not paths:
        raise ValueError(f"expected {what} or folders of them, found no path on the command line")
    if not items:
        raise ValueError(f"expected {what} in {', '.join(map(str, paths))}, found none")
    return items


def _at(there: Path, out: Path) -> str:
    return "" if there == out else f" at {there}"


def check_outputs(out: Path, names: Sequence[str], new: Sequence[str] = (), photographs: Iterable[Path] = ()) -> None:
    """Refuses, before the work, results that could not all be written to the folder ``out``.

    Raises NotADirectoryError if ``out`` or a folder above it is a file, PermissionError if nothing can be written
    there, ValueError if two results have one of the ``names`` or one would replace one of the ``photographs``,
    OutputExists if one of the names in ``new`` exists.
    """
    there = next(path for path in (out, *out.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        raise NotADirectoryError(f"{out}: expected a folder for the results, found a file{_at(there, out)}")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"{out}: expected a folder to write to, found one that is read-only{_at(there, out)}")
    if not out.exists():
        try:  # the superuser has access everywhere, and yet not each file system takes a folder
            with tempfile.TemporaryDirectory(prefix=".ssdd-", dir=there):
                pass
        except OSError as error:
            where = f"{out}: expected a folder to write to, found {os.strerror(error.errno or 0)}{_at(there, out)}"
            raise PermissionError(where) from error
    count = Counter(name.casefold() for name in names)  # as on a file system where case does not count
    for name in names:
        if count[name.casefold()] > 1:
            raise ValueError(f"{out / name}: expected one result of this name, found two; give them to separate runs")
    results = {_file_id(out / name) for name in names} - {None}
    for path in photographs:
        if _file_id(path) in results:
            raise ValueError(
                f"{path}: expected a folder where no result replaces this photograph, found {out}: choose another --out"
            )
    for name in new:
        if os.path.lexists(out / name):
            raise OutputExists(f"{out / name} exists already; pass --overwrite to replace it")


def _file_id(path: Path) -> tuple[int, int] | None:
    """Return what all names of one file share; None where there is no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
