"""How many images a second does ``tokenize`` take from files to shards, against its encoder alone? Does it grow?

    python benchmarks/tokenization.py photos/ --size 128 --images 1280
    python benchmarks/tokenization.py --load 100000 --processes 2

Checks docs/tokenization.md, "Speed and memory". The first encodes the same batches of the same photographs twice: from
memory, with nothing but the network, and by ``tokenize``, which reads, decodes, crops, converts, hashes and writes as
well. Both on one thread a process. Times run from the first finished batch to the last (of several processes from a
quarter of the images on), as if the set had no end: starting processes takes seconds, and is in the last column only.
The second tokenizes small generated images and prints the memory of all its processes on the way.
"""

import argparse
import contextlib
import io
import multiprocessing
import os
import tarfile
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from common import MemoryMeter
from PIL import Image
from tqdm import tqdm

from ssdd import AutoencoderSSDD
from ssdd.data.pixels import images_to_tensor
from ssdd.data.sources import open_source
from ssdd.data.transforms import centre_crop
from ssdd.runtime.memory import keep_freed_memory
from ssdd.tokenization import CropProtocol, TokenizeJob, tokenize
from ssdd.tokenization.model import LatentEncoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", help="folders, tar files, hf:OWNER/NAME")
    parser.add_argument("--model", default="ssdd-f8c4-demo", help="whose encoder (default: ssdd-f8c4-demo)")
    parser.add_argument("--size", type=int, default=128, help="side of the crops in pixels (default: 128)")
    parser.add_argument("--images", type=int, default=256, help="images measured in each row (default: 256)")
    parser.add_argument("--batch-size", type=int, default=16, help="crops in a batch (default: 16)")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="one row for each (default: 1 2)")
    parser.add_argument("--workers", type=int, default=1, help="readers for each process (default: 1)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda (default: cpu)")
    parser.add_argument("--dtype", default="fp32", choices=["fp32", "bf16", "fp16"], help="of the network")
    parser.add_argument("--format", default="tar", choices=["tar", "parquet"], help="of the shards (default: tar)")
    parser.add_argument("--load", type=int, metavar="N", help="memory instead, on N generated images")
    options = parser.parse_args()
    keep_freed_memory()  # as the command does
    with tempfile.TemporaryDirectory() as folder:
        (measure_load if options.load else measure_speed)(options, Path(folder))


class Clock:
    """A progress bar that notes when how many images were done, and the memory on the way."""

    def __init__(self) -> None:
        self.done = 0
        self.begin = time.perf_counter()
        self.marks: list[tuple[int, float]] = []

    def __call__(self, total: int) -> contextlib.AbstractContextManager["Clock"]:
        self.meter = MemoryMeter(total)
        return contextlib.nullcontext(self)

    def update(self, images: int) -> None:
        self.done += images
        self.marks.append((self.done, time.perf_counter()))
        self.meter.update(images)

    def rate(self, skipped: int = 0) -> float:
        """Return images a second, from the first mark after so many of them, when all processes are at work."""
        first = next(mark for mark in self.marks if mark[0] > skipped)
        images, seconds = (last - start for start, last in zip(first, self.marks[-1], strict=True))
        return images / seconds


def measure_speed(options: argparse.Namespace, folder: Path) -> None:
    paths = (str(first_photographs(options.paths, options.images, folder / "data")),)
    job = TokenizeJob(
        paths=paths,
        model=options.model,
        protocol=CropProtocol(size=options.size),
        container=options.format,
        dtype=options.dtype,
        batch_size=options.batch_size,
        shard_images=2 * options.batch_size,
    )
    print(f"{options.images} photographs, crops of {options.size} px, batches of {options.batch_size}, {options.dtype}")
    print(f"{options.model} on {options.device}, {os.cpu_count()} CPU cores, torch {torch.__version__}\n")
    alone = encoder_alone(job, options.device)
    print(f"{'':26} images/s  to the encoder  to the first row  seconds in all")
    print(f"{'encoder alone, one thread':26} {alone:8.1f}")
    first = None
    for processes in options.processes:
        clock, out = Clock(), folder / f"out-{processes}"
        how = {"processes": processes, "workers": options.workers, "device": options.device}
        tokenize(job, out, progress=clock, **how)
        rate = clock.rate(skipped=options.images // 4 if processes > 1 else 0)
        first = first or rate
        name = f"tokenize, {processes} process{'es' if processes > 1 else ''}"
        seconds = clock.marks[-1][1] - clock.begin
        print(f"{name:26} {rate:8.1f}  {rate / alone:14.2f}  {rate / first:16.2f}  {seconds:14.1f}")


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
    before = torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(job.threads)
    with Clock()(len(source)) as clock:
        for batch in tqdm(batches, unit="batch", leave=False):
            mean, _ = encoder.encode(images_to_tensor(torch.from_numpy(batch).to(device)))
            mean.half().cpu()
            clock.update(len(batch))
    torch.set_num_threads(before)
    return clock.rate()


def measure_load(options: argparse.Namespace, folder: Path) -> None:
    """Print the memory at 1 %, 50 % and 100 % of many small images, encoded by a small network."""
    AutoencoderSSDD.from_preset(encoder="f8c4", decoder="XXS", encoder_width=32).save_pretrained(folder / "model")
    # What tarfile needs for so many members would stay in this process, and count.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as other:
        other.submit(write_images, folder / "images.tar", options.load).result()
    job = TokenizeJob(
        paths=(str(folder / "images.tar"),),
        model=str(folder / "model"),
        protocol=CropProtocol(size=32),
        container=options.format,
        batch_size=options.batch_size,
        shard_images=max(options.batch_size, min(1024, options.load // 8)),
    )
    print(f"{options.load:,} images of 40 x 40 px; resident memory in MiB, what processes share counted once\n")
    print("processes  at   1 %      50 %     100 %  images/s")
    for processes in options.processes:
        clock = Clock()
        how = {"processes": processes, "workers": options.workers, "device": options.device}
        tokenize(job, folder / f"out-{processes}", progress=clock, **how)
        figures = "  ".join(f"{mebibytes:8.0f}" for mebibytes in clock.meter.mebibytes)
        print(f"{processes:9}  {figures}  {clock.rate():8.0f}")


def write_images(path: Path, count: int) -> None:
    """Write a tar file of PNG files, of which 256 are different."""
    random = np.random.default_rng(0)
    contents = []
    for _ in range(256):
        buffer = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (40, 40, 3), np.uint8)).save(buffer, "PNG")
        contents.append(buffer.getvalue())
    with tarfile.open(path, "w") as tar:
        for i in range(count):
            info = tarfile.TarInfo(f"{'abc'[i % 3]}/{i:07d}.png")
            info.size = len(contents[i % 256])
            tar.addfile(info, io.BytesIO(contents[i % 256]))


if __name__ == "__main__":
    main()
