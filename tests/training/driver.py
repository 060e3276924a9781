"""The command line in a process of its own that dies, or is told to stop, in a given update."""

import os
import resource
import signal
import sys
from typing import Any

import torch

torch.set_num_threads(1)

from ssdd.cli.main import run  # noqa: E402
from ssdd.training import loop, tokenizer  # noqa: E402
from ssdd.training.optimizers import Update  # noqa: E402

tokenizer.STATISTICS_IMAGES = 16
tokenizer.LATENT_CROPS = 32
loop.peak_flops = lambda *_, **__: 1e12  # type: ignore[assignment]

if os.environ.get("DRIVER_FULL_DISK") == "1":
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
signals = {signal.SIGKILL: "DRIVER_KILL_AT", signal.SIGTERM: "DRIVER_TERMINATE_AT"}
at = {number: int(os.environ.get(name, "0")) for number, name in signals.items()}
updates = 0
step = Update.step


def counted(self: Update, rate: float, watch: Any = None) -> Any:
    global updates
    updates += 1
    for number, update in at.items():
        if updates == update:
            os.kill(os.getpid(), number)
    return step(self, rate, watch)


Update.step = counted  # type: ignore[method-assign]
sys.exit(run(sys.argv[1:]))
