"""Small models whose every layer counts, and one export of them for all tests."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ssdd.autoencoder import AutoencoderSSDD
from ssdd.export.files import Export, export_model

XXS = (32, 64, 96, 96)


def random_model(factor: int = 8, channels: tuple[int, ...] = XXS, **config: Any) -> AutoencoderSSDD:
    """Narrow, one transformer block, and no zeros: a fresh model hides half of its layers behind zero weights."""
    encoder = (32, 64, 96, 96, 96, 96)[: factor.bit_length()]
    sizes = {"decoder_channels": channels, "decoder_layers": 1, "decoder_groups": 8}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoencoderSSDD(encoder, **sizes, **config)
        for name, parameter in model.named_parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.5 if "bias_table" in name else 0.05)
    return model.eval()


@dataclass(frozen=True)
class Exported:
    """A model, the folder of its ONNX files, and what the export told."""

    model: AutoencoderSSDD
    folder: Path
    result: Export


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Factor 8, encoder and decoder, with a seed and statistics of its own."""
    pytest.importorskip("onnxscript", reason="needs ssdd[onnx]")
    model = random_model(noise_seed=7, scaling_factor=0.5, shift_factor=0.25)
    folder = tmp_path_factory.mktemp("exported") / "onnx"
    return Exported(model, folder, export_model(model, folder, "mine"))
