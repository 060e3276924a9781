"""What ``ssdd bench decode`` and ``ssdd bench encode`` share: all but the contenders."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from ...bench.config import DecodeBench, EncodeBench
from .output import ComparedOptions

if TYPE_CHECKING:
    from ...bench.throughput import Speeds


@dataclass(frozen=True)
class PlottedOptions(ComparedOptions):
    """The same, with a plot."""

    plot: Path | None = None
    """PNG file: images a second against their size."""


def run_networks(settings: DecodeBench | EncodeBench, options: PlottedOptions) -> int:
    """Measures, prints the table, writes the files; the JSON after each size and batch."""
    from ...bench.plot import write_plot
    from ...bench.report import SECONDS, speed_dict, speed_table
    from ...bench.throughput import bench_networks, check_network_bench, contender_count, network_setting
    from ...evaluation.figures import check_matplotlib

    check_network_bench(settings)
    options.check_files(options.plot)
    if options.plot is not None:
        check_matplotlib()
    device = options.torch_device()
    earlier = options.earlier(network_setting(settings, device), SECONDS)

    written = False

    def report(found: "Speeds") -> None:
        nonlocal written
        options.write(speed_dict(found), again=written)
        written = True

    cells = len(settings.sizes) * len(settings.batch_sizes) * contender_count(settings)
    with tqdm(total=cells * (settings.rounds + 1), desc="rounds", leave=False) as bar:
        found = bench_networks(settings, device, bar.update, report)
    print(speed_table(found))
    if options.plot is not None:
        write_plot(found, options.plot, options.overwrite)
    options.compare(speed_dict(found), earlier, SECONDS)
    return 0
