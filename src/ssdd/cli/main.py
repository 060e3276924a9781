"""``ssdd COMMAND``: finds the command's module, reads its options, turns errors into one line and a status.

Exit status: 0 all done; 1 an error, or some of the inputs failed; 2 wrong usage; 130 interrupted.
"""

import importlib
import os
import sys
from collections.abc import Sequence

from ..memory import keep_freed_memory

COMMANDS = {
    "demo": "reconstruct sample photographs with the embedded model: a comparison sheet and a table",
    "reconstruct": "images or folders -> reconstructions, side-by-side sheets, metrics",
    "encode": "images -> latent files",
    "decode": "latent files -> images",
    "bench": "speed, compared in one run",
    "convert": "a checkpoint in the authors' released layout -> a model folder",
    "data": "check a data set: counts, sizes, broken files, a contact sheet",
    "evaluate": "compare autoencoders on the same crops by a named protocol",
    "export": "a model -> ONNX files for ONNX Runtime",
    "generate": "train, sample and measure a latent DiT on tokenized data",
    "statistics": "mean and deviation of a model's latents, for its config",
    "tokenize": "a data set -> shards of latents with a manifest",
    "train": "train a tokenizer by a recipe",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command and exits with its status. ``arguments`` are ``sys.argv[1:]`` by default."""
    keep_freed_memory()  # the process is ours alone
    sys.exit(run(sys.argv[1:] if arguments is None else list(arguments)))


def run(arguments: list[str]) -> int:
    """Runs one command and returns its exit status."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from .. import __version__

        print(f"ssdd {__version__}")
        return 0
    name = arguments[0]
    if name not in COMMANDS:
        print(f"ssdd: error: expected a command, one of {', '.join(COMMANDS)}; found {name!r}", file=sys.stderr)
        return 2
    return _run_command(name, arguments[1:])


def _run_command(name: str, arguments: list[str]) -> int:
    try:
        command = importlib.import_module(f".{name}", __package__)
        return int(command.run(command.parse(arguments)))
    except KeyboardInterrupt:
        print("ssdd: interrupted", file=sys.stderr)
        return 130
    except (OSError, ValueError, RuntimeError, ImportError, ArithmeticError) as error:
        if os.environ.get("SSDD_TRACEBACK"):
            raise
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"ssdd: error: {message}", file=sys.stderr)
        return 1


def _usage() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {summary}" for name, summary in COMMANDS.items())
    return (
        "usage: ssdd COMMAND [OPTIONS]\n\nImage tokenizer with a single-step diffusion decoder (SSDD).\n\n"
        f"commands:\n{commands}\n\n"
        "ssdd COMMAND --help lists a command's options; ssdd --version prints the version.\n"
        "SSDD_TRACEBACK=1 shows where an error came from."
    )


if __name__ == "__main__":
    main()
