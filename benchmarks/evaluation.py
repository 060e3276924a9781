"""What does an evaluation cost beside the autoencoder's own work?

    python benchmarks/evaluation.py eval-kodak.tar --images 16 --batch-size 8 --repeats 2

Checks docs/evaluation.md: 1.044 times as long. The bare loop encodes and decodes crops that lie in memory already; the
evaluation reads and crops them, does the same, and computes PSNR, SSIM, LPIPS-squeeze, spectra and colour shifts. Both
take turns, at one batch size.
"""

import argparse
import statistics
from functools import partial

import numpy as np
import torch
from common import ratios

from ssdd.data.sources import open_source
from ssdd.evaluation.autoencoders import Autoencoder, load_autoencoder
from ssdd.evaluation.metrics import BatchMetrics, lpips_metric
from ssdd.evaluation.protocols import EvaluationSet, get_protocol, read_items
from ssdd.evaluation.run import Entry, Run
from ssdd.runtime.peak import timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", help="folders, tar files, hf:OWNER/NAME")
    parser.add_argument("--model", default="ssdd-f8c4-demo", help="as for ssdd evaluate")
    parser.add_argument("--protocol", default="paper-256-v1")
    parser.add_argument("--images", type=int, default=32, help="of the set, the first ones (default: 32)")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    autoencoder, source = load_autoencoder(options.model, device), open_source(options.paths)
    source = source.subset(np.arange(min(options.images, len(source))))
    evaluation_set = EvaluationSet(source, get_protocol(options.protocol))
    crops = np.stack([crop.pixels for _, item in read_items(evaluation_set) for crop in item.crops])
    metrics, size = BatchMetrics(device, [lpips_metric("squeeze", device)]), options.batch_size
    bare, full = [], []
    loop(autoencoder, crops[:size], size, device)
    for _ in range(options.repeats):
        bare.append(timed(partial(loop, autoencoder, crops, size, device), device)[1])
        run = Run(evaluation_set, metrics, batch_size=size, workers=options.workers)
        full.append(timed(partial(run.add, [Entry(autoencoder)]), device)[1])
    slower = ratios(full, bare)
    print(f"{autoencoder.name}, {len(crops)} crops by {options.protocol}, batches of {size}, {device}")
    print(f"encode and decode {statistics.median(bare):.2f} s, evaluation {statistics.median(full):.2f} s")
    print(f"ratio {statistics.median(slower):.3f} ({min(slower):.3f} to {max(slower):.3f})")


@torch.inference_mode()
def loop(autoencoder: Autoencoder, crops: np.ndarray, batch_size: int, device: torch.device) -> None:
    """Take every crop to its latent and back."""
    for first in range(0, len(crops), batch_size):
        images = torch.from_numpy(crops[first : first + batch_size]).to(device)
        latent = autoencoder.encode(images.permute(0, 3, 1, 2).float() / 127.5 - 1)
        autoencoder.decode(latent, noise=autoencoder.noise(latent, 0, range(first, first + len(images))))


if __name__ == "__main__":
    main()
