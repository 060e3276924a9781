"""What a run ran on: recorded with it, so that its numbers can be told apart later."""

import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..processes import Processes

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
