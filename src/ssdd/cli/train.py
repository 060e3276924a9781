"""``ssdd train RECIPE``: trains by a recipe; every setting can be overridden."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ..recipes import RECIPES
from ..training.config import TrainConfig


@dataclass(frozen=True)
class Train:
    """A recipe with its settings and the folder of the run."""

    recipe: TrainConfig
    out: Path


def parse(arguments: Sequence[str]) -> Train:
    """``RECIPE --out DIR [--data.paths ...] [any setting of TrainConfig]``."""
    recipe = tyro.extras.subcommand_type_from_defaults(
        {name: make() for name, make in RECIPES.items()},
        {name: (make.__doc__ or "").strip() for name, make in RECIPES.items()},
    )

    def fill(
        recipe: Annotated[recipe, tyro.conf.arg(name="")],  # type: ignore[valid-type]
        out: Path | None = None,
    ) -> Train:
        """Train a tokenizer. The same command, run again, resumes exactly where it stopped.

        Args:
            recipe: the experiment.
            out: folder of the run; runs/RECIPE if not given.
        """
        return Train(recipe, out or Path("runs") / _recipe_name(arguments))

    return tyro.cli(fill, prog="ssdd train", args=list(arguments), config=(tyro.conf.ConsolidateSubcommandArgs,))


def run(options: Train) -> int:
    from ..training.loop import train

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    model = train(options.recipe, options.out)
    print(f"trained model in {model}")
    return 0


def _recipe_name(arguments: Sequence[str]) -> str:
    return next(a for a in arguments if a in RECIPES)
