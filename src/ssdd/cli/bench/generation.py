"""``ssdd bench generation``: from noise to images."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from ...bench.config import GenerationBench
from ...text import aligned
from ..common import parse_options
from .output import FileOptions

if TYPE_CHECKING:
    from ...bench.generation import GenerationSpeed


@dataclass(frozen=True)
class Generation(FileOptions, GenerationBench):
    """From noise to images: DiT and decoder, KL-VAE f8c4 against SSDD f16c4 and f8c4, with random weights."""


def parse(arguments: Sequence[str]) -> Generation:
    """``[OPTIONS]``."""
    return parse_options(Generation, "bench generation", arguments)


def run(options: Generation) -> int:
    from ...bench.generation import bench_generation

    if min(options.batch_size, options.steps, options.rounds, options.image_size) < 1 or options.guidance < 0:
        raise ValueError("expected an image size, batch size, steps and rounds of at least 1, and a guidance from 0")
    options.check_files()
    device = options.torch_device()
    with tqdm(total=3 * (options.rounds + 1), desc="rounds", leave=False) as bar:
        found = bench_generation(options, device, bar.update)
    print(_table(found, options.batch_size))
    print(f"\n{_setting(options, device)}")
    options.write(_as_dict(found, options, device))
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
