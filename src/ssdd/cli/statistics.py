"""``ssdd statistics MODEL --data PATH...``: mean and deviation of a model's latents, for its config."""

import sys
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from ..runtime.dtypes import Dtype, torch_dtype
from .common import SKIPPED, Count, ModelOptions, Workers, check_outputs, print_json


@dataclass(frozen=True)
class Statistics:
    """Measure a model's latents: scaling_factor, shift_factor, latents_mean, latents_std, and how sure they are."""

    model: Positional[str]
    """Model folder, run, embedded name, Hugging Face id, .safetensors of the authors, file.py:NAME."""
    encoder: str | None = None
    """Encoder of a model that has none: file.py:NAME, package.module:NAME, model folder, run, Hugging Face id, single
    .safetensors file, taef2."""
    data: tuple[str, ...] = ()
    """Folders, uncompressed tar files, hf:OWNER/NAME[:SPLIT]: images as the generative model will see them."""
    protocol: str = "paper-256-v1"
    """paper-128-v1, paper-256-v1, paper-512-v1, native-v1, crops-64-v1 (-128-, -256-)."""
    limit: Count | None = None
    """So many images at most, drawn at random, the same ones every time."""
    save: bool = False
    """Write the entries into the config.json of MODEL, which must be a folder."""
    out: Path | None = None
    """JSON file for the statistics, the protocol, the data."""
    overwrite: bool = False
    """Replace an existing file."""
    json: bool = False
    """Print what --out writes instead of text."""
    batch_size: Count = 16
    """Crops at a time; no number depends on it."""
    workers: Workers = 2
    """Processes that read and crop."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1, ..."""
    dtype: Dtype = "fp32"
    """Precision of the networks; the statistics are float64 always."""


OPTIONS = Statistics


def run(options: Statistics) -> int:
    from tqdm.auto import tqdm

    from ..data.sources import open_source
    from ..evaluation.autoencoders import check_encoder_attached, load_autoencoder
    from ..evaluation.latents import as_dict, as_text, latent_statistics, save_statistics, saved_folder
    from ..evaluation.protocols import EvaluationSet, get_protocol
    from ..runtime.files import write_json

    protocol = get_protocol(options.protocol)
    if not options.data:
        raise ValueError("expected images to measure the latents of: pass --data FOLDER_OR_TAR ...")
    if options.out is not None:
        check_outputs(options.out.parent, [options.out.name], [] if options.overwrite else [options.out.name])
    folder = saved_folder(options.model) if options.save else None
    evaluation_set = EvaluationSet(open_source(options.data), protocol)
    device = ModelOptions(device=options.device).torch_device()
    autoencoder = load_autoencoder(options.model, device, torch_dtype(options.dtype), options.encoder)
    check_encoder_attached([autoencoder], options.encoder)
    measured = latent_statistics(
        autoencoder,
        evaluation_set,
        limit=options.limit,
        batch_size=options.batch_size,
        workers=options.workers,
        device=device,
        progress=lambda items, total: tqdm(items, total=total, unit="img"),
    )
    for skipped in measured.census.skipped:
        print(f"skipped {skipped.reason}", file=sys.stderr)
    if options.out is not None:
        write_json(options.out, as_dict(measured), options.overwrite)
    saved = save_statistics(folder, measured.statistics.config()) if folder is not None else None
    if options.json:
        print_json(as_dict(measured))
    else:
        print(as_text(measured, saved))
        if folder is not None:
            print(f"saved in {folder / 'config.json'}")
    return SKIPPED if measured.census.skipped else 0
