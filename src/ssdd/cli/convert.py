"""``ssdd convert``: a checkpoint in the authors' released layout -> a model folder."""

import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from .common import parse_options


@dataclass(frozen=True)
class Convert:
    """Convert a released SSDD checkpoint (safetensors) to a folder for from_pretrained and --model."""

    source: tyro.conf.Positional[Path]
    """The file as downloaded, such as F8C4_S_256.safetensors."""
    out: Path
    """New folder for the model."""
    steps: int | None = None
    """Default number of decoding steps: 1 for a distilled file; 8 if not given."""


def parse(arguments: Sequence[str]) -> Convert:
    return parse_options(Convert, "convert", arguments)


def run(options: Convert) -> int:
    from ..autoencoder import AutoencoderSSDD
    from ..checkpoints.original import read_original
    from ..files import OutputExists

    if options.steps is not None and options.steps < 1:
        raise ValueError(f"expected --steps of at least 1, found {options.steps}")
    if options.out.exists():
        raise OutputExists(f"{options.out}: expected a new folder, found an existing one; choose another --out")
    found = read_original(options.source)
    autoencoder = AutoencoderSSDD.from_original(options.source, options.steps)
    partial = options.out.with_name(f".{secrets.token_hex(6)}-{options.out.name}")
    try:
        autoencoder.save_pretrained(partial)
        partial.rename(options.out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    count = sum(p.numel() for p in autoencoder.parameters())
    print(f"{options.out}: encoder {found.encoder}, decoder {found.decoder}, {count:,} parameters")
    return 0
