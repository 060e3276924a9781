"""What does each part of a decoder contribute? Quality of the reconstructions without it.

    python reproduction/ablation.py ssdd-f8c4-demo --data eval-kodak.tar

One part at a time is left out: its contribution is replaced by zeros, the rest of the network stays as it is. Parts
overlap, and the network was not trained to do without them, so the changes do not add up; but where the change is near
zero, the part does nothing. The table, in Markdown, has for each part

- its parameters (those that have no effect without it) and their share of the decoder,
- RMS: root mean square of the values that the part contributes where it enters the rest,
- PSNR and LPIPS without it, means over the crops, and the change against the whole decoder.
"""

import argparse
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from tqdm import tqdm

from ssdd import AutoencoderSSDD
from ssdd.cli.common import ModelOptions
from ssdd.data.pixels import images_to_tensor
from ssdd.data.sources import open_source
from ssdd.evaluation.image_metrics import rounded
from ssdd.evaluation.metrics import BatchMetrics, cached_lpips
from ssdd.evaluation.protocols import Census, EvaluationSet, Protocol, crop_batches, get_protocol
from ssdd.nn.decoder import Decoder, Stem, UpLevel
from ssdd.nn.noise import image_generators
from ssdd.runtime.text import aligned

BATCH_SIZE = 8

Edit = Callable[[Tensor], Tensor]
"""Receives what a part contributes, and returns what the decoder uses in its place."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="embedded name, folder of a model or of a training run, Hugging Face id")
    parser.add_argument("--data", nargs="+", required=True, help="photographs: folders, tar files, hf:OWNER/NAME")
    crops = parser.add_mutually_exclusive_group()
    crops.add_argument("--protocol", default="paper-256-v1", help="as for ssdd evaluate (default: paper-256-v1)")
    crops.add_argument("--side", type=int, help="side of center crops in pixels, instead of a protocol")
    parser.add_argument("--count", type=int, default=24, help="number of images, the first ones (default: 24)")
    parser.add_argument("--steps", type=int, default=1, help="decoding steps (default: 1)")
    options = parser.parse_args(arguments)
    protocol = Protocol(f"centre-{options.side}", "centre", options.side) if options.side else None
    crops = EvaluationSet(open_source(options.data), protocol or get_protocol(options.protocol))
    results = ablate(ModelOptions(options.model).load(), crops, options.count, options.steps)
    command = shlex.join(["python", "reproduction/ablation.py", *(sys.argv[1:] if arguments is None else arguments)])
    steps = f"{options.steps} decoding step{'' if options.steps == 1 else 's'}"
    print(f"    {command}\n")
    print(f"{results[0].crops} crops ({crops.protocol.name}: {crops.protocol.describe()['crop']}), {steps}:\n")
    print(markdown(results))


# ---- the parts ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """A part of a decoder that can be left out.

    Attributes:
        name: as in the table.
        parameters: how many have no effect without the part; 0 where it has none of its own.
        register: add a forward hook that passes the part's contribution through an ``Edit``.
    """

    name: str
    parameters: int
    register: Callable[[Edit], RemovableHandle]


def decoder_parts(decoder: Decoder) -> list[Part]:
    """Return all parts: the transformer, the coarse grids, the skips, the two ways in of the latent."""
    middle, down, up = decoder.middle, decoder.down, decoder.up
    parts = [Part("middle transformer", _count(middle), partial(_edit_output, middle.proj_out))]
    for i, block in enumerate(middle.blocks):
        parts.append(Part(f"middle block {i}", _count(block), partial(_edit_residual, block)))

    parameters = _count(middle)
    for i, level in enumerate(up[:-1]):
        # without the result of this level, the way down to its grid and back is idle, and so is all below
        parameters += _count(down[-1 - i].blocks) + _count(down[-2 - i].downsample) + _count(level)
        name = f"everything at {_grid(decoder, i)}" + (" and coarser" if i else "")
        parts.append(Part(name, parameters, partial(_edit_output, level.upsample)))
    for i, level in enumerate(up):
        parts.append(Part(f"skips at {_grid(decoder, i)}", 0, partial(_edit_skips, level)))

    modulation = sum(p.numel() for name, p in decoder.named_parameters() if name.endswith("modulation.weight"))
    parts.append(
        Part("context modulation", _count(decoder.context) + modulation, partial(_edit_output, decoder.context))
    )
    latent = decoder.conv_in.weight[:, 3:].numel()
    parts.append(Part("latent beside the noise", latent, partial(_edit_latent, decoder.conv_in)))
    return parts


def _grid(decoder: Decoder, index: int) -> str:
    """Return the grid of an up level, from H/8 to H."""
    factor = 2 ** (len(decoder.up) - 1 - index)
    return "H" if factor == 1 else f"H/{factor}"


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _edit_output(module: nn.Module, edit: Edit) -> RemovableHandle:
    return module.register_forward_hook(lambda _, inputs, output: edit(output))


def _edit_residual(block: nn.Module, edit: Edit) -> RemovableHandle:
    """Edit what the block adds to its input."""
    return block.register_forward_hook(lambda _, inputs, output: inputs[0] + edit(output - inputs[0]))


def _edit_skips(level: UpLevel, edit: Edit) -> RemovableHandle:
    def hook(_: nn.Module, inputs: tuple[list[Tensor | Stem], ...]) -> None:
        stack, skips = inputs[0], len(level.blocks)  # the level's input is last, its skips stand before it
        made = (skip if isinstance(skip, Tensor) else skip() for skip in stack[-1 - skips : -1])
        stack[-1 - skips : -1] = map(edit, made)

    return level.register_forward_pre_hook(hook)


def _edit_latent(conv_in: nn.Module, edit: Edit) -> RemovableHandle:
    """Edit the channels after the noisy image's three."""
    return conv_in.register_forward_pre_hook(
        lambda _, inputs: torch.cat([inputs[0][:, :3], edit(inputs[0][:, 3:])], dim=1)
    )


# ---- measuring ---------------------------------------------------------------------------------------------------


class Removal:
    """An ``Edit`` that replaces contributions by zeros and measures their root mean square."""

    def __init__(self) -> None:
        self._squares, self._count = 0.0, 0

    def __call__(self, contribution: Tensor) -> Tensor:
        self._squares += float(contribution.double().square().sum())
        self._count += contribution.numel()
        return torch.zeros_like(contribution)

    def rms(self) -> float:
        return float((self._squares / self._count) ** 0.5)


@dataclass(frozen=True)
class Result:
    """Quality of a decoder without a part, or of the whole one.

    Attributes:
        name: of the part.
        parameters: that have no effect without it.
        rms: of what it contributes; None for the whole decoder.
        crops: how many the means are over.
        psnr: in dB.
        lpips: None if no weights are in the cache.
    """

    name: str
    parameters: int
    rms: float | None
    crops: int
    psnr: float
    lpips: float | None


@torch.inference_mode()
def ablate(model: AutoencoderSSDD, evaluation_set: EvaluationSet, count: int = 24, steps: int = 1) -> list[Result]:
    """Decode the same latents, from the same noise, with the whole decoder, then without each of its parts.

    Args:
        model: in eval mode; the same afterwards.
        evaluation_set: held-out photographs.
        count: number of images, the first of the set.
        steps: decoding steps.
    """
    perceptual = cached_lpips(model.device)
    metrics = BatchMetrics(model.device, [perceptual] if perceptual else [])
    parts = decoder_parts(model.decoder)
    removals = [Removal() for _ in parts]
    measured: list[list[dict[str, np.ndarray]]] = [[] for _ in range(1 + len(parts))]  # the whole decoder first

    protocol, images = evaluation_set.protocol, range(min(count, len(evaluation_set)))
    for crops in crop_batches(evaluation_set, Census(), BATCH_SIZE, 0, _progress, images):
        pixels = np.stack([crop.pixels for crop in crops])
        x = images_to_tensor(torch.from_numpy(pixels)).to(model.device)
        z = model.encode(x).latent_dist.mode()
        generators = image_generators(protocol.seed, [protocol.number(crop.key) for crop in crops])
        noise = torch.stack([torch.randn(x.shape[1:], generator=generator) for generator in generators])
        for i, batches in enumerate(measured):
            with parts[i - 1].register(removals[i - 1]) if i else nullcontext():
                decoded = model.decode(z, num_inference_steps=steps, noise=noise).sample
            batches.append(metrics(pixels, rounded(decoded).images))

    whole = ("none: the whole decoder", _count(model.decoder), None)
    about = [(part.name, part.parameters, removal.rms()) for part, removal in zip(parts, removals, strict=True)]
    results = []
    for names, batches in zip([whole, *about], measured, strict=True):
        values = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
        lpips = float(values[perceptual.name].mean()) if perceptual else None
        results.append(Result(*names, len(values["psnr"]), float(values["psnr"].mean()), lpips))
    return results


def _progress(images: Iterable[int], total: int) -> tqdm:
    return tqdm(images, total=total, unit="image")


def markdown(results: Sequence[Result]) -> str:
    """Return a Markdown table with aligned columns, the whole decoder in its first row."""
    whole, perceptual = results[0], cached_lpips()
    lpips = perceptual.heading if perceptual else "LPIPS"
    rows = [["part", "parameters (share)", "RMS", "PSNR without, dB", "change, dB", f"{lpips} without", "change"]]
    for result in results:
        share = f"{result.parameters:,} ({100 * result.parameters / whole.parameters:4.1f} %)"
        row = [result.name, share if result.parameters else "-", "" if result.rms is None else f"{result.rms:.4f}"]
        row += [f"{result.psnr:.4f}", "" if result is whole else f"{result.psnr - whole.psnr:+.4f}"]
        if result.lpips is not None and whole.lpips is not None:
            row += [f"{result.lpips:.5f}", "" if result is whole else f"{result.lpips - whole.lpips:+.5f}"]
        rows.append([*row, *["-"] * (len(rows[0]) - len(row))])
    rows.insert(1, ["---", *["---:"] * (len(rows[0]) - 1)])
    return "\n".join(f"| {line} |" for line in aligned(rows, between=" | "))


if __name__ == "__main__":
    main()
