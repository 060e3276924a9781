"""What the commands of ``ssdd bench`` share: device, files, the comparison with an earlier file."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...files import OutputExists, atomic_path
from ..common import ModelOptions

if TYPE_CHECKING:
    from ...bench.setting import Key, Setting


@dataclass(frozen=True)
class FileOptions:
    """Where it runs, and what is written."""

    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, ..."""
    out: Path | None = None
    """JSON file for all of it."""
    overwrite: bool = False
    """Replace existing files."""

    def torch_device(self) -> torch.device:
        """Raises ValueError if there is none of that name."""
        return ModelOptions(device=self.device).torch_device()

    def check_files(self, *others: Path | None) -> None:
        """Raises OutputExists, before the work, if ``out`` or another file could not be written."""
        for path in (self.out, *others):
            if path is not None and path.exists() and not self.overwrite:
                raise OutputExists(f"{path} exists already; pass --overwrite to replace it")

    def write(self, found: dict[str, Any], again: bool = False) -> None:
        """``out``, if it is wanted; ``again``: in place of what this command wrote before."""
        if self.out is not None:
            with atomic_path(self.out, self.overwrite or again) as path:
                path.write_text(json.dumps(found, indent=1) + "\n")


@dataclass(frozen=True)
class ComparedOptions(FileOptions):
    """The same, with a comparison."""

    against: Path | None = None
    """An earlier --out FILE.json of the same command and setting: print how much faster it is now."""

    def earlier(self, setting: "Setting", figure: str) -> "dict[Key, float]":
        """Figures of the earlier file, if there is one. Raises OSError, or ValueError if the settings differ."""
        from ...bench.setting import earlier_figures

        return {} if self.against is None else earlier_figures(self.against, setting, figure)

    def compare(self, found: dict[str, Any], earlier: "dict[Key, float]", figure: str) -> None:
        """Prints the ratios, if there is an earlier file. Raises ValueError if it has no row in common."""
        if self.against is not None:
            from ...bench.report import against_table

            print(f"\nagainst {self.against}\n{against_table(found, earlier, figure)}")
