"""Does it cost quality to be quick, or to go by tiles? Against the plain network, whole images, in float32.

    python benchmarks/fidelity.py kodak/*.png

Checks docs/performance.md (133 dB or more in float32, 54 dB or more in bfloat16, as ``optimize`` makes the model) and
docs/using.md (tiles). *image* is the PSNR of two decodings of the same latent, *latent* the ratio of variances in dB of
two encodings; both smallest and mean over the photographs, which are resized to ``--side`` where that is given.
"""

import argparse
import copy
import statistics

import numpy as np
import torch
from PIL import Image

from ssdd import AutoencoderSSDD
from ssdd.autoencoder.codec import pad_to_multiple
from ssdd.data.images import read_image
from ssdd.data.pixels import image_to_tensor
from ssdd.runtime.text import aligned

WAYS = ("float32", "bfloat16", "tiles")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", nargs="+")
    parser.add_argument("--model", default="ssdd-f8c4-demo", help="as for AutoencoderSSDD.from_pretrained")
    parser.add_argument("--side", type=int, help="of the photographs, in pixels, whatever their aspect ratio")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="default: all")
    parser.add_argument("--steps", type=int, default=1, help="decoding steps (default: 1)")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    plain = AutoencoderSSDD.from_pretrained(options.model).to(device).eval().requires_grad_(False)
    plain.disable_tiling()
    others = {way: copy.deepcopy(plain) for way in options.ways}
    for way, autoencoder in others.items():
        autoencoder.enable_tiling() if way == "tiles" else autoencoder.optimize(getattr(torch, way))

    images: dict[str, list[float]] = {name: [] for name in others}
    latents: dict[str, list[float]] = {name: [] for name in others}
    for path in options.photographs:
        image = Image.fromarray(read_image(path))
        if options.side:
            image = image.resize((options.side, options.side), Image.Resampling.LANCZOS)
        x = pad_to_multiple(image_to_tensor(np.asarray(image))[None].to(device), plain.spatial_factor)
        with torch.inference_mode():
            z = plain.encode(x).latent_dist.mode()
            whole = plain.decode(z, num_inference_steps=options.steps).sample
            for name, autoencoder in others.items():
                decoded = autoencoder.decode(z, num_inference_steps=options.steps).sample.float()
                images[name].append(decibels(4.0, decoded - whole))
                latents[name].append(decibels(float(z.var()), autoencoder.encode(x).latent_dist.mode().float() - z))
    rows = [["", "image dB, smallest", "mean", "latent dB, smallest", "mean"]]
    for name in others:
        rows.append([name, *(f"{f(v):.1f}" for v in (images[name], latents[name]) for f in (min, statistics.mean))])
    print("\n".join(aligned(rows)))


def decibels(power: float, difference: torch.Tensor) -> float:
    """Return the ratio of the power to the mean square of the difference."""
    return float(10 * torch.log10(power / difference.square().mean()))


if __name__ == "__main__":
    main()
