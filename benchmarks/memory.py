"""How much memory does a decoding need beside the weights? Each row in a process of its own.

Checks what docs/performance.md says of 1024 and 4096 px, by

    python benchmarks/memory.py --peers kl eager --sizes 1024
    python benchmarks/memory.py --peers --sizes 4096 --tiling on

*allocated* is what PyTorch had at most, *grew* how far the process of a CPU grew, after its weights were there and a
small image had been decoded: more, for the C library keeps some of what was freed. All but ``eager`` and ``plain`` keep
all of it, as ``optimize`` does on a CPU. ONNX Runtime allocates by itself.
"""

import argparse
import multiprocessing
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import accumulate

import common
import torch

from ssdd.runtime.dtypes import torch_dtype
from ssdd.runtime.memory import keep_freed_memory, memory_growth


def main() -> None:
    parser = common.new_parser(__doc__, timed=False)
    common.add_decoders(parser, peers=["kl"])
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024], help="sides (default: 512 1024)")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1])
    parser.add_argument("--tiling", choices=["both", "off", "on"], default="both", help="tiles of 512 px, or not")
    options = common.parse(parser)
    tilings = ["off", "on"] if options.tiling == "both" else [options.tiling]
    rows = []
    for side in sorted(options.sizes):
        for batch in options.batch_sizes:
            for kind, size in common.decoder_kinds(options):
                for tiling in tilings if kind != "onnx" else ["off"]:
                    rows += measure_apart(kind, size, side, batch, tiling, options)
                    common.save(rows, options)
    common.report(rows, options)


def measure_apart(
    kind: str, size: str, side: int, batch: int, tiling: str, options: argparse.Namespace
) -> list[common.Row]:
    """Return a row that a fresh process measures; none if it fails."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            name, allocated, grew = pool.submit(peak_bytes, kind, size, side, batch, tiling, options).result()
        except RuntimeError as error:  # no memory left, or the system has ended the process
            print(f"skipped: {kind} {size} at {side} px, tiling {tiling}: {error}", file=sys.stderr)
            return []
    row = {"model": name, "px": side, "batch": batch, "tiling": tiling, "allocated MiB": allocated / 2**20}
    if options.device == "cpu":
        row["grew MiB"] = grew / 2**20
    return [{**row, "bytes a pixel": grew / (batch * side**2)}]


@torch.inference_mode()
def peak_bytes(
    kind: str, size: str, side: int, batch: int, tiling: str, options: argparse.Namespace
) -> tuple[str, int, int]:
    """Return the name of the model, and what its decoding takes: of PyTorch's memory, and of the device's."""
    device = torch.device(options.device)
    if kind not in ("eager", "plain"):
        keep_freed_memory()
    model = common.build_decoder(kind, size, options.latent, options.steps, options.device, torch_dtype(options.dtype))
    if tiling == "on":
        model.autoencoder.enable_tiling()
    else:  # not by itself either, where the whole image seems not to fit
        model.autoencoder.disable_tiling()
    call = model.call(side, batch)
    model.call(64, 1)()
    if device.type == "cuda":  # code for this size, and the libraries' workspaces
        call()
    grew = memory_growth(call, device)[1]
    return model.name, grew if device.type == "cuda" else allocated_bytes(call), grew


def allocated_bytes(call: Callable[[], object]) -> int:
    """Return the most bytes that a call had of PyTorch on a CPU, by the profiler's list of what it takes and frees."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # lines about a GPU that is not there
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    events = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    return max(accumulate((event.nbytes() for event in events if event.name() == "[memory]"), initial=0))


if __name__ == "__main__":
    main()
