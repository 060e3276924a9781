"""How fast is latent generation, from noise to images? A DiT and a decoder, the KL-VAE's against ours.

Checks docs/generation.md, "How much a coarser latent saves", and docs/performance.md (3.2 and 1.2 with DiT-S/2), by

    python benchmarks/generation.py --image-size 256 --steps 50 250 --batch-size 1 --rounds 3
    python benchmarks/generation.py --image-size 512 --steps 50 250 --batch-size 1 --rounds 3
    python benchmarks/generation.py --dit S/2 --batch-size 4 --steps 20 --rounds 2

The same DiT, guidance, batch and dtype for all; what differs is the tokenizer, and with it the number of tokens that
the DiT sees. A step of the DiT and a decoding are measured in turns; a generation is so many steps and one decoding.
"""

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence

import common
import torch

from ssdd.generation.model import build_dit, dit_size
from ssdd.generation.sampling import Sampling, guided_velocity
from ssdd.runtime.dtypes import torch_dtype

CLASSES = 1000


def main() -> None:
    parser = common.new_parser(__doc__)
    parser.add_argument("--dit", default="XL/2", help="XL/2, L/2, B/2, S/2, tiny/2 (default: XL/2)")
    parser.add_argument("--decoder", default="S", help="size of ours (default: S)")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, nargs="+", default=[50], help="Euler steps, a row for each (default: 50)")
    parser.add_argument("--guidance", type=float, default=4.0, help="1 for none, with half of the work (default: 4)")
    parser.add_argument("--compile", action="store_true", help="torch.compile the DiT and the KL-VAE's decoder")
    options = common.parse(parser)
    kl = "kl-compiled" if options.compile else "kl"
    works: dict[tuple[str, str], Callable[[], object]] = {}
    rows = []
    for kind, latent in ((kl, "f8c4"), ("SSDD", "f16c4"), ("SSDD", "f8c4")):
        name, shape, step, decode = build(kind, latent, options)
        works[name, "step"], works[name, "decode"] = step, decode
        tokens = shape[1] * shape[2] // dit_size(options.dit).patch ** 2
        rows.append({"model": name, "latent": "x".join(map(str, shape)), "tokens": tokens})
    with torch.inference_mode():
        times = common.take_turns(works, options)
        gflop = {key: common.count_flops(work) / options.batch_size / 1e9 for key, work in works.items()}
    common.report([row for steps in options.steps for row in rows_of(rows, steps, times, gflop, options)], options)


def build(
    kind: str, latent: str, options: argparse.Namespace
) -> tuple[str, tuple[int, ...], Callable[[], object], Callable[[], object]]:
    """Return a tokenizer's name, the shape of its latent, a guided step of a DiT on that, and the decoding."""
    dtype = torch_dtype(options.dtype)
    decoder = common.build_decoder(kind, options.decoder, latent, 1, options.device, dtype)
    z, noise = decoder.inputs(options.image_size, options.batch_size)
    dit = build_dit(options.dit, tuple(z.shape[1:]), CLASSES).eval().requires_grad_(False).to(options.device, dtype)
    if options.compile:
        dit.compile()
    labels = torch.arange(len(z), device=options.device) % CLASSES
    velocity = guided_velocity(dit, labels, Sampling(guidance=options.guidance))
    half = torch.full((len(z),), 0.5)
    return decoder.name, tuple(z.shape[1:]), lambda: velocity(z.float(), half), lambda: decoder.run(z, noise)


def rows_of(
    rows: Sequence[common.Row],
    steps: int,
    times: Mapping[tuple[str, str], Sequence[float]],
    gflop: Mapping[tuple[str, str], float],
    options: argparse.Namespace,
) -> list[common.Row]:
    """Return the tokenizers' rows for a number of steps; seconds and GFLOP are of one image."""
    parts = [(name, times[name, "step"], times[name, "decode"]) for name in (row["model"] for row in rows)]
    generation = {name: [steps * s + d for s, d in zip(step, decode, strict=True)] for name, step, decode in parts}
    speeds = common.speed_rows(generation, options.image_size, options.batch_size)
    return [
        {
            **row,
            **speed,
            "steps": steps,
            "DiT GFLOP": steps * gflop[name, "step"],
            "decode GFLOP": gflop[name, "decode"],
            "DiT s": steps * statistics.median(step) / options.batch_size,
            "decode s": statistics.median(decode) / options.batch_size,
        }
        for row, speed, (name, step, decode) in zip(rows, speeds, parts, strict=True)
    ]


if __name__ == "__main__":
    main()
