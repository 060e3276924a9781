"""Are tiles seen? Tiled against untiled decoding of a flat image, a gradient and a photograph.

    python benchmarks/tiling.py photo.jpg

Checks docs/using.md: at 1024 px steps across borders are 0.999 times those of elsewhere, and the tiled image is 55 dB
or more from the untiled one. *seam* is the mean step of brightness across the tiles' borders, over that of all other
neighbouring pixels, divided by the same ratio of the untiled image: 1 where borders are not seen. PSNR is of the tiled
against the untiled decoding.
"""

import argparse

import numpy as np
import torch
from PIL import Image

from ssdd import AutoencoderSSDD
from ssdd.autoencoder.tiling import Span, TileGrid
from ssdd.data.images import read_image
from ssdd.data.pixels import image_to_tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", nargs="*", help="resized to the size, whatever their aspect ratio")
    parser.add_argument("--model", default="ssdd-f8c4-demo", help="as for AutoencoderSSDD.from_pretrained")
    parser.add_argument("--size", type=int, default=1024, help="side in pixels, above one tile (default: 1024)")
    parser.add_argument("--steps", type=int, default=1, help="decoding steps (default: 1)")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    autoencoder = AutoencoderSSDD.from_pretrained(options.model).to(device).eval().requires_grad_(False)
    print(f"{'image':24}  {'seam':>6}  {'PSNR dB':>8}  {'latent SNR dB':>13}")
    for name, image in pictures(options.photographs, options.size).items():
        print(f"{name:24.24}  {report(autoencoder, image, options.steps)}", flush=True)


def pictures(photographs: list[str], size: int) -> dict[str, np.ndarray]:
    """Return uint8 (S, S, 3) by name."""
    across, down = np.meshgrid(np.linspace(0, 1, size), np.linspace(0, 1, size))
    colours = np.stack([40 + 180 * across, 40 + 180 * down, 220 - 90 * across - 90 * down], -1)
    found = {"flat": np.full((size, size, 3), 120, np.uint8), "gradient": colours.astype(np.uint8)}
    for path in photographs:
        photograph = Image.fromarray(read_image(path))
        found[path] = np.asarray(photograph.resize((size, size), Image.Resampling.LANCZOS))
    return found


@torch.inference_mode()
def report(autoencoder: AutoencoderSSDD, image: np.ndarray, steps: int) -> str:
    """Return a line of the table."""
    factor = autoencoder.spatial_factor
    grid = (image.shape[0] // factor, image.shape[1] // factor)
    tiles = TileGrid.cover(grid, autoencoder.config.sample_size // factor, factor)
    if tiles is None:
        raise SystemExit(f"{image.shape[0]} pixels are one tile: choose a larger --size")
    x = image_to_tensor(image)[None].to(autoencoder.device)
    autoencoder.disable_tiling()
    z = autoencoder.encode(x).latent_dist.mode()
    whole = autoencoder.decode(z, num_inference_steps=steps).sample.float()
    autoencoder.enable_tiling()
    in_tiles = autoencoder.encode(x).latent_dist.mode()
    tiled = autoencoder.decode(z, num_inference_steps=steps).sample.float()
    seam = border_ratio(tiled, tiles, factor) / border_ratio(whole, tiles, factor)
    psnr = 10 * torch.log10(4 / (tiled - whole).square().mean())
    snr = 10 * torch.log10(z.var() / (in_tiles - z).square().mean())
    return f"{seam:6.3f}  {psnr:8.1f}  {snr:13.1f}"


def border_ratio(image: torch.Tensor, tiles: TileGrid, factor: int) -> float:
    """Return the mean absolute step across the tiles' borders over that elsewhere, along both axes."""
    at, elsewhere = [], []
    for dim, spans in ((2, tiles.rows), (3, tiles.columns)):
        steps = image.diff(dim=dim).abs().mean([d for d in range(4) if d != dim])
        border = torch.zeros(len(steps), dtype=torch.bool, device=steps.device)
        border[[edge - 1 for edge in inner_edges(spans, factor)]] = True
        at.append(steps[border])
        elsewhere.append(steps[~border])
    return float(torch.cat(at).mean() / torch.cat(elsewhere).mean())


def inner_edges(spans: tuple[Span, ...], factor: int) -> list[int]:
    """Return the pixels at which a tile begins or has ended, inside the image."""
    edges = {factor * edge for span in spans for edge in (span.start, span.stop)}
    return sorted(edges - {0, factor * spans[-1].stop})


if __name__ == "__main__":
    main()
