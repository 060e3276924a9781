"""Full experiments as short typed Python: a name, a sentence, a config."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from ..training.config import TrainConfig
from . import demo, paper, reproduction, tiny


@dataclass(frozen=True)
class Recipe:
    """A named experiment. family: what it is one of; summary: a sentence."""

    make: Callable[[], TrainConfig]
    family: str

    @property
    def summary(self) -> str:
        """First line of the docstring of the function that makes it."""
        function = self.make.func if isinstance(self.make, partial) else self.make
        return (function.__doc__ or "").strip().partition("\n")[0]

    def __call__(self) -> TrainConfig:
        return self.make()


def _recipes() -> dict[str, Recipe]:
    small = {
        name.replace("_", "-"): Recipe(getattr(module, name), module.__name__.rpartition(".")[2])
        for module in (tiny, demo)
        for name in vars(module)
        if name.startswith(("tiny_", "demo_"))
    }
    large: dict[str, Recipe] = {}
    for latent in paper.LATENTS:
        large[f"{latent}-encoder"] = Recipe(partial(paper.encoder, latent), "LATENT-encoder")
        for size in paper.DECODERS:
            name = f"{latent}-{size}"
            large[f"{name}-pretraining"] = Recipe(partial(paper.pretraining, latent, size), "LATENT-SIZE-pretraining")
            for side in paper.RESOLUTIONS:
                fine, distilled = (
                    partial(paper.finetuning, latent, size, side),
                    partial(paper.distillation, latent, size, side),
                )
                large[f"{name}-{side}"] = Recipe(fine, "LATENT-SIZE-RESOLUTION")
                large[f"{name}-{side}-distillation"] = Recipe(distilled, "LATENT-SIZE-RESOLUTION-distillation")
        large[f"{latent}-kl-vae"] = Recipe(partial(paper.kl_vae, latent), "LATENT-kl-vae")
    reproduced = {
        reproduction.recipe_name(scale, name): Recipe(
            partial(reproduction.run, scale, name), reproduction.recipe_name("SCALE", "RUN")
        )
        for scale, settings in reproduction.SCALES.items()
        for name in reproduction.runs(settings)
    }
    return small | large | reproduced


RECIPES: dict[str, Recipe] = _recipes()
"""Recipes of ``ssdd train``, by name."""


def overview() -> str:
    """The recipes in a few lines: small ones by name, the paper's by family."""
    lines = []
    for name, recipe in RECIPES.items():
        label = recipe.family if "-" in recipe.family else name
        line = f"  {label:36} {recipe.summary}".replace("``", "")
        if line not in lines:
            lines.append(line)
    return "\n".join(lines) + (
        f"\n\n  LATENT: {', '.join(paper.LATENTS)}; SIZE: {', '.join(paper.DECODERS)}; "
        f"RESOLUTION: {', '.join(map(str, paper.RESOLUTIONS))}"
    )
