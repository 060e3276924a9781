"""Networks compute what their own library does, and report the right sizes and counts."""

import json
import shutil
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ssdd import AutoencoderSSDD
from ssdd.evaluation.contestants import load_contestant
from tests.evaluation.contestants.models import LATENTS, images


@pytest.mark.parametrize("kind", ["AutoencoderKL", "AutoencoderTiny", "AutoencoderDC"])
def test_peers_compute_what_diffusers_does(kind: str, folders: dict[str, Path]) -> None:
    """A peer is shown worse or better than it is: a latent that is scaled or sampled, another range of the image."""
    model = getattr(diffusers, kind).from_pretrained(folders[kind]).eval()
    with torch.no_grad():
        encoded = model.encode(images())
        z = encoded.latent_dist.mode() if kind == "AutoencoderKL" else encoded[0]
        expected = model.decode(z).sample
    contestant = load_contestant(str(folders[kind]))
    torch.testing.assert_close(contestant.encode(images()), z, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(contestant.decode(z), expected, atol=1e-5, rtol=1e-5)


def test_ours_computes_what_the_autoencoder_does(folders: dict[str, Path]) -> None:
    """Our own model is measured on another latent, another number of steps, or not on fresh noise for each image."""
    model = AutoencoderSSDD.from_pretrained(folders["AutoencoderSSDD"]).eval()
    contestant = load_contestant(str(folders["AutoencoderSSDD"]))
    with torch.no_grad():
        z = model.encode(images()).latent_dist.mode()
        torch.testing.assert_close(contestant.encode(images()), z, atol=1e-5, rtol=1e-5)
        seen: list[Tensor] = []
        model.decoder.register_forward_hook(lambda module, args, output: seen.append(args[0]))
        contestant.model.decoder.register_forward_hook(lambda module, args, output: seen.append(args[0]))
        y = contestant.decode(z, steps=2)
        noise = seen[0]
        torch.testing.assert_close(y, model.decode(z, num_inference_steps=2, noise=noise).sample, atol=1e-4, rtol=1e-4)
    assert len(seen) == 4
    assert noise.mean().abs() < 0.05
    assert abs(noise.std() - 1) < 0.05
    assert (noise[0] - noise[1]).std() > 1
    assert contestant.describe()["steps"] == model.config.num_inference_steps


def test_consistency_decoder_rescales_once(folders: dict[str, Path]) -> None:
    """The decoder that normalises its latent itself would get a normalised one, or its noise would not be ours."""
    model = diffusers.ConsistencyDecoderVAE.from_pretrained(folders["ConsistencyDecoderVAE"]).eval()
    contestant = load_contestant(str(folders["ConsistencyDecoderVAE"]))
    z = contestant.encode(images(1))
    state = np.random.SeedSequence([5, 7]).generate_state(1, np.uint64)[0]
    with torch.no_grad():
        torch.testing.assert_close(z, model.encode(images(1)).latent_dist.mode(), atol=1e-5, rtol=1e-5)
        expected = model.decode(z, generator=torch.Generator().manual_seed(int(state >> np.uint64(1)))).sample
    torch.testing.assert_close(contestant.decode(z, seed=5, numbers=[7]), expected, atol=1e-4, rtol=1e-4)
    assert contestant.describe()["steps"] == 2
    with pytest.raises(ValueError, match="expected 2 decoding steps, no other number, found 1"):
        contestant.decode(z, steps=1)


def test_tiny_decodes_to_the_range_of_images(folders: dict[str, Path]) -> None:
    """AutoencoderTiny's networks work in [0, 1]: a zero of its last layer is black, not grey."""
    contestant = load_contestant(str(folders["AutoencoderTiny"]))
    last = contestant.model.decoder.layers[-1]
    nn.init.zeros_(last.weight), nn.init.zeros_(last.bias)
    assert torch.equal(contestant.decode(torch.zeros(1, 4, 2, 2)), torch.full((1, 3, 8, 8), -1.0))


@pytest.mark.parametrize("kind", ["AutoencoderSSDD", "ConsistencyDecoderVAE"])
def test_noise_is_the_images_own(kind: str, folders: dict[str, Path]) -> None:
    """Results change with the batch size or the number of processes, or the seed does nothing."""
    contestant = load_contestant(str(folders[kind]))
    z = contestant.encode(images())[[0, 1, 0]]
    together = contestant.decode(z, seed=3, numbers=[10, 4, 12])
    apart = torch.cat([contestant.decode(z[i : i + 1], seed=3, numbers=[n]) for i, n in enumerate([10, 4, 12])])
    torch.testing.assert_close(together, apart, atol=1e-4, rtol=1e-4)
    torch.manual_seed(12)  # torch's own generator has no part in it
    assert torch.equal(contestant.decode(z, seed=3, numbers=[10, 4, 12]), together)
    for other in (together[2:], contestant.decode(z[:1], seed=4, numbers=[10])):
        assert (other - together[:1]).abs().max() > 1e-3, "two indices or two seeds share their noise"


@pytest.mark.parametrize("kind", LATENTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_sizes_and_counts(kind: str, dtype: torch.dtype, folders: dict[str, Path]) -> None:
    """A column of the table is wrong: parameters, bytes of the latent, FLOPs, the dtype; or half precision fails."""
    contestant = load_contestant(str(folders[kind]), "cpu", dtype)
    channels, factor = LATENTS[kind]
    z = contestant.encode(images(2))
    y = contestant.decode(z)
    assert contestant.spatial_factor == factor
    assert z.shape == (2, channels, 32 // factor, 48 // factor)
    assert (z.dtype, y.dtype, y.shape) == (dtype, torch.float32, (2, 3, 32, 48))
    assert contestant.latent_bytes(32, 48) == z[0].numel() * 2
    tensors = load_file(next(folders[kind].glob("*.safetensors")))
    decoder = sum(t.numel() for k, t in tensors.items() if not k.startswith(("encoder.", "quant_conv.")))
    assert contestant.parameters == sum(t.numel() for t in tensors.values())
    assert contestant.decoder_parameters == decoder < contestant.parameters
    described = json.loads(json.dumps(contestant.describe()))
    assert (described["kind"], described["dtype"]) == (kind, str(dtype).removeprefix("torch."))
    assert described["latent"] == f"({channels}, H/{factor}, W/{factor})"
    assert [len(digest) for digest in described["sha256"].values()] == [64]
    if dtype == torch.float32:
        flops = contestant.flops(32, 32)
        assert flops is not None
        assert min(flops) > 0
        assert sum(contestant.flops(64, 32) or ()) > 1.9 * sum(flops)


def test_flops_by_hand(folders: dict[str, Path]) -> None:
    """Multiplications and additions are counted once, for a batch, or without some layers: here convolutions alone."""
    contestant = load_contestant(str(folders["AutoencoderTiny"]))
    counted = 0

    def add(module: nn.Conv2d, args: tuple[Tensor], output: Tensor) -> None:
        nonlocal counted
        counted += 2 * output[0].numel() * module.in_channels * module.kernel_size[0] * module.kernel_size[1]

    for module in contestant.model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(add)
    z = contestant.encode(images(2))
    encoding, counted = counted, 0
    contestant.decode(z)
    by_hand = (encoding, counted)
    assert contestant.flops(32, 48) == by_hand


def test_default_steps_count_in_flops(folders: dict[str, Path], tmp_path: Path) -> None:
    """A decoder of eight steps would look as cheap as one of a single step."""
    folder = Path(shutil.copytree(folders["AutoencoderSSDD"], tmp_path / "eight"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_inference_steps": 8}))
    one = load_contestant(str(folders["AutoencoderSSDD"])).flops(32, 32)
    eight = load_contestant(str(folder)).flops(32, 32)
    assert one is not None
    assert eight == (one[0], 8 * one[1])


def test_wrong_shapes_and_steps(folders: dict[str, Path]) -> None:
    """A wrong batch gives a traceback of a library, or is measured; steps are ignored where there are none."""
    contestant = load_contestant(str(folders["AutoencoderKL"]))
    for wrong in (torch.zeros(1, 3, 31, 32), torch.zeros(1, 1, 32, 32), torch.zeros(3, 32, 32)):
        with pytest.raises(ValueError, match=r"^autoencoderkl: expected images \(B, 3, H, W\) with H and W multiples"):
            contestant.encode(wrong)
    with pytest.raises(ValueError, match=r"expected a latent \(1, 6, 2, 2\) .* found torch.float32 \(1, 4, 2, 2\)"):
        contestant.decode(torch.zeros(1, 4, 2, 2))
    with pytest.raises(ValueError, match=r"expected no number of decoding steps, .* found 4"):
        contestant.decode(torch.zeros(1, 6, 2, 2), steps=4)


def test_nan_is_shown(folders: dict[str, Path]) -> None:
    """An overflow in half precision would be hidden from the caller."""
    contestant = load_contestant(str(folders["AutoencoderTiny"]))
    assert contestant.decode(torch.full((1, 4, 2, 2), torch.nan)).isnan().any()
