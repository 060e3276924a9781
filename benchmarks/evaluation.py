"""What an evaluation costs beside the autoencoder's own work, in time and in memory.

    python benchmarks/evaluation.py photos.tar --model ssdd-f8c4-demo --protocol paper-256-v1 --images 64

The bare loop encodes and decodes crops that lie in memory already; the evaluation reads and crops them, does the same,
and computes PSNR, SSIM, LPIPS-squeeze, spectra and colour shifts. Both take turns, at one batch size; the figure is the
median of the ratios. ``--growth N`` evaluates N crops of noise with a trivial autoencoder instead and prints the
memory of the process on the way: features apart, it must not grow.

``--model S``, or another preset of a decoder, takes an f8c4 encoder and that decoder with random weights.
"""

import argparse
import resource
import statistics
import time
from typing import Any

import numpy as np
import torch

from ssdd import AutoencoderSSDD
from ssdd.data.sources import open_source
from ssdd.evaluation.autoencoders import Autoencoder, Bicubic, PretrainedAutoencoder, load_autoencoder
from ssdd.evaluation.metrics import BatchMetrics
from ssdd.evaluation.protocols import EvaluationSet, get_protocol, read_items
from ssdd.evaluation.run import Entry, Run
from ssdd.nn.presets import DECODERS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", help="folders, tar files, hf:OWNER/NAME")
    parser.add_argument("--model", default="ssdd-f8c4-demo", help="as for ssdd evaluate, or a decoder's preset")
    parser.add_argument("--protocol", default="paper-256-v1")
    parser.add_argument("--images", type=int, default=32, help="of the set, the first ones (default: 32)")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--growth", type=int, help="crops of noise to evaluate; prints the memory only")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if options.growth:
        growth(options.growth, device)
    else:
        overhead(options, device)


class First:
    """The first images of a source."""

    def __init__(self, source: Any, count: int) -> None:
        self.source, self.count = source, min(count, len(source))

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        return self.source.name(index)

    def content(self, index: int) -> bytes:
        return self.source.content(index)

    def read(self, index: int) -> np.ndarray:
        return self.source.read(index)


class Noise:
    """Small pictures of noise, each a function of its number."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        return f"{index}.png"

    def content(self, index: int) -> bytes:
        raise NotImplementedError("pictures without files")

    def read(self, index: int) -> np.ndarray:
        return np.random.default_rng(index).integers(0, 256, (128, 128, 3), dtype=np.uint8)


def overhead(options: argparse.Namespace, device: torch.device) -> None:
    """Prints both times and their ratio."""
    autoencoder = load(options.model, device)
    source = First(open_source(options.paths), options.images)
    evaluation_set = EvaluationSet(source, get_protocol(options.protocol))
    crops = np.stack([crop.pixels for _, item in read_items(evaluation_set) for crop in item.crops])
    metrics = BatchMetrics(["squeeze"], device)
    settings = {"batch_size": options.batch_size, "workers": options.workers}
    bare, full = [], []
    loop(autoencoder, crops[: options.batch_size], options.batch_size, device)
    for _ in range(options.repeats):
        bare.append(timed(lambda: loop(autoencoder, crops, options.batch_size, device)))
        full.append(timed(lambda: Run(evaluation_set, metrics, **settings).add([Entry(autoencoder)])))
    ratios = [b / a for a, b in zip(bare, full, strict=True)]
    print(f"{autoencoder.name}, {len(crops)} crops by {options.protocol}, batches of {options.batch_size}, {device}")
    print(f"bare encode and decode {statistics.median(bare):7.2f} s")
    print(f"evaluation             {statistics.median(full):7.2f} s")
    print(f"ratio                  {statistics.median(ratios):7.3f}  ({min(ratios):.3f} to {max(ratios):.3f})")


def load(name: str, device: torch.device) -> Autoencoder:
    """Return an autoencoder by its name, or one with random weights by its decoder's preset."""
    if name not in DECODERS:
        return load_autoencoder(name, device)
    model = AutoencoderSSDD.from_preset(decoder=name).to(device).eval()
    return PretrainedAutoencoder(f"f8c4-{name}", model, "random weights", {})


@torch.inference_mode()
def loop(autoencoder: Autoencoder, crops: np.ndarray, batch_size: int, device: torch.device) -> None:
    """Every crop to its latent and back."""
    for first in range(0, len(crops), batch_size):
        images = torch.from_numpy(crops[first : first + batch_size]).to(device)
        latent = autoencoder.encode(images.permute(0, 3, 1, 2).float() / 127.5 - 1)
        autoencoder.decode(latent, noise=autoencoder.noise(latent, 0, range(first, first + len(images))))
    if device.type == "cuda":
        torch.cuda.synchronize()


def timed(work: Any) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def growth(count: int, device: torch.device) -> None:
    """Prints the process' memory at the first hundredth, the half and the end of a long evaluation."""
    protocol = get_protocol("paper-128-v1")

    def watched(items: Any, total: int) -> Any:
        for i, item in enumerate(items, 1):
            yield item
            if i in (max(1, total // 100), total // 2, total):
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
                print(f"{i:9,} crops  peak memory {peak:8,.0f} MiB", flush=True)

    run = Run(EvaluationSet(Noise(count), protocol), BatchMetrics(device=device), workers=1, progress=watched)
    run.add([Entry(Bicubic(8))])


if __name__ == "__main__":
    main()
