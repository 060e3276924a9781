"""The tree of commands, and how a command line becomes the options of one of them.

``COMMANDS`` are the modules of the commands with a summary of each. A module's ``OPTIONS`` is the dataclass that its
options are read into; a command that has commands of its own, or whose options depend on its first arguments, has a
function ``choose_options`` instead. Its ``DESCRIPTION``, if it has one, stands in its help instead of the summary. Only
the command that was asked for is imported; the others are headings.
"""

import dataclasses
import difflib
import importlib
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn, Union, get_args, get_type_hints

import msgspec
import tyro
from tyro.conf import OmitArgPrefixes, Positional, subcommand
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from .common import USAGE

COMMANDS = {
    "demo": "Reconstruct sample photographs with the embedded models: a comparison sheet and a table.",
    "app": "A page in the browser: one picture through several autoencoders, side by side.",
    "reconstruct": "Images through a model and back: reconstructions, side-by-side sheets, metrics.",
    "encode": "Images to latent files.",
    "decode": "Latent files, or a tokenized data set, to images.",
    "evaluate": "Compare autoencoders on the same crops by a named protocol.",
    "train": "Train a tokenizer by a recipe.",
    "tokenize": "A data set to shards of latents with a manifest.",
    "generate": "Train, sample and measure a latent DiT on tokenized data.",
    "data": "Check a data set: counts, sizes, broken files, a contact sheet.",
    "statistics": "Mean and deviation of a model's latents, for its config.",
    "convert": "A checkpoint in the authors' released layout to a model folder.",
    "export": "A model to ONNX files for ONNX Runtime.",
    "doctor": "Check this installation: versions, devices, quick paths, a photograph on each device.",
}

_DESCRIPTION = """Image tokenizer with a single-step diffusion decoder (SSDD).

Before the command: --version; -v says more, and where an error came from; -q leaves out progress and warnings;
--max-pixels N is the largest image that is read (268435456).

After it: --config FILE.yaml takes options from a file, and --print-config prints them for one. Where a command takes
images, they are files, folders, patterns like 'a/*.png', @list.txt with a path a line, or - for such a list on standard
input.

Exit status: 0 all is done; 1 an error; 2 wrong usage; 3 done, but for inputs that were skipped, and named; 128 and the
number of the signal that stopped the work."""

_LIMITS = {">=": "of at least", ">": "above", "<=": "of at most", "<": "below"}


@dataclass(frozen=True)
class Heading:
    """A command that was not asked for."""


@dataclasses.dataclass(frozen=True)
class Preset:
    """The options of a command with other defaults: those of a file."""

    options: Any


def parse(arguments: Sequence[str]) -> Any:
    """Return the options of the command that the arguments ask for, an object of a class of the command's module.

    Wrong usage exits with status 2, ``--help`` with 0, before any work. Raises ValueError or OSError for a file that is
    named on the command line and is not what it should be.
    """
    name, rest = (arguments[0], list(arguments[1:])) if arguments else ("--help", [])
    kinds: dict[str, Any] = dict.fromkeys(COMMANDS, Heading)
    printing = "--print-config" in rest
    if name in COMMANDS:
        rest, values = _read_config([argument for argument in rest if argument != "--print-config"])
        kinds[name], rest = options_of(name, rest)
        kinds[name], values = _with_paths(kinds[name], values)
        rest = [*rest, *_as_arguments(values, rest, kinds[name])]
    elif name == "--tyro-print-completion":
        kinds = {each: options_of(each, [])[0] for each in COMMANDS}
    elif not name.startswith("-"):
        refuse("ssdd", f"expected a command, found {name!r}; {nearest(name, COMMANDS)}")
    chosen = sys.modules.get(f"{__package__}.{name}")
    about = {**COMMANDS, name: getattr(chosen, "DESCRIPTION", COMMANDS.get(name, ""))}
    tree = subcommands({each: (about[each], kind) for each, kind in kinds.items()})
    try:
        parsed = tyro.cli(tree, prog="ssdd", args=[name, *rest], description=_DESCRIPTION, registry=_registry())
    except SystemExit as stop:
        raise SystemExit(stop.code if arguments else USAGE) from None
    try:
        parsed = parsed.checked() if hasattr(parsed, "checked") else _in_range(parsed)
    except ValueError as error:
        refuse(f"ssdd {name}", str(error))
    if printing:
        print(_as_yaml(parsed), end="")
        raise SystemExit(0)
    return parsed


def options_of(command: str, arguments: list[str]) -> tuple[Any, list[str]]:
    """Return what a command's options are read into, and the arguments that tyro is to read."""
    module = importlib.import_module(f".{command}", __package__)
    if hasattr(module, "choose_options"):
        chosen: tuple[Any, list[str]] = module.choose_options(arguments)
        return chosen
    return module.OPTIONS, arguments


def subcommands(commands: Mapping[str, tuple[str, Any]]) -> Any:
    """Return a type for tyro of which each of the commands, a summary and a type of options, is a choice."""
    kinds: list[Any] = []
    for name, (summary, kind) in commands.items():
        if kind is Heading:
            kinds.append(Annotated[kind, subcommand(name, description=summary)])
        elif isinstance(kind, type):
            kinds.append(Annotated[kind, OmitArgPrefixes, subcommand(name)])
        elif isinstance(kind, Preset):
            kinds.append(Annotated[type(kind.options), OmitArgPrefixes, subcommand(name, default=kind.options)])
        else:  # commands of its own, or an instance with the defaults
            kinds.append(_branch(name, summary, kind))
    if len(kinds) == 1:  # of which there is no union
        kinds.append(Annotated[None, tyro.conf.Suppress])
    return Union[tuple(kinds)]  # noqa: UP007, made of a list


def _branch(name: str, summary: str, kind: Any) -> Any:
    if dataclasses.is_dataclass(kind):
        return Annotated[type(kind), subcommand(name, default=kind, description=summary)]
    return Annotated[Any, subcommand(name, constructor_factory=lambda: kind, description=summary)]


def refuse(program: str, message: str) -> NoReturn:
    """Exit for wrong usage, with one line."""
    print(f"{program}: error: {message}", file=sys.stderr)
    raise SystemExit(USAGE)


def nearest(name: str, names: Iterable[str]) -> str:
    """Return words that name what was probably meant, or all that there is."""
    near = difflib.get_close_matches(name, names := list(names), n=3)
    return f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names)}"


# ---- values ----------------------------------------------------------------------------------------------------------


def _registry() -> ConstructorRegistry:
    """Return how words become values, where tyro's own messages would not help."""
    registry = ConstructorRegistry()

    @registry.primitive_rule
    def number(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        kind, what = info.type, {int: "a whole number", float: "a number"}.get(info.type)
        if what is None:
            return None

        def read(words: list[str]) -> Any:
            try:
                return kind(words[0])
            except ValueError as error:
                raise ValueError(f"expected {what}, found {words[0]!r}") from error

        return PrimitiveConstructorSpec(1, "N", read, lambda value: isinstance(value, kind), lambda value: [str(value)])

    @registry.primitive_rule
    def optional(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        """``X | None`` is written as X, in help and messages too."""
        kinds = [kind for kind in get_args(info.type) if kind is not type(None)]
        if len(kinds) != 1 or len(kinds) == len(get_args(info.type)):
            return None
        spec = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(kinds[0], info.markers))
        if not isinstance(spec, PrimitiveConstructorSpec):
            return None
        return PrimitiveConstructorSpec(
            spec.nargs,
            spec.metavar,
            lambda words: None if words == ["None"] else spec.instance_from_str(words),
            lambda value: value is None or spec.is_instance(value),
            lambda value: ["None"] if value is None else spec.str_from_instance(value),
            spec.choices,
        )

    return registry


# ---- ranges ----------------------------------------------------------------------------------------------------------


def _in_range(options: Any) -> Any:
    """Return the options. Raise ValueError for the first, by name, that is out of the range of its type."""
    default = {field.name: field.default for field in dataclasses.fields(options)}
    for name, hint in get_type_hints(type(options), include_extras=True).items():
        value = getattr(options, name)
        if dataclasses.is_dataclass(value):
            _in_range(value)
            continue
        if value == () and default[name] is dataclasses.MISSING:
            raise ValueError(f"expected at least one of {name}, found no path on the command line")
        numbers = value if isinstance(value, tuple) else (value,)
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            raise ValueError(f"expected --{name.replace('_', '-')} finite, found {value}")
        try:
            msgspec.convert(value, hint, dec_hook=lambda _, given: given, strict=False)
        except msgspec.ValidationError as error:
            limit = re.search(r"(>=|>|<=|<) ([^ ]+)", str(error))
            expected = f"{_LIMITS[limit[1]]} {limit[2].removesuffix('.0')}" if limit else str(error)
            found = " ".join(map(str, numbers))
            raise ValueError(f"expected --{name.replace('_', '-')} {expected}, found {found}") from error
    return options


# ---- options from a file ---------------------------------------------------------------------------------------------


def _read_config(arguments: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Return the arguments without ``--config FILE``, and what the file has; with it for the settings of a run."""
    for i, argument in enumerate(arguments):
        if argument.partition("=")[0] != "--config":
            continue
        end = i + 1 if "=" in argument else i + 2
        path = Path(argument.partition("=")[2] if "=" in argument else "".join(arguments[i + 1 : end]))
        try:
            values = msgspec.yaml.decode(path.read_bytes(), type=dict[str, Any])
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: expected options as name: value, found {error}") from error
        if "stage" in values:
            return arguments, {}
        return [*arguments[:i], *arguments[end:]], values
    return arguments, {}


def _with_paths(kind: Any, values: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return a command's options with a file's positional arguments as their defaults, and the rest of the file."""
    names = _positional(kind) & values.keys() if isinstance(kind, type) else set()
    if not names:
        return kind, values
    defaults: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        if field.name in names:
            value = values[field.name]
            defaults[field.name] = tuple(map(str, value)) if isinstance(value, list) else str(value)
        elif field.default is not dataclasses.MISSING:
            defaults[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            defaults[field.name] = field.default_factory()
        else:
            defaults[field.name] = tyro.MISSING
    return Preset(kind(**defaults)), {name: value for name, value in values.items() if name not in names}


def _as_arguments(values: dict[str, Any], given: Sequence[str], kind: Any, prefix: str = "") -> list[str]:
    """Return what a file has as arguments, without those that were given on the command line."""
    typed = {argument.partition("=")[0].replace("_", "-").replace("--no-", "--") for argument in given}
    result: list[str] = []
    for key, value in values.items():
        flag = f"--{prefix}{key.replace('_', '-')}"
        if isinstance(value, dict):
            result += _as_arguments(value, given, None, f"{prefix}{key.replace('_', '-')}.")
        elif key in _positional(kind):  # of a second word, such as the paths of data check
            words = [str(v) for v in value] if isinstance(value, list) else [str(value)]
            result = [*words, *result] if not given[1:] or given[1].startswith("-") else result
        elif value is None or flag in typed:
            continue
        elif isinstance(value, bool):
            name = key.replace("_", "-")
            result.append(flag if value else f"--{prefix}no-{name}")
        else:
            result += [flag, *map(str, value if isinstance(value, list) else [value])]
    return result


def _positional(kind: Any) -> set[str]:
    """Return the names of the positional arguments of a dataclass, or of the one in a union that was asked for."""
    if get_args(kind) and not isinstance(kind, type):
        asked = [get_args(member)[0] for member in get_args(kind) if get_args(member)]
        return set().union(*(_positional(member) for member in asked))
    if not isinstance(kind, type) or not dataclasses.is_dataclass(kind):
        return set()
    marker = get_args(Positional[int])[1]
    hints = get_type_hints(kind, include_extras=True)
    return {name for name, hint in hints.items() if marker in getattr(hint, "__metadata__", ())}


def _as_yaml(options: Any) -> str:
    """Return options as ``--config`` reads them."""
    values: dict[str, Any] = {}
    for name, value in msgspec.to_builtins(options, enc_hook=str).items():
        values |= value if isinstance(value, dict) else {name: value}
    return msgspec.yaml.encode(values, enc_hook=str).decode()
