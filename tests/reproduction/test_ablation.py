"""reproduction/ablation.py: a part that works is seen, a dead one costs nothing, and the network is left as it was."""

import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from reproduction.ablation import Result, ablate, main
from ssdd import AutoencoderSSDD
from ssdd.data.sources import open_source
from ssdd.evaluation.protocols import EvaluationSet, Protocol


@pytest.fixture(autouse=True)
def no_lpips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "no-torch-home"))


@pytest.fixture
def model() -> AutoencoderSSDD:
    """A tiny model in which every layer does something: at the start of a training many are zero."""
    torch.manual_seed(0)
    sizes = {"decoder_channels": (8, 16, 16, 16), "decoder_layers": 2, "decoder_heads": 2, "decoder_groups": 4}
    model = AutoencoderSSDD(block_out_channels=(32, 32, 32, 32), encoder_groups=8, **sizes)
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for block in model.decoder.middle.blocks:
            block.feed_forward.out.weight.mul_(4)
        model.decoder.middle.proj_out.weight.mul_(4)
    return model.eval()


@pytest.fixture
def photographs(tmp_path: Path, picture: Callable[..., np.ndarray]) -> Path:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for i in range(3):
        Image.fromarray(picture(40, 48, i)).save(folder / f"{i}.png")
    return folder


def run(model: AutoencoderSSDD, photographs: Path) -> list[Result]:
    return ablate(model, EvaluationSet(open_source([photographs]), Protocol("test-v1", "centre", 32)))


def changes(results: list[Result]) -> dict[str, float]:
    whole, *parts = results
    return {part.name: part.psnr - whole.psnr for part in parts}


def test_every_working_part_is_seen(model: AutoencoderSSDD, photographs: Path) -> None:
    """A part that the reconstruction needs is reported as useless, because its hook takes nothing away."""
    results = run(model, photographs)
    assert results[0].crops == 3
    assert list(changes(results)) == [
        "middle transformer",
        "middle block 0",
        "middle block 1",
        "everything at H/8",
        "everything at H/4 and coarser",
        "everything at H/2 and coarser",
        "skips at H/8",
        "skips at H/4",
        "skips at H/2",
        "skips at H",
        "context modulation",
        "latent beside the noise",
    ]
    assert all(change != 0.0 and math.isfinite(change) for change in changes(results).values()), changes(results)
    assert all(part.rms for part in results[1:])


def test_dead_part_costs_exactly_nothing(model: AutoencoderSSDD, photographs: Path) -> None:
    """Rounding or other noise would pass for a contribution, where the part has none."""
    with torch.no_grad():
        model.decoder.middle.proj_out.weight.zero_()
        model.decoder.middle.proj_out.bias.zero_()
    results = run(model, photographs)
    found = changes(results)
    assert [found[name] for name in ("middle transformer", "middle block 0", "middle block 1")] == [0.0, 0.0, 0.0]
    assert results[1].rms == 0.0
    assert found["everything at H/8"] != 0.0


def test_parameters_of_a_grid_are_idle_without_it(model: AutoencoderSSDD, photographs: Path) -> None:
    """The share of parameters that do nothing is wrong: one that is counted still has an effect, or one is left out."""
    decoder = model.decoder
    coarse = [decoder.middle, decoder.down[3], decoder.down[2].downsample, decoder.up[0]]
    before = run(model, photographs)
    with torch.no_grad():
        for parameter in torch.nn.ModuleList(coarse).parameters():
            parameter.normal_(std=0.1)
    after = run(model, photographs)
    a, b = (next(part for part in results if part.name == "everything at H/8") for results in (before, after))
    assert after[0].psnr != before[0].psnr
    assert b.psnr == a.psnr
    assert b.parameters == sum(p.numel() for p in torch.nn.ModuleList(coarse).parameters())


def test_network_is_left_as_it_was(model: AutoencoderSSDD, photographs: Path) -> None:
    """A hook stays behind, and every later number is that of a network without a part."""
    z = torch.randn(2, 4, 4, 4)
    with torch.inference_mode():
        before = model.decode(z).sample
        run(model, photographs)
        assert torch.equal(model.decode(z).sample, before)


def test_command_prints_the_table(
    tmp_path: Path, model: AutoencoderSSDD, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A table without the command, the crops or the number of them that it is about."""
    model.save_pretrained(tmp_path / "run" / "model")
    arguments = [str(tmp_path / "run"), "--data", str(photographs), "--side", "32", "--count", "2"]
    main(arguments)
    printed = capsys.readouterr().out
    command, _, about, _, *table = printed.splitlines()
    assert command == f"    python reproduction/ablation.py {' '.join(arguments)}"
    assert about.startswith("2 crops (centre-32: ")
    assert len({len(line) for line in table}) == 1, "columns are not aligned"
    assert re.fullmatch(r"\| --- +\|( +---: \|)+", table[1]), "Markdown would not see a table"
    assert len(table) == 2 + 1 + len(changes(run(model, photographs)))
