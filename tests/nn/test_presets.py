"""The table of sizes: parameter counts to the digit, parameter names of the released files."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from ssdd.checkpoints.layout import Expectation
from ssdd.checkpoints.names import AUTHORS_DECODER, AUTHORS_ENCODER
from ssdd.nn.decoder import Decoder
from ssdd.nn.encoder import Encoder
from ssdd.nn.presets import decoder_size, encoder_size

DECODER_PARAMETERS = {
    "XS": 4_996_611,
    "S": 14_057_059,
    "B": 21_140_459,
    "M": 50_280_147,
    "L": 90_759_939,
    "XL": 161_272_835,
    "H": 362_688_003,
}
ENCODER_PARAMETERS = {"f8c4": 34_163_664, "f16c4": 45_966_800, "f16c16": 46_078_400, "f32c64": 58_339_456}
LAYOUT = json.loads((Path(__file__).parents[1] / "assets" / "layout_sha256.json").read_text())


def layout_hash(expected: Expectation) -> str:
    """Hash of all names and shapes in the authors' layout, where the attention's matrices are 1x1 convolutions."""
    shapes = expected.module.state_dict()
    lines = []
    for theirs, ours in expected.names().items():
        shape = list(shapes[ours].shape)
        is_matrix = ours.startswith("middle.1.") and ours.endswith("weight") and len(shape) == 2
        lines.append(f"{theirs} {[*shape, 1, 1] if is_matrix else shape}")
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


@pytest.mark.parametrize("name", DECODER_PARAMETERS)
def test_decoder_size(name: str) -> None:
    """A decoder preset has another size, or other names, than the released one."""
    with torch.device("meta"):
        decoder = Decoder(decoder_size(name), 4)
    assert sum(p.numel() for p in decoder.parameters()) == DECODER_PARAMETERS[name]
    assert layout_hash(Expectation(decoder, AUTHORS_DECODER, "decoder.")) == LAYOUT[name]


@pytest.mark.parametrize("name", ENCODER_PARAMETERS)
def test_encoder_size(name: str) -> None:
    """An encoder preset has another size, or other names, than the released one."""
    with torch.device("meta"):
        encoder = Encoder(encoder_size(name))
    assert sum(p.numel() for p in encoder.parameters()) == ENCODER_PARAMETERS[name]
    assert layout_hash(Expectation(encoder, AUTHORS_ENCODER, "encoder.")) == LAYOUT[name]


def test_encoder_width_is_free() -> None:
    """The small encoders' option has no effect on the channels."""
    assert encoder_size("f8c4", 64).channels == (64, 128, 256, 256)
    assert encoder_size("f4c3", 32).channels == (32, 64, 128)
    assert encoder_size("f32c64").factor == 32


@pytest.mark.parametrize("name", ["f8", "c4", "f8c0", "f5c4", "f64c4", "F8C4", "f8c4x", ""])
def test_unknown_encoder_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="expected an encoder like f8c4"):
        encoder_size(name)


def test_unknown_decoder_and_width_are_refused() -> None:
    with pytest.raises(ValueError, match="one of XXS, XS, S"):
        decoder_size("xs")
    with pytest.raises(ValueError, match="multiple of 32"):
        encoder_size("f8c4", 48)
