"""Export a model to ONNX, and reconstruct a photograph in ONNX Runtime.

    pip install '.[onnx]'
    python examples/onnx_runtime.py photo.jpg --folder onnx --out reconstructed.png

The export takes a minute or two, and is left out where the folder has one. The rest needs no PyTorch.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

from ssdd import AutoencoderSSDD
from ssdd.data.images import read_image
from ssdd.export.files import export_model
from ssdd.export.noise import default_noise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo")
    parser.add_argument("--model", default="ssdd-f8c4-demo", help="embedded name, folder or Hugging Face id")
    parser.add_argument("--folder", type=Path, default=Path("onnx"), help="of the ONNX files")
    parser.add_argument("--out", default="reconstructed.png")
    args = parser.parse_args()

    if not (args.folder / "export.json").exists():
        made = export_model(AutoencoderSSDD.from_pretrained(args.model).eval(), args.folder, args.model)
        print(f"{args.folder}: {', '.join(made.files)}")

    about = json.loads((args.folder / "export.json").read_text())
    if about["model"] != args.model:
        parser.error(f"{args.folder}: expected {args.model}, found {about['model']}: take another --folder")
    encoder, decoder = (onnxruntime.InferenceSession(args.folder / f"{name}.onnx") for name in ("encoder", "decoder"))

    photo = read_image(args.photo)  # uint8 (H, W, 3)
    height, width = (side - side % about["spatial_factor"] for side in photo.shape[:2])
    pixels = photo[:height, :width]
    image = pixels.transpose(2, 0, 1)[None].astype(np.float32) / 127.5 - 1

    mean, _ = encoder.run(["mean", "logvar"], {"image": image})
    noise = default_noise(about["noise"]["seed"], height, width)[None]  # that of ae.decode
    (decoded,) = decoder.run(["image"], {"latent": mean, "noise": noise})

    result = ((decoded[0].transpose(1, 2, 0) + 1) * 127.5).round().clip(0, 255).astype(np.uint8)
    Image.fromarray(result).save(args.out)
    error = np.square(pixels / 255 - result / 255).mean()
    print(f"{args.out}: latent {mean.shape[1:]}, PSNR {-10 * np.log10(error):.2f} dB")


if __name__ == "__main__":
    main()
