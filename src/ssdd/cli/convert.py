"""``ssdd convert``: a checkpoint in the authors' released layout -> a model folder."""

import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from .common import Count


@dataclass(frozen=True)
class Convert:
    """Convert a released SSDD checkpoint (safetensors) to a folder for from_pretrained and --model."""

    source: Positional[Path]
    """The file as downloaded, such as F8C4_S_256.safetensors."""
    out: Path
    """New folder for the model."""
    steps: Count | None = None
    """Default number of decoding steps: 1 for a distilled file; 8 if not given."""


OPTIONS = Convert


def run(options: Convert) -> int:
    from ..autoencoder import AutoencoderSSDD
    from ..checkpoints.original import read_original
    from ..runtime.files import OutputExists

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
