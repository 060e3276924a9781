"""The user's own code as a contestant."""

from pathlib import Path

import pytest
import torch
from torch import nn

from ssdd.evaluation.contestants import load_contestant
from tests.evaluation.contestants.models import images, refused

CODE = '''
import torch
from torch import nn


class Patches(nn.Module):
    """Mean of 8 x 8 pixels, and back: 3 x 3 weights each way, and a layer that is never used."""

    spatial_factor, latent_channels = 8, 3

    def __init__(self):
        super().__init__()
        self.there, self.back, self.idle = nn.Conv2d(3, 3, 1), nn.Linear(3, 3, bias=False), nn.Linear(100, 100)
        with torch.no_grad():
            for layer in (self.there, self.back):
                layer.weight.copy_(torch.eye(3).view_as(layer.weight))
            self.there.bias.zero_()

    def encode(self, x):
        return nn.functional.avg_pool2d(self.there(x), 8)

    def decode(self, z):
        return self.back(z.movedim(1, -1)).movedim(-1, 1).repeat_interleave(8, 2).repeat_interleave(8, 3)


class EncoderAlone:
    spatial_factor, latent_channels = 8, 3
    encode = Patches.encode


class Small(Patches):
    def decode(self, z):
        return z


class Broken(Patches):
    def decode(self, z):
        raise RuntimeError("two\\nlines")
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, now the current one, with the user's code."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(CODE)
    return tmp_path


def test_own_code(own: Path) -> None:
    """A tokenizer that is no class of diffusers cannot be compared, or with wrong counts."""
    contestant = load_contestant("mine.py:Patches", "cpu", torch.bfloat16)
    assert (contestant.name, contestant.spatial_factor) == ("mine.py:Patches", 8)
    assert (contestant.parameters, contestant.decoder_parameters) == (12 + 9, 9)
    described = contestant.describe()
    assert (described["kind"], described["dtype"], described["steps"]) == ("Patches", "bfloat16", None)
    assert list(described["sha256"]) == ["mine.py"]
    z = contestant.encode(images())
    assert (z.dtype, z.shape, contestant.latent_bytes(32, 48)) == (torch.bfloat16, (3, 3, 4, 6), 2 * 3 * 4 * 6)
    contestant = load_contestant("mine:Patches")
    means = nn.functional.avg_pool2d(images(), 8)
    torch.testing.assert_close(contestant.encode(images()), means)
    y = contestant.decode(means)
    torch.testing.assert_close(y, means.repeat_interleave(8, 2).repeat_interleave(8, 3))
    pixels, cells = 32 * 48, 4 * 6
    assert contestant.flops(32, 48) == (2 * 9 * pixels, 2 * 9 * cells)


def test_own_code_that_does_not_fit(own: Path) -> None:
    """What is wrong with the user's code comes to light after hours, or as a traceback."""
    refused("mine.py:EncoderAlone", r"^mine.py:EncoderAlone: expected an object with decode\(z\) besides encode\(x\)")
    refused("mine.py:Small", r"^mine.py:Small: .* found ValueError: .*expected images \(1, 3, 256, 256\)")
    refused("mine.py:Broken", "^mine.py:Broken: .* found RuntimeError: two lines")
    refused("mine.py:Nothing", "^mine.py:Nothing: expected Nothing in mine.py", ImportError)
    refused("other.py:Patches", "^other.py:Patches: expected a Python file other.py", FileNotFoundError)
