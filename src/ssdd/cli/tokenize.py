"""``ssdd tokenize DATA... --out DIR``: a data set -> shards of latents; ``ssdd tokenize verify DIR`` checks them."""

import logging
import os
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from ..runtime.dtypes import Dtype
from .common import DEFAULT_MODEL, ERROR, SKIPPED, Count, ModelOptions, Paths, Seed, Workers
from .parse import subcommands

if TYPE_CHECKING:
    from ..tokenization import TokenizeJob
    from ..tokenization.format import Manifest

_SHOWN = 20


@dataclass(frozen=True)
class Tokenize:
    """Encode a data set once: shards of raw latents for the training of generative models, with a manifest.

    Run again, the same command makes what is missing. ssdd tokenize verify DIR checks a finished folder; ssdd tokenize
    finish DIR writes the manifest of one whose parts were made by several commands, where none of them did.

    Exit status: 0 finished; 3 finished, but more images were skipped than --max-skipped.
    """

    data: Paths
    """Folders, uncompressed tar files, Parquet files, hf:OWNER/NAME[:SPLIT]; {000..123} stands for numbers, @FILE for a
    list, - for one on standard input; s3://, gs://, https:// and what else fsspec knows; or the word verify or
    finish and a folder."""
    out: str
    """Folder for shards and manifest: a new one, or one that the same command began; or an address for fsspec."""
    model: str = DEFAULT_MODEL
    """Whose encoder: model folder (ours, or an image autoencoder of diffusers), run, embedded name, Hugging Face id,
    single .safetensors file."""
    encoder: str | None = None
    """Encoder of a model that has none: file.py:NAME, package.module:NAME, model folder, run, Hugging Face id, single
    .safetensors file, taef2."""
    size: Count = 256
    """Side of the crops in pixels."""
    crop: Literal["centre", "random"] = "centre"
    """centre: shorter side resized to the size, then the middle. random: a random place after the same resize."""
    buckets: str | None = None
    """SIZE:STEP, like 1024:64: crops of the shape, with sides that are multiples of STEP and an area of at most SIZE x
    SIZE, that is nearest to the image's; instead of --size. All latents of a shard have one shape."""
    crops: Count = 1
    """Random crops of each image."""
    scale: float = 1.0
    """Random crops: the shorter side is resized to between 1 and so many times the size."""
    seed: Seed = 0
    """Seed of the random crops."""
    flips: bool = False
    """Each crop mirrored as well, as a latent of its own."""
    only: str | None = None
    """Only images whose name fits a pattern like 'caltech101/*' (names as in the folder or the tar file)."""
    labels: str = "auto"
    """auto: the class is the .cls member of an image's webdataset sample, the column label of a data set, or the name
    of the image's folder, if there are at least two classes; folder: the same, or an error where there are none; none;
    or a CSV, JSON or Parquet file with columns file_name, and label, caption or both."""
    store: Literal["fp16", "bf16"] = "fp16"
    """Type of the stored mean and log-variance."""
    format: Literal["tar", "parquet", "lightningdit", "mds"] = "tar"
    """tar: for webdataset. parquet: columns, the latents as bytes. lightningdit: safetensors as LightningDiT reads them
    (needs --flips). mds: for mosaicml-streaming."""
    shard_images: Count | None = None
    """Images a shard; by default 1024, but several tar or Parquet files make a shard each."""
    batch_size: Count = 16
    """Crops encoded together; the last digits of latents depend on it."""
    part: str | None = None
    """K/N: only shards K, K + N, ... by this command; others make the others. By default what torchrun or srun says."""
    engine: Literal["local", "ray"] = "local"
    """local: processes of this machine. ray: a Ray cluster (RAY_ADDRESS names it) whose machines share the folders."""
    processes: Count | None = None
    """Processes that encode; by default one on each GPU, or for each core."""
    threads: Count = 1
    """Threads of the network in each process on a CPU; the last digits of latents depend on it."""
    workers: Workers | None = None
    """Threads of each process that read and crop ahead; by default 4 on a GPU and 1 on a CPU."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1, ..."""
    dtype: Dtype = "fp32"
    """Precision of the network."""
    max_skipped: str = "1%"
    """Images that may be skipped, as broken ones are, for exit status 0: a number or a share like 1%."""
    strict: bool = False
    """Refuse to go on with another release of torch, device or batch size, instead of a warning."""

    def job(self) -> "TokenizeJob":
        """Return what is to be made, without how. Raises ValueError for numbers that cannot be."""
        from ..tokenization import CropProtocol, TokenizeJob

        size, step = self.size, None
        if self.buckets is not None:
            words = self.buckets.split(":")
            if len(words) != 2 or not all(word.isdigit() for word in words):
                raise ValueError(f"expected --buckets SIZE:STEP like 1024:64, found {self.buckets!r}")
            size, step = int(words[0]), int(words[1])
        rules: dict[str, Literal["auto", "folder", "none"]] = {"auto": "auto", "folder": "folder", "none": "none"}
        return TokenizeJob(
            paths=self.data,
            model=self.model,
            protocol=CropProtocol(self.crop, size, self.crops, self.scale, self.seed, self.flips, step),
            only=self.only,
            labels=rules.get(self.labels, "auto"),
            label_file=None if self.labels in rules else self.labels,
            store=self.store,
            container=self.format,
            dtype=self.dtype,
            shard_images=self.shard_images,
            batch_size=self.batch_size,
            threads=self.threads,
            encoder=self.encoder,
        )

    def most_skipped(self) -> tuple[float, float]:
        """Return the images that may be skipped, and the share of all images. Raises ValueError."""
        words = self.max_skipped
        try:
            share = words.endswith("%")
            value = float(words[:-1]) / 100 if share else float(int(words))
            if value >= 0 and (not share or value <= 1):
                return (0.0, value) if share else (value, 0.0)
        except ValueError:
            value = -1.0
        raise ValueError(f"expected --max-skipped as a number or a share like 1%, found {words!r}")


@dataclass(frozen=True)
class Verify:
    """Read every byte of a finished folder: checksums, counts, shapes, finite numbers, statistics."""

    folder: Positional[Path]
    """As given to --out."""


@dataclass(frozen=True)
class Finish:
    """Write the manifest of a folder whose shards are all there."""

    folder: Positional[str]
    """As given to --out."""


_CHECKS = {"verify": ("Check a finished folder.", Verify), "finish": ("Write the manifest of a folder.", Finish)}


def choose_options(arguments: list[str]) -> tuple[Any, list[str]]:
    """Return the options of ``DATA... --out DIR``, of ``verify DIR`` or of ``finish DIR``."""
    return (subcommands(_CHECKS) if arguments and arguments[0] in _CHECKS else Tokenize), arguments


def run(options: Tokenize | Verify | Finish) -> int:
    if isinstance(options, Verify):
        return _verify(options)
    if isinstance(options, Finish):
        from ..tokenization import finish

        _tell(finish(options.folder), options.folder, "")
        return 0
    return _tokenize(options)


def _tokenize(options: Tokenize) -> int:
    import torch
    from tqdm.auto import tqdm

    from ..tokenization import Part, TokenizeStopped, tokenize

    if not options.data:
        raise ValueError("expected images to tokenize: pass folders, tar files or hf:OWNER/NAME")
    most, share = options.most_skipped()
    part = Part.of_launcher() if options.part is None else Part.parse(options.part)
    elsewhere = options.engine == "ray" and options.device != "auto"  # this machine may have no such device
    device = torch.device(options.device) if elsewhere else ModelOptions(device=options.device).torch_device()
    processes = options.processes
    if options.part is None and part.count > 1:  # a process that was started for this GPU, or for some of the cores
        processes = processes or 1
        if device == torch.device("cuda"):
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        done = tokenize(
            options.job(),
            options.out,
            part=part,
            engine=options.engine,
            processes=processes,
            workers=(1 if device.type == "cpu" else 4) if options.workers is None else options.workers,
            device=device,
            strict=options.strict,
            progress=lambda images: tqdm(total=images, unit="img"),
        )
    except TokenizeStopped as stopped:
        print(f"ssdd tokenize: {stopped}", file=sys.stderr)
        return 128 + stopped.signal_number
    made = f"{done.made} made now, {done.kept} there before"
    own = f"part {part} of {options.out}: all its shards are there ({made})"
    if done.manifest is None:
        print(
            f"{own}; {done.missing} of all {done.shards} are missing: the part that finishes last writes the manifest, "
            f"or ssdd tokenize finish {options.out}"
        )
        return 0
    if done.concluded or part.number == 0:
        _tell(done.manifest, options.out, f" ({made})")
    else:
        print(f"{own}, and those of all others")
    skipped, images = done.manifest.skipped_images, done.manifest.images
    if skipped > max(most, share * (images + skipped)):
        print(f"expected at most {options.max_skipped} of the images to be skipped, found {skipped:,}", file=sys.stderr)
        return SKIPPED
    return 0


def _tell(manifest: "Manifest", out: str, made: str) -> None:
    from ..data.find import describe_left_out

    for skipped in manifest.skipped[:_SHOWN]:
        print(f"skipped {skipped.reason}", file=sys.stderr)
    if manifest.skipped_images > _SHOWN:
        print(f"and {manifest.skipped_images - _SHOWN:,} more: the shards' indices name them", file=sys.stderr)
    print(
        f"{manifest.latents:,} latents {manifest.latent_shape} of {manifest.images:,} images in "
        f"{len(manifest.shards)} shards{made}: {out}"
    )
    print(f"{len(manifest.classes):,} classes, {manifest.skipped_images:,} images skipped")
    if manifest.unlabelled and (manifest.classes or manifest.data.labels not in ("auto", "none")):
        print(f"{manifest.unlabelled:,} latents have no class", file=sys.stderr)
    if manifest.left_out:
        print(describe_left_out(Counter(manifest.left_out)), file=sys.stderr)
    statistics = manifest.statistics
    print(f"scaling_factor {statistics.scaling_factor:.5g}, shift_factor {statistics.shift_factor:.5g}")


def _verify(options: Verify) -> int:
    from tqdm.auto import tqdm

    from ..tokenization import LatentDataset, verify

    faults = verify(options.folder, lambda shards: tqdm(shards, unit="shard"))
    for fault in faults[:_SHOWN]:
        print(f"wrong: {fault}", file=sys.stderr)
    if len(faults) > _SHOWN:
        print(f"and {len(faults) - _SHOWN} more", file=sys.stderr)
    if faults:
        return ERROR
    data = LatentDataset(options.folder)
    print(
        f"{len(data):,} latents in {len(data.manifest['shards'])} shards, all as {options.folder}'s manifest has them"
    )
    return 0
