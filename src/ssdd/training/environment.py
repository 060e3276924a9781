"""What a run ran on: recorded with it, so that its numbers can be told apart later."""

import fcntl
import importlib.metadata
import logging
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..processes import Processes

logger = logging.getLogger(__name__)

LOCK = ".lock"
"""Held by the process that trains in a run's folder."""

_PACKAGES = ("torch", "torchvision", "diffusers", "transformers", "schedulefree", "torchmetrics", "numpy", "pillow")


def describe_environment(processes: Processes) -> dict[str, Any]:
    """Versions, git revision of this package (where it is a checkout), machine, command line."""
    device = processes.device
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "ssdd": __version__,
        "git": git_revision(),
        "python": platform.python_version(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
        "system": platform.platform(),
        "processor": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "cpu_cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "processes": processes.count,
    }


@contextmanager
def only_one(run: Path) -> Iterator[None]:
    """Holds the lock of a run's folder, which is made if it is new and removed again if nothing came of it.

    Raises ValueError if another process trains there.
    """
    made = [folder for folder in (run, *run.parents) if not folder.exists()]
    run.mkdir(parents=True, exist_ok=True)
    with (run / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"{run} is being trained by another process: wait, or choose another --out") from error
        except OSError as error:
            logger.warning("%s cannot be locked (%s): train there with one command only", run, error)
        try:
            yield
        finally:
            if [path.name for path in run.iterdir()] == [LOCK]:
                (run / LOCK).unlink()
                for folder in made:
                    if not any(folder.iterdir()):
                        folder.rmdir()


def git_revision() -> str | None:
    """Commit of the checkout that this package is a part of, ``-dirty`` where files differ; None outside one."""
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


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
