"""Run ``ssdd COMMAND``: find the command's module, read its options, turn errors into one line and a status.

Exit status: 0 all done; 1 an error, or some of the inputs failed; 2 wrong usage; 130 stopped by Ctrl-C, 143 by SIGTERM.
A training that another signal stopped has 128 and its number.
"""

import gc
import importlib
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

from PIL import Image
from safetensors import SafetensorError

from ..launcher import follow_launcher
from ..memory import keep_freed_memory
from ..text import one_safe_line

# Before torch is imported, which none of the imports above does: OpenMP reads it once. Its threads would spin while
# they wait, and on a core that another process uses they would be in the way of one another.
if not any(name in os.environ for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")):
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

COMMANDS = {
    "demo": "reconstruct sample photographs with the embedded model: a comparison sheet and a table",
    "reconstruct": "images or folders -> reconstructions, side-by-side sheets, metrics",
    "encode": "images -> latent files",
    "decode": "latent files, or a tokenized data set -> images",
    "bench": "speed, compared in one run",
    "convert": "a checkpoint in the authors' released layout -> a model folder",
    "doctor": "check this installation: versions, devices, quick paths, a photograph on each device",
    "data": "check a data set: counts, sizes, broken files, a contact sheet",
    "evaluate": "compare autoencoders on the same crops by a named protocol",
    "export": "a model -> ONNX files for ONNX Runtime",
    "generate": "train, sample and measure a latent DiT on tokenized data",
    "statistics": "mean and deviation of a model's latents, for its config",
    "tokenize": "a data set -> shards of latents with a manifest",
    "train": "train a tokenizer by a recipe",
}


class Terminated(KeyboardInterrupt):
    """Raised by SIGTERM, so that it ends a command as Ctrl-C does: what is half written is removed."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its status.

    Args:
        arguments: command and options; ``sys.argv[1:]`` by default.
    """
    follow_launcher()
    keep_freed_memory()  # the process is ours alone
    if "RANK" not in os.environ:  # one of several may be waiting for the others, where no handler of Python's runs
        signal.signal(signal.SIGTERM, _terminate)
    Image.MAX_IMAGE_PIXELS = None  # ours is another, and holds for every format
    # Damaged photographs are named by us, in one line.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    sys.exit(run(sys.argv[1:] if arguments is None else list(arguments)))


def run(arguments: list[str]) -> int:
    """Run one command and return its exit status."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from .. import __version__

        print(f"ssdd {__version__}")
        return 0
    if arguments[0] == "--max-pixels":
        # In the environment, for all processes of the command; before the readers of images are imported.
        os.environ["SSDD_MAX_PIXELS"] = "".join(arguments[1:2])
        return run(arguments[2:])
    name = arguments[0]
    if name not in COMMANDS:
        print(f"ssdd: error: expected a command, one of {', '.join(COMMANDS)}; found {name!r}", file=sys.stderr)
        return 2
    return _run_command(name, arguments[1:])


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)  # once is enough: the second would end the tidying up
    raise Terminated


def _run_command(name: str, arguments: list[str]) -> int:
    try:
        command = importlib.import_module(f".{name}", __package__)
        return int(command.run(command.parse(arguments)))
    except Terminated:
        status, line = 128 + signal.SIGTERM, "ssdd: stopped by SIGTERM"
    except KeyboardInterrupt:
        status, line = 128 + signal.SIGINT, "ssdd: interrupted"
    except (OSError, ValueError, RuntimeError, ImportError, ArithmeticError, MemoryError, SafetensorError) as error:
        if os.environ.get("SSDD_TRACEBACK"):
            raise
        status, line = 1, f"ssdd: error: {one_safe_line(str(error)) or type(error).__name__}"
    gc.collect()  # what the error held goes with it, such as a progress bar, and this line is one of its own
    print(line, file=sys.stderr)
    return status


def _usage() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {summary}" for name, summary in COMMANDS.items())
    return (
        "usage: ssdd COMMAND [OPTIONS]\n\nImage tokenizer with a single-step diffusion decoder (SSDD).\n\n"
        f"commands:\n{commands}\n\n"
        "ssdd COMMAND --help lists a command's options; ssdd --version prints the version.\n"
        "ssdd --max-pixels N COMMAND, or SSDD_MAX_PIXELS=N, limits the images that are read; 268435456 by default.\n"
        "SSDD_TRACEBACK=1 shows where an error came from."
    )


if __name__ == "__main__":
    main()
