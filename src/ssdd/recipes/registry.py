"""Recipes by name."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from ..training.config import TrainConfig

ScaleName = Literal["paper", "gpu", "cpu", "tiny"]
"""The paper's scale; one GPU and some hours; two CPU cores and some hours; minutes."""

RECIPES: dict[str, "Recipe"] = {}
"""Recipes of ``ssdd train``, by name."""


@dataclass(frozen=True)
class Axes:
    """What varies between runs of one stage; None: as is usual at that scale.

    Attributes:
        latent: spatial factor and channels of the latent: f8c4, f16c4, f16c16, f32c64, ...
        decoder: decoder size, XXS to H.
        resolution: side of the crops in pixels.
        scale: how large and how long: the paper's, one GPU, a CPU for hours, a CPU for minutes.
    """

    latent: str | None = None
    decoder: str | None = None
    resolution: int | None = None
    scale: ScaleName = "paper"


@dataclass(frozen=True)
class Recipe:
    """A named experiment.

    Attributes:
        name: of the recipe, and of its run's folder where there are no axes.
        summary: one sentence.
        make: from axes to a config, or without axes.
        name_run: from axes to the name of the run's folder; None for a recipe without axes.
    """

    name: str
    summary: str
    make: Callable[..., TrainConfig]
    name_run: Callable[[Axes], str] | None = None

    def __call__(self, axes: Axes = Axes()) -> TrainConfig:
        return self.make() if self.name_run is None else self.make(axes)

    def run_name(self, axes: Axes = Axes()) -> str:
        """Return the name of the run's folder."""
        return self.name if self.name_run is None else self.name_run(axes)


def recipe(name: str = "", name_run: Callable[[Axes], str] | None = None) -> Callable[[Any], Any]:
    """Register a function as the recipe ``name``, by default its own with dashes; see ``Recipe``."""

    def register(make: Callable[..., TrainConfig]) -> Callable[..., TrainConfig]:
        key = name or make.__name__.replace("_", "-")
        RECIPES[key] = Recipe(key, (make.__doc__ or "").strip().partition("\n")[0], make, name_run)
        return make

    return register
