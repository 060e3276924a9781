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

from ..dtypes import DTYPES
from ..files import atomic_path
from .common import DEFAULT_MODEL, ModelOptions, check_outputs, model_of_run, parse_options

if TYPE_CHECKING:
    from ..evaluation.compare import Comparison, Entry
    from ..evaluation.features import Extractor
    from ..evaluation.image_metrics import PairMetric
    from ..evaluation.protocols import EvaluationSet, Protocol
    from ..objectives import LPIPSNetwork
    from ..processes import Processes

RESULTS, REPORT = "evaluation.json", "report.html"


@dataclass(frozen=True)
class Evaluate:
    """Compare autoencoders on the same crops of photographs, by a protocol that is printed with the table."""

    models: tyro.conf.Positional[tuple[str, ...]] = ()
    """Model folders, runs, embedded names, Hugging Face ids, .safetensors of the authors, jpeg:BYTES, jpeg:auto (the
    bytes of the first model's latent), bicubic:FACTOR, file.py:NAME."""
    encoder: str | None = None
    """Encoder of the models that have none: file.py:NAME, package.module:NAME, model folder, run, Hugging Face id."""
    data: tuple[str, ...] = ()
    """Folders, uncompressed tar files, hf:OWNER/NAME[:SPLIT]."""
    protocol: str = "paper-256-v1"
    """paper-128-v1, paper-256-v1, paper-512-v1, native-v1, crops-128-v1, crops-256-v1."""
    steps: str = ""
    """Decoding steps, such as 1,2,4,8: a row for each, where a model has a choice. By default the model's own."""
    lpips: tuple[Literal["vgg", "alex", "squeeze"], ...] = ("alex", "vgg", "squeeze")
    """LPIPS networks; those without weights are left out, by name."""
    dreamsim: bool = False
    """DreamSim too (pip install 'ssdd[dreamsim]')."""
    extractors: tuple[str, ...] = ("inception-torch-fidelity", "mobilenet_v2-imagenet")
    """Feature extractors for Fréchet and kernel distances, precision, recall, density, coverage."""
    out: Path | None = None
    """Folder for evaluation.json, everything in the table, the protocol, every crop's numbers; and for report.html,
    the table, plots, the worst and the best crops."""
    overwrite: bool = False
    """Replace existing files."""
    batch_size: int = 16
    """Crops at a time; no number depends on it."""
    workers: int = 2
    """Processes that read and crop."""
    device: str = "auto"
    """auto (a GPU if there is one; under torchrun that of the process), cpu, cuda, cuda:1, ..."""
    dtype: str = "fp32"
    """Precision of the networks: fp32, bf16 or fp16. Several, such as fp32,bf16,fp16, give a row for each that decodes
    the latents of the first: what does lower precision cost?"""


def parse(arguments: Sequence[str]) -> Evaluate:
    """``MODEL... --data PATH... [OPTIONS]``."""
    return parse_options(Evaluate, "evaluate", arguments)


def run(options: Evaluate) -> int:
    from ..processes import join_processes

    device = None if options.device == "auto" else ModelOptions(device=options.device).torch_device()
    with join_processes(device) as processes:
        return _evaluate(options, processes)


def _evaluate(options: Evaluate, processes: "Processes") -> int:
    from ..data.sources import open_source
    from ..evaluation.compare import compare
    from ..evaluation.protocols import EvaluationSet, get_protocol

    protocol, device = get_protocol(options.protocol), processes.device
    if not options.data:
        raise ValueError("expected photographs to evaluate on: pass --data FOLDER_OR_TAR ...")
    if options.out is not None and processes.main:
        check_outputs(options.out, [RESULTS, REPORT], [] if options.overwrite else [RESULTS, REPORT])
    evaluation_set = EvaluationSet(open_source(options.data), protocol)
    left_out = LeftOut(processes.main)
    comparison = compare(
        _entries(options, protocol, device),
        evaluation_set,
        batch_size=options.batch_size,
        workers=options.workers,
        lpips_networks=_lpips(options, left_out),
        other_metrics=_dreamsim(options, device, left_out),
        extractors=load_extractors(options.extractors, device, left_out),
        device=device,
        processes=processes,
        progress=lambda items, total: tqdm(items, total=total, unit="img", disable=not processes.main),
    )
    if processes.main:
        _tell(comparison, evaluation_set, options, left_out)
    return 1 if comparison.census.skipped else 0


class LeftOut:
    """Says in one line what is left out, and why; one process of several does."""

    def __init__(self, main: bool) -> None:
        self.main = main

    def __call__(self, reason: str) -> None:
        if self.main:
            print(f"left out: {reason}", file=sys.stderr)


def _tell(comparison: "Comparison", evaluation_set: "EvaluationSet", options: Evaluate, left_out: LeftOut) -> None:
    """Prints the table and writes the files."""
    from ..evaluation.results import as_dict, as_text

    for skipped in comparison.census.skipped:
        print(f"skipped {skipped.reason}", file=sys.stderr)
    print(as_text(comparison))
    if options.out is None:
        return
    with atomic_path(options.out / RESULTS, options.overwrite) as path:
        path.write_text(json.dumps(as_dict(comparison), indent=1, allow_nan=False) + "\n")
    try:
        from ..evaluation.report import write_report

        write_report(comparison, evaluation_set, options.out / REPORT, options.overwrite)
    except ImportError as error:
        left_out(f"{REPORT}: {error}")


def _entries(options: Evaluate, protocol: "Protocol", device: torch.device) -> "list[Entry]":
    """A row per model, precision and number of steps."""
    from ..evaluation.compare import Entry
    from ..evaluation.contestants import JPEG_AUTO, Jpeg, check_encoder_attached, load_contestant

    dtypes, steps = _dtypes(options), _steps(options)
    entries: list[Entry] = []
    for name in options.models or (DEFAULT_MODEL,):
        if name == JPEG_AUTO:
            if not entries or protocol.rule == "native":
                raise ValueError(
                    f"{JPEG_AUTO} takes the bytes of the model before it, on square crops: give jpeg:BYTES"
                )
            bytes_of_first = entries[0].contestant.latent_bytes(protocol.size, protocol.size)
            entries.append(Entry(Jpeg(bytes_of_first, device)))
            continue
        contestants = [load_contestant(model_of_run(name), device, dtype, options.encoder) for dtype in dtypes]
        first = contestants[0]
        if first.describe()["dtype"] == "uint8":  # no network: nothing to choose
            contestants = [first]
        choice = first.describe()["steps"] is not None
        for contestant in contestants:
            encoder = None if contestant is first else first
            entries += [Entry(contestant, n, encoder) for n in (steps if choice else ()) or (None,)]
    check_encoder_attached((entry.contestant for entry in entries), options.encoder)
    return entries


def _dtypes(options: Evaluate) -> list[torch.dtype]:
    parts = [part.strip() for part in options.dtype.split(",")]
    if unknown := [part for part in parts if part not in DTYPES]:
        raise ValueError(f"expected --dtype of {', '.join(DTYPES)}, or several like fp32,bf16, found {unknown[0]!r}")
    return [DTYPES[part] for part in dict.fromkeys(parts)]


def _steps(options: Evaluate) -> list[int]:
    parts = [part.strip() for part in options.steps.split(",") if part.strip()]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise ValueError(f"expected --steps like 1,2,4,8, found {options.steps!r}")
    return [int(part) for part in parts]


def _lpips(options: Evaluate, left_out: LeftOut) -> "list[LPIPSNetwork]":
    from ..objectives.perceptual import backbone_path

    missing = [n for n in options.lpips if not backbone_path(n).is_file()]
    for network in missing:
        left_out(f"LPIPS-{network}, its weights are not at {backbone_path(network)}")
    return [n for n in options.lpips if n not in missing]


def _dreamsim(options: Evaluate, device: torch.device, left_out: LeftOut) -> "dict[str, PairMetric]":
    from ..evaluation.dreamsim import load_dreamsim
    from ..evaluation.weights import MissingWeights

    try:
        return {"dreamsim": load_dreamsim(device)} if options.dreamsim else {}
    except (MissingWeights, ImportError) as error:
        left_out(str(error))
        return {}


def load_extractors(names: Sequence[str], device: torch.device, left_out: LeftOut) -> "list[Extractor]":
    """Those whose weights and packages are at hand."""
    from ..evaluation.features import load_extractor
    from ..evaluation.weights import MissingWeights

    found = []
    for name in names:
        try:
            found.append(load_extractor(name, device))
        except (MissingWeights, ImportError) as error:
            left_out(str(error))
    return found
