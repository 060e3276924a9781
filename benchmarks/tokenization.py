"""How many images a second does ``tokenize`` take from files to shards, against its encoder alone?

    python benchmarks/tokenization.py photos-00.tar

Checks docs/tokenization.md, "Speed and memory". The same batches of the same photographs are encoded twice: from
memory, with nothing but the network, and by ``tokenize``, which reads, decodes, crops, converts, hashes and writes as
well. Both on one thread a process. Times run from when a quarter of the images is done to the end: starting the
processes takes seconds, which are in the last column only.
"""

import argparse
import contextlib
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from ssdd.data.pixels import images_to_tensor
from ssdd.data.sources import open_source
from ssdd.data.transforms import centre_crop
from ssdd.runtime.memory import keep_freed_memory
from ssdd.runtime.text import aligned
from ssdd.tokenization import CropProtocol, TokenizeJob, tokenize
from ssdd.tokenization.model import LatentEncoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", help="folders, tar files, hf:OWNER/NAME: some hundred photographs")
    parser.add_argument("--model", default="ssdd-f8c4-demo", help="whose encoder (default: ssdd-f8c4-demo)")
    parser.add_argument("--size", type=int, default=128, help="side of the crops in pixels (default: 128)")
    parser.add_argument("--batch-size", type=int, default=16, help="crops in a batch (default: 16)")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="one row for each (default: 1 2)")
    parser.add_argument("--workers", type=int, default=1, help="readers for each process (default: 1)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda (default: cpu)")
    parser.add_argument("--dtype", default="fp32", choices=["fp32", "bf16", "fp16"], help="of the network")
    options = parser.parse_args()
    keep_freed_memory()  # as the command does
    with tempfile.TemporaryDirectory() as folder:
        measure(options, Path(folder))


def measure(options: argparse.Namespace, folder: Path) -> None:
    """Print the table."""
    job = TokenizeJob(
        paths=tuple(options.paths),
        model=options.model,
        protocol=CropProtocol(size=options.size),
        dtype=options.dtype,
        batch_size=options.batch_size,
        shard_images=2 * options.batch_size,
    )
    count = len(open_source(job.paths))
    print(f"{count} photographs, crops of {options.size} px, batches of {options.batch_size}, {options.dtype}")
    print(f"{options.model} on {options.device}, {os.cpu_count()} CPU cores, torch {torch.__version__}\n")
    clocks = {"encoder alone, one thread": encode_alone(job, options.device)}
    for processes in options.processes:
        clock, how = Clock(), {"workers": options.workers, "device": options.device}
        bar = contextlib.nullcontext(clock)
        tokenize(job, folder / f"out-{processes}", progress=lambda _, bar=bar: bar, processes=processes, **how)
        clocks[f"tokenize, {processes} process{'es' if processes > 1 else ''}"] = clock
    rows, alone = [["", "images/s", "to the encoder", "seconds in all"]], None
    for name, clock in clocks.items():
        rate = clock.rate(count // 4)
        alone = alone or rate
        rows.append([name, f"{rate:.1f}", f"{rate / alone:.2f}", f"{clock.marks[-1][1] - clock.begin:.1f}"])
    print("\n".join(aligned(rows)))


class Clock:
    """A progress bar that notes when how many images were done."""

    def __init__(self) -> None:
        self.done, self.begin = 0, time.perf_counter()
        self.marks: list[tuple[int, float]] = []

    def update(self, images: int) -> None:
        self.done += images
        self.marks.append((self.done, time.perf_counter()))

    def rate(self, skipped: int) -> float:
        """Return images a second, from the first mark after so many of them."""
        first = next(mark for mark in self.marks if mark[0] > skipped)
        images, seconds = (last - start for start, last in zip(first, self.marks[-1], strict=True))
        return images / seconds


def encode_alone(job: TokenizeJob, device: str) -> Clock:
    """Encode the same batches in memory by the network, on one thread of a CPU."""
    encoder, source, size = LatentEncoder(job.model, device, job.dtype), open_source(job.paths), job.batch_size
    crops = [centre_crop(source.read(i), job.protocol.size) for i in range(len(source))]
    before, clock = torch.get_num_threads(), Clock()
    if device == "cpu":
        torch.set_num_threads(job.threads)
    for first in range(0, len(crops) - size + 1, size):
        batch = torch.from_numpy(np.stack(crops[first : first + size]))
        mean, _ = encoder.encode(images_to_tensor(batch.to(device)))
        mean.half().cpu()
        clock.update(size)
    torch.set_num_threads(before)
    return clock


if __name__ == "__main__":
    main()
