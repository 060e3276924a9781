"""Safetensors of a model's folder: which files they are, and what their headers say before any weight is read."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .config import MOST_CHANNELS, read_json, short
from .layout import CheckpointError

_WEIGHTS = ("diffusion_pytorch_model.safetensors.index{}.json", "diffusion_pytorch_model{}.safetensors")

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def find_weights(source: str, fetch: Callable[[str], Path | None], variant: str | None = None) -> list[Path]:
    """Return the safetensors of a model: the shards of an index, or else one file, as diffusers chooses between them.

    ``fetch``: path of a file beside the config, or None. ``variant``: as in diffusers; without it, half precision where
    there is nothing else. Raises CheckpointError.
    """
    order = [name.format(part) for part in ([f".{variant}"] if variant else ["", ".fp16"]) for name in _WEIGHTS]
    if not (found := next(filter(None, map(fetch, order)), None)):
        raise CheckpointError(
            f"{source}: expected {order[1]}, found none; pickled weights (.bin) can run code and are never loaded: "
            "convert them with diffusers' save_pretrained"
        )
    if found.suffix != ".json":
        return [found]
    files = {name: fetch(name) for name in read_index(found)}
    if missing := [name for name, path in files.items() if path is None]:
        raise CheckpointError(f"{source}: expected all {len(files)} shards of {found.name}, found no {missing[0]}")
    return list(filter(None, files.values()))


def read_index(path: Path) -> list[str]:
    """Return the shards that an index names. Raise CheckpointError unless all are safetensors files beside it."""
    shards = read_json(path).get("weight_map")
    names = sorted(set(map(str, shards.values()))) if isinstance(shards, dict) else []
    if not names or not all(re.fullmatch(r"\w[\w.-]*\.safetensors", name) for name in names):
        raise CheckpointError(f"{path}: expected the names of safetensors files beside it, found {short(names)}")
    return names


def open_weights(path: Path) -> Any:
    """Open a safetensors file. Raise CheckpointError with its path if it is something else or a part of one."""
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError) as error:
        place = path.resolve() if path.is_symlink() else path  # the hub's cache would link the same file again
        raise CheckpointError(
            f"{place}: expected a complete safetensors file, found something else or a part of one ({error}); delete "
            "it and get it anew"
        ) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return all tensors of a safetensors file. Raises as ``open_weights``."""
    with open_weights(path) as file:
        return {name: file.get_tensor(name) for name in sorted(file.keys())}


def weight_header(source: str, file: Any, name: str) -> Tensor:
    """Return a tensor of the shape and dtype in an open file, without memory. Raise CheckpointError."""
    shape, dtype = file.get_slice(name).get_shape(), file.get_slice(name).get_dtype()
    if dtype not in _DTYPES or max(shape, default=0) > MOST_CHANNELS:
        raise CheckpointError(f"{source}: expected {name} as {', '.join(_DTYPES)}, found {dtype} of {short(shape)}")
    return torch.empty(shape, dtype=_DTYPES[dtype], device="meta")
