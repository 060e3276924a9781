"""Put an SSDD decoder into a diffusers pipeline, in the place of its KL-VAE.

    python examples/diffusers_pipeline.py                                       # a tiny random DiT pipeline
    python examples/diffusers_pipeline.py --pipeline facebook/DiT-XL-2-256 --decoder runs/drop-in/model

The encoder and the constants of the KL-VAE stay, so the generative model stays as it is. A new decoder shows noise
until it is trained (docs/drop-in.md); here it only shows that the parts fit.
"""

import argparse

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

from ssdd import AutoencoderSSDD


def tiny_pipeline() -> DiTPipeline:
    """Return a class-conditional DiT on f8c4 latents of 32 x 32 pixels, with random weights."""
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = AutoencoderKL(block_out_channels=(32, 32, 32, 32), layers_per_block=2, latent_channels=4, **kinds)
    size = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1, "num_embeds_ada_norm": 1000}
    transformer = DiTTransformer2DModel(in_channels=4, out_channels=8, sample_size=4, patch_size=2, **size)
    return DiTPipeline(transformer, vae, DDIMScheduler())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", help="folder or Hugging Face id of a DiT pipeline; a tiny random one by default")
    parser.add_argument(
        "--decoder", help="folder of a trained SSDD decoder for its latents; an untrained one by default"
    )
    parser.add_argument("--steps", type=int, default=20, help="denoising steps of the pipeline")
    parser.add_argument("--out", default="generated.png")
    args = parser.parse_args()

    pipeline = DiTPipeline.from_pretrained(args.pipeline) if args.pipeline else tiny_pipeline()
    if args.decoder:
        ae = AutoencoderSSDD.from_pretrained(args.decoder)
    else:
        ae = AutoencoderSSDD.from_kl_vae(pipeline.vae, decoder="XXS")

    x = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.inference_mode():
        difference = ae.encode(x).latent_dist.mean - pipeline.vae.encode(x).latent_dist.mean
    print(f"latents differ from the KL-VAE's by at most {difference.abs().max():.1e}")

    pipeline.vae = ae
    image = pipeline([1], num_inference_steps=args.steps, generator=torch.Generator().manual_seed(0)).images[0]
    image.save(args.out)
    print(f"{args.out}: {image.width} x {image.height} pixels, decoded by {type(pipeline.vae).__name__}")


if __name__ == "__main__":
    main()
