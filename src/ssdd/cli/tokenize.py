"""``ssdd tokenize DATA... --out DIR``: a data set -> shards of latents; ``ssdd tokenize verify DIR`` checks them."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
import tyro
from tqdm import tqdm

from ..dtypes import Dtype
from .common import DEFAULT_MODEL, ModelOptions, parse_options

if TYPE_CHECKING:
    from ..tokenization import TokenizeJob

_SHOWN = 20


@dataclass(frozen=True)
class Tokenize:
    """Encode a data set once: shards of raw latents for the training of generative models, with a manifest. Run again,
    the same command makes what is missing. ssdd tokenize verify DIR checks a finished folder.

    Exit status: 0 finished; 1 an error, or images were skipped; 143 stopped by SIGTERM or 130 by Ctrl-C."""

    data: tyro.conf.Positional[tuple[str, ...]]
    """Folders, uncompressed tar files, hf:OWNER/NAME[:SPLIT]; or the word verify and a finished folder."""
    out: Path
    """Folder for shards and manifest: a new one, or one that the same command began."""
    model: str = DEFAULT_MODEL
    """Whose encoder: model folder (AutoencoderSSDD or AutoencoderKL), run, embedded name, Hugging Face id."""
    encoder: str | None = None
    """Encoder of a model that has none: file.py:NAME, package.module:NAME, model folder, run, Hugging Face id."""
    size: int = 256
    """Side of the crops in pixels."""
    crop: Literal["centre", "random"] = "centre"
    """centre: shorter side resized to the size, then the middle. random: a random place after the same resize."""
    crops: int = 1
    """Random crops of each image."""
    scale: float = 1.0
    """Random crops: the shorter side is resized to between 1 and so many times the size."""
    seed: int = 0
    """Of random crops."""
    flips: bool = False
    """Each crop mirrored as well, as a latent of its own."""
    only: str | None = None
    """Only images whose name fits a pattern like 'caltech101/*' (names as in the folder or the tar file)."""
    labels: Literal["auto", "folder", "none"] = "auto"
    """folder: the class is the name of the image's folder, or the column label of a data set; auto: if there are at
    least two classes."""
    store: Literal["fp16", "bf16"] = "fp16"
    """Type of the stored mean and log-variance."""
    format: Literal["tar", "parquet"] = "tar"
    """tar: for webdataset. parquet: columns, the latents as bytes."""
    shard_images: int = 1024
    """Images a shard."""
    batch_size: int = 16
    """Crops encoded together; the last digits of latents depend on it."""
    engine: Literal["local", "ray"] = "local"
    """local: processes of this machine. ray: a Ray cluster (RAY_ADDRESS names it) whose machines share the folders."""
    processes: int | None = None
    """Processes that encode; by default one on each GPU, or for each core."""
    threads: int = 1
    """Of the network in each process on a CPU; the last digits of latents depend on it."""
    workers: int | None = None
    """For each process, others that read and crop ahead of it; by default 4 on a GPU and 1 on a CPU."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1, ..."""
    dtype: Dtype = "fp32"
    """Precision of the network."""

    def job(self) -> "TokenizeJob":
        """What is to be made, without how. Raises ValueError for numbers that cannot be."""
        from ..tokenization import CropProtocol, TokenizeJob

        protocol = CropProtocol(self.crop, self.size, self.crops, self.scale, self.seed, self.flips)
        return TokenizeJob(
            paths=self.data,
            model=self.model,
            protocol=protocol,
            only=self.only,
            labels=self.labels,
            store=self.store,
            container=self.format,
            dtype=self.dtype,
            shard_images=self.shard_images,
            batch_size=self.batch_size,
            threads=self.threads,
            encoder=self.encoder,
        )


@dataclass(frozen=True)
class Verify:
    """Read every byte of a finished folder: checksums, counts, shapes, finite numbers, statistics."""

    folder: tyro.conf.Positional[Path]
    """As given to --out."""


def parse(arguments: Sequence[str]) -> Tokenize | Verify:
    """``DATA... --out DIR [OPTIONS]`` or ``verify DIR``."""
    if arguments and arguments[0] == "verify":
        return parse_options(Verify, "tokenize verify", arguments[1:])
    return parse_options(Tokenize, "tokenize", arguments)


def run(options: Tokenize | Verify) -> int:
    return _verify(options) if isinstance(options, Verify) else _tokenize(options)


def _tokenize(options: Tokenize) -> int:
    from ..tokenization import TokenizeStopped, tokenize

    if not options.data:
        raise ValueError("expected images to tokenize: pass folders, tar files or hf:OWNER/NAME")
    elsewhere = options.engine == "ray" and options.device != "auto"  # this machine may have no such device
    device = torch.device(options.device) if elsewhere else ModelOptions(device=options.device).torch_device()
    try:
        done = tokenize(
            options.job(),
            options.out,
            engine=options.engine,
            processes=options.processes,
            workers=(1 if device.type == "cpu" else 4) if options.workers is None else options.workers,
            device=device,
            progress=lambda images: tqdm(total=images, unit="img"),
        )
    except TokenizeStopped as stopped:
        print(f"ssdd tokenize: {stopped}", file=sys.stderr)
        return 128 + stopped.signal_number
    manifest = done.manifest
    for skipped in manifest["skipped"]:
        print(f"skipped {skipped['reason']}", file=sys.stderr)
    print(
        f"{manifest['latents']:,} latents {tuple(manifest['latent_shape'])} of {manifest['images']:,} images in "
        f"{len(manifest['shards'])} shards ({done.made} made now, {done.kept} there before): {options.out}"
    )
    print(f"{len(manifest['classes']):,} classes, {len(manifest['skipped']):,} images skipped")
    statistics = manifest["statistics"]
    print(f"scaling_factor {statistics['scaling_factor']:.5g}, shift_factor {statistics['shift_factor']:.5g}")
    return 1 if manifest["skipped"] else 0


def _verify(options: Verify) -> int:
    from ..tokenization import LatentDataset, verify

    faults = verify(options.folder, lambda shards: tqdm(shards, unit="shard"))
    for fault in faults[:_SHOWN]:
        print(f"wrong: {fault}", file=sys.stderr)
    if len(faults) > _SHOWN:
        print(f"and {len(faults) - _SHOWN} more", file=sys.stderr)
    if faults:
        return 1
    data = LatentDataset(options.folder)
    print(
        f"{len(data):,} latents in {len(data.manifest['shards'])} shards, all as {options.folder}'s manifest has them"
    )
    return 0
