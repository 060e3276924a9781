"""``bench.plain``: the straightforward implementation is the same network, so that the comparison is one of speed."""

import pytest
import torch
from torch import nn

from ssdd import AutoencoderSSDD
from ssdd.bench.plain import PlainDecoder
from ssdd.nn.decoder import Decoder
from ssdd.nn.presets import DecoderSize, decoder_size

THREE_LEVELS = DecoderSize((32, 32, 64), layers=2, heads=2, groups=4)


def twins(size: DecoderSize, latent_channels: int) -> tuple[Decoder, PlainDecoder]:
    """Ours, with random weights everywhere, also where it starts with zeros, and the plain one with the same."""
    torch.manual_seed(0)
    ours = Decoder(size, latent_channels).eval().requires_grad_(False)
    for name, p in ours.named_parameters():
        if p.dim() == 1:
            nn.init.normal_(p, mean=float("norm" in name and name.endswith("weight")), std=0.1)
        else:
            nn.init.normal_(p, std=1.0 if name.endswith("bias_table") else p[0].numel() ** -0.5)
    plain = PlainDecoder(size.channels, size.layers, size.heads, size.groups, latent_channels).eval()
    plain.load_state_dict(ours.state_dict())
    return ours, plain.requires_grad_(False)


@pytest.mark.parametrize(
    ("size", "pixels", "grid"),
    [
        ("XXS", (64, 64), (8, 8)),  # f8
        ("XXS", (64, 96), (4, 6)),  # f16
        ("XXS", (32, 64), (8, 16)),  # f4: a finer grid than the tokens'
        ("XXS", (72, 136), (9, 17)),  # odd levels
        ("XXS", (51, 37), (6, 5)),  # no whole cells
        ("XS", (64, 64), (2, 2)),  # f32
        (THREE_LEVELS, (40, 24), (5, 3)),
        (THREE_LEVELS, (96, 100), (12, 25)),  # 24 x 25 tokens: by blocks
    ],
)
def test_equals_the_decoder(size: str | DecoderSize, pixels: tuple[int, int], grid: tuple[int, int]) -> None:
    ours, plain = twins(size if isinstance(size, DecoderSize) else decoder_size(size), latent_channels=5)
    x_t, z, t = torch.randn(2, 3, *pixels), torch.randn(2, 5, *grid), torch.tensor([0.3, 1.0])
    expected = ours(x_t, t, z)
    assert expected.std() > 0.1, "a network that says nothing proves nothing"
    found = plain(x_t, t, z)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    ours.to(memory_format=torch.channels_last)
    torch.testing.assert_close(found, ours(x_t, t, z), rtol=0, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 3])
def test_decodes_the_same_image(steps: int) -> None:
    autoencoder = AutoencoderSSDD.from_preset("f8c4", "XXS", has_encoder=False).eval().requires_grad_(False)
    _, plain = twins(decoder_size("XXS"), 4)
    autoencoder.decoder.load_state_dict(plain.state_dict())
    z, noise = torch.randn(2, 4, 5, 6), torch.randn(2, 3, 40, 48)
    expected = autoencoder.decode(z, noise=noise, num_inference_steps=steps).sample
    torch.testing.assert_close(plain.decode(z, noise, steps), expected, rtol=0, atol=1e-5)
