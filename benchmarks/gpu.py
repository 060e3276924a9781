"""How fast is decoding on a GPU, by torch.compile and as CUDA graphs, against the KL-VAE, eager and compiled?

    python benchmarks/gpu.py --out gpu.json

Not measured yet: docs/performance.md has figures of CPUs only. The targets are 2.5 times as fast at 256 px and 3 times
at 1024 px. Compiling takes most of the time; no cell is begun after ``--start-before`` seconds, and the most telling
ones are the first.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from statistics import median

import common
import torch
from peers import flex

from ssdd.runtime.dtypes import torch_dtype
from ssdd.runtime.peak import peak_flops

TARGETS = {256: 2.5, 1024: 3.0}
CELLS = ("256x8", "1024x1", "256x1", "256x64", "1024x8")


def main() -> None:
    parser = common.new_parser(__doc__)
    parser.add_argument("--decoder", default="S", help="size of ours (default: S)")
    parser.add_argument("--cells", nargs="+", default=CELLS, help=f"side x batch (default: {' '.join(CELLS)})")
    parser.add_argument("--start-before", type=float, default=240, help="seconds (default: 240)")
    parser.add_argument("--flex", action="store_true", help="ours with FlexAttention too, which no GPU has tried")
    options = common.parse(parser)
    begin, dtype = time.monotonic(), torch_dtype(options.dtype)
    how = ("f8c4", 1, options.device, dtype)
    diffusers = [common.build_decoder(kind, "", *how) for kind in ("kl", "kl-compiled")]
    graphs, ours, other = (common.build_decoder(kind, options.decoder, *how) for kind in ("graphs", "SSDD", "SSDD"))
    models = [*diffusers, graphs, ours, *([with_flex_attention(other)] if options.flex else [])]
    peak, rows = peak_flops(torch.device(options.device), dtype), []
    for cell in options.cells:
        if time.monotonic() - begin > options.start_before:
            print(f"skipped: {cell}, no time left", file=sys.stderr)
            continue
        side, batch = map(int, cell.split("x"))
        rows += common.measure_cell(models, side, batch, peak, options)
        common.save(rows, options)
        print(f"\n{common.table(rows[-len(models) :])}", flush=True)
    print(f"\n{targets(rows, ours.name, [model.name for model in diffusers])}\n")
    common.report(rows, options)


def with_flex_attention(model: common.Model) -> common.Model:
    """Return a decoder that attends by ``peers/flex.py``; its first call compiles it."""

    def run(*inputs: torch.Tensor) -> object:
        with flex.used():
            return model.run(*inputs)

    return replace(model, name=model.name.replace("SSDD", "flex"), run=run)


def targets(rows: list[common.Row], ours: str, others: Sequence[str]) -> str:
    """Return a line for each cell: how many times as fast ours is as each of the others, and whether that is enough."""
    lines = []
    for row in rows:
        own = next((r for r in rows if (r["model"], r["px"], r["batch"]) == (ours, row["px"], row["batch"])), None)
        if own is not None and row["model"] in others and row["px"] in TARGETS:
            ratio, target = median(common.ratios(row["seconds"], own["seconds"])), TARGETS[row["px"]]
            met = "met" if ratio >= target else "NOT met"
            lines.append(
                f"{row['px']} px, batch {row['batch']}, against {row['model']}: {ratio:.2f}x, {target:g}x is {met}"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
