"""Checkpoints of a run: everything that the next step depends on, in safetensors and JSON, never pickle.

A run's folder::

    checkpoints/000123456/         images seen
        model.safetensors          the trainable network (frozen ones are no part of it)
        average.safetensors        its moving average
        optimizer.safetensors      state of the optimiser, and adversary*.safetensors where there is an adversary
        state.json                 clock, plain numbers of the optimisers, a checksum of each file

A checkpoint is written beside its place, flushed and renamed, so that one with its final name was complete; the
checksums tell whether it still is. Tensors are whole, whatever the number of processes and the way they share the
model. Random numbers need no state: every draw is a function of (seed, images seen).
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..runtime.files import share
from ..runtime.text import one_safe_line
from .distribution import as_parameter, full_tensor
from .optimizers import Update

logger = logging.getLogger(__name__)

Tensors = dict[str, Tensor]

_FILE = r"\w+\.safetensors"


class DamagedCheckpoint(ValueError):
    """A checkpoint that is incomplete or has changed since it was written; one line with what is wrong."""

    def __init__(self, message: str) -> None:
        super().__init__(one_safe_line(message))


def checkpoint_folder(run: Path, images_seen: int) -> Path:
    """Return where the checkpoint at that clock lies."""
    return run / "checkpoints" / f"{images_seen:012d}"


def list_checkpoints(run: Path) -> list[Path]:
    """Return the checkpoints of a run with their final name, oldest first."""
    return sorted(p for p in (run / "checkpoints").glob("[0-9]*") if p.name.isdecimal() and p.name.isascii())


def write_checkpoint(folder: Path, tensors: Mapping[str, Tensors], state: Mapping[str, Any]) -> None:
    """Write the files ``NAME.safetensors`` and ``state.json`` as one folder, whole or not at all.

    Args:
        folder: of the checkpoint.
        tensors: by name, for each file.
        state: plain numbers.

    Raises:
        OSError: a full disk; one line. Nothing of the folder is left then, and older ones are untouched.
    """
    partial = folder.with_name(folder.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name, entries in tensors.items():
            save_tensors(entries, partial / f"{name}.safetensors")
        checksums = {path.name: _checksum(path) for path in sorted(partial.iterdir())}
        (partial / "state.json").write_text(json.dumps({**state, "checksums": checksums}))
        for path in [*partial.iterdir(), partial]:
            _sync(path)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
        _sync(folder.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise OSError(
            f"could not write the checkpoint {folder} ({' '.join(str(error).split())}); "
            "the ones before it are intact: make room, and the same command goes on from there"
        ) from error


def read_checkpoint(folder: Path) -> tuple[dict[str, Tensors], dict[str, Any]]:
    """Return the tensors of each file and the state. Raise DamagedCheckpoint."""
    try:
        state = json.loads((folder / "state.json").read_text())
        checksums = dict(state.pop("checksums"))
        if state["images_seen"] != int(folder.name):
            raise DamagedCheckpoint(f"{folder / 'state.json'} is of {state['images_seen']!r:.60} images")
        for name, expected in checksums.items():
            if not re.fullmatch(_FILE, name):
                raise DamagedCheckpoint(f"{folder / 'state.json'} names {name!r:.60}, which is no file of a checkpoint")
            if _checksum(folder / name) != expected:
                raise DamagedCheckpoint(f"{folder / name} is not what was written")
        return {name.removesuffix(".safetensors"): load_file(folder / name) for name in checksums}, state
    except DamagedCheckpoint:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        raise DamagedCheckpoint(f"{folder}: {' '.join(str(error).split())}") from error


def newest_checkpoint(run: Path) -> Path | None:
    """Return the newest undamaged checkpoint, or None where there is none at all.

    Damaged ones are named and get the name ``IMAGES_SEEN.damaged``.

    Raises:
        DamagedCheckpoint: all are damaged.
    """
    folders = list_checkpoints(run)
    for folder in reversed(folders):
        try:
            read_checkpoint(folder)
            return folder
        except DamagedCheckpoint as error:
            logger.warning("damaged checkpoint passed over: %s", error)
            damaged = folder.with_name(folder.name + ".damaged")
            shutil.rmtree(damaged, ignore_errors=True)
            folder.rename(damaged)
    if folders:
        raise DamagedCheckpoint(
            f"{run}: all {len(folders)} checkpoints are damaged; to begin anew, choose another --out folder"
        )
    return None


def prune_checkpoints(run: Path, keep: int, milestone_images: int) -> None:
    """Remove all but the last ``keep`` and the milestones: the first at or after each multiple of that clock."""
    folders = list_checkpoints(run)
    kept, milestone = set(folders[-keep:]), 0
    for folder in folders:
        passed = int(folder.name) // milestone_images if milestone_images else 0
        if passed > milestone:
            milestone = passed
            kept.add(folder)
    for folder in folders:
        if folder not in kept:
            try:
                shutil.rmtree(folder)
            except OSError as error:  # an open file on a network disk: the run is worth more than the space
                logger.warning("could not remove the old checkpoint %s: %s", folder, error)


def update_tensors(update: Update, main: bool = True) -> tuple[Tensors, dict[str, Any]]:
    """Return an optimiser's state: whole tensors named ``INDEX.NAME``, and plain numbers of parameters and groups.

    All processes call this where the model is sharded; only the ``main`` one gets the tensors.
    """
    tensors: Tensors = {}
    numbers: dict[str, dict[str, Any]] = {}
    content = update.optimizer.state_dict()
    for index, entries in content["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                gathered = full_tensor(value)
                tensors |= {f"{index}.{name}": gathered.cpu()} if main else {}
            else:
                numbers.setdefault(str(index), {})[name] = value
    groups = [{k: v for k, v in group.items() if k != "params"} for group in content["param_groups"]]
    return tensors, {"state": numbers, "groups": groups, "scaler": update.scaler.state_dict() if update.scaled else {}}


def restore_update(update: Update, tensors: Tensors, numbers: Mapping[str, Any]) -> None:
    """Load what ``update_tensors`` gave into an optimiser over the same parameters."""
    if update.scaled:
        update.scaler.load_state_dict(dict(numbers["scaler"]))
    state: dict[int, dict[str, Any]] = {int(index): dict(entries) for index, entries in numbers["state"].items()}
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        parameter = update.parameters[int(index)]
        like_weight = tensor.shape == parameter.shape  # else a counter
        state.setdefault(int(index), {})[name] = as_parameter(tensor, parameter) if like_weight else tensor
    groups = [
        {**new, **{k: tuple(v) if isinstance(v, list) else v for k, v in old.items()}}
        for new, old in zip(update.optimizer.state_dict()["param_groups"], numbers["groups"], strict=True)
    ]
    update.optimizer.load_state_dict({"state": state, "param_groups": groups})


def save_tensors(tensors: Tensors, path: Path) -> None:
    """Write tensors as a safetensors file with the permissions of an ordinary one."""
    # Its own copy of each tensor, in plain memory order: the file format knows neither sharing nor channels-last.
    # (The order in memory is no part of a weight; the loop sets it again.)
    plain = {k: v.detach().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}
    save_file(plain, path)
    share(path)


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
