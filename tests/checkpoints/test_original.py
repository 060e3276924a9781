"""The authors' layout: every published combination loads; anything else is refused with the first differences."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ssdd import AutoencoderSSDD
from ssdd.checkpoints.layout import CheckpointError
from ssdd.checkpoints.names import AUTHORS_DECODER, AUTHORS_ENCODER, DIFFUSERS_ENCODER, rename
from ssdd.checkpoints.original import read_original
from ssdd.nn.decoder import Decoder
from ssdd.nn.encoder import Encoder
from ssdd.nn.presets import decoder_size, encoder_size
from tests.golden import fill

ENCODERS = ["f8c4", "f16c4", "f16c16", "f32c64"]


def authors_tensors(decoder: Decoder, encoder: Encoder | None, diffusers: bool = False) -> dict[str, Tensor]:
    """A state dict as in a released file: the attention's matrices are 1x1 convolutions there."""
    tensors = {f"decoder.{rename(k, AUTHORS_DECODER)}": v for k, v in decoder.state_dict().items()}
    for name, tensor in encoder.state_dict().items() if encoder is not None else ():
        theirs = rename(name, DIFFUSERS_ENCODER) if diffusers else f"encoder.{rename(name, AUTHORS_ENCODER)}"
        is_matrix = tensor.dim() == 2 and not diffusers
        tensors[theirs] = tensor[:, :, None, None] if is_matrix else tensor
    return tensors


def meta_file(encoder: str | None, size: str, latent_channels: int = 4) -> dict[str, Tensor]:
    """Names and shapes alone."""
    with torch.device("meta"):
        chosen = None if encoder is None else encoder_size(encoder)
        channels = latent_channels if chosen is None else chosen.latent_channels
        return authors_tensors(Decoder(decoder_size(size), channels), None if chosen is None else Encoder(chosen))


@pytest.fixture(scope="module")
def small() -> dict[str, Tensor]:
    """A complete small file: XXS decoder and a width-32 encoder, filled by the golden formula."""
    decoder, encoder = Decoder(decoder_size("XXS"), 4), Encoder(encoder_size("f8c4", 32))
    fill(decoder, AUTHORS_DECODER)
    fill(encoder, AUTHORS_ENCODER)
    return authors_tensors(decoder, encoder)


@pytest.mark.parametrize(
    ("encoder", "size"), [*((name, "S") for name in ENCODERS), *((ENCODERS[0], size) for size in ("B", "M", "L", "XL"))]
)
def test_every_published_size_is_recognised(encoder: str, size: str) -> None:
    """One of the twenty files with an encoder, which are all pairs of these, is not read or taken for another size."""
    found = read_original(meta_file(encoder, size))
    assert (found.encoder, found.decoder) == (encoder, size)
    with torch.device("meta"):
        model = AutoencoderSSDD(**found.config)
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in found.state.items()}


@pytest.mark.parametrize("size", ["S", "B", "M", "L"])
def test_decoders_of_sd_vae_latents_are_recognised(size: str) -> None:
    """The four SD-VAE files: without an encoder, or with one in diffusers' names."""
    found = read_original(meta_file(None, size))
    assert (found.encoder, found.decoder, found.config["has_encoder"]) == ("none", size, False)
    with torch.device("meta"):
        tensors = authors_tensors(Decoder(decoder_size(size), 4), Encoder(encoder_size("f8c4")), diffusers=True)
    assert read_original(tensors).encoder == "f8c4"


def test_values_arrive_where_they_belong(small: dict[str, Tensor], tmp_path: Path) -> None:
    """From a path or a mapping: the same model, and its parameters are the formula of the authors' names."""
    save_file({k: v.contiguous() for k, v in small.items()}, tmp_path / "x.safetensors")
    from_file = AutoencoderSSDD.from_original(tmp_path / "x.safetensors")
    from_mapping = AutoencoderSSDD.from_original(small, num_inference_steps=1)
    assert from_file.config.num_inference_steps == 8
    assert from_mapping.config.num_inference_steps == 1
    decoder, encoder = Decoder(decoder_size("XXS"), 4), Encoder(encoder_size("f8c4", 32))
    fill(decoder, AUTHORS_DECODER)
    fill(encoder, AUTHORS_ENCODER)
    for model in (from_file, from_mapping):
        assert all(torch.equal(v, decoder.state_dict()[k]) for k, v in model.decoder.state_dict().items())
        assert all(torch.equal(v, encoder.state_dict()[k]) for k, v in model.encoder.state_dict().items())


def refused(tensors: dict[str, Tensor], *parts: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_original(tensors)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_differences_are_named(small: dict[str, Tensor]) -> None:
    without = {k: v for k, v in small.items() if k != "decoder.conv_out.bias"}
    refused(without, "1 differences", "no decoder.conv_out.bias")
    refused(small | {"decoder.extra": torch.zeros(1)}, "unexpected decoder.extra")
    refused(small | {"decoder.conv_out.bias": torch.zeros(4)}, "decoder.conv_out.bias is [4], expected [3]")
    refused(small | {"decoder.conv_out.bias": torch.zeros(3, dtype=torch.int64)}, "expected floating point")
    refused({f"model.{k}": v for k, v in small.items()}, "expected the authors' layout with decoder.conv_in.weight")
    refused({}, "found 0 tensors")
    mixed = {k: v for k, v in meta_file("f16c16", "S").items() if k.startswith("encoder.")}
    mixed |= {k: v for k, v in meta_file("f8c4", "S").items() if k.startswith("decoder.")}
    refused(mixed, "the encoder has 16 latent channels, the decoder 4")


def test_many_differences_are_counted(small: dict[str, Tensor]) -> None:
    half = dict(list(small.items())[::2]) | {
        k: v for k, v in small.items() if "conv_in" in k or "conv1.weight" in k or "bias_table" in k or "out_proj" in k
    }
    refused(half, "differences from the expected layout", "; and ")


def test_hostile_shapes_are_refused(small: dict[str, Tensor]) -> None:
    """Sizes are built from a file's shapes: absurd ones must not be."""
    key = "decoder.down_blocks.0.resnets.0.conv1.weight"
    refused(small | {key: torch.zeros(33, 32, 3, 3)}, "multiples of 32")
    refused(small | {key: torch.zeros(0, 32, 3, 3)}, "multiples of 32")
    refused(small | {key: torch.zeros(32)}, "4 dimensions")
    refused(small | {"decoder.conv_in.weight": torch.zeros(32, 3, 3, 3)}, "0 latent channels")
    refused(small | {"decoder.mid_block.transformer_blocks.900.x": torch.zeros(1)}, "at most 64 layers")


@pytest.mark.parametrize("content", ["truncated", "text", "empty", "missing", "folder"])
def test_files_that_are_none(content: str, small: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({k: v.contiguous() for k, v in small.items()}, path)
    if content == "truncated":
        path.write_bytes(path.read_bytes()[:-1000])
    elif content == "text":
        path.write_text("not tensors at all, but long enough to have a header")
    elif content == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
        if content == "folder":
            path.mkdir()
    with pytest.raises(CheckpointError, match=r"x\.safetensors: expected a") as caught:
        read_original(path)
    assert "\n" not in str(caught.value)
