"""``ssdd bench``: speed, compared in one run."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from ..bench.config import GenerationBench
from ..text import aligned
from .common import ModelOptions, parse_options

if TYPE_CHECKING:
    from ..bench.generation import GenerationSpeed

_USAGE = """usage: ssdd bench WHAT [OPTIONS]

Measure speed; every figure is a comparison in one run.

  generation  end-to-end images/s of a DiT with a KL-VAE's and with our tokenizer

ssdd bench WHAT --help lists the options."""


@dataclass(frozen=True)
class Generation(GenerationBench):
    """From noise to images: DiT and decoder, KL-VAE f8c4 against SSDD f16c4 and f8c4, with random weights."""

    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, ..."""
    out: Path | None = None
    """JSON file for all of it."""
    overwrite: bool = False
    """Replace an existing file."""


def parse(arguments: Sequence[str]) -> Generation:
    """``generation [OPTIONS]``."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE)
        raise SystemExit(0 if arguments else 2)
    if arguments[0] != "generation":
        print(f"ssdd bench: error: expected generation, found {arguments[0]!r}", file=sys.stderr)
        raise SystemExit(2)
    return parse_options(Generation, "bench generation", arguments[1:])


def run(options: Generation) -> int:
    from ..bench.generation import bench_generation
    from ..files import atomic_path

    if min(options.batch_size, options.steps, options.rounds, options.image_size) < 1 or options.guidance < 0:
        raise ValueError("expected an image size, batch size, steps and rounds of at least 1, and a guidance from 0")
    if options.out is not None and options.out.exists() and not options.overwrite:
        raise ValueError(f"{options.out} exists already; pass --overwrite to replace it")
    device = ModelOptions(device=options.device).torch_device()
    with tqdm(total=3 * (options.rounds + 1), desc="rounds", leave=False) as bar:
        found = bench_generation(options, device, bar.update)
    print(_table(found, options.batch_size))
    print(f"\n{_setting(options, device)}")
    if options.out is not None:
        with atomic_path(options.out, options.overwrite) as path:
            path.write_text(json.dumps(_as_dict(found, options, device), indent=1) + "\n")
    return 0


def _table(found: "list[GenerationSpeed]", batch: int) -> str:
    first = found[0].total
    lines = [["", "latent", "tokens", "DiT GFLOP", "decode GFLOP", "DiT s", "decode s", "images/s", "spread", "speed"]]
    for speed in found:
        lines.append(
            [
                speed.name,
                "x".join(map(str, speed.latent)),
                str(speed.tokens),
                f"{speed.dit_gflop:,.0f}",
                f"{speed.decode_gflop:,.0f}",
                f"{speed.dit.median / batch:.4f}",
                f"{speed.decode.median / batch:.4f}",
                f"{batch / speed.total.median:.3f}",
                f"±{100 * speed.total.spread:.0f} %",
                f"{speed.total.ratio(first):.2f}x",
            ]
        )
    return "\n".join(aligned(lines))


def _setting(options: Generation, device: torch.device) -> str:
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return (
        f"DiT-{options.dit}, {options.image_size} px, batches of {options.batch_size}, {options.steps} Euler steps, "
        f"guidance {options.guidance:g}, {options.dtype}, {'compiled' if options.compile else 'eager'}; {where}, torch "
        f"{torch.__version__}; random weights; seconds and GFLOP of one image"
    )


def _as_dict(found: "list[GenerationSpeed]", options: Generation, device: torch.device) -> dict[str, Any]:
    rows = [
        {
            "name": speed.name,
            "latent": speed.latent,
            "tokens": speed.tokens,
            "dit_gflop_per_image": speed.dit_gflop,
            "decode_gflop_per_image": speed.decode_gflop,
            "dit_seconds_per_batch": speed.dit.rounds,
            "decode_seconds_per_batch": speed.decode.rounds,
            "images_per_second": options.batch_size / speed.total.median,
            "speed_against_first": speed.total.ratio(found[0].total),
        }
        for speed in found
    ]
    return {"setting": _setting(options, device), "batch_size": options.batch_size, "rows": rows}
