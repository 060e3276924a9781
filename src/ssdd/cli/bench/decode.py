"""``ssdd bench decode``: images a second from latents."""

from collections.abc import Sequence
from dataclasses import dataclass

from ...bench.config import DecodeBench
from ..common import parse_options
from .networks import PlottedOptions, run_networks


@dataclass(frozen=True)
class Decode(PlottedOptions, DecodeBench):
    """Images a second from latents: our decoder and its peers take turns, at several sizes and batches."""


def parse(arguments: Sequence[str]) -> Decode:
    """``[OPTIONS]``."""
    return parse_options(Decode, "bench decode", arguments)


def run(options: Decode) -> int:
    return run_networks(options, options)
