"""How fast are decoders and encoders, and what share of the machine's peak is that?

Weights are random: speed does not depend on them.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..dtypes import DTYPES
from ..memory import keep_freed_memory
from ..nn.presets import decoder_size, encoder_size
from ..optimization import unfused_norms
from ..peak import finish, peak_flops
from .config import DecodeBench, EncodeBench, NetworkBench
from .networks import PEER_FACTOR, Contender, Work, decode_contenders, decoder_kinds, encode_contenders
from .onnx import check_onnx
from .setting import Setting, this_setting
from .timing import Times, take_turns


@dataclass(frozen=True)
class Speed:
    """A contender at one size of images and batch.

    times: of a call, for a whole batch. gflop: of matrix products and convolutions for one image, as they really run.
    memory: peak bytes of a call above the weights, on GPUs.
    """

    name: str
    size: int
    batch: int
    times: Times
    gflop: float
    memory: int | None

    @property
    def images_per_second(self) -> float:
        return self.batch / self.times.median

    @property
    def flops(self) -> float:
        """Operations a second."""
        return self.gflop * 1e9 * self.images_per_second


@dataclass
class Speeds:
    """All rows so far. peak: operations a second that the machine can do. skipped: what did not fit, a line each.

    first: the contender that others are compared with.
    """

    setting: Setting
    peak: float
    first: str
    rows: list[Speed]
    skipped: list[str]

    def reference(self, row: Speed) -> Speed | None:
        """The first contender's row of the same size and batch, if it could be measured."""
        same = (r for r in self.rows if (r.name, r.size, r.batch) == (self.first, row.size, row.batch))
        return next(same, None)


Report = Callable[[Speeds], object]


def check_network_bench(settings: NetworkBench) -> None:
    """Raises ValueError with one line for settings that cannot be measured."""
    numbers = (*settings.sizes, *settings.batch_sizes, settings.rounds, getattr(settings, "steps", 1))
    if not settings.sizes or not settings.batch_sizes or min(numbers) < 1 or settings.seconds < 0:
        raise ValueError("expected sizes, batch sizes, rounds and steps of at least 1, and seconds from 0")
    if settings.compile and settings.mode == "eager":
        raise ValueError("expected --compile with --mode optimized, found it with --mode eager")
    check_sizes(settings.sizes, settings.latent)
    if isinstance(settings, DecodeBench):
        check_decoders(settings.decoders)


def check_sizes(sizes: Sequence[int], latent: str) -> None:
    """Raises ValueError for an unknown latent, or sizes that are not whole cells of all contenders."""
    unit = max(PEER_FACTOR, encoder_size(latent).factor)
    for size in sizes:
        if size < 1 or size % unit:
            raise ValueError(f"expected --sizes that are multiples of {unit}, found {size}")


def check_decoders(decoders: Sequence[str]) -> None:
    """Raises ValueError for none, or an unknown one."""
    if not decoders:
        raise ValueError("expected --decoders S or others, found none")
    for name in decoders:
        decoder_size(name)


def network_setting(settings: NetworkBench, device: torch.device) -> Setting:
    """Makes the process ready, the same for all contenders, and says what was done."""
    kept = device.type == "cpu" and keep_freed_memory()
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False  # fp32 means that
    decoding = isinstance(settings, DecodeBench)
    return this_setting(
        "decode" if decoding else "encode",
        device,
        dtype=settings.dtype,
        compile=settings.compile,
        mode=settings.mode,
        steps=settings.steps if isinstance(settings, DecodeBench) else None,
        freed_memory_kept=kept,
    )


def contender_count(settings: DecodeBench | EncodeBench) -> int:
    """Rows of each size and batch."""
    if isinstance(settings, EncodeBench):
        return len(set(settings.peers)) + 1
    return len(decoder_kinds(settings))


def bench_networks(
    settings: DecodeBench | EncodeBench,
    device: torch.device,
    step: Callable[[], object] = lambda: None,
    report: Report = lambda _: None,
) -> Speeds:
    """All contenders at all sizes and batches, side by side. Raises ValueError for settings that cannot be measured.

    step: called ``rounds + 1`` times for each contender, size and batch. report: called after each size and batch.
    """
    check_network_bench(settings)
    if isinstance(settings, DecodeBench) and "onnx" in settings.peers:
        check_onnx(settings, device)
    setting = network_setting(settings, device)
    if isinstance(settings, DecodeBench):
        contenders = decode_contenders(settings, device)
    else:
        contenders = encode_contenders(settings, device)
    peak = peak_flops(device, DTYPES[settings.dtype])
    found = Speeds(setting, peak, contenders[0].name, [], [])
    with torch.inference_mode():
        for size in settings.sizes:
            gflop: dict[str, float] = {}
            for batch in settings.batch_sizes:
                _cell(found, contenders, size, batch, gflop, settings, device, step)
                report(found)
    return found


def _cell(
    found: Speeds,
    contenders: Sequence[Contender],
    size: int,
    batch: int,
    gflop: dict[str, float],
    settings: NetworkBench,
    device: torch.device,
    step: Callable[[], object],
) -> None:
    """Adds the rows of one size and batch. gflop: of each contender at this size, filled here."""
    if settings.compile:
        torch.compiler.reset()  # code for this very shape, not for all that there were
    works: dict[str, Work] = {}
    memory: dict[str, int | None] = {}
    for contender in contenders:
        name = contender.name
        try:
            if name not in gflop:
                with nullcontext() if contender.autoencoder is None else unfused_norms(contender.autoencoder):
                    gflop[name] = count_flops((contender.counted or contender.work)(size, 1)) / 1e9
            work = contender.work(size, batch)
            memory[name] = peak_memory(work, device)
            works[name] = work
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            found.skipped.append(f"{name} at {size} px, batch {batch}: out of memory")
    times = take_turns({name: (work,) for name, work in works.items()}, settings.rounds, device, step, settings.seconds)
    found.rows += [Speed(name, size, batch, times[name][0], gflop[name], memory[name]) for name in works]


def count_flops(work: Callable[[], object]) -> int:
    """Of a call, in matrix products and convolutions, eager; a multiplication and an addition are two."""
    with FlopCounterMode(display=False) as counter, torch.compiler.set_stance("force_eager"):
        work()
    return counter.get_total_flops()


def peak_memory(work: Callable[[], object], device: torch.device) -> int | None:
    """Bytes that a call needs above what there was before it; on GPUs, for other devices None."""
    if device.type != "cuda":
        return None
    work()  # compiles, and lets libraries make their workspaces
    finish(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    finish(device)
    return torch.cuda.max_memory_allocated(device) - before
