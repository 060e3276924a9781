"""Reconstruct a photograph: from PIL to a latent and back.

python examples/reconstruct_photo.py photo.jpg --steps 1 --out reconstructed.png
"""

import argparse

import numpy as np
from PIL import Image

from ssdd import AutoencoderSSDD
from ssdd.autoencoder.codec import decode_image, encode_image
from ssdd.data.images import read_image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo")
    parser.add_argument("--model", default="ssdd-f8c4-demo", help="embedded name, folder or Hugging Face id")
    parser.add_argument("--steps", type=int, default=1, help="decoding steps")
    parser.add_argument("--out", default="reconstructed.png")
    args = parser.parse_args()

    photo = read_image(args.photo)  # uint8 (H, W, 3), upright, in sRGB
    ae = AutoencoderSSDD.from_pretrained(args.model).eval()

    encoded = encode_image(ae, photo)  # pads the photograph to a multiple of the spatial factor
    result = decode_image(ae, encoded, steps=args.steps)  # uint8 (H, W, 3), cut back to its size
    Image.fromarray(result).save(args.out)

    error = np.square(photo / 255 - result / 255).mean()
    shape = "x".join(map(str, encoded.mean.shape))
    print(f"{photo.nbytes:,} bytes of pixels -> a latent of {shape}, {encoded.mean.numel() * 2:,} bytes in 16 bits")
    print(f"{args.out}: {args.steps} step(s), PSNR {-10 * np.log10(error):.2f} dB")


if __name__ == "__main__":
    main()
