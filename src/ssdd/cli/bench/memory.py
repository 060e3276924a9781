"""``ssdd bench memory``: peak memory of a decoding."""

from collections.abc import Sequence
from dataclasses import dataclass

from tqdm import tqdm

from ...bench.config import MemoryBench
from ..common import parse_options
from .output import ComparedOptions


@dataclass(frozen=True)
class Memory(ComparedOptions, MemoryBench):
    """Peak memory of a decoding above the weights, whole and in tiles, each row in a fresh process."""


def parse(arguments: Sequence[str]) -> Memory:
    """``[OPTIONS]``."""
    return parse_options(Memory, "bench memory", arguments)


def run(options: Memory) -> int:
    from ...bench.memory import bench_memory, check_memory_bench, memory_cells, memory_setting
    from ...bench.report import BYTES, memory_dict, memory_table

    check_memory_bench(options)
    options.check_files()
    device = options.torch_device()
    earlier = options.earlier(memory_setting(options, device), BYTES)
    with tqdm(total=len(memory_cells(options)), desc="rows", leave=False) as bar:
        found = bench_memory(options, device, bar.update)
    print(memory_table(found))
    options.write(memory_dict(found))
    options.compare(memory_dict(found), earlier, BYTES)
    return 0
