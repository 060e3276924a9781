"""A user's own encoder, frozen and trained; its weights beside the model, and a digest of what decides its latents."""

import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ssdd import AutoencoderSSDD
from ssdd.checkpoints.encoders import encoder_digest, load_encoder_of
from ssdd.checkpoints.layout import CheckpointError
from ssdd.checkpoints.own_code import OWN_ENCODER, ForeignEncoder, load_own_encoder, save_own_encoder

CODE = """
import torch
from torch import nn


class Encoder(nn.Module):
    spatial_factor, latent_channels = 8, 4

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 8, stride=8)
        self.norm = nn.BatchNorm2d(4)
        self.tied = self.conv.bias
        nn.init.constant_(self.conv.weight, 0.01)
        nn.init.zeros_(self.conv.bias)

    def encode(self, x):
        return self.norm(self.conv(x))


class Wider(Encoder):
    def __init__(self):
        super().__init__()
        self.conv, self.extra = nn.Conv2d(3, 4, 9, stride=8, padding=1), nn.Linear(2, 2)


class Plain:
    spatial_factor, latent_channels = 8, 3

    def encode(self, x):
        return nn.functional.avg_pool2d(x, 8)
"""
X = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1


class _Net(nn.Module):
    spatial_factor, latent_channels = 8, 2

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.drop = nn.Conv2d(3, 2, 8, stride=8), nn.Dropout(0.5)

    def encode(self, x: Tensor) -> Tensor:
        return self.drop(self.conv(x))


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, now the current one, with the user's code."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(CODE)
    return tmp_path


def trained(folder: Path) -> ForeignEncoder:
    """The encoder after a training, its weights saved."""
    encoder = load_own_encoder("mine.py:Encoder", folder)
    with torch.no_grad():
        encoder.source.conv.bias.add_(1.0)
        encoder.source.norm.running_mean.add_(0.5)
    save_own_encoder(encoder, folder)
    return encoder


def test_a_trainable_encoder_trains() -> None:
    """An encoder that is trained with its decoder would stay frozen, in eval mode or outside autocast."""
    encoder = ForeignEncoder(_Net(), "mine", trainable=True)
    assert encoder.source.training
    encoder(X).square().sum().backward()
    assert encoder.source.conv.weight.grad is not None
    assert not torch.equal(encoder(X), encoder(X)), "dropout is not at work"
    encoder.eval()
    assert torch.equal(encoder(X), encoder(X))
    with torch.autocast("cpu", torch.bfloat16):
        inside = encoder(X)
    assert inside.dtype == torch.float32
    assert not torch.equal(inside, encoder(X)), "it does not run under autocast"
    encoder.train()
    assert encoder.source.training


def test_what_cannot_be_trained_is_refused() -> None:
    """A training of nothing would be found out after hours."""

    class Plain:
        spatial_factor, latent_channels = 8, 3

        def encode(self, x: Tensor) -> Tensor:
            return nn.functional.avg_pool2d(x, 8)

    for source in (Plain(), _Net().requires_grad_(False)):
        with pytest.raises(ValueError, match=r"^mine: expected an nn\.Module with parameters that require gradients"):
            ForeignEncoder(source, "mine", trainable=True)


def test_trained_weights_lie_beside_the_model(code: Path) -> None:
    """The encoder would be used as the code makes it, not as it was trained; or tied weights cannot be saved."""
    before = load_own_encoder("mine.py:Encoder", code)
    encoder = trained(code)
    loaded = load_own_encoder("mine.py:Encoder", code)
    assert torch.equal(loaded(X), encoder(X))
    assert not torch.equal(loaded(X), before(X))
    assert not any(p.requires_grad for p in loaded.parameters())
    assert not loaded.source.training


def test_weights_of_another_encoder_are_refused(code: Path) -> None:
    """Weights that do not fit would end in a traceback, or be left out in part."""
    trained(code)
    with pytest.raises(CheckpointError, match=r"own_encoder\.safetensors: expected the weights of mine\.py:Wider") as e:
        load_own_encoder("mine.py:Wider", code)
    assert "no extra.weight" in str(e.value)
    assert "3 differences" in str(e.value)
    with pytest.raises(CheckpointError, match=r"expected mine\.py:Plain as an nn\.Module"):
        load_own_encoder("mine.py:Plain", code)
    (code / OWN_ENCODER).write_bytes((code / OWN_ENCODER).read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"own_encoder\.safetensors: expected a complete safetensors file"):
        load_own_encoder("mine.py:Encoder", code)


def test_the_digest_covers_weights_name_and_code(code: Path) -> None:
    """Latents of another encoder would be taken for the same ones."""
    digests = {encoder_digest(load_own_encoder("mine.py:Encoder", code))}
    assert encoder_digest(load_own_encoder(f"{code}/mine.py:Encoder", code)) in digests, "the path is no part of it"
    trained(code)
    digests.add(encoder_digest(load_own_encoder("mine.py:Encoder", code)))
    state = load_file(code / OWN_ENCODER)
    save_file({k: v + 1 if k == "norm.running_var" else v for k, v in state.items()}, code / OWN_ENCODER)
    digests.add(encoder_digest(load_own_encoder("mine.py:Encoder", code)))
    (code / "mine.py").write_text(CODE + "\nOther = Encoder\n")
    digests.add(encoder_digest(load_own_encoder("mine.py:Encoder", code)))
    digests.add(encoder_digest(load_own_encoder("mine.py:Other", code)))
    assert len(digests) == 5


def test_trained_weights_of_a_hub_id(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of the hub would be used with the encoder as the code makes it, for its weights were not downloaded."""
    with torch.random.fork_rng(devices=[]):
        AutoencoderSSDD.from_preset("f8c4", "XXS", has_encoder=False).save_pretrained(code / "remote")
    encoder = trained(code / "remote")

    def fetch(repository: str, file: str, **options: object) -> str:
        if not (code / "remote" / file).is_file():
            raise EntryNotFoundError.__new__(EntryNotFoundError)
        (code / "cache").mkdir(exist_ok=True)
        return str(shutil.copy(code / "remote" / file, code / "cache" / file))

    monkeypatch.setattr("ssdd.checkpoints.places.hf_hub_download", fetch)
    assert torch.equal(load_encoder_of("somebody/model", "mine.py:Encoder")(X), encoder(X))
