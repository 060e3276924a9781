"""What a run was trained on, known by content: the photographs, the frozen encoder, the weights that it starts from.

``trained_on.json`` in the run's folder. The same under another path goes on; others under the same path are refused.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ..data.images import ImageError
from ..data.sources import ImageSource
from ..files import atomic_path

FILE = "trained_on.json"

_CONTENTS = 16
"""Images whose bytes are hashed; of all others the names are."""


def photographs(source: ImageSource) -> dict[str, Any]:
    """Return number and digest of the images of a source: their names within it, and the bytes of some."""
    digest = hashlib.sha256()
    for index in range(len(source)):
        digest.update(source.key(index).encode("utf-8", "surrogateescape") + b"\0")
    for index in np.linspace(0, len(source) - 1, min(_CONTENTS, len(source))).astype(int):
        try:
            digest.update(hashlib.sha256(source.content(int(index))).digest())
        except ImageError:
            digest.update(b"unreadable")
    return {"count": len(source), "sha256": digest.hexdigest()}


def weights(module: nn.Module) -> str:
    """Return a digest of a network's weights, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def check(run: Path, found: dict[str, Any]) -> None:
    """Raise ValueError with one line if a run was begun on something else, as far as its file says."""
    path = run / FILE
    if not path.is_file():
        return
    try:
        saved = dict(json.loads(path.read_text()))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: expected what the run was trained on, found something else ({error})") from error
    for name, value in found.items():
        before = saved.get(name)
        if before is None or before == value:
            continue
        counts = [v.get("count") if isinstance(v, dict) else None for v in (before, value)]  # a stream has none
        if counts[0] != counts[1]:
            raise ValueError(
                f"{run}: expected the {counts[0]} {name} that this run began with, found {counts[1]}: "
                "the order of all of them would change; choose another --out folder"
            )
        what = "others under that name" if isinstance(value, dict) else "other weights under that name"
        raise ValueError(f"{run}: expected the {name} that this run began with, found {what}: choose another --out")


def write(run: Path, found: dict[str, Any]) -> None:
    """Write what a run is trained on."""
    with atomic_path(run / FILE, overwrite=True) as path:
        path.write_text(json.dumps(found, indent=2) + "\n")
