"""What goes wrong in the process of a command: called there before it begins (``Prepare``)."""

import logging
import os
import resource
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any


def small_disk(size: int) -> Callable[[], object]:
    """No file can grow beyond so many bytes, as on a disk that is full."""
    return partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def killed_at(count: int) -> Callable[[], object]:
    """``kill -9`` just before the command touches the file system for the ``count``-th time: flushes, links, renames,
    removes. What it wrote until then lies there."""
    return partial(_count_down, count)


def _count_down(count: int) -> None:
    left = [count]

    def counted(act: Callable[..., Any]) -> Callable[..., Any]:
        def instead(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return act(*arguments, **options)

        return instead

    for name in ("fsync", "link", "replace", "rename", "unlink", "rmdir"):
        setattr(os, name, counted(getattr(os, name)))


def sigterm_while_files_are_listed() -> None:
    from ssdd.data import find

    find.find_images = lambda paths: os.kill(os.getpid(), signal.SIGTERM)  # type: ignore[assignment]


def signal_in_a_finalizer(number: signal.Signals) -> Callable[[], object]:
    """When ``encode`` reads its third photograph: Python drops the exception that the signal raises."""
    return partial(_signal_in_a_finalizer, number)


def _signal_in_a_finalizer(number: signal.Signals) -> None:
    from ssdd.data import images

    class Finalized:
        def __del__(self) -> None:
            os.kill(os.getpid(), number)

    def read(path: Path) -> object:
        if path.name == "0002.png":
            Finalized()
        return real(path)

    real = images.read_image
    images.read_image = read  # type: ignore[assignment]


def lose(photograph: Path) -> Callable[[], object]:
    """It vanishes after ``encode``, ``evaluate`` or ``data`` has listed it, before it is read."""
    return partial(_lose, photograph)


def _lose(photograph: Path) -> None:
    from ssdd.cli import encode, evaluate
    from ssdd.data import check

    def loaded(self: object) -> object:
        photograph.unlink()
        return load(self)  # type: ignore[arg-type]

    load = encode.EncoderOptions.load
    encode.EncoderOptions.load = loaded  # type: ignore[assignment,method-assign]
    for module, name in ((evaluate, "_groups"), (check, "Summary")):
        real = getattr(module, name)
        setattr(module, name, lambda *a, real=real: (photograph.unlink(), real(*a))[1])


def lose_in_training(photograph: Path) -> Callable[[], object]:
    """It vanishes when the training has listed it."""
    return partial(_lose_in_training, photograph)


def _lose_in_training(photograph: Path) -> None:
    from ssdd.training import loop

    real = loop.record_start
    loop.record_start = lambda *a: (photograph.unlink(), real(*a))[1]  # type: ignore[assignment]


def show_warnings_of_diffusers() -> None:
    from diffusers.utils import logging as diffusers_logging

    diffusers_logging.set_verbosity_warning()
    assert logging.getLogger("diffusers").isEnabledFor(logging.WARNING)
