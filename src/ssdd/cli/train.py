"""``ssdd train RECIPE``: trains by a recipe; every setting can be overridden."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ..recipes import RECIPES
from ..training.config import TrainConfig

_DESCRIPTION = "Train a tokenizer. The same command, run again, resumes exactly where it stopped."


@dataclass(frozen=True)
class Train:
    """A recipe with its settings and the folder of the run."""

    recipe: Annotated[TrainConfig, tyro.conf.arg(name="")]
    out: Path
    """Folder of the run."""


def parse(arguments: Sequence[str]) -> Train:
    """``RECIPE [--out DIR] [--data.paths ...] [any setting of TrainConfig]``."""
    recipe = tyro.extras.subcommand_type_from_defaults(
        {name: Train(make(), Path("runs") / name) for name, make in RECIPES.items()},
        {name: (make.__doc__ or "").strip() for name, make in RECIPES.items()},
    )
    return tyro.cli(recipe, prog="ssdd train", args=list(arguments), description=_DESCRIPTION)


def run(options: Train) -> int:
    from ..training.loop import train

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    model = train(options.recipe, options.out)
    print(f"trained model in {model}")
    return 0
