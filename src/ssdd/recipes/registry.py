"""Recipes by name."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from ..training.config import TrainConfig

ScaleName = Literal["paper", "gpu", "cpu", "tiny"]

RECIPES: dict[str, "Recipe"] = {}
"""Recipes of ``ssdd train``, by name."""


@dataclass(frozen=True)
class Axes:
    """What varies between runs of one stage; None: as is usual at that scale."""

    latent: str | None = None
    """Spatial factor and channels of the latent: f8c4, f16c4, f16c16, f32c64, ..."""
    decoder: str | None = None
    """Decoder size, XXS to H."""
    resolution: int | None = None
    """Side of the crops in pixels."""
    scale: ScaleName = "paper"
    """How large and how long: the paper's, one GPU, a CPU for hours, a CPU for minutes."""


@dataclass(frozen=True)
class Recipe:
    """A named experiment.

    make: from axes to a config, or without axes. name_run: for these axes. fixed: axes that are not to be chosen.
    """

    make: Callable[..., TrainConfig]
    name_run: Callable[[Axes], str]
    fixed: Axes | None = None

    @property
    def takes_axes(self) -> bool:
        """Return whether there are axes to choose; else the recipe is one experiment."""
        return self.fixed is None and bool(inspect.signature(self.make).parameters)

    @property
    def summary(self) -> str:
        """Return the first line of its function's docstring."""
        line = (self.make.__doc__ or "").strip().partition("\n")[0]
        return f"{line[:-1]}, at the scale {self.fixed.scale}." if self.fixed else line

    def __call__(self, axes: Axes | None = None) -> TrainConfig:
        """Return the config."""
        axes = self.fixed or axes or Axes()
        return self.make(axes) if inspect.signature(self.make).parameters else self.make()

    def run_name(self, axes: Axes | None = None) -> str:
        """Return the name of the run's folder."""
        return self.name_run(self.fixed or axes or Axes())


def recipe(name: str = "", name_run: Callable[[Axes], str] | None = None) -> Callable[[Any], Any]:
    """Register a function as the recipe ``name``, by default its own with dashes; its run is called the same."""

    def register(make: Callable[..., TrainConfig]) -> Callable[..., TrainConfig]:
        key = name or make.__name__.replace("_", "-")
        RECIPES[key] = Recipe(make, name_run or (lambda axes: key))
        return make

    return register


def overview() -> str:
    """Return a line for each recipe: those with axes first."""
    ordered = sorted(RECIPES.items(), key=lambda item: not item[1].takes_axes)
    return "\n".join(f"  {name:20} {recipe.summary}".replace("``", "") for name, recipe in ordered)
