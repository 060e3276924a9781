"""How many images a second does ``tokenize`` take from files to shards, against its encoder alone?

    python benchmarks/tokenization.py photos/ --size 128 --images 1280

Checks docs/tokenization.md, "Speed and memory". The same batches of the same photographs are encoded twice: from
memory, with nothing but the network, and by ``tokenize``, which reads, decodes, crops, converts, hashes and writes as
well. Both on one thread a process. Times run from the first finished batch to the last (of several processes from a
quarter of the images on), as if the set had no end: starting processes takes seconds, and is in the last column only.
"""

import argparse
import contextlib
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ssdd.data.pixels import images_to_tensor
from ssdd.data.sources import open_source
from ssdd.data.transforms import centre_crop
from ssdd.runtime.memory import keep_freed_memory
from ssdd.runtime.text import aligned
from ssdd.tokenization import CropProtocol, TokenizeJob, tokenize
from ssdd.tokenization.model import LatentEncoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", help="folders, tar files, hf:OWNER/NAME")
    parser.add_argument("--model", default="ssdd-f8c4-demo", help="whose encoder (default: ssdd-f8c4-demo)")
    parser.add_argument("--size", type=int, default=128, help="side of the crops in pixels (default: 128)")
    parser.add_argument("--images", type=int, default=256, help="images measured in each row (default: 256)")
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
        paths=(str(first_photographs(options.paths, options.images, folder / "data")),),
        model=options.model,
        protocol=CropProtocol(size=options.size),
        dtype=options.dtype,
        batch_size=options.batch_size,
        shard_images=2 * options.batch_size,
    )
    print(f"{options.images} photographs, crops of {options.size} px, batches of {options.batch_size}, {options.dtype}")
    print(f"{options.model} on {options.device}, {os.cpu_count()} CPU cores, torch {torch.__version__}\n")
    alone, first = encoder_alone(job, options.device), None
    rows = [["", "images/s", "to the encoder", "to the first row", "seconds in all"]]
    rows.append(["encoder alone, one thread", f"{alone:.1f}", "", "", ""])
    for processes in options.processes:
        clock, how = Clock(), {"workers": options.workers, "device": options.device}
        bar = contextlib.nullcontext(clock)
        tokenize(job, folder / f"out-{processes}", progress=lambda _, bar=bar: bar, processes=processes, **how)
        rate = clock.rate(skipped=options.images // 4 if processes > 1 else 0)
        first = first or rate
        name = f"tokenize, {processes} process{'es' if processes > 1 else ''}"
        rows.append([name, f"{rate:.1f}", f"{rate / alone:.2f}", f"{rate / first:.2f}", f"{clock.seconds():.1f}"])
    print("\n".join(aligned(rows)))


class Clock:
    """A progress bar that notes when how many images were done."""

    def __init__(self) -> None:
        self.done, self.begin = 0, time.perf_counter()
        self.marks: list[tuple[int, float]] = []

    def update(self, images: int) -> None:
        self.done += images
        self.marks.append((self.done, time.perf_counter()))

    def rate(self, skipped: int = 0) -> float:
        """Return images a second, from the first mark after so many of them, when all processes are at work."""
        first = next(mark for mark in self.marks if mark[0] > skipped)
        images, seconds = (last - start for start, last in zip(first, self.marks[-1], strict=True))
        return images / seconds

    def seconds(self) -> float:
        """Return the seconds from the start to the last mark."""
        return self.marks[-1][1] - self.begin


def first_photographs(paths: list[str], images: int, folder: Path) -> Path:
    """Copy the first photographs into a folder."""
    source = open_source(paths)
    if len(source) < images:
        raise SystemExit(f"expected at least {images} photographs, found {len(source)}: see --images")
    folder.mkdir()
    for i in range(images):
        (folder / f"{i:06d}{Path(source.key(i)).suffix}").write_bytes(source.content(i))
    return folder


def encoder_alone(job: TokenizeJob, device: str) -> float:
    """Return images a second of the network on the same batches in memory, one thread on a CPU."""
    encoder, source, size = LatentEncoder(job.model, device, job.dtype), open_source(job.paths), job.batch_size
    crops = [centre_crop(source.read(i), job.protocol.size) for i in range(len(source))]
    batches = [np.stack(crops[i : i + size]) for i in range(0, len(crops) - size + 1, size)]
    before, clock = torch.get_num_threads(), Clock()
    if device == "cpu":
        torch.set_num_threads(job.threads)
    for batch in tqdm(batches, unit="batch", leave=False):
        mean, _ = encoder.encode(images_to_tensor(torch.from_numpy(batch).to(device)))
        mean.half().cpu()
        clock.update(len(batch))
    torch.set_num_threads(before)
    return clock.rate()


if __name__ == "__main__":
    main()
