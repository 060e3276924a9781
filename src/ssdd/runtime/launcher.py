"""Follow the program that started this process: ``srun`` or ``torchrun``. Imports no torch."""

import ctypes
import os
import re
import signal
import sys

_PR_SET_PDEATHSIG = 1  # its name in Linux' prctl.h


def follow_launcher() -> None:
    """Set ``RANK`` and the like for a task of ``srun``, and let a worker of ``torchrun`` end with its torchrun.

    Call it before anything reads ``RANK``. It does nothing for a process that was started alone.

    Raises ValueError where SLURM's variables are not those of a task.
    """
    if "RANK" not in os.environ:
        try:
            os.environ.update(_slurm_variables())
        except (KeyError, ValueError) as error:
            raise ValueError(f"expected the variables of a task of srun, found SLURM_STEP_ID and {error!r}") from error
    if "TORCHELASTIC_RUN_ID" in os.environ and sys.platform == "linux":
        _end_with_parent()


def _slurm_variables() -> dict[str, str]:
    """Return what torchrun would set, from what SLURM says; nothing unless ``srun`` started several tasks."""
    slurm = os.environ
    count = slurm.get("SLURM_STEP_NUM_TASKS", slurm.get("SLURM_NTASKS", "1"))
    if "SLURM_STEP_ID" not in slurm or int(count) == 1:  # a batch script is no step: it runs once for all tasks
        return {}
    nodes = slurm.get("SLURM_STEP_NODELIST") or slurm["SLURM_NODELIST"]
    first_node = re.sub(r"\[(\w+)[^\]]*\]", r"\1", nodes).split(",")[0]  # node[003-007,9] -> node003
    port = 15000 + (16 * int(slurm["SLURM_JOB_ID"]) + int(slurm["SLURM_STEP_ID"])) % 15000
    return {
        "RANK": slurm["SLURM_PROCID"],
        "WORLD_SIZE": count,
        "LOCAL_RANK": slurm["SLURM_LOCALID"],
        "MASTER_ADDR": slurm.get("MASTER_ADDR", first_node),
        "MASTER_PORT": slurm.get("MASTER_PORT", str(port)),
    }


def _end_with_parent() -> None:
    """Ask Linux for a SIGTERM when the parent dies, and end now if it is dead already."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() == 1 and not _init_is_python():
        sys.exit(128 + signal.SIGTERM)


def _init_is_python() -> bool:
    """Return whether process 1 runs Python: in a container it may be torchrun itself."""
    try:
        return "python" in os.readlink("/proc/1/exe")
    except OSError:  # it belongs to another user
        return False
