"""A data set -> a finished set of latents: the plan, the missing shards by one of the engines, the manifest."""

import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
from tqdm import tqdm

from ..data.images import ImageError
from ..runtime.files import LOCK, lock, only_one
from ..runtime.launcher import follow_launcher
from . import mds
from .format import MANIFEST, PLAN, Manifest, Plan, ShardIndex, decode, encode_json, index_name, plain, shard_name
from .image_list import FOLDER, LIST, ImageList, make_list
from .inputs import expand
from .local import Made, encoder_devices, make_in_processes, make_shard
from .manifest import make_manifest
from .model import LatentEncoder
from .output import Output, open_output
from .plan import (
    Data,
    InputShards,
    ListedData,
    OpenWork,
    ShardTask,
    TokenizeJob,
    Work,
    check_size,
    differences,
    input_shards,
    make_plan,
)
from .shard import Report, check_input, finished_shard, in_order
from .stop import TokenizeStopped, stop_on_signals

Engine = Literal["local", "ray"]
_LOOKING = 16
"""Threads that ask for the shards that are there."""
_LOG = logging.getLogger(__name__)


class Progress(Protocol):
    """A progress bar; tqdm's are."""

    def update(self, images: int) -> object:
        """Receive the number of images just done; a negative one where a process died."""


@dataclass(frozen=True)
class Part:
    """The shards whose number is ``number`` modulo ``count``; 0 of 1 is all."""

    number: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.count:
            raise ValueError(f"expected a part K/N with K from 0 to N - 1, found {self}")

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> "Part":
        """Raise ValueError for anything but ``K/N``."""
        number, _, count = text.partition("/")
        if not (number.isdigit() and count.isdigit()):
            raise ValueError(f"expected a part K/N, found {text!r}")
        return cls(int(number), int(count))

    @classmethod
    def of_launcher(cls) -> "Part":
        """Return the part of a process that ``torchrun`` or ``srun`` started; all, for one that was started alone."""
        follow_launcher()
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


@dataclass(frozen=True)
class Tokenized:
    """What came of a call.

    Attributes:
        manifest: That of the finished set; None while shards of other parts are missing.
        made: Shards of this part that were made now.
        kept: Shards of this part that were there before.
        shards: Shards of all parts.
        missing: Those of them that are not there.
        concluded: Whether this call wrote the manifest.
    """

    manifest: Manifest | None
    made: int
    kept: int
    shards: int
    missing: int
    concluded: bool = False


def tokenize(
    job: TokenizeJob,
    out: Path | str,
    *,
    part: Part | None = None,
    engine: Engine = "local",
    processes: int | None = 1,
    workers: int = 1,
    device: torch.device | str = "cpu",
    strict: bool = False,
    progress: Callable[[int | None], AbstractContextManager[Progress]] = lambda images: tqdm(
        total=images, disable=True
    ),
) -> Tokenized:
    """Make what is missing of a tokenized set in the folder ``out``, and its manifest.

    Whatever ended an earlier attempt, and whenever, and whoever makes the shards, the set is in the end the one that a
    single process makes, byte for byte: on the same kind of device, with the same release of torch.

    Args:
        job: What is to be made.
        out: A folder, or an address that fsspec knows.
        part: The shards that this call makes; None for what ``torchrun`` or ``srun`` says, or all. Whoever finishes
            last writes the manifest.
        engine: ``local`` for processes of this machine; ``ray`` for a Ray cluster, the one that this process is
            connected to, or that the variable RAY_ADDRESS names, or one on this machine for the time being; data,
            model and ``out`` have the same paths on all its machines.
        processes: Processes that encode; 1 is this one (but for Ray), None as many as there are GPUs or cores.
        workers: Threads of each of these that read and crop ahead of the encoder; 0 does it in between.
        device: Where the encoder runs; ``cuda`` without a number means all GPUs.
        strict: Refuse what only the last digits depend on, such as another release of torch, instead of a warning.
        progress: Receives the number of images that are missing, or None where it is not known; returns what shows how
            many are done.

    Raises:
        ValueError, OSError: With one line, for data, a model or settings that do not fit, for a folder with something
            else in it or of other settings, if another process works there, or if images are lost meanwhile.
        RuntimeError: Too many processes die.
        TokenizeStopped: After SIGTERM or SIGINT, with nothing half-written left.
    """
    output, part = open_output(out), Part.of_launcher() if part is None else part
    if (processes is not None and processes < 1) or workers < 0:
        raise ValueError(f"expected at least one process and no less than 0 workers, found {processes} and {workers}")
    with ExitStack() as stack:
        stack.enter_context(_locked(output, part))
        stack.enter_context(_cluster(engine))
        check_signals = stack.enter_context(stop_on_signals())
        encoder = LatentEncoder(job.model, device, job.dtype, job.encoder)
        check_size(job, encoder)
        work = _settle(job, output, encoder, part, workers, strict, stack)
        opened = OpenWork(work, encoder)
        output.remove_temporaries(part.number, part.count)
        mine = [task for task in opened.data.tasks() if task.number % part.count == part.number]
        there = set[int]()
        for task, index in zip(mine, _finished(work.plan, output, [task.number for task in mine]), strict=True):
            if index is not None:
                check_input(task, index)
                there.add(task.number)
        missing = [task for task in mine if task.number not in there]
        made, bad = 0, list[str]()
        try:
            images = None if work.image_list is None else sum(task.last - task.first for task in missing)
            with progress(images) as bar:

                def report(done: int) -> None:
                    check_signals()
                    bar.update(done)

                for _, error in _make(engine, opened, missing, processes, report):
                    if error is None:
                        made += 1
                    else:
                        bad.append(error)
        except TokenizeStopped as stopped:
            state = f"{len(there) + made} of {len(mine)} shards are in {output}"
            raise TokenizeStopped(stopped.signal_number, f"{stopped}: {state}; the same command goes on") from None
        finally:
            output.remove_temporaries(part.number, part.count)
        if bad:
            more = f" ({len(bad) - 1} more input shards are none)" if bad[1:] else ""
            raise ImageError(f"{bad[0]}{more}; all others are made: mend it, and run the same command again")
        with _one_at_a_time(output, part):
            manifest, absent, wrote = _conclude(work.plan, output)
    if manifest is None and part.count == 1:
        raise OSError(
            f"{output}: expected all shards that were made, found {absent} missing: run the same command again"
        )
    return Tokenized(manifest, made, len(mine) - made, work.plan.data.shards, absent, wrote)


def finish(out: Path | str) -> Manifest:
    """Write the manifest of a set whose shards are all there.

    Raises:
        FileNotFoundError: There is no plan.
        ValueError: Shards are missing.
    """
    output = open_output(out)
    plan = _plan_there(output)
    if plan is None:
        raise FileNotFoundError(f"{output}: expected a folder that ssdd tokenize began, found no {PLAN} in it")
    manifest, absent, _ = _conclude(plan, output)
    if manifest is None:
        raise ValueError(f"{output}: expected all {plan.data.shards} shards, found {absent} missing: make them first")
    return manifest


def _conclude(plan: Plan, output: Output) -> tuple[Manifest | None, int, bool]:
    """Write the manifest if all shards are there. Return it, how many are missing, and whether it was new."""
    names, numbers = set(output.names()), range(plan.data.shards)
    absent = sum(index_name(number) not in names for number in numbers)
    if absent:
        return None, absent, False
    manifest = make_manifest(plan, filter(None, _finished(plan, output, numbers)))
    if damaged := plan.data.shards - len(manifest.shards):
        return None, damaged, False
    files = {MANIFEST: encode_json(manifest)}
    if plan.container == "mds":
        indices = filter(None, _finished(plan, output, numbers))
        infos = ((shard_name(index.number, plan.container), index.info) for index in indices)
        files = {mds.INDEX: mds.index_of(infos), **files}
    new = {name: content for name, content in files.items() if name not in names or output.read(name) != content}
    for name, content in new.items():
        output.write(name, content)
    return manifest, 0, bool(new)


def _finished(plan: Plan, output: Output, numbers: Sequence[int]) -> Iterator[ShardIndex | None]:
    """Yield the indices of these shards in order; None for one that is not there."""
    digest = plan.digest
    names = set(output.names())
    there = [number if index_name(number) in names else None for number in numbers]

    def look(number: int | None) -> ShardIndex | None:
        return None if number is None else finished_shard(output, digest, plan.container, number)

    threads = _LOOKING if output.folder is None else 0
    return in_order(look, there, threads, ahead=4 * threads)


def _make(
    engine: Engine, job: OpenWork, tasks: Sequence[ShardTask], processes: int | None, report: Report
) -> Iterable[Made]:
    """Yield each shard when an engine has finished it."""
    if engine == "ray":
        from .ray_engine import make_by_ray

        return make_by_ray(job.work, tasks, job.encoder.device.type, processes, report)
    devices = encoder_devices(job.encoder.device, processes, job.job.threads)
    if len(devices) == 1 or len(tasks) < 2:
        return ((task, make_shard(job, task, report)) for task in tasks)
    return make_in_processes(job.work, tasks, devices, report)


def _cluster(engine: Engine) -> AbstractContextManager[object]:
    """Raise ImportError with the extra that is missing."""
    if engine == "ray":
        from .ray_engine import cluster

        return cluster()
    return nullcontext()


@contextmanager
def _locked(output: Output, part: Part) -> Iterator[None]:
    """Hold the lock of the folder, or of a part of it; elsewhere there are none.

    Raises ValueError where another process makes the same, or other parts.
    """
    if output.folder is None:
        yield
        return
    with only_one(output.folder, "tokenized into", None if part.count == 1 else f"{part.number}-of-{part.count}"):
        if part.count == 1:
            yield
            return
        own = output.folder / f"{LOCK}-of-{part.count}"
        with own.open("w") as file:
            lock(file, fcntl.LOCK_SH)
            for other in output.folder.glob(f"{LOCK}-of-*"):
                if other != own and not _is_free(other):
                    raise ValueError(f"{output} is being tokenized into in other parts than {part}: wait for them")
            yield


def _is_free(path: Path) -> bool:
    with path.open("w") as file:
        try:
            lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


# ---- the plan of a folder ------------------------------------------------------------------------------------------


def _settle(
    job: TokenizeJob, output: Output, encoder: LatentEncoder, part: Part, readers: int, strict: bool, stack: ExitStack
) -> Work:
    """Return what is to be done, by the plan of the folder: this job's, if the folder is new.

    Raises ValueError, with what differs, if the folder was begun by another plan or holds something else.
    """
    with _one_at_a_time(output, part):
        there = _plan_there(output)
        strangers = sorted(name for name in output.names() if name[0] != "." and name != FOLDER)
        if there is None and strangers:
            raise ValueError(
                f"{output}: expected a new folder, or one of ssdd tokenize with its {PLAN}, found {strangers[0]} in it"
            )
        paths = expand(job.paths)
        folder = new = None
        data: Data = InputShards(job, paths)
        if not input_shards(job, paths):
            folder = _list_folder(output, stack)
            if there is None or part.number == 0 or not folder.is_dir():  # else another part has made it
                new = _listed_anew(job, paths, folder, stack)
            data = ListedData(job, ImageList(new or folder, paths))
        here = make_plan(job, data, encoder)
        if there is not None:
            _compare(output, there, here, strict)
        if folder is not None and new is not None:
            _put_in_place(new, folder)
        if there is None:
            output.write(PLAN, encode_json(here))
    return Work(job, there or here, str(output), tuple(paths), None if folder is None else str(folder), readers)


def _compare(output: Output, there: Plan, here: Plan, strict: bool) -> None:
    dtypes = [{"dtype": plan.made_by.dtype} for plan in (there, here)]  # of which more than the last digits depends
    if found := differences(there.compared() | dtypes[0], here.compared() | dtypes[1]):
        more = f"; {len(found) - 4} more" if len(found) > 4 else ""
        raise ValueError(
            f"{output} was begun with other settings: {'; '.join(found[:4])}{more}: give it the same ones, or another "
            "--out"
        )
    if found := differences(plain(there.made_by), plain(here.made_by)):
        line = f"{output} was begun otherwise: {'; '.join(found)}: the last digits of its latents may differ"
        if strict:
            raise ValueError(f"{line}, which --strict refuses")
        _LOG.warning("%s", line)


def _list_folder(output: Output, stack: ExitStack) -> Path:
    """Return where the list of images belongs: the output, or, if that lies elsewhere, a folder for the time being."""
    if output.folder is not None:
        return output.folder / FOLDER
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ssdd-"))) / FOLDER


def _listed_anew(job: TokenizeJob, paths: Sequence[str], folder: Path, stack: ExitStack) -> Path:
    """List the images beside the place of the list."""
    for left in folder.parent.glob(f".*-{FOLDER}"):  # of a command that was killed: nobody else lists now
        shutil.rmtree(left, ignore_errors=True)
    new = folder.with_name(f".{os.getpid()}-{FOLDER}")
    stack.callback(shutil.rmtree, new, ignore_errors=True)
    make_list(new, paths, job.selection(), job.protocol)
    return new


def _put_in_place(new: Path, folder: Path) -> None:
    """Give a list its name, unless the same one has it. Of the same plan they differ by the versions of tar files."""
    if folder.is_dir():
        if (folder / LIST).read_bytes() == (new / LIST).read_bytes():
            return
        shutil.rmtree(folder)
    new.rename(folder)


@contextmanager
def _one_at_a_time(output: Output, part: Part) -> Iterator[None]:
    """Let one part at a time make the plan, which the others find, or the manifest."""
    if output.folder is None or part.count == 1:
        yield
        return
    with (output.folder / ".lock-plan").open("w") as file:
        lock(file, fcntl.LOCK_EX)
        yield


def _plan_there(output: Output) -> Plan | None:
    try:
        return decode(output.read(PLAN), Plan, output.label(PLAN))
    except FileNotFoundError:
        return None
