"""``ssdd train RECIPE``: trains by a recipe; every setting can be overridden."""

import difflib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ..recipes import RECIPES, overview
from ..training.config import TrainConfig
from .common import run_training

_USAGE = """usage: ssdd train RECIPE [OPTIONS]

Train a tokenizer. The same command, run again, resumes exactly where it stopped.

recipes:
{overview}

ssdd train RECIPE --help lists every setting of a recipe. On several GPUs:
torchrun --nproc-per-node 8 -m ssdd train RECIPE [OPTIONS]

Exit status: 0 finished; 143 stopped by SIGTERM or 130 by Ctrl-C, both with a checkpoint saved."""


@dataclass(frozen=True)
class Train:
    """A recipe with its settings and the folder of the run."""

    recipe: Annotated[TrainConfig, tyro.conf.arg(name="")]
    out: Path
    """Folder of the run."""


def parse(arguments: Sequence[str]) -> Train:
    """``RECIPE [--out DIR] [--data.paths ...] [any setting of TrainConfig]``."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE.format(overview=overview()))
        raise SystemExit(0 if arguments else 2)
    name, *rest = arguments
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else "; ssdd train --help lists them"
        print(f"ssdd train: error: expected a recipe, found {name!r}{hint}", file=sys.stderr)
        raise SystemExit(2)
    recipe = RECIPES[name]
    description = f"{recipe.summary} The same command, run again, resumes exactly."
    default = Train(recipe(), Path("runs") / name)
    return tyro.cli(Train, prog=f"ssdd train {name}", args=rest, default=default, description=description)


def run(options: Train) -> int:
    from ..training.loop import train

    return run_training("train", lambda: train(options.recipe, options.out))
