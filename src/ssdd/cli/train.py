"""``ssdd train RECIPE``: trains by a recipe; every setting can be overridden."""

import argparse
import dataclasses
import difflib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_args

import tyro

from ..recipes import RECIPES, Axes, ScaleName, overview
from ..training.config import STAGES, TrainConfig, read_config, without_idle
from .common import run_training

_USAGE = """usage: ssdd train RECIPE [--latent f8c4] [--decoder S] [--resolution 256] [--scale paper|gpu|cpu|tiny] ...
       ssdd train finetune --model MODEL --data PHOTOGRAPHS ... [OPTIONS]
       ssdd train export RUN [--images N] [--out FOLDER]

Train a tokenizer. The same command, run again, resumes exactly where it stopped.

recipes (or file.py:FUNCTION, or --config RUN/config.json):
{overview}

Latent, decoder, resolution and scale are those of the first five. ssdd train RECIPE --help lists every setting.
--check takes a few updates, writes nothing, and shows how much each part of the network learns. ssdd train export
writes the averaged model of a run's checkpoint as a folder. On several GPUs:
torchrun --nproc-per-node 8 -m ssdd train RECIPE [OPTIONS], or srun ssdd train RECIPE [OPTIONS]

Exit status: 0 finished; 128 + the signal's number after SIGTERM, Ctrl-C, SIGUSR1 or SIGHUP, with a checkpoint saved."""


@dataclass(frozen=True)
class Train:
    """A recipe with its settings and the folder of the run."""

    recipe: Annotated[TrainConfig, tyro.conf.arg(name="")]
    out: Path
    """Folder of the run."""
    check: bool = False
    """Take a few updates, write nothing, show gradient and update size of each part of the network."""


@dataclass(frozen=True)
class Export:
    """The averaged model of a run's checkpoint, as a folder that every command takes."""

    run: tyro.conf.Positional[Path]
    """Folder of a run, finished or not."""
    images: int | None = None
    """Images seen of the checkpoint; by default the newest."""
    out: Path | None = None
    """Folder of the model; by default RUN/exports/IMAGES."""


def parse(arguments: Sequence[str]) -> Train | Export:
    """Return the options of ``RECIPE [axes] [--out DIR] [--data.paths ...] [any setting]``, or of ``export RUN``."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE.format(overview=overview()))
        raise SystemExit(0 if arguments else 2)
    if arguments[0] == "export":
        return tyro.cli(Export, prog="ssdd train export", args=list(arguments[1:]))
    name, config, run_name, rest = _start(arguments)
    _refuse_settings_of_others(name, config, rest)
    kind: Any = dataclasses.make_dataclass(
        "Train", [("recipe", Annotated[type(config), tyro.conf.arg(name="")])], bases=(Train,), frozen=True
    )
    kind.__doc__ = Train.__doc__
    options: Train = tyro.cli(
        kind,
        prog=f"ssdd train {name}",
        args=rest,
        default=kind(recipe=config, out=Path("runs") / run_name),
        description=f"{config.__doc__} The same command, run again, resumes exactly.",
    )
    try:
        return dataclasses.replace(options, recipe=without_idle(options.recipe, config))
    except ValueError as error:
        _usage_error(f"ssdd train {name}", str(error))


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
        near = difflib.get_close_matches(name, RECIPES, n=3)
        _usage_error(
            "ssdd train",
            f"expected a recipe, found {name!r}"
            + (f"; did you mean {' or '.join(near)}?" if near else "; ssdd train --help lists them"),
        )
    recipe = RECIPES[name]
    axes = Axes()
    if recipe.name_run is not None:
        axes, rest = _axes(name, rest)
    try:
        return name, recipe(axes), recipe.run_name(axes), rest
    except (LookupError, ValueError) as error:
        _usage_error(f"ssdd train {name}", str(error))


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
    from ..checkpoints.own_code import load_own

    path, _, attribute = name.rpartition(":")
    config = load_own(name, path, attribute, make=False)
    config = config() if callable(config) else config
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
            _usage_error(
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


def _usage_error(program: str, message: str) -> NoReturn:
    print(f"{program}: error: {message}", file=sys.stderr)
    raise SystemExit(2)


def run(options: Train | Export) -> int:
    if isinstance(options, Export):
        from ..training.export import export_checkpoint, find_checkpoint

        images = int(find_checkpoint(options.run, options.images).name)
        out = options.out or options.run / "exports" / f"{images:012d}"
        if out.exists():
            raise FileExistsError(f"{out} exists already: choose another --out")
        out.parent.mkdir(parents=True, exist_ok=True)
        export_checkpoint(options.run, out, images)
        print(f"model of {images} images in {out}")
        return 0
    if options.check:
        from ..training.loop import check_learning
        from ..training.tokenizer import TokenizerTask

        print(check_learning(options.recipe, TokenizerTask))
        return 0
    from ..training.loop import train

    return run_training("train", lambda: train(options.recipe, options.out))
