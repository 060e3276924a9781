"""Run ``ssdd COMMAND``: read its options, run it, turn errors into one line and a status.

Exit status: 0 all done; 1 an error; 2 wrong usage; 3 done, but some of the inputs were skipped; 130 stopped by Ctrl-C,
143 by SIGTERM. A training that another signal stopped has 128 and its number.
"""

import gc
import logging
import os
import signal
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Sequence
from types import FrameType
from typing import ClassVar

from safetensors import SafetensorError

from .. import __version__
from ..runtime.launcher import follow_launcher
from ..runtime.memory import keep_freed_memory
from ..runtime.text import one_safe_line
from .common import ERROR
from .parse import parse, refuse

# Before torch is imported, which none of the imports above does: OpenMP reads it once. Its threads would spin while
# they wait, and on a core that another process uses they would be in the way of one another.
if not any(name in os.environ for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")):
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


class Stopped(KeyboardInterrupt):
    """Raised by SIGTERM and by Ctrl-C: what is half written is removed.

    A finalizer, or a guard of a compiled function, drops exceptions. Where this one is gone before it has reached
    ``run``, its signal is sent again.

    Attributes:
        arrived: whether one has reached ``run``.
        latest: that which is under way, if there is one.
    """

    arrived: ClassVar[bool] = False
    latest: "ClassVar[Callable[[], Stopped | None]]" = staticmethod(lambda: None)

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        Stopped.latest = weakref.ref(self)

    def __del__(self) -> None:
        if not Stopped.arrived:  # later, when what dropped it has ended
            threading.Timer(0.01, os.kill, (os.getpid(), self.number)).start()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its status.

    Args:
        arguments: command and options; ``sys.argv[1:]`` by default.
    """
    try:
        follow_launcher()
    except ValueError as error:
        print(f"ssdd: error: {error}", file=sys.stderr)
        sys.exit(ERROR)
    keep_freed_memory()  # the process is ours alone
    if "RANK" not in os.environ:  # one of several may be waiting for the others, where no handler of Python's runs
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _stop)
        sys.unraisablehook = _unraisable
    if not sys.stderr.isatty():  # a bar is for people; tqdm reads this when it is imported, in worker processes too
        os.environ.setdefault("TQDM_DISABLE", "1")
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # ours is another, and holds for every format
    # Damaged photographs are named by us, in one line.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    sys.exit(run(sys.argv[1:] if arguments is None else list(arguments)))


def run(arguments: list[str]) -> int:
    """Run one command and return its exit status."""
    try:
        try:
            options = parse(_global_options(arguments))
            return int(sys.modules[type(options).__module__].run(options))
        finally:
            _flush()
    except KeyboardInterrupt as interrupt:
        Stopped.arrived = True
        number = getattr(interrupt, "number", signal.SIGINT)
        status = 128 + number
        line = "ssdd: stopped by SIGTERM" if number == signal.SIGTERM else "ssdd: interrupted"
    except BrokenPipeError:  # whoever read the output, such as head, has enough of it
        return 128 + signal.SIGPIPE
    except (OSError, ValueError, RuntimeError, ImportError, ArithmeticError, MemoryError, SafetensorError) as error:
        if os.environ.get("SSDD_TRACEBACK"):
            raise
        status, line = ERROR, f"ssdd: error: {one_safe_line(str(error)) or type(error).__name__}"
    gc.collect()  # what the error held goes with it, such as a progress bar, and this line is one of its own
    print(line, file=sys.stderr)
    return status


def _flush() -> None:
    """Write what was printed, while an error of that is still one line; what cannot be written is not tried again."""
    if sys.stdout is None:  # closed by whoever started the command
        return
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _global_options(arguments: list[str]) -> list[str]:
    """Do what the options before the command say. Return the other arguments."""
    while arguments:
        match arguments[0]:
            case "--version":
                print(f"ssdd {__version__}")
                raise SystemExit(0)
            case "-v" | "--verbose":
                logging.basicConfig(format="%(message)s")
                logging.getLogger("ssdd").setLevel(logging.INFO)
                os.environ["SSDD_TRACEBACK"] = "1"
            case "-q" | "--quiet":
                logging.disable(logging.WARNING)
                warnings.simplefilter("ignore")
                os.environ["TQDM_DISABLE"] = "1"
            case "--max-pixels":
                # In the environment, for all processes of the command; before the readers of images are imported.
                limit = "".join(arguments[1:2])
                if not limit.isdecimal() or int(limit) < 1:
                    refuse("ssdd", f"expected a number of pixels for --max-pixels, found {limit!r}")
                os.environ["SSDD_MAX_PIXELS"] = limit
                arguments = arguments[1:]
            case _:
                break
        arguments = arguments[1:]
    return arguments


def _stop(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGINT or Stopped.latest() is None:  # a second SIGTERM would end the tidying up
        raise Stopped(number)


def _unraisable(lost: "sys.UnraisableHookArgs") -> None:
    if not isinstance(lost.exc_value, Stopped):  # that one comes again
        sys.__unraisablehook__(lost)


if __name__ == "__main__":
    main()
