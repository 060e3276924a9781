"""What the commands share: options of the model, loading it, going through many files."""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import torch
import tyro
from tqdm import tqdm

if TYPE_CHECKING:
    from ..autoencoder import AutoencoderSSDD

T = TypeVar("T")

DEFAULT_MODEL = "ssdd-f8c4-demo"
_TILING_PIXELS = 1024 * 1024


@dataclass(frozen=True)
class ModelOptions:
    """Which autoencoder, and how it runs."""

    model: str = DEFAULT_MODEL
    """Embedded name, folder, or Hugging Face id."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1, ..."""
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the networks."""

    def load(self) -> "AutoencoderSSDD":
        """The model in eval mode on its device. Raises OSError or ValueError with one line if it cannot be had."""
        from ..autoencoder import AutoencoderSSDD

        device = self.torch_device()
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.dtype]
        return AutoencoderSSDD.from_pretrained(self.model, torch_dtype=dtype).to(device).eval()

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


def tile_if_large(autoencoder: "AutoencoderSSDD", height: int, width: int) -> None:
    """Switches tiling on for images over a megapixel, off for others."""
    if height * width > _TILING_PIXELS:
        autoencoder.enable_tiling()
    else:
        autoencoder.disable_tiling()


def parse_options(options: type[T], command: str, arguments: Sequence[str]) -> T:
    """Command-line options of a command, from its dataclass."""
    return tyro.cli(options, prog=f"ssdd {command}", args=list(arguments), config=(tyro.conf.OmitArgPrefixes,))


def for_each(items: Sequence[T], name: Callable[[T], str], work: Callable[[T], None], verb: str) -> int:
    """Does ``work`` on each item under a progress bar; one that fails is named, skipped and counted.

    Returns the exit status: 0 if all went well, 1 if some failed.
    """
    failed = 0
    with tqdm(items, unit="file", disable=len(items) < 2) as bar:
        for item in bar:
            try:
                work(item)
            except (OSError, ValueError) as error:
                if os.environ.get("SSDD_TRACEBACK"):
                    raise
                failed += 1
                message = " ".join(str(error).split())
                bar.write(
                    f"skipped {message if name(item) in message else f'{name(item)}: {message}'}", file=sys.stderr
                )
    if failed:
        print(f"{verb} {len(items) - failed} of {len(items)} files; {failed} failed", file=sys.stderr)
    return 1 if failed else 0


def require(items: Sequence[T], what: str, paths: Sequence[Path]) -> Sequence[T]:
    """The items, or a ValueError if there are none."""
    if not items:
        raise ValueError(f"expected {what} in {', '.join(map(str, paths))}, found none")
    return items
