"""Tokenize a folder of photographs, and train a small flow on the latents with a plain PyTorch loop.

    python examples/train_on_latents.py photos/ --steps 2000 --out flow

`ssdd generate train` does it properly, with a diffusion transformer (docs/generation.md); this shows what to feed one.
"""

import argparse
from itertools import chain, islice, pairwise, repeat
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision.utils import save_image

from ssdd import AutoencoderSSDD
from ssdd.tokenization import CropProtocol, LatentDataset, TokenizeJob, tokenize


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos")
    parser.add_argument("--size", type=int, default=64, help="side of the crops")
    parser.add_argument("--steps", type=int, default=2000, help="updates")
    parser.add_argument("--out", type=Path, default=Path("flow"))
    args = parser.parse_args()

    tokenize(TokenizeJob((args.photos,), "ssdd-f8c4-demo", CropProtocol(size=args.size)), args.out / "latents")
    data = LatentDataset(args.out / "latents")
    shift, scale = data.statistics["shift_factor"], data.statistics["scaling_factor"]
    shape = data.latent_shape  # (c, h, w)

    channels = [shape[0] + 1, 64, 64, 64]  # a latent and its time -> a velocity
    layers = [(nn.Conv2d(a, b, 3, padding=1), nn.SiLU()) for a, b in pairwise(channels)]
    model = nn.Sequential(*chain(*layers), nn.Conv2d(64, shape[0], 3, padding=1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batches = chain.from_iterable(repeat(DataLoader(data, batch_size=32, shuffle=True)))
    for step, batch in enumerate(islice(batches, args.steps)):
        x = (batch["mean"] - shift) * scale  # normalised: about zero mean and unit variance
        noise, t = torch.randn_like(x), torch.rand(len(x), 1, 1, 1).expand(-1, 1, *shape[1:])
        velocity = model(torch.cat([(1 - t) * x + t * noise, t], dim=1))
        loss = (velocity - (x - noise)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.3f}")

    ae = AutoencoderSSDD.from_pretrained("ssdd-f8c4-demo").eval()
    with torch.inference_mode():
        x = torch.randn(8, *shape)
        for i in range(50):  # from noise, t = 1, to latents, t = 0
            x = x + model(torch.cat([x, torch.full_like(x[:, :1], 1 - i / 50)], dim=1)) / 50
        save_image(ae.decode(x / scale + shift).sample / 2 + 0.5, args.out / "samples.png")
    print(f"{args.out / 'samples.png'}: {len(x)} samples after {args.steps} updates on {len(data)} latents")


if __name__ == "__main__":  # processes that tokenize import this file
    main()
