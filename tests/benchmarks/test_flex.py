"""Windowed attention by FlexAttention, of benchmarks/gpu.py --flex, gives what the definition gives."""

from pathlib import Path
from types import ModuleType

import pytest
import torch

from ssdd.nn import ops
from ssdd.nn.decoder import Decoder
from ssdd.nn.presets import DecoderSize

RADIUS, HEADS, WIDTH = 7, 2, 8


@pytest.fixture
def flex(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    from peers import flex

    return flex


def attention_inputs(rows: int, columns: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    tokens = (torch.randn(2, HEADS, rows * columns, WIDTH, generator=generator) for _ in range(3))
    return *tokens, torch.randn(2 * RADIUS + 1, 2 * RADIUS + 1, HEADS, generator=generator)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("grid", [(1, 1), (8, 16), (9, 17), (24, 33), (40, 20)])
def test_it_is_the_definition(flex: ModuleType, grid: tuple[int, int]) -> None:
    inputs = attention_inputs(*grid)
    found, expected = flex.windowed_attention(*inputs, grid), ops.windowed_attention(*inputs, grid)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_a_compiled_decoder_has_it_in_its_graph(flex: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    decoder = Decoder(DecoderSize((32, 32), layers=1, heads=2, groups=8), 4).eval()
    torch.nn.init.normal_(decoder.middle.blocks[0].attention.bias_table)
    x, t, z = torch.randn(1, 3, 64, 64), torch.ones(1), torch.randn(1, 4, 8, 8)  # 32 x 32 tokens
    used = []
    original = flex.windowed_attention
    monkeypatch.setattr(flex, "windowed_attention", lambda *args: used.append(1) or original(*args))
    with torch.inference_mode():
        expected = decoder(x, t, z)
        with flex.used():
            found = torch.compile(decoder, backend="eager", fullgraph=True)(x, t, z)
    assert used, "the graph attends by copied blocks"
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
