"""Does the memory of a long command grow?

    python benchmarks/growth.py ssdd tokenize images.tar --out latents --size 32 --processes 2

Checks docs/reliability.md, docs/evaluation.md and docs/tokenization.md. Runs the command, and four times a second notes
the memory of all of its processes, what they share counted once. Printed is the median in each third of its time. Exit
status: the command's own; if that is 0, 1 where the last third is more than 5 % above the first. Linux only.
"""

import contextlib
import subprocess
import sys
from pathlib import Path

import numpy as np

GROWTH, INTERVAL = 1.05, 0.25


def main() -> None:
    if not (command := sys.argv[1:]):
        sys.exit(__doc__)
    mebibytes = []
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            mebibytes.append(sum(map(_proportional_set, _processes_below(process.pid))) / 1024)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(INTERVAL)
    if process.returncode or len(mebibytes) < 30:
        sys.exit(process.returncode or f"expected a command of {30 * INTERVAL:g} seconds or more: give it more to do")
    first, second, last = map(np.median, np.array_split(mebibytes, 3))
    print(f"MiB in each third of {INTERVAL * len(mebibytes):,.0f} seconds: {first:,.0f}, {second:,.0f}, {last:,.0f}")
    sys.exit(int(last > GROWTH * first))


def _processes_below(pid: int) -> list[int]:
    """Return a process, all that it has started, and those have."""
    pids = [pid]
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            pids += [below for child in path.read_text().split() for below in _processes_below(int(child))]
    return pids


def _proportional_set(pid: int) -> int:
    """Return KiB in memory, a page of n processes as 1 / n; 0 for a process that has ended."""
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
    return 0


if __name__ == "__main__":
    main()
