"""How much memory a call takes, in a process of its own."""

import subprocess
import sys

PROGRAM = """
import torch
from ssdd.runtime.memory import memory_growth

before = torch.ones(32 << 20)  # 128 MiB
work = lambda: torch.ones(24 << 20)[:1].clone()  # 96 MiB, given back before the call ends
print(memory_growth(work, torch.device("cpu"))[1])
"""


def test_growth_is_the_peak_and_not_the_rest() -> None:
    """Memory that is given back before the call ends counts; what the process had before does not."""
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert 90 << 20 < int(result.stdout) < 110 << 20
