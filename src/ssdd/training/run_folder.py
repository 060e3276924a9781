"""What a run's folder says about the run: its settings, what it was trained on, and on what it ran.

``config.json`` has the settings, ``trained_on.json`` what it was trained on, known by content: the photographs, the
frozen encoder, the weights that it starts from. The same under another path goes on; others under the same path are
refused. ``environment.jsonl`` has a line for each start.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import __version__
from ..data.images import ImageError
from ..data.sources import ImageSource
from ..runtime.files import write_json
from ..runtime.processes import Processes
from .config import RunConfig, differences, to_dict

_TRAINED_ON = "trained_on.json"
_HASHED = 16
"""Images whose bytes are hashed; of all others the names are."""

_PACKAGES = ("torch", "torchvision", "diffusers", "transformers", "schedulefree", "torchmetrics", "numpy", "pillow")


def has_started(run: Path) -> bool:
    """Return whether a run has something to lose: it came to its first checkpoint."""
    return any((run / "checkpoints").glob("*")) or (run / "model").exists()


def check_settings(config: RunConfig, run: Path) -> None:
    """Raise ValueError if the folder holds anything but this very run, or one that never started."""
    saved = run / "config.json"
    if saved.is_file():
        try:
            changed = differences(config, saved.read_text())
        except (ValueError, AttributeError, TypeError, LookupError, RecursionError) as error:
            raise ValueError(f"{saved}: expected the settings of a run, found something else ({error})") from error
        if changed and has_started(run):
            raise ValueError(
                f"{run} holds a run with other settings ({'; '.join(changed)}): choose another --out folder"
            )
    elif run.is_dir() and any(not p.name.startswith(".") for p in run.iterdir()):  # hidden: ours, of a killed process
        raise ValueError(f"{run}: expected a new folder or a run's, found other files: choose another --out folder")


def forget_start(run: Path) -> None:
    """Remove what a run that came to no checkpoint has measured and drawn: it may have had other settings."""
    for name in ("best", "samples", "tensorboard"):
        shutil.rmtree(run / name, ignore_errors=True)
    for name in ("best.json", "latents.json", "stats.jsonl", "validation.jsonl"):
        (run / name).unlink(missing_ok=True)


def check_trained_on(run: Path, now: dict[str, Any], advice: str = "choose another --out folder") -> None:
    """Raise ValueError with one line if a run was begun on something else, as far as its file says."""
    path = run / _TRAINED_ON
    if not path.is_file():
        return
    try:
        saved = dict(json.loads(path.read_text()))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: expected what the run was trained on, found something else ({error})") from error
    for name, value in now.items():
        before = saved.get(name)
        if before is None or _agree(before, value):
            continue
        counts = [v.get("count") if isinstance(v, dict) else None for v in (before, value)]  # a stream has none
        if counts[0] != counts[1]:
            raise ValueError(
                f"{run}: expected the {counts[0]} {name} that this run began with, found {counts[1]}: "
                f"the order of all of them would change; {advice}"
            )
        what = "others" if isinstance(value, dict) else "other weights"
        raise ValueError(f"{run}: expected the {name} that this run began with, found {what}: {advice}")


def _agree(before: Any, now: Any) -> bool:
    """Return whether two identities agree in all that both state: an older run states less."""
    if isinstance(before, dict) and isinstance(now, dict):
        return all(before[name] == now[name] for name in before.keys() & now.keys())
    return before == now


def write_settings(config: RunConfig, run: Path) -> None:
    """Write the resolved config."""
    write_json(run / "config.json", to_dict(config))


def record_start(config: RunConfig, run: Path, trained_on: dict[str, Any], processes: Processes) -> None:
    """Write the resolved config, what the run is trained on, and a line about this start's environment."""
    write_settings(config, run)
    write_json(run / _TRAINED_ON, trained_on)
    with (run / "environment.jsonl").open("a") as file:
        file.write(json.dumps(describe_environment(processes)) + "\n")


def identify_photographs(source: ImageSource) -> dict[str, Any]:
    """Return number and digest of the images of a source: their names within it, and the bytes of some."""
    digest = hashlib.sha256()
    for index in range(len(source)):
        digest.update(source.key(index).encode("utf-8", "surrogateescape") + b"\0")
    for index in np.linspace(0, len(source) - 1, min(_HASHED, len(source))).astype(int):
        try:
            digest.update(hashlib.sha256(source.content(int(index))).digest())
        except ImageError:
            digest.update(b"unreadable")
    return {"count": len(source), "sha256": digest.hexdigest()}


def describe_environment(processes: Processes) -> dict[str, Any]:
    """Return versions, git revision of this package (where it is a checkout), machine, command line."""
    cuda, packages = processes.device.type == "cuda", {}
    for name in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            packages[name] = importlib.metadata.version(name)
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "ssdd": __version__,
        "git": git_revision(),
        "python": platform.python_version(),
        "packages": packages,
        "system": platform.platform(),
        "processor": torch.cuda.get_device_name(processes.device) if cuda else platform.machine(),
        "cpu_cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda if cuda else None,
        "processes": processes.count,
    }


def git_revision() -> str | None:
    """Return the commit of the checkout that this package is a part of, ``-dirty`` where files differ; None outside."""
    file = Path(__file__)

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(file.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", file.name)  # installed below somebody else's checkout, it is no part of it
        dirty = "-dirty" if git("status", "--porcelain", "--untracked-files=no") else ""
        return git("rev-parse", "HEAD") + dirty
    except (OSError, subprocess.SubprocessError):
        return None
