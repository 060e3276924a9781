"""Does it cost quality to be quick? Optimised against plain decoding of the same latents, on photographs.

    python benchmarks/quality.py kodak/*.png

Checks docs/performance.md: on Kodak 133 dB or more in float32, 54 dB or more in bfloat16. PSNR between the plain
decoding in float32 and each quicker one, smallest and mean over the photographs; and how far the encoder's latents are
from the plain ones, as a ratio of variances in dB.
"""

import argparse
import copy
import statistics

import torch

from ssdd import AutoencoderSSDD
from ssdd.autoencoder.codec import pad_to_multiple
from ssdd.data.images import read_image
from ssdd.data.pixels import image_to_tensor

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", nargs="+")
    parser.add_argument("--model", default="ssdd-f8c4-demo", help="as for AutoencoderSSDD.from_pretrained")
    parser.add_argument("--crop", type=int, default=512, help="longest side, from the upper left (default: 512)")
    parser.add_argument("--steps", type=int, default=1, help="decoding steps (default: 1)")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    plain = AutoencoderSSDD.from_pretrained(options.model).to(device).eval().requires_grad_(False)
    quick = {name: copy.deepcopy(plain).optimize(dtype) for name, dtype in DTYPES.items()}

    images: dict[str, list[float]] = {name: [] for name in quick}
    latents: dict[str, list[float]] = {name: [] for name in quick}
    for path in options.photographs:
        x = image_to_tensor(read_image(path)[: options.crop, : options.crop])[None].to(device)
        x = pad_to_multiple(x, plain.spatial_factor)
        with torch.inference_mode():
            z = plain.encode(x).latent_dist.mode()
            expected = plain.decode(z, num_inference_steps=options.steps).sample
            for name, autoencoder in quick.items():
                found = autoencoder.decode(z, num_inference_steps=options.steps).sample
                own = autoencoder.encode(x).latent_dist.mode()
                images[name].append(decibels(4.0, found.float() - expected))
                latents[name].append(decibels(float(z.var()), own.float() - z))
    print(f"{'optimised, in':14}  {'image dB, smallest':>18}  {'mean':>6}  {'latent dB, smallest':>19}  {'mean':>6}")
    for name in quick:
        cells = [f(values) for values in (images[name], latents[name]) for f in (min, statistics.mean)]
        print(f"{name:14}  {cells[0]:18.1f}  {cells[1]:6.1f}  {cells[2]:19.1f}  {cells[3]:6.1f}")


def decibels(power: float, difference: torch.Tensor) -> float:
    """Return the ratio of the power to the mean square of the difference."""
    return float(10 * torch.log10(power / difference.square().mean()))


if __name__ == "__main__":
    main()
