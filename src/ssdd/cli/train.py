"""``ssdd train RECIPE``: trains by a recipe; every setting can be overridden."""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_args

import tyro

from ..recipes import RECIPES, Axes, ScaleName
from ..training.config import STAGES, TrainConfig, read_config, without_idle
from .common import run_training
from .parse import Heading, nearest, refuse, subcommands

DESCRIPTION = """Train a tokenizer by a recipe: one of those below, file.py:FUNCTION, or --config RUN/config.json.

The same command, run again, resumes exactly where it stopped. The first five take --latent f8c4, --decoder S
(but for kl-vae), --resolution 256 and --scale paper, gpu, cpu or tiny; ssdd train RECIPE --help lists every setting.

On several GPUs: torchrun --nproc-per-node 8 -m ssdd train RECIPE [OPTIONS], or srun ssdd train RECIPE [OPTIONS]

Exit status: 0 finished; 128 + the signal's number after SIGTERM, Ctrl-C, SIGUSR1 or SIGHUP, with a checkpoint saved."""


@dataclass(frozen=True)
class Train:
    """Train by a recipe. The same command, run again, resumes exactly where it stopped."""

    recipe: Annotated[TrainConfig, tyro.conf.arg(name="")]
    out: Path
    """Folder of the run."""
    check: bool = False
    """Take a few updates, write nothing, show gradient and update size of each part of the network."""

    defaults: ClassVar[TrainConfig]
    """Of the recipe."""

    def checked(self) -> "Train":
        """Return the same without settings that have no effect. Raise ValueError for one that was typed."""
        return dataclasses.replace(self, recipe=without_idle(self.recipe, self.defaults))


@dataclass(frozen=True)
class Export:
    """The averaged model of a run's checkpoint, as a folder that every command takes."""

    run: tyro.conf.Positional[Path]
    """Folder of a run, finished or not."""
    images: int | None = None
    """Images seen of the checkpoint; by default the newest."""
    out: Path | None = None
    """Folder of the model; by default RUN/exports/IMAGES."""


def choose_options(arguments: list[str]) -> tuple[Any, list[str]]:
    """Return the options of ``RECIPE [axes] [--out DIR] [--data PATHS] [any setting]``, or of ``export RUN``."""
    export = {"export": ("Write the averaged model of a run's checkpoint as a folder.", Export)}
    if not arguments or arguments[0] in ("-h", "--help"):
        recipes = {name: (recipe.summary, Heading) for name, recipe in RECIPES.items()}
        return subcommands({**recipes, **{name: (text, Heading) for name, (text, _) in export.items()}}), arguments
    if arguments[0] == "export":
        return subcommands(export), arguments
    name, config, run_name, rest = _start(arguments)
    _refuse_settings_of_others(name, config, rest)
    # A class for the recipe: tyro reads the settings of its stage, and what was typed is compared with its defaults.
    kind: Any = dataclasses.make_dataclass(
        "Train", [("recipe", Annotated[type(config), tyro.conf.arg(name="")])], bases=(Train,), frozen=True
    )
    kind.defaults, kind.__module__ = config, __name__
    command = name if name in RECIPES else "recipe"
    return subcommands({command: (f"{config.__doc__}\n\n{Train.__doc__}", kind(config, Path("runs") / run_name))}), [
        command,
        *rest,
    ]


def _start(arguments: Sequence[str]) -> tuple[str, TrainConfig, str, list[str]]:
    """Return name, config and run's name that the first arguments stand for, and the other arguments."""
    name, rest = arguments[0], list(arguments[1:])
    if name == "--config" and rest:
        path = Path(rest.pop(0))
        try:
            return f"--config {path}", read_config(path.read_text()), path.absolute().parent.name, rest
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error
    if ".py:" in name:
        return name, _own_recipe(name), Path(name.partition(".py:")[0]).name + "-" + name.rpartition(":")[2], rest
    if name not in RECIPES:
        refuse("ssdd train", f"expected a recipe, found {name!r}; {nearest(name, RECIPES)}")
    recipe = RECIPES[name]
    axes = Axes()
    if recipe.name_run is not None:
        axes, rest = _axes(name, rest)
    try:
        return name, recipe(axes), recipe.run_name(axes), rest
    except (LookupError, ValueError) as error:
        refuse(f"ssdd train {name}", str(error))


def _axes(name: str, arguments: list[str]) -> tuple[Axes, list[str]]:
    """Take the axes out of the arguments."""
    parser = argparse.ArgumentParser(prog=f"ssdd train {name}", add_help=False, allow_abbrev=False)
    parser.add_argument("--latent")
    parser.add_argument("--decoder")
    parser.add_argument("--resolution", type=int)
    parser.add_argument("--scale", choices=get_args(ScaleName), default="paper")
    found, rest = parser.parse_known_args(arguments)
    return Axes(**vars(found)), rest


def _own_recipe(name: str) -> TrainConfig:
    """Return the config of ``file.py:FUNCTION``. Raise ValueError, OSError or ImportError with one line."""
    from ..checkpoints.own_code import load_own, one_line

    path, _, attribute = name.rpartition(":")
    config = load_own(name, path, attribute, make=False)
    try:
        config = config() if callable(config) else config
    except Exception as error:  # whatever somebody's code raises
        raise ValueError(f"{name}: expected a function that returns a config, found {one_line(error)}") from error
    if type(config) not in STAGES.values():
        kinds = ", ".join(kind.__name__ for kind in STAGES.values())
        raise ValueError(f"{name}: expected a function that returns one of {kinds}, found {type(config).__name__}")
    return config


def _refuse_settings_of_others(name: str, config: TrainConfig, arguments: Sequence[str]) -> None:
    """Exit with a line that names the stage for a setting that other stages have and this one has not."""
    own = _flags(config)
    flags = {stage: _flags(kind()) for stage, kind in STAGES.items()}
    for argument in arguments:
        flag = argument.partition("=")[0].replace("_", "-")
        others = [stage for stage in flags if flag in flags[stage]]
        if others and flag not in own:
            refuse(
                f"ssdd train {name}",
                f"{flag} has no effect in the stage {config.stage}: it is a setting of {' and '.join(others)}",
            )


def _flags(config: Any, prefix: str = "--") -> set[str]:
    """Return the options of a config, with their negations."""
    found = set()
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), field.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            found |= _flags(value, f"{prefix}{name}.")
        else:
            found |= {f"{prefix}{name}", f"{prefix}no-{name}"}
    return found


def run(options: Train | Export) -> int:
    if isinstance(options, Export):
        return export(options)
    if options.check:
        from ..training.loop import check_learning
        from ..training.tokenizer import TokenizerTask

        if report := check_learning(options.recipe, TokenizerTask):
            print(report)
        return 0
    from ..training.loop import train

    return run_training("train", lambda: train(options.recipe, options.out))


def export(options: Export) -> int:
    """Write the model of a checkpoint, a tokenizer's or a generator's."""
    from ..training.export import export_checkpoint, find_checkpoint

    checkpoint = find_checkpoint(options.run, options.images)
    images = int(checkpoint.name)
    out = options.out or options.run / "exports" / f"{images:012d}"
    if out.exists():
        raise FileExistsError(f"{out} exists already: choose another --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    if _is_generator(options.run):
        from ..generation.task import export_generator

        export_generator(checkpoint, out)
    else:
        export_checkpoint(checkpoint, out)
    print(f"model of {images} images in {out}")
    return 0


def _is_generator(run: Path) -> bool:
    """Return whether the settings of a run are those of a generator; damaged ones are not."""
    try:
        return bool(json.loads((run / "config.json").read_text())["stage"] == "generation")
    except (ValueError, LookupError, TypeError, RecursionError):
        return False
