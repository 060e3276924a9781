"""docs/drop-in.md: a reader who pastes its Python, block by block, gets through."""

import re
from pathlib import Path

import pytest
import torch

from ssdd import AutoencoderSSDD
from tests.pipelines.components import build, kl_vae

GUIDE = Path(__file__).parents[2] / "docs" / "drop-in.md"


def test_the_guides_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 6, "expected the guide's six blocks"
    monkeypatch.chdir(tmp_path)
    build("SD", kl_vae(block_out_channels=(32, 32, 32, 32))).save_pretrained("my-pipeline")
    names: dict[str, object] = {}
    for i, block in enumerate(blocks):
        exec(compile(block, f"block {i} of {GUIDE.name}", "exec"), names)
        if "from_kl_vae" in block:  # what the training command of the guide leaves, but for the training
            found = names["ae"]
            assert isinstance(found, AutoencoderSSDD)
            found.save_pretrained("runs/drop-in/model")
    half = names["half"]
    assert half.vae.dtype == torch.float16  # type: ignore[attr-defined]
    assert names["image"].size == (32, 32)  # type: ignore[attr-defined]
