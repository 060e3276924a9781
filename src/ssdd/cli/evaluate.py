"""``ssdd evaluate MODEL... --data PATH...``: autoencoders side by side on the same crops, by a named protocol."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
import tyro
from tqdm import tqdm

from .common import DEFAULT_MODEL, ModelOptions, check_outputs, parse_options

if TYPE_CHECKING:
    from ..evaluation.compare import Entry
    from ..evaluation.contestants import Contestant
    from ..evaluation.features import Extractor
    from ..evaluation.protocols import Protocol

RESULTS = "evaluation.json"


@dataclass(frozen=True)
class Evaluate:
    """Compare autoencoders on the same crops of photographs, by a protocol that is printed with the table."""

    models: tyro.conf.Positional[tuple[str, ...]] = ()
    """Model folders, runs, embedded names, Hugging Face ids, .safetensors of the authors, jpeg:BYTES, jpeg:auto (the
    bytes of the first model's latent), bicubic:FACTOR, file.py:NAME."""
    data: tuple[str, ...] = ()
    """Folders, uncompressed tar files, hf:OWNER/NAME[:SPLIT]."""
    protocol: str = "paper-256-v1"
    """paper-128-v1, paper-256-v1, paper-512-v1, native-v1, crops-128-v1, crops-256-v1."""
    steps: str = ""
    """Decoding steps, such as 1,2,4,8: a row for each, where a model has a choice. By default the model's own."""
    lpips: tuple[Literal["vgg", "alex", "squeeze"], ...] = ("alex", "vgg", "squeeze")
    """LPIPS networks; those without weights are left out, by name."""
    extractors: tuple[str, ...] = ("inception-torch-fidelity", "mobilenet_v2-imagenet")
    """Feature extractors for Fréchet and kernel distances, precision, recall, density, coverage."""
    out: Path | None = None
    """Folder for evaluation.json: everything in the table, the protocol, every image's numbers."""
    overwrite: bool = False
    """Replace existing files."""
    batch_size: int = 16
    """Crops at a time; no number depends on it."""
    workers: int = 2
    """Processes that read and crop."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1, ..."""
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the networks."""


def parse(arguments: Sequence[str]) -> Evaluate:
    """``MODEL... --data PATH... [OPTIONS]``."""
    return parse_options(Evaluate, "evaluate", arguments)


def run(options: Evaluate) -> int:
    from ..data.sources import open_source
    from ..evaluation.compare import compare
    from ..evaluation.protocols import EvaluationSet, get_protocol
    from ..evaluation.results import as_dict, as_text

    protocol = get_protocol(options.protocol)
    if not options.data:
        raise ValueError("expected photographs to evaluate on: pass --data FOLDER_OR_TAR ...")
    if options.out is not None:
        check_outputs(options.out, [RESULTS], [] if options.overwrite else [RESULTS])
    evaluation_set = EvaluationSet(open_source(options.data), protocol)
    device = ModelOptions(device=options.device).torch_device()
    comparison = compare(
        _entries(options, protocol, device),
        evaluation_set,
        batch_size=options.batch_size,
        workers=options.workers,
        lpips_networks=_lpips(options),
        extractors=_extractors(options, device),
        device=device,
        progress=lambda items, total: tqdm(items, total=total, unit="img"),
    )
    for skipped in comparison.census.skipped:
        print(f"skipped {skipped.reason}", file=sys.stderr)
    print(as_text(comparison))
    if options.out is not None:
        from ..files import atomic_path

        with atomic_path(options.out / RESULTS, options.overwrite) as path:
            path.write_text(json.dumps(as_dict(comparison), indent=1, allow_nan=False) + "\n")
    return 1 if comparison.census.skipped else 0


def _entries(options: Evaluate, protocol: "Protocol", device: torch.device) -> "list[Entry]":
    """A row per model and number of steps."""
    from ..evaluation.compare import Entry
    from ..evaluation.contestants import JPEG_AUTO, Jpeg, load_contestant

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[options.dtype]
    entries: list[Entry] = []
    for name in options.models or (DEFAULT_MODEL,):
        contestant: Contestant
        if name == JPEG_AUTO:
            if not entries or protocol.rule == "native":
                raise ValueError(
                    f"{JPEG_AUTO} takes the bytes of the model before it, on square crops: give jpeg:BYTES"
                )
            contestant = Jpeg(entries[0].contestant.latent_bytes(protocol.size, protocol.size), device)
        else:
            contestant = load_contestant(name, device, dtype)
        choice = contestant.describe()["steps"] is not None
        entries += [Entry(contestant, n) for n in (_steps(options) if choice else ())] or [Entry(contestant)]
    return entries


def _steps(options: Evaluate) -> list[int]:
    parts = [part.strip() for part in options.steps.split(",") if part.strip()]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise ValueError(f"expected --steps like 1,2,4,8, found {options.steps!r}")
    return [int(part) for part in parts]


def _lpips(options: Evaluate) -> list[Literal["vgg", "alex", "squeeze"]]:
    from ..objectives.perceptual import backbone_path

    missing = [n for n in options.lpips if not backbone_path(n).is_file()]
    for network in missing:
        print(f"left out: LPIPS-{network}, its weights are not at {backbone_path(network)}", file=sys.stderr)
    return [n for n in options.lpips if n not in missing]


def _extractors(options: Evaluate, device: torch.device) -> "list[Extractor]":
    from ..evaluation.features import MissingWeights, load_extractor

    found = []
    for name in options.extractors:
        try:
            found.append(load_extractor(name, device))
        except (MissingWeights, ImportError) as error:
            print(f"left out: {error}", file=sys.stderr)
    return found
