"""``ssdd bench train``: updates of a tokenizer's training a second."""

from collections.abc import Sequence
from dataclasses import dataclass

from tqdm import tqdm

from ...bench.config import TrainingBench
from ..common import parse_options
from .output import ComparedOptions


@dataclass(frozen=True)
class Train(ComparedOptions, TrainingBench):
    """Updates a second of a tokenizer's training: plain NCHW, channels last as ``ssdd train`` has it, compiled."""


def parse(arguments: Sequence[str]) -> Train:
    """``[OPTIONS]``."""
    return parse_options(Train, "bench train", arguments)


def run(options: Train) -> int:
    from ...bench.report import SECONDS, speed_dict, speed_table
    from ...bench.training import ROWS, bench_training, check_training_bench, training_setting

    check_training_bench(options)
    options.check_files()
    device = options.torch_device()
    earlier = options.earlier(training_setting(options, device), SECONDS)
    with tqdm(total=(len(ROWS) + options.compile) * (options.rounds + 1), desc="rounds", leave=False) as bar:
        found = bench_training(options, device, bar.update)
    print(speed_table(found, of="updates"))
    options.write(speed_dict(found))
    options.compare(speed_dict(found), earlier, SECONDS)
    return 0
