"""examples/onnx_runtime.py, with an export that was made before: one takes a minute."""

import json
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ssdd.export import files
from tests.export.conftest import Exported

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "examples" / "onnx_runtime.py"


def test_example_of_onnx_runtime(
    exported: Exported,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    picture: Any,
) -> None:
    def export_model(model: Any, folder: Path, name: str) -> files.Export:
        assert (type(model).__name__, name) == ("AutoencoderSSDD", "ssdd-f8c4-demo")
        shutil.copytree(exported.folder, folder)
        about = json.loads((folder / "export.json").read_text())
        (folder / "export.json").write_text(json.dumps(about | {"model": name}))
        return exported.result

    monkeypatch.setattr(files, "export_model", export_model)
    monkeypatch.chdir(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.fromarray(picture(92, 60)).save("photo.jpg", exif=exif)
    monkeypatch.setattr(sys, "argv", ["onnx_runtime.py", "photo.jpg"])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    out = capsys.readouterr().out
    assert "encoder.onnx, decoder.onnx, export.json" in out
    assert "latent (4, 7, 11), PSNR" in out
    assert Image.open("reconstructed.png").size == (88, 56)
    monkeypatch.setattr(sys, "argv", ["onnx_runtime.py", "photo.jpg", "--model", "another"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert "onnx: expected another, found ssdd-f8c4-demo: take another --folder" in capsys.readouterr().err
