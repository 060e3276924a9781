"""``ssdd bench encode``: latents of images a second."""

from collections.abc import Sequence
from dataclasses import dataclass

from ...bench.config import EncodeBench
from ..common import parse_options
from .networks import PlottedOptions, run_networks


@dataclass(frozen=True)
class Encode(PlottedOptions, EncodeBench):
    """Latents of images a second: our encoder and its peers take turns, at several sizes and batches."""


def parse(arguments: Sequence[str]) -> Encode:
    """``[OPTIONS]``."""
    return parse_options(Encode, "bench encode", arguments)


def run(options: Encode) -> int:
    return run_networks(options, options)
