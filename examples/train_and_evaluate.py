"""Train a tiny tokenizer on a folder of photographs, and measure it on others.

    python examples/train_and_evaluate.py photos/ held-out/ --images 6400 --out runs/example

Some minutes on two CPU cores. The same command goes on after an interruption. `--lpips 0` needs no weights of LPIPS.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from ssdd import AutoencoderSSDD
from ssdd.autoencoder.codec import decode_image, encode_image
from ssdd.data.find import find_images
from ssdd.data.images import read_image
from ssdd.evaluation.pairs import ImageComparison, mean_metrics
from ssdd.recipes import RECIPES
from ssdd.training.config import FlowConfig, FlowLoss
from ssdd.training.loop import train


def settings(photos: str, images: int, lpips: float) -> FlowConfig:
    """Return the recipe `tiny-encoder`, encoder and decoder together at 32 px, with data and length of its own."""
    config = RECIPES["tiny-encoder"]()
    assert isinstance(config, FlowConfig)
    loss = replace(config.loss, lpips=lpips) if lpips else FlowLoss(kl=config.loss.kl, lpips=0.0)
    return replace(config, data=replace(config.data, paths=(photos,)), loss=loss, total_images=images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", help="folder to train on")
    parser.add_argument("held_out", help="folder to measure on")
    parser.add_argument("--images", type=int, default=6400, help="crops to train on")
    parser.add_argument("--lpips", type=float, default=0.5, help="weight of LPIPS in the loss")
    parser.add_argument("--out", type=Path, default=Path("runs/example"))
    args = parser.parse_args()

    folder = train(settings(args.photos, args.images, args.lpips), args.out)

    ae = AutoencoderSSDD.from_pretrained(folder).eval()
    compare = ImageComparison()  # LPIPS where its weights are at hand
    photographs = [read_image(file.path) for file in find_images([args.held_out])]
    for steps in (1, 8):
        results = [compare(photo, decode_image(ae, encode_image(ae, photo), steps)) for photo in photographs]
        print(f"{folder}: {len(photographs)} photographs, {steps} step(s): {mean_metrics(results)}")


if __name__ == "__main__":  # the processes that read photographs import this file
    main()
