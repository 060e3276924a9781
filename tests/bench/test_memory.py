"""``ssdd bench memory``: each row in its own process, above what was there before."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ssdd.bench.config import MemoryBench
from ssdd.bench.memory import memory_cells

Ssdd = Callable[..., Any]

SMALL = ("--decoders", "XXS", "--peers", "--sizes", "256", "--dtype", "fp32", "--device", "cpu")


def test_table_and_file(ssdd: Ssdd, tmp_path: Path) -> None:
    result = ssdd("bench", "memory", *SMALL, "--tiling", "off", "--out", "memory.json")
    assert result.status == 0, result.err
    found = json.loads((tmp_path / "memory.json").read_text())
    (row,) = found["rows"]
    assert (row["name"], row["size"], row["batch"], row["tiling"]) == ("SSDD-XXS f8c4", 256, 1, "off")
    level = 4 * 32 * 256**2  # one tensor of the first level
    assert 3 * level < row["peak_bytes"] < 100 * level, "not the memory of a decoding"
    assert found["setting"]["command"] == "memory"
    assert "bytes a pixel" in result.out
    assert "process of its own" in result.out


def test_rows() -> None:
    settings = MemoryBench(decoders=("XXS",), peers=("plain", "kl"), sizes=(64, 32))
    cells = [(c.size, c.kind, c.decoder, c.tiled) for c in memory_cells(settings)]
    of_32 = [("plain", "XXS", False), ("kl", "", False), ("kl", "", True), (None, "XXS", False), (None, "XXS", True)]
    assert cells == [(size, *cell) for size in (32, 64) for cell in of_32], "plain knows no tiles"


PROGRAM = """
import torch
from ssdd.memory import memory_growth

before = torch.ones(32 << 20)  # 128 MiB
work = lambda: torch.ones(24 << 20)[:1].clone()  # 96 MiB, given back before the call ends
print(memory_growth(work, torch.device("cpu"))[1])
"""


def test_growth_is_the_peak_and_not_the_rest() -> None:
    """Memory that is given back before the call ends counts; what the process had before does not."""
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert 90 << 20 < int(result.stdout) < 110 << 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--decoders", "Q"), "found 'Q'"),
        (("--sizes", "12"), "multiples of 8, found 12"),
        (("--batch-size", "0"), "at least 1"),
    ],
)
def test_what_cannot_be_measured(ssdd: Ssdd, options: tuple[str, ...], message: str) -> None:
    assert message in ssdd("bench", "memory", *SMALL, *options).error_line()


def test_a_process_that_fails(ssdd: Ssdd, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its last words are told, in one line."""
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho 'first' >&2\necho 'no memory left' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr("ssdd.bench.memory.sys.executable", str(program))
    result = ssdd("bench", "memory", *SMALL)
    assert (result.status, result.err.splitlines()[-1]) == (1, "ssdd: error: SSDD XXS at 256 px: no memory left")
