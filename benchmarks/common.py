"""What the benchmarks share: the models, times in turns, operations, tables and files.

Weights are random: speed does not depend on them. The models take turns within one process, so that what slows the
machine slows all of them. A speed is the median over rounds of the ratio to the first model, its spread the smallest
and the largest of these ratios.

Shapes: B batch, S side of an image, c latent channels, g x g latent grid.
"""

import argparse
import json
import math
import platform
import statistics
import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar, get_args

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from ssdd import AutoencoderSSDD
from ssdd.nn import fast
from ssdd.nn.presets import DECODERS
from ssdd.runtime.dtypes import Dtype, torch_dtype
from ssdd.runtime.peak import peak_flops, timed
from ssdd.runtime.text import aligned

DIFFUSERS = ("kl", "kl-compiled", "tiny", "tiny-compiled")
OURS = ("eager", "plain", "onnx")
PEERS = """diffusers' autoencoders, channels last: kl, AutoencoderKL in Stable Diffusion's shape; tiny, AutoencoderTiny;
-compiled: by torch.compile. In each size of --decoders: eager, ours without optimize; plain, ours as nn.ops defines it,
in NCHW; onnx, ours in ONNX Runtime."""

Row = dict[str, Any]
Key = TypeVar("Key", bound=Hashable)


# ---- options ---------------------------------------------------------------------------------------------------------


def new_parser(doc: str | None, timed: bool = True) -> argparse.ArgumentParser:
    """Return a parser of the options that the comparisons share."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, ...")
    parser.add_argument("--dtype", choices=get_args(Dtype), default="bf16")
    if timed:
        parser.add_argument("--rounds", type=int, default=5, help="in which the models take turns (default: 5)")
        parser.add_argument("--seconds", type=float, default=0.3, help="least time of a model's round (default: 0.3)")
    parser.add_argument("--out", type=Path, help="new JSON file of all that is measured")
    return parser


def add_decoders(parser: argparse.ArgumentParser, peers: Sequence[str]) -> None:
    parser.add_argument("--decoders", nargs="+", choices=list(DECODERS), default=["S"], help="sizes of ours")
    parser.add_argument("--peers", nargs="*", choices=[*DIFFUSERS, *OURS], default=list(peers), help=PEERS)
    parser.add_argument("--latent", default="f8c4", help="of our decoders (default: f8c4)")
    parser.add_argument("--steps", type=int, default=1, help="decoding steps of our decoders (default: 1)")


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Return the options; end with one line if they cannot be measured."""
    options = parser.parse_args()
    if "onnx" in getattr(options, "peers", ()) and (options.device, options.dtype, options.steps) != ("cpu", "fp32", 1):
        parser.error("the peer onnx decodes in float32 on a CPU, in one step: pass --device cpu --dtype fp32 --steps 1")
    if options.out is not None and options.out.exists():
        parser.error(f"{options.out} exists already: choose another --out")
    torch.backends.cudnn.allow_tf32 = False  # fp32 means that
    return options


# ---- models ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """A network to measure.

    Attributes:
        name: in the table.
        run: the work on the inputs.
        inputs: the inputs for a side of the images and a batch.
        autoencoder: what tiles are switched on in.
    """

    name: str
    run: Callable[..., object]
    inputs: Callable[[int, int], tuple[Tensor, ...]]
    autoencoder: Any

    def call(self, side: int, batch: int) -> Callable[[], object]:
        return partial(self.run, *self.inputs(side, batch))


def decoder_kinds(options: argparse.Namespace) -> list[tuple[str, str]]:
    """Return kind and size of each decoder, the peers first."""
    peers = [(kind, size) for kind in options.peers for size in (options.decoders if kind in OURS else [""])]
    return [*peers, *(("SSDD", size) for size in options.decoders)]


def build_decoder(kind: str, size: str, latent: str, steps: int, device: str, dtype: torch.dtype) -> Model:
    """Return a decoder: SSDD as ``optimize`` makes it, or a peer (see ``PEERS``); both take a latent and noise."""
    if kind in DIFFUSERS:
        vae = _diffusers_vae(kind, "decoder", device, dtype)
        inputs = partial(_latent_and_noise, 4, 8, device=device, dtype=dtype)
        return Model(_diffusers_name(kind), lambda z, noise: vae.decode(z).sample, inputs, vae)
    autoencoder = AutoencoderSSDD.from_preset(latent, size, has_encoder=False)
    if kind in ("SSDD", "graphs"):
        autoencoder.to(device).optimize(dtype, compile="graphs" if kind == "graphs" else True)
    else:  # nn.Module's own ``to``: that of diffusers warns of a list of exceptions that is empty here
        nn.Module.to(autoencoder.eval().requires_grad_(False), device, dtype)
    if kind == "plain":
        autoencoder.to(memory_format=torch.contiguous_format)

    def decode(z: Tensor, noise: Tensor) -> Tensor:
        with fast.reference() if kind == "plain" else nullcontext():
            return autoencoder.decode(z, num_inference_steps=steps).sample

    shape = autoencoder.config.latent_channels, autoencoder.spatial_factor
    inputs = partial(_latent_and_noise, *shape, device=device, dtype=dtype)
    run = _onnx_session(autoencoder) if kind == "onnx" else decode
    return Model(f"{kind}-{size} {latent}", run, inputs, autoencoder)


def build_encoder(kind: str, latent: str, device: str, dtype: torch.dtype) -> Model:
    """Return an encoder, SSDD or one of diffusers: images to the posterior's mode, or to the latent that there is."""
    if kind in DIFFUSERS:
        vae, name = _diffusers_vae(kind, "encoder", device, dtype), _diffusers_name(kind)
    else:
        vae, name = AutoencoderSSDD.from_preset(latent, "XXS").to(device).optimize(dtype), f"SSDD {latent}"

    def encode(images: Tensor) -> Tensor:
        output = vae.encode(images)
        return output.latents if hasattr(output, "latents") else output.latent_dist.mode()

    def inputs(side: int, batch: int) -> tuple[Tensor]:
        return (torch.rand(batch, 3, side, side).mul(2).sub(1).to(device, dtype),)

    return Model(name, encode, inputs, vae)


def _latent_and_noise(
    channels: int, factor: int, side: int, batch: int, device: str, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    if side % factor:
        raise ValueError(f"expected sides that are multiples of {factor}, found {side}")
    z = torch.randn(batch, channels, side // factor, side // factor)
    return z.to(device, dtype), torch.randn(batch, 3, side, side, device=device)


def _diffusers_vae(kind: str, part: str, device: str, dtype: torch.dtype) -> Any:
    """Return an autoencoder of diffusers, f8c4; ``part``, encoder or decoder, is what is compiled."""
    blocks = len(widths := (128, 256, 512, 512))
    vae: Any = AutoencoderTiny()
    if kind.startswith("kl"):
        vae = AutoencoderKL(
            block_out_channels=widths,
            down_block_types=("DownEncoderBlock2D",) * blocks,
            up_block_types=("UpDecoderBlock2D",) * blocks,
            layers_per_block=2,
            latent_channels=4,
            sample_size=512,
        )
    nn.Module.to(vae.eval().requires_grad_(False), device, dtype)
    vae.to(memory_format=torch.channels_last)
    if kind.endswith("-compiled"):
        getattr(vae, part).compile()
    return vae


def _diffusers_name(kind: str) -> str:
    name, _, compiled = kind.partition("-")
    return f"{'KL-VAE' if name == 'kl' else 'Tiny-VAE'} f8c4{', compiled' if compiled else ''}"


def _onnx_session(autoencoder: AutoencoderSSDD) -> Callable[[Tensor, Tensor], object]:
    from ssdd.export.check import open_session
    from ssdd.export.files import export_model
    from ssdd.export.trace import DECODER

    with TemporaryDirectory() as folder:
        export_model(autoencoder, Path(folder), "", check=False)
        session = open_session(Path(folder) / DECODER)
    return lambda z, noise: session.run(["image"], {"latent": z.numpy(), "noise": noise.numpy()})


# ---- speed -----------------------------------------------------------------------------------------------------------


def measure(models: Sequence[Model], options: argparse.Namespace) -> list[Row]:
    """Return a row for each model, side and batch; they are in ``--out`` as soon as they are there."""
    device, dtype = torch.device(options.device), torch_dtype(options.dtype)
    peak, rows = peak_flops(device, dtype), []
    for side in options.sizes:
        for batch in options.batch_sizes:
            rows += measure_cell(models, side, batch, peak, options)
            save(rows, options)
    return rows


@torch.inference_mode()
def measure_cell(models: Sequence[Model], side: int, batch: int, peak: float, options: argparse.Namespace) -> list[Row]:
    """Return a row for each model at one side and batch; what does not fit into a GPU's memory has none."""
    torch.compiler.reset()  # code for this very shape, not for all that there were
    calls: dict[str, Callable[[], object]] = {}
    gflop: dict[str, float] = {}
    for model in models:
        try:
            call = model.call(side, batch)
            gflop[model.name] = count_flops(call) / batch / 1e9  # eager, which takes most memory
            calls[model.name] = call
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            print(f"skipped: {model.name} at {side} px, batch {batch}: out of memory", file=sys.stderr)
    return speed_rows(take_turns(calls, options), side, batch, gflop, peak) if calls else []


def count_flops(call: Callable[[], object]) -> int:
    """Return the operations in matrix products and convolutions; a multiplication and an addition are two."""
    with FlopCounterMode(display=False) as counter, torch.compiler.set_stance("force_eager"), torch.inference_mode():
        call()
    return counter.get_total_flops()


def take_turns(calls: Mapping[Key, Callable[[], object]], options: argparse.Namespace) -> dict[Key, list[float]]:
    """Return seconds of a call, a number for each round; quick calls are repeated within it."""
    device, counts = torch.device(options.device), {}
    for key, call in calls.items():
        timed(call, device)  # compiles, and lets libraries make their workspaces
        counts[key] = max(1, math.ceil(options.seconds / timed(call, device)[1]))
    times: dict[Key, list[float]] = {key: [] for key in calls}
    for _ in tqdm(range(options.rounds), unit="round", leave=False):
        for key, call in calls.items():
            times[key].append(timed(partial(_repeat, call, counts[key]), device)[1] / counts[key])
    return times


def _repeat(call: Callable[[], object], count: int) -> None:
    for _ in range(count):
        call()


def speed_rows(
    times: Mapping[str, Sequence[float]],
    side: int,
    batch: int,
    gflop: Mapping[str, float] | None = None,
    peak: float = math.inf,
) -> list[Row]:
    """Return a row for each model: seconds of a batch, and the ratio to the first one. gflop: of one image."""
    first, rows = next(iter(times)), []
    for name, rounds in times.items():
        speeds = ratios(times[first], rounds)
        rate = batch / statistics.median(rounds)
        row = {"model": name, "px": side, "batch": batch, "images/s": rate}
        if gflop and gflop[name]:  # none are counted in ONNX Runtime
            row |= {"GFLOP": gflop[name], "of peak": gflop[name] * 1e9 * rate / peak}
        row |= {"speed": statistics.median(speeds), "spread": [min(speeds), max(speeds)]}
        rows.append({**row, "seconds": list(rounds)})
    return rows


def ratios(slow: Sequence[float], quick: Sequence[float]) -> list[float]:
    """Return how many times as long the first took, in each round."""
    return [a / b for a, b in zip(slow, quick, strict=True)]


# ---- tables and files ------------------------------------------------------------------------------------------------


def table(rows: Sequence[Row]) -> str:
    """Return the rows as text, but for the times of single rounds."""
    columns = list(dict.fromkeys(name for row in rows for name in row if name != "seconds"))
    return "\n".join(aligned([columns, *([_cell(row.get(name)) for name in columns] for row in rows)]))


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return " to ".join(f"{end:.2f}" for end in value)
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return "-" if value is None else str(value)


def report(rows: Sequence[Row], options: argparse.Namespace) -> None:
    """Print the table and what it was measured on. Write the file."""
    print(f"{table(rows)}\n\n{'; '.join(f'{name} {value}' for name, value in setting(options).items())}")
    save(rows, options)


def save(rows: Sequence[Row], options: argparse.Namespace) -> None:
    if options.out is not None:
        options.out.write_text(json.dumps({"setting": setting(options), "rows": list(rows)}, indent=1) + "\n")


def setting(options: argparse.Namespace) -> dict[str, str]:
    """Return what was measured, and on which machine."""
    machine = {
        "script": Path(sys.argv[0]).stem,
        "machine": device_name(torch.device(options.device)),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    return {name: str(value) for name, value in (machine | vars(options)).items()}


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = info.read_text().splitlines() if (info := Path("/proc/cpuinfo")).is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
