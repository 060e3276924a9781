"""Checkpoints of a run: everything that the next step depends on, in safetensors and JSON, never pickle.

A run's folder::

    config.json                    the resolved configuration
    stats.jsonl                    one line per log interval
    checkpoints/000123456/         images seen: model, average, optimiser, clock
    model/                         the result, written at the end

A checkpoint is written beside its place and renamed, so that one with its final name is complete. Random numbers
need no state: every draw is a function of (seed, images seen).
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..files import share

KEEP = 2
"""Checkpoints of a run that are kept."""


def save_checkpoint(
    run: Path, images_seen: int, model: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer
) -> Path:
    """Writes a checkpoint and removes the oldest ones. Returns its folder."""
    folder = run / "checkpoints" / f"{images_seen:012d}"
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    tensors, numbers = _flatten_optimizer(optimizer)
    _save(model.state_dict(), partial / "model.safetensors")
    _save(average.state_dict(), partial / "average.safetensors")
    _save(tensors, partial / "optimizer.safetensors")
    (partial / "state.json").write_text(json.dumps({"images_seen": images_seen, "optimizer": numbers}))
    for path in [*partial.iterdir(), partial]:
        _sync(path)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    _sync(folder.parent)
    for old in list_checkpoints(run)[:-KEEP]:
        shutil.rmtree(old)
    return folder


def list_checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    return sorted(p for p in (run / "checkpoints").glob("[0-9]*") if p.name.isdigit())


def load_checkpoint(folder: Path, model: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Restores all three in place. Returns the images seen."""
    state = json.loads((folder / "state.json").read_text())
    model.load_state_dict(load_file(folder / "model.safetensors"))
    average.load_state_dict(load_file(folder / "average.safetensors"))
    _restore_optimizer(optimizer, load_file(folder / "optimizer.safetensors"), state["optimizer"])
    return int(state["images_seen"])


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    # Its own copy of each tensor, in plain memory order: the file format knows neither sharing nor channels-last.
    # (The order in memory is no part of a weight; the loop sets it again.)
    save_file({k: v.detach().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}, path)
    share(path)


def _flatten_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """Optimiser state as tensors named ``INDEX.NAME`` and the plain numbers beside them."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for index, entries in optimizer.state_dict()["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value
            else:
                numbers.setdefault(str(index), {})[name] = value
    return tensors, numbers


def _restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], numbers: dict[str, dict[str, Any]]
) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Any]] = {int(index): dict(entries) for index, entries in numbers.items()}
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        parameter = parameters[int(index)]
        if tensor.shape == parameter.shape:
            # in the parameter's order in memory (channels-last): fused optimisers walk through both side by side
            tensor = torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
