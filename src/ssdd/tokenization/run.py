"""A data set -> a finished set of latents: the plan, the missing shards by one of the engines, the manifest."""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import torch

from ..files import only_one
from .format import CONTAINERS, MANIFEST, PLAN, ShardIndex, index_name
from .local import make_shards
from .manifest import make_manifest, write_manifest
from .plan import OpenJob, ShardTask, TokenizeJob, settle_plan
from .processes import encoder_devices, make_in_processes
from .shard import Report, finished_shard
from .stop import TokenizeStopped, stop_on_signals

Engine = Literal["local", "ray"]
ENGINES: tuple[Engine, ...] = get_args(Engine)


class Progress(Protocol):
    """A progress bar; tqdm's are."""

    def update(self, images: int) -> object:
        """So many images more are done; fewer than none where a process died."""


class _NoProgress:
    def update(self, images: int) -> None:
        """Shows nothing."""


_TEMPORARY = re.compile(
    rf"\.[0-9]+-[0-9a-f]{{12}}-"
    rf"(shard-[0-9]{{6}}\.(json|{'|'.join(CONTAINERS)})|{re.escape(PLAN)}|{re.escape(MANIFEST)})"
)


@dataclass(frozen=True)
class Tokenized:
    """A finished set: its manifest, and how many shards were made now and before."""

    manifest: dict[str, Any]
    made: int
    kept: int


def tokenize(
    job: TokenizeJob,
    out: Path,
    *,
    engine: Engine = "local",
    processes: int | None = 1,
    workers: int = 1,
    device: torch.device | str = "cpu",
    progress: Callable[[int], AbstractContextManager[Progress]] = lambda images: nullcontext(_NoProgress()),
) -> Tokenized:
    """Makes what is missing of a tokenized set in the folder ``out``, and its manifest.

    Whatever ended an earlier attempt, and whenever, and whoever makes the shards, the set is in the end the one that a
    single process makes, byte for byte: on the same kind of device, with the same release of torch.

    Args:
        job: what is to be made.
        engine: ``local``: processes of this machine. ``ray``: a Ray cluster, the one that this process is connected
            to, or that the variable RAY_ADDRESS names, or one on this machine for the time being; data, model and
            ``out`` have the same paths on all its machines.
        processes: that encode; 1 is this one (but for Ray), None as many as there are GPUs or cores.
        workers: for each of these, that read and crop ahead of it; 0 does it in the same one.
        device: where the encoder runs; ``cuda`` without a number means all GPUs.
        progress: gets the number of images that are missing, gives what shows how many are done.

    Raises ValueError or OSError with one line for data, a model or settings that do not fit, for a folder with
    something else in it or of other settings, if another process works there, or if images are lost meanwhile;
    RuntimeError if too many processes die; TokenizeStopped after SIGTERM or SIGINT, with nothing half-written left.
    """
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"{out}: expected a folder for the shards, found a file")
    if (processes is not None and processes < 1) or workers < 0:
        raise ValueError(f"expected at least one process and no less than 0 workers, found {processes} and {workers}")
    with only_one(out, "tokenized into"), _cluster(engine), stop_on_signals() as stop:
        opened = OpenJob(job, device)
        plan = settle_plan(out, opened.plan)
        _remove_temporaries(out)
        missing = [task for task in opened.shards() if finished_shard(opened, task, out) is None]
        made = 0
        try:
            with progress(sum(task.last - task.first for task in missing)) as bar:

                def report(images: int) -> None:
                    stop.check()
                    bar.update(images)

                for _ in _make(engine, opened, missing, out, processes, workers, report):
                    made += 1
        except TokenizeStopped as stopped:
            shards = sum(1 for _ in opened.shards())
            there = f"{shards - len(missing) + made} of {shards} shards are in {out}"
            raise TokenizeStopped(stopped.signal_number, f"{stopped}: {there}; the same command goes on") from None
        finally:
            _remove_temporaries(out)
        manifest = make_manifest(plan, _indices(opened, out))
        write_manifest(out, manifest)
    return Tokenized(manifest, made, len(manifest["shards"]) - made)


def _make(
    engine: Engine,
    job: OpenJob,
    tasks: list[ShardTask],
    out: Path,
    processes: int | None,
    workers: int,
    report: Report,
) -> Iterable[ShardTask]:
    """The shards by an engine, each when it is finished."""
    if engine == "ray":
        from .ray_engine import make_by_ray

        return make_by_ray(job, tasks, out, processes, workers, report)
    devices = encoder_devices(job.encoder.device, processes, job.job.threads)
    if len(devices) == 1 or len(tasks) < 2:
        return make_shards(job, tasks, out, workers, report)
    return make_in_processes(job, tasks, out, devices, workers, report)


def _cluster(engine: Engine) -> AbstractContextManager[object]:
    """Raises ImportError with the extra that is missing."""
    if engine == "ray":
        from .ray_engine import cluster

        return cluster()
    return nullcontext()


def _indices(job: OpenJob, out: Path) -> Iterator[ShardIndex]:
    """Of all shards, in order. Raises FileNotFoundError if one is not there any more."""
    for task in job.shards():
        index = finished_shard(job, task, out)
        if index is None:
            path = out / index_name(task.number)
            raise FileNotFoundError(f"{path}: expected the shard that is finished, found none: run the command again")
        yield index


def _remove_temporaries(out: Path) -> None:
    """What a killed process left: nobody else writes here now."""
    for path in out.iterdir():
        if _TEMPORARY.fullmatch(path.name):
            path.unlink()
