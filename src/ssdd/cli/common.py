"""What the commands share: options of the model, loading it, going through many files."""

import atexit
import errno
import functools
import logging
import os
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
import tyro
from msgspec import structs
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ..dtypes import DTYPES, Dtype
from ..files import OutputExists

if TYPE_CHECKING:
    from ..autoencoder import AutoencoderSSDD
    from ..checkpoints.identity import LatentIdentity

T = TypeVar("T")

DEFAULT_MODEL = "ssdd-f8c4-demo"
_HUB_ID = r"[\w-][\w.-]*/[\w.-]+"
_TILING_PIXELS = 1024 * 1024


@dataclass(frozen=True)
class ModelOptions:
    """Which autoencoder, and how it runs."""

    model: str = DEFAULT_MODEL
    """Embedded name, folder, or Hugging Face id."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1, ..."""
    dtype: Dtype = "fp32"
    """Precision of the networks."""

    def load(self) -> "AutoencoderSSDD":
        """The model in eval mode on its device. Raises OSError or ValueError with one line if it cannot be had."""
        from ..autoencoder import AutoencoderSSDD

        self._check_name()
        device = self.torch_device()
        return AutoencoderSSDD.from_pretrained(self._place(), torch_dtype=DTYPES[self.dtype]).to(device).eval()

    def _place(self) -> str:
        """Return the model's own name, or its result where that is the folder of a training run."""
        name = model_of_run(self.model)
        result = Path(name) / "model"
        return str(result) if (result / "config.json").is_file() else name

    def _check_name(self) -> None:
        """Raises FileNotFoundError, without asking the hub, for what cannot be a model."""
        from ..checkpoints.embedded import embedded_names

        folder = Path(self._place())
        if folder.is_dir():
            if (folder / "stats.jsonl").is_file() or (folder / "checkpoints").is_dir():
                raise FileNotFoundError(f"{self.model}: expected a model, found a training run that is not finished")
            if not (folder / "config.json").is_file():
                raise FileNotFoundError(f"{self.model}: expected a model folder, found no config.json in it")
        elif folder.exists() or (self.model not in embedded_names() and not re.fullmatch(_HUB_ID, self.model)):
            raise FileNotFoundError(
                f"{self.model}: expected a model folder, a Hugging Face id OWNER/NAME or an embedded model "
                f"({', '.join(embedded_names()) or 'none in this build'}), found none of them"
            )

    def torch_device(self) -> torch.device:
        """The device that ``device`` names. Raises ValueError if there is none of that name."""
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(self.device)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"expected a device like cpu or cuda, found {self.device!r}: {error}") from error
        return device


@dataclass(frozen=True)
class EncoderOptions(ModelOptions):
    """Which autoencoder, with which encoder, and how it runs."""

    encoder: str | None = None
    """Encoder of a model that has none: file.py:NAME, package.module:NAME, model folder, run, Hugging Face id."""

    def identify(self) -> "LatentIdentity":
        """Return the identity of the latents that the model makes. Raises as ``load``."""
        from ..checkpoints.identity import identify

        return structs.replace(identify(self._place(), self.encoder), name=self.model)

    def load(self) -> "AutoencoderSSDD":
        """The model with its encoder. Raises OSError, ValueError or ImportError with one line if it cannot be had."""
        from ..autoencoder import AutoencoderSSDD
        from ..checkpoints.encoders import cast, check_encoder, load_encoder
        from ..checkpoints.own_model import find_folder

        autoencoder = super().load()
        check_encoder(self.model, autoencoder.config, self.encoder)
        if self.encoder is not None:
            folder = find_folder(self._place(), AutoencoderSSDD)
            encoder = load_encoder(self.encoder, self.model, autoencoder.config, folder)
            autoencoder.attach_encoder(cast(encoder, DTYPES[self.dtype]))
        return autoencoder


@functools.cache
def model_of_run(name: str) -> str:
    """Return the name of a model, or, for a run that is not finished, a folder with its newest checkpoint's model.

    That folder goes with the process; a line on standard error says at how many images the run is.
    """
    run = Path(name)
    checkpoints = any((run / "checkpoints").glob("[0-9]*[0-9]"))
    if not checkpoints or (run / "model").is_dir() or not (run / "config.json").is_file():
        return name
    from ..training.export import export_checkpoint, find_checkpoint

    images = int(find_checkpoint(run).name)
    folder = Path(tempfile.mkdtemp(prefix="ssdd-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    model = folder / f"{run.resolve().name}@{images}" / "model"
    model.parent.mkdir()
    export_checkpoint(run, model, images)
    print(f"{name}: this run is not finished; its averaged model after {images:,} images is used", file=sys.stderr)
    return str(model)


def is_large(height: int, width: int) -> bool:
    """Return whether an image has so many pixels that it is decoded in tiles: over a megapixel."""
    return height * width > _TILING_PIXELS


def tile_if_large(autoencoder: "AutoencoderSSDD", height: int, width: int) -> None:
    """Switch tiling on for images over a megapixel, off for others."""
    if is_large(height, width):
        autoencoder.enable_tiling()
    else:
        autoencoder.disable_tiling()


def parse_options(options: type[T], command: str, arguments: Sequence[str]) -> T:
    """Command-line options of a command, from its dataclass."""
    return tyro.cli(options, prog=f"ssdd {command}", args=list(arguments), config=(tyro.conf.OmitArgPrefixes,))


def for_each(items: Sequence[T], name: Callable[[T], str], work: Callable[[T], None], verb: str) -> int:
    """Do ``work`` on each item under a progress bar; one that fails is named, skipped and counted.

    Returns the exit status: 0 if all went well, 1 if some failed. Raises OSError where no other item could be written
    either: a full disk or one that is read-only ends the command.
    """
    from ..tiling import tracked

    failed = 0
    with (
        tqdm(items, unit="file", disable=len(items) < 2) as bar,
        tracked(lambda tiles: tqdm(tiles, unit="tile", leave=False)),
    ):
        for item in bar:
            try:
                work(item)
            except (OSError, ValueError, MemoryError, torch.OutOfMemoryError) as error:
                if os.environ.get("SSDD_TRACEBACK") or _nothing_can_be_written(error):
                    raise
                failed += 1
                message, label = (" ".join(text.split()) for text in (str(error) or type(error).__name__, name(item)))
                line = message if message.startswith(f"{label}:") else f"{label}: {message}"
                bar.write(f"skipped {line}", file=sys.stderr)
    if failed:
        print(f"{verb} {len(items) - failed} of {len(items)} files; {failed} failed", file=sys.stderr)
    return 1 if failed else 0


def _nothing_can_be_written(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, is that of a whole file system."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            return True
        error = error.__cause__
    return False


def run_training(command: str, train: Callable[[], Path]) -> int:
    """Runs a training that returns its result's folder. Under torchrun one process speaks for all; each one warns.

    Returns the exit status: 0, or 128 and the number of the signal that stopped it.
    """
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


def require(items: Sequence[T], what: str, paths: Sequence[Path]) -> Sequence[T]:
    """The items, or a ValueError if there are none."""
    if not paths:
        raise ValueError(f"expected {what} or folders of them, found no path on the command line")
    if not items:
        raise ValueError(f"expected {what} in {', '.join(map(str, paths))}, found none")
    return items


def _at(there: Path, out: Path) -> str:
    return "" if there == out else f" at {there}"


def check_outputs(out: Path, names: Sequence[str], new: Sequence[str] = ()) -> None:
    """Refuses, before the work, results that could not all be written to the folder ``out``.

    Raises NotADirectoryError if ``out`` or a folder above it is a file, PermissionError if nothing can be written
    there, ValueError if two results have one of the ``names``, OutputExists if one of the names in ``new`` exists.
    """
    there = next(path for path in (out, *out.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        raise NotADirectoryError(f"{out}: expected a folder for the results, found a file{_at(there, out)}")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"{out}: expected a folder to write to, found one that is read-only{_at(there, out)}")
    count = Counter(name.casefold() for name in names)  # as on a file system where case does not count
    for name in names:
        if count[name.casefold()] > 1:
            raise ValueError(f"{out / name}: expected one result of this name, found two; give them to separate runs")
    for name in new:
        if os.path.lexists(out / name):
            raise OutputExists(f"{out / name} exists already; pass --overwrite to replace it")
