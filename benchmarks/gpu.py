"""The whole table of speeds and memory of one GPU, in a few minutes and without a network.

    python benchmarks/gpu.py --out gpu
    python benchmarks/gpu.py --device cpu --quick --out rehearsal

Each part is one call of ``ssdd bench`` in a process of its own, so that one that fails costs no other; its JSON and its
table are left in the folder. A part that does not end in its time is stopped (what it has measured until then counts),
one for which no time is left is skipped and named. The table of targets comes last. ``--quick`` is a rehearsal with
tiny networks and images, whose figures say nothing.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parents[1] / "src"
SHORTEST = 15.0  # seconds below which no part is worth starting


@dataclass(frozen=True)
class Scale:
    """What is measured. compile: torch.compile wherever it is asked about. rounds: of each part."""

    decoder: str
    large_decoder: str
    side: int
    batches: tuple[int, int, int]
    sides: tuple[int, int, int, int]
    training: tuple[str, ...]
    dit: str
    dit_steps: int
    rounds: int
    compile: bool


# fmt: off
FULL = Scale(
    "S", "M", 256, (8, 1, 64), (512, 1024, 2048, 4096), ("--image-size", "128", "--batch-size", "64"),
    dit="XL/2", dit_steps=50, rounds=3, compile=True,
)
QUICK = Scale(
    "XXS", "XS", 64, (2, 1, 3), (64, 128, 192, 512),
    ("--image-size", "32", "--batch-size", "2", "--encoder-width", "32"),
    dit="tiny/2", dit_steps=2, rounds=1, compile=False,
)
# fmt: on


@dataclass(frozen=True)
class Part:
    """One call of ``ssdd bench``. seconds: that it may take."""

    name: str
    arguments: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class Target:
    """A figure out of the files of the parts, by their names. least: whether the target is a least value, or a most."""

    what: str
    goal: float
    least: bool
    unit: str
    value: Callable[[dict[str, Any]], float]


def parts(scale: Scale, lpips: bool) -> list[Part]:
    """The most telling ones first."""
    compiled = ("--compile",) if scale.compile else ()
    timed = ("--rounds", str(scale.rounds), "--dtype", "bf16")
    ours = ("--decoders", scale.decoder)
    batches = tuple(map(str, scale.batches))
    small, middle, large, huge = map(str, scale.sides)
    decode, memory = ("decode", *timed, *compiled), ("memory", "--dtype", "bf16", *ours, "--peers")
    side = str(scale.side)
    precision = ("--precision", "bf16", "--rounds", str(scale.rounds))
    dit = ("--dit", scale.dit, "--decoder", scale.decoder, "--image-size", side, "--steps", str(scale.dit_steps))
    return [
        Part("decode", (*decode, *ours, "--peers", "kl", "plain", "--sizes", side, "--batch-sizes", *batches), 170),
        Part("memory-whole", (*memory, "--sizes", middle, "--tiling", "off"), 40),
        Part("memory-tiled", (*memory, "--sizes", huge, "--tiling", "on"), 50),
        Part("decode-plain", (*decode, *ours, "--peers", "plain", "--sizes", middle), 80),
        Part(
            "decode-large",
            (*decode, "--decoders", scale.large_decoder, "--peers", "--sizes", side, "--batch-sizes", batches[-1]),
            80,
        ),
        Part("decode-pixels", (*decode, *ours, "--peers", "--sizes", small, large), 80),
        Part("train", ("train", *precision, *scale.training, *compiled, *(() if lpips else ("--no-lpips",))), 100),
        Part(
            "encode", ("encode", *timed, *compiled, "--peers", "kl", "--sizes", side, "--batch-sizes", batches[0]), 80
        ),
        Part("generation", ("generation", *timed, *dit, "--batch-size", batches[0]), 90),
    ]


# fmt: off
def targets(scale: Scale) -> list[Target]:
    """Goals; the published decoder of this size ran 1.45 times as fast as the KL-VAE's, generation 3.8 times."""
    size, large_size, side = scale.decoder, scale.large_decoder, scale.side
    ours, plain, peer = f"SSDD-{size} f8c4", f"plain-{size} f8c4", "KL-VAE f8c4"
    small, middle, large, huge = scale.sides
    batch, most = scale.batches[0], scale.batches[-1]

    def against_peer(batch: int) -> Target:
        what = f"decode {size} {side} px, batch {batch}, against KL-VAE"
        return Target(what, 2.5, True, "x", lambda f: ratio(f["decode"], ours, peer, side, batch))

    return [
        *map(against_peer, sorted(scale.batches)),
        Target(f"decode {size} {side} px, batch {batch}, against plain", 2.0, True, "x",
               lambda f: ratio(f["decode"], ours, plain, side, batch)),
        Target(f"decode {size} {middle} px against plain", 4.0, True, "x",
               lambda f: ratio(f["decode-plain"], ours, plain, middle, 1)),
        Target(f"decode {large_size} {side} px, batch {most}: share of peak", 45.0, True, "%",
               lambda f: 100 * row(f["decode-large"], f"SSDD-{large_size}", side)["share_of_peak"]),
        Target(f"decode {size}: time a pixel, {large} over {small} px", 1.15, False, "x",
               lambda f: pixel_time(f["decode-pixels"], large) / pixel_time(f["decode-pixels"], small)),
        Target(f"memory {size} {middle} px, whole", 1536, False, "MiB", lambda f: mebibytes(f["memory-whole"])),
        Target(f"memory {size} {huge} px, tiled", 4096, False, "MiB", lambda f: mebibytes(f["memory-tiled"])),
        Target("training step against plain NCHW", 1.8, True, "x",
               lambda f: f["train"]["rows"][-1]["speed_against_first"]),
        Target(f"encode {side} px, batch {batch}, against KL-VAE", 1.3, True, "x",
               lambda f: ratio(f["encode"], "SSDD f8c4", peer, side, batch)),
        Target(f"generation DiT-{scale.dit}, f16c4 against KL-VAE", 3.8, True, "x",
               lambda f: generation_row(f["generation"], "f16c4")["speed_against_first"]),
    ]
# fmt: on


def row(found: dict[str, Any], name: str, size: int, batch: int | None = None) -> dict[str, Any]:
    """The first row of a contender, by the beginning of its name. Raises KeyError."""
    for line in found["rows"]:
        if line["name"].startswith(name) and line["size"] == size and batch in (None, line["batch"]):
            return line
    raise KeyError(name)


def ratio(found: dict[str, Any], ours: str, other: str, size: int, batch: int) -> float:
    """How many times as fast ours is: the median over rounds."""
    pairs = zip(*(row(found, name, size, batch)["seconds_per_call"] for name in (ours, other)), strict=True)
    ratios = sorted(b / a for a, b in pairs)
    return (ratios[(len(ratios) - 1) // 2] + ratios[len(ratios) // 2]) / 2


def pixel_time(found: dict[str, Any], size: int) -> float:
    return row(found, "SSDD", size)["median_seconds"] / size**2


def mebibytes(found: dict[str, Any]) -> float:
    return found["rows"][0]["peak_bytes"] / 2**20


def generation_row(found: dict[str, Any], latent: str) -> dict[str, Any]:
    return next(line for line in found["rows"] if line["name"].endswith(latent))


def run_part(part: Part, device: str, folder: Path, seconds: float) -> str:
    """Runs it, leaves NAME.json and NAME.txt. Returns why it has not all been measured, or nothing."""
    path = folder / f"{part.name}.json"
    command = [sys.executable, "-m", "ssdd", "bench", *part.arguments, "--device", device, "--out", str(path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SOURCE), os.environ.get("PYTHONPATH", "")])}
    # Compiled code of its own: a process that is killed may leave a broken file, on which a later one would fail.
    cache = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    environment["TORCHINDUCTOR_CACHE_DIR"] = cache.name
    with cache, (folder / f"{part.name}.txt").open("w") as table, (folder / f"{part.name}.log").open("w+") as log:
        process = subprocess.Popen(command, stdout=table, stderr=log, env=environment, start_new_session=True)
        try:
            status = process.wait(timeout=seconds)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)  # and the processes that it has started
            process.wait()
            if isinstance(error, subprocess.TimeoutExpired):
                return f"stopped after {seconds:.0f} s"
            raise
        log.seek(0)
        lines = log.read().strip().splitlines()
    return "" if status == 0 else (lines[-1] if lines else f"ended with status {status}")


def has_lpips() -> bool:
    """Whether the weights of the perceptual loss are at hand."""
    sys.path.insert(0, str(SOURCE))
    from ssdd.objectives.perceptual import backbone_path

    return backbone_path("squeeze").is_file()


def table(scale: Scale, folder: Path, judge: bool) -> list[str]:
    """A line for each target."""
    files = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    width = max(len(target.what) for target in targets(scale))
    lines = [f"{'':{width}}  {'found':>12}  {'target':>18}  met"]
    for target in targets(scale):
        goal = f"{'at least' if target.least else 'at most'} {target.goal:g} {target.unit}"
        try:
            value = target.value(files)
        except (KeyError, IndexError, StopIteration):
            lines.append(f"{target.what:{width}}  {'not measured':>12}  {goal:>18}  -")
            continue
        good = value >= target.goal if target.least else value <= target.goal
        met = ("yes" if good else "NO") if judge else "-"
        lines.append(f"{target.what:{width}}  {f'{value:,.2f} {target.unit}':>12}  {goal:>18}  {met}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu"), help="new folder (default: outputs/gpu)")
    parser.add_argument("--device", default="cuda", help="as for ssdd bench (default: cuda)")
    parser.add_argument("--seconds", type=float, default=460, help="for all of it (default: 460)")
    parser.add_argument("--only", nargs="+", help="names of parts")
    parser.add_argument("--quick", action="store_true", help="a rehearsal in tiny settings")
    options = parser.parse_args()
    if options.out.is_dir() and any(options.out.iterdir()):
        raise SystemExit(f"{options.out}: expected a new or empty folder: choose another --out")
    options.out.mkdir(parents=True, exist_ok=True)
    begin, scale = time.monotonic(), QUICK if options.quick else FULL
    lpips = has_lpips() and not options.quick
    notes = (
        [] if lpips else ["train: without LPIPS, whose weights are not at hand" if not options.quick else "rehearsal"]
    )
    for part in parts(scale, lpips):
        if options.only and part.name not in options.only:
            continue
        left = options.seconds - (time.monotonic() - begin)
        if left < SHORTEST:
            notes.append(f"{part.name}: skipped, no time left")
            continue
        started = time.monotonic()
        trouble = run_part(part, options.device, options.out, min(left, part.seconds))
        print(f"== {part.name}, {time.monotonic() - started:.0f} s: ssdd bench {' '.join(part.arguments)}")
        print((options.out / f"{part.name}.txt").read_text() or "(no table)", flush=True)
        if trouble:
            notes.append(f"{part.name}: {trouble}")
    print("\n".join([*table(scale, options.out, not options.quick), "", *notes]))
    print(f"{time.monotonic() - begin:.0f} s; files in {options.out}")


if __name__ == "__main__":
    main()
