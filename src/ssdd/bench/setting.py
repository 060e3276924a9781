"""The setting of a measurement, and whether two measurements may be compared at all."""

import json
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Setting:
    """All that two measurements must share for a ratio of them to mean something.

    threads: of a CPU, else None. steps: decoding steps, None where there are none. details: of one command.
    """

    command: str
    device: str
    threads: int | None
    torch: str
    dtype: str
    compile: bool
    mode: str
    steps: int | None = None
    freed_memory_kept: bool = False
    details: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Flat, for JSON."""
        found = {name: value for name, value in vars(self).items() if name != "details"}
        return {**found, **self.details}

    def line(self) -> str:
        """For people, below a table."""
        parts = [self.device] if self.threads is None else [f"{self.device}, {_count(self.threads, 'thread')}"]
        parts += [f"torch {self.torch}", self.dtype, self.mode, "compiled" if self.compile else "not compiled"]
        if self.steps is not None:
            parts.append(_count(self.steps, "decoding step"))
        if self.freed_memory_kept:
            parts.append("the process keeps freed memory (all contenders)")
        parts += [f"{name.replace('_', ' ')} {value}" for name, value in self.details.items()]
        return f"{self.command}: {'; '.join(parts)}; random weights"


def this_setting(
    command: str,
    device: torch.device,
    *,
    dtype: str,
    compile: bool,
    mode: str,
    steps: int | None = None,
    freed_memory_kept: bool = False,
    **details: Any,
) -> Setting:
    """Of a measurement by this process on a device."""
    threads = torch.get_num_threads() if device.type == "cpu" else None
    name, version = device_name(device), str(torch.__version__)
    return Setting(command, name, threads, version, dtype, compile, mode, steps, freed_memory_kept, details)


def device_name(device: torch.device) -> str:
    """As its maker calls it, where the system knows."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        info = Path("/proc/cpuinfo")
        lines = info.read_text().splitlines() if info.is_file() else []
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        return f"CPU {names[0] if names else platform.processor() or platform.machine()}"
    return device.type


Key = tuple[str, int, int, str]
"""Contender, side of the image, batch, and a word for what else tells rows apart."""


def key_of(row: dict[str, Any]) -> Key:
    """Of a row in JSON."""
    return row["name"], row["size"], row["batch"], row.get("tiling", "")


def earlier_figures(path: Path, setting: Setting, figure: str) -> dict[Key, float]:
    """The figures of an earlier file's rows, if it was measured in the same setting.

    figure: name of a number in each row. Raises OSError, or ValueError with the first difference.
    """
    wrong = f"{path}: expected a file of ssdd bench {setting.command} --out"
    try:
        found = json.loads(path.read_text())
        then, rows = found["setting"], {key_of(row): row[figure] for row in found["rows"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{wrong}, found something else") from error
    if not isinstance(then, dict):
        raise ValueError(f"{wrong}, found one without its setting")
    now = setting.as_dict()
    for name in (*now, *(n for n in then if n not in now)):
        if now.get(name) != then.get(name):
            raise ValueError(
                f"{path} cannot be compared: its {name} is {_said(then.get(name))}, here it is {_said(now.get(name))}"
            )
    return rows


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _said(value: Any) -> str:
    return "not given" if value is None else repr(value) if isinstance(value, str) else str(value)
