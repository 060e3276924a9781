"""``ssdd bench WHAT``: speed and memory, compared in one run; one module for each WHAT."""

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

WHAT = {
    "decode": "images/s of decoders: ours, diffusers' KL-VAE and tiny VAE, our network written plainly",
    "encode": "images/s of encoders: ours, diffusers' KL-VAE and tiny VAE",
    "train": "updates/s of a tokenizer's training: plain, channels last, compiled",
    "memory": "peak memory of a decoding, whole and in tiles",
    "generation": "end-to-end images/s of a DiT with a KL-VAE's and with our tokenizer",
}

_USAGE = """usage: ssdd bench WHAT [OPTIONS]

Measure speed; every figure is a comparison in one run, with random weights.

{what}

ssdd bench WHAT --help lists the options."""


@dataclass(frozen=True)
class Bench:
    """The module of a WHAT, and its options."""

    module: Any
    options: Any


def parse(arguments: Sequence[str]) -> Bench:
    """``WHAT [OPTIONS]``."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE.format(what="\n".join(f"  {name:10}  {summary}" for name, summary in WHAT.items())))
        raise SystemExit(0 if arguments else 2)
    name, *rest = arguments
    if name not in WHAT:
        print(f"ssdd bench: error: expected one of {', '.join(WHAT)}; found {name!r}", file=sys.stderr)
        raise SystemExit(2)
    module = importlib.import_module(f".{name}", __package__)
    return Bench(module, module.parse(rest))


def run(bench: Bench) -> int:
    return int(bench.module.run(bench.options))
