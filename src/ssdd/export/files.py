"""``export_model``: ONNX files of a model in a folder, checked, and a JSON file that says how to use them."""

import copy
import json
import logging
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..autoencoder import AutoencoderSSDD
from ..checkpoints.config import BATCH_NORM
from ..runtime.dtypes import Dtype, torch_dtype
from ..runtime.files import OutputExists
from .check import Difference, check_files, check_finite
from .trace import DECODER, ENCODER, networks, require_packages, write_network

logger = logging.getLogger(__name__)

DESCRIPTION = "export.json"
FILES = (ENCODER, DECODER, DESCRIPTION)


@dataclass(frozen=True)
class Export:
    """What was written: names of the files, and the largest differences from PyTorch (none without a check)."""

    files: list[str]
    differences: list[Difference]


def export_model(
    autoencoder: AutoencoderSSDD,
    folder: Path,
    model: str,
    dtype: Dtype = "fp32",
    opset: int = 20,
    check: bool = True,
    overwrite: bool = False,
) -> Export:
    """Write ``encoder.onnx`` (if the model has an encoder), ``decoder.onnx`` and ``export.json``: all, or nothing.

    Args:
        autoencoder: in float32 on the CPU, in eval mode; is left as it is.
        model: its name, for the description.
        dtype: ``fp32`` or ``fp16``, of the exported weights.

    Raises:
        ImportError: a package is missing. OutputExists: a file is there already. ValueError: an unknown opset.
        ArithmeticError: ONNX Runtime's results are others, or half precision overflows.
    """
    require_packages()
    with _new_files(folder, overwrite) as partial:
        source = autoencoder if dtype == "fp32" else _in_half_precision(autoencoder, torch_dtype(dtype))
        if check and source is not autoencoder:
            check_finite(source)
        names = []
        for network in networks(source):
            write_network(network, autoencoder.spatial_factor, partial / network.file, opset)
            names.append(network.file)
        found = check_files(autoencoder, partial, dtype) if check else []
        description = describe(autoencoder, model, names, dtype, opset)
        (partial / DESCRIPTION).write_text(json.dumps(description, indent=1, allow_nan=False) + "\n")
    return Export([*names, DESCRIPTION], found)


def _in_half_precision(autoencoder: AutoencoderSSDD, dtype: torch.dtype) -> AutoencoderSSDD:
    """Return a copy in another dtype; its encoder stays in float32 where the config says that it overflows."""
    half = copy.deepcopy(autoencoder)
    half.decoder.to(dtype)
    if half.encoder is not None:
        if half.config.force_upcast:
            logger.warning("the encoder is written in float32, as the model's force_upcast asks")
        else:
            half.encoder.to(dtype)
    return half


def describe(autoencoder: AutoencoderSSDD, model: str, files: Sequence[str], dtype: str, opset: int) -> dict[str, Any]:
    """Return what a user of the files has to know; the content of ``export.json``.

    model: the name that the model was loaded by.
    """
    import onnx

    from .. import __version__

    config = autoencoder.config
    return {
        "model": model,
        "files": list(files),
        "spatial_factor": autoencoder.spatial_factor,
        "latent_channels": config.latent_channels,
        "dtype": dtype,
        "opset": opset,
        "latents": {
            "exported": "raw, as the encoder gives and the decoder takes them",
            "convention": config.latents_convention,
            **{n: config[n] for n in ("scaling_factor", "shift_factor", "latents_mean", "latents_std")},
            **{n: config[n] for n in BATCH_NORM if config.batch_norm_mean is not None},
        },
        "decoding": {"steps": 1, "formula": "image = noise + v(noise, t=1, latent)"},
        "noise": {
            "distribution": "standard normal",
            "seed": config.noise_seed,
            "default": "torch.randn((3, H, W), generator=torch.Generator('cpu').manual_seed(seed)), "
            "float32, the same for all images of a batch",
        },
        "default_decoding_steps_of_the_model": config.num_inference_steps,
        "versions": {"ssdd": __version__, "torch": str(torch.__version__), "onnx": onnx.__version__},
    }


@contextmanager
def _new_files(folder: Path, overwrite: bool) -> Iterator[Path]:
    """Return a temporary folder whose files get their place in ``folder`` when the block ends well, and only then.

    Those of ``FILES`` that it does not write are removed there, so that all are of one export.
    Raises OutputExists if one of them exists and may not be replaced, NotADirectoryError for a file.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder}: expected a folder for the results, found a file")
    for name in FILES:
        if os.path.lexists(folder / name) and not overwrite:
            raise OutputExists(f"{folder / name} exists already; pass --overwrite to replace it")
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    # Not beside the folder, which may be a file system of its own: files are moved within one.
    partial = folder / f".{secrets.token_hex(6)}"
    partial.mkdir(parents=True)
    try:
        yield partial
        for name in FILES:
            if (partial / name).exists():
                os.replace(partial / name, folder / name)
            else:
                (folder / name).unlink(missing_ok=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        for path in made:
            with suppress(OSError):  # it has files
                path.rmdir()
