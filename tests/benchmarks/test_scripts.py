"""Every script of benchmarks, as a user calls it, in its smallest settings; no assertion is about speed."""

import argparse
import json
import runpy
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ssdd import AutoencoderSSDD
from ssdd.nn.presets import DECODERS, DecoderSize
from ssdd.objectives.perceptual import backbone_path

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
QUICK = ("--device", "cpu", "--dtype", "fp32", "--rounds", "2", "--seconds", "0")
SMALL = (*QUICK, "--decoders", "XXS", "--sizes", "32")

Script = Callable[..., str]


@pytest.fixture
def script(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Script:
    """``script("decode", "--rounds", 1)`` runs ``python benchmarks/decode.py --rounds 1`` and returns its output."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr("ssdd.runtime.peak.peak_flops", lambda *_, **__: 1e12)  # the machine's own takes seconds
    monkeypatch.setitem(DECODERS, "XXS", DecoderSize((32, 32), layers=1, heads=2, groups=8))  # compiled sooner
    sys.modules.pop("common", None)

    def run(name: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [str(FOLDER / f"{name}.py"), *map(str, arguments)])
        capsys.readouterr()
        runpy.run_path(sys.argv[0], run_name="__main__")
        return capsys.readouterr().out

    yield run
    sys.modules.pop("common", None)


@pytest.fixture
def photographs(tmp_path: Path, picture: Callable[..., np.ndarray]) -> Path:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for i in range(8):
        Image.fromarray(picture(64, 72, i)).save(folder / f"{i}.png")
    return folder


def read(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text())["rows"]


def test_decode(script: Script, tmp_path: Path) -> None:
    """The transposed convolution saves work that the plain network does; more steps are more work."""
    pytest.importorskip("matplotlib", reason="pip install 'ssdd[eval]'")
    out, plot = tmp_path / "now.json", tmp_path / "now.png"
    peers = ("--peers", "tiny", "plain", "eager")
    printed = script("decode", *SMALL, *peers, "--sizes", 32, 64, "--out", out, "--plot", plot)
    rows = read(out)
    names = ["Tiny-VAE f8c4", "plain-XXS f8c4", "eager-XXS f8c4", "SSDD-XXS f8c4"]
    assert [(row["model"], row["px"]) for row in rows] == [(name, side) for side in (32, 64) for name in names]
    _, plain, eager, ours = rows[:4]
    assert plain["GFLOP"] > eager["GFLOP"] == ours["GFLOP"] > 0
    assert rows[0]["speed"] == 1
    assert len(ours["seconds"]) == 2
    assert ours["images/s"] == pytest.approx(1 / statistics.median(ours["seconds"]))
    assert ours["of peak"] == pytest.approx(ours["GFLOP"] * ours["images/s"] / 1e3)
    assert all(part in printed for part in ("images/s", "spread", "dtype fp32", "steps 1"))
    assert Image.open(plot).size[0] > 100
    with pytest.raises(SystemExit):  # the same file again
        script("decode", *SMALL, "--peers", "--out", out)


def test_onnx(script: Script, tmp_path: Path) -> None:
    for package in ("onnxruntime", "onnxscript"):
        pytest.importorskip(package, reason="pip install 'ssdd[onnx]'")
    script("decode", *SMALL, "--peers", "onnx", "--out", tmp_path / "now.json")
    assert [row["model"] for row in read(tmp_path / "now.json")] == ["onnx-XXS f8c4", "SSDD-XXS f8c4"]
    with pytest.raises(SystemExit):  # unlike work
        script("decode", *SMALL, "--peers", "onnx", "--dtype", "bf16")


def test_decoders_do_the_same_work(script: Script) -> None:
    """A model that makes other images than the others is measured."""
    import common

    assert script
    for kind in ("kl", "tiny", "eager", "plain", "SSDD"):
        model = common.build_decoder(kind, "XXS", "f16c3", 1, "cpu", torch.float32)
        with torch.inference_mode():
            assert model.call(32, 2)().shape == (2, 3, 32, 32), kind


def test_turns(script: Script) -> None:
    """One model would be measured while the machine is busy, the other one after that."""
    import common

    assert script
    names: list[str] = []
    calls = {name: lambda name=name: names.append(name) for name in ("a", "b")}
    times = common.take_turns(calls, argparse.Namespace(device="cpu", rounds=2, seconds=0.0))
    assert names == ["a", "a", "b", "b", "a", "b", "a", "b"], "two calls each to warm up, then turns"
    assert [len(rounds) for rounds in times.values()] == [2, 2]
    slow, quick = common.speed_rows({"slow": [2.0, 4.0, 30.0], "quick": [1.0, 2.0, 10.0]}, 32, 1)
    assert (slow["speed"], quick["speed"], quick["spread"]) == (1, 2, [2, 3])


def test_encode(script: Script, tmp_path: Path) -> None:
    script("encode", *QUICK, "--sizes", 32, "--peers", "kl", "--out", tmp_path / "now.json")
    kl, ours = read(tmp_path / "now.json")
    assert ours["GFLOP"] == pytest.approx(kl["GFLOP"], rel=0.01), "the same architecture"


def test_train(script: Script, tmp_path: Path) -> None:
    tiny = ("--decoder", "XXS", "--encoder-width", 32, "--image-size", 32, "--batch-size", 2)
    script("train", *QUICK, *tiny, "--lpips", "none", "--out", tmp_path / "now.json")
    plain, last = read(tmp_path / "now.json")
    assert (plain["model"], last["model"]) == ("plain NCHW", "channels last")
    assert plain["GFLOP"] == last["GFLOP"] > 0


def test_memory(script: Script, tmp_path: Path) -> None:
    small = ("--device", "cpu", "--dtype", "fp32", "--decoders", "XXS", "--sizes", 256)
    script("memory", *small, "--peers", "--tiling", "off", "--out", tmp_path / "now.json")
    (row,) = read(tmp_path / "now.json")
    level = 4 * 32 * 256**2  # one tensor of the first level
    # A block of the last level has its input (three times the first level's channels) twice, and a skip.
    assert 7 * level < row["allocated MiB"] * 2**20 < 9 * level
    assert 3 * level < row["bytes a pixel"] * 256**2 < 100 * level, "not the memory of a decoding"


def test_generation(script: Script, tmp_path: Path) -> None:
    tiny = ("--dit", "tiny/2", "--decoder", "XXS", "--image-size", 32, "--batch-size", 1, "--steps", 1, 3)
    script("generation", *QUICK, *tiny, "--out", tmp_path / "now.json")
    rows = read(tmp_path / "now.json")
    kl, f16, f8 = rows[:3]
    assert [row["model"] for row in rows[:3]] == ["KL-VAE f8c4", "SSDD-XXS f16c4", "SSDD-XXS f8c4"]
    assert [row["tokens"] for row in rows[:3]] == [4, 1, 4]
    assert kl["DiT GFLOP"] == f8["DiT GFLOP"] > f16["DiT GFLOP"] > 0
    assert rows[3]["DiT GFLOP"] == 3 * kl["DiT GFLOP"]
    assert kl["decode GFLOP"] > f8["decode GFLOP"] > 0


def test_gpu(script: Script, tmp_path: Path) -> None:
    out = tmp_path / "now.json"
    printed = script("gpu", *QUICK, "--decoder", "XXS", "--cells", "32x1", "--flex", "--out", out)
    eager, compiled, graphs, ours, flex = read(out)
    names = ["KL-VAE f8c4", "KL-VAE f8c4, compiled", "graphs-XXS f8c4", "SSDD-XXS f8c4", "flex-XXS f8c4"]
    assert [row["model"] for row in (eager, compiled, graphs, ours, flex)] == names
    assert eager["GFLOP"] == compiled["GFLOP"] > ours["GFLOP"] == flex["GFLOP"] > 0
    assert "met" not in printed, "no target is known at 32 px"


def test_targets_are_judged_by_each_model(script: Script) -> None:
    assert script
    gpu = runpy.run_path(str(FOLDER / "gpu.py"))
    rows = [
        {"model": "a", "seconds": [3.0, 6.0]},
        {"model": "b", "seconds": [2.0, 2.0]},
        {"model": "another of ours", "seconds": [2.0, 2.0]},
        {"model": "ours", "seconds": [1.0, 2.0]},
    ]
    lines = gpu["targets"]([{**row, "px": 256, "batch": 8} for row in rows], "ours", ["a", "b"]).splitlines()
    assert lines == [
        "256 px, batch 8, against a: 3.00x, 2.5x is met",
        "256 px, batch 8, against b: 1.50x, 2.5x is NOT met",
    ]


def test_fidelity(script: Script, tmp_path: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Optimised in float32 is the plain decoding, in bfloat16 nearly so; tiles are in between."""
    monkeypatch.setattr("ssdd.autoencoder.tiling.TILE_PIXELS", 64)
    model = AutoencoderSSDD.from_preset("f8c4", "XXS", encoder_width=32, sample_size=64)
    model.save_pretrained(tmp_path / "model")
    lines = script("fidelity", photographs / "0.png", "--model", tmp_path / "model", "--side", 128).splitlines()
    found = {line.split()[0]: float(line.split()[1]) for line in lines[1:]}
    assert found["float32"] > 90 > found["tiles"] > 30
    assert 30 < found["bfloat16"] < 80


def test_loader(script: Script, photographs: Path) -> None:
    printed = script("loader", photographs, "--workers", 0, "--resolution", 32, "--images", 8, "--batch-size", 4)
    assert float(printed.splitlines()[-1].split()[1].replace(",", "")) > 0


def test_tokenization(script: Script, photographs: Path) -> None:
    printed = script("tokenization", photographs, "--size", 32, "--batch-size", 2, "--processes", 1)
    assert "8 photographs" in printed
    assert "tokenize, 1 process" in printed


def test_evaluation(script: Script, photographs: Path) -> None:
    if not backbone_path("squeeze").is_file():
        pytest.skip("needs LPIPS' SqueezeNet in TORCH_HOME")
    how = ("--protocol", "paper-128-v1", "--images", 2, "--batch-size", 2, "--repeats", 1, "--workers", 0)
    assert "ratio" in script("evaluation", photographs, *how)


def growth(code: str) -> tuple[int, str]:
    """Return status and output of ``growth.py`` about a command of Python, whose loop has 40 rounds of 0.25 s."""
    command = [sys.executable, FOLDER / "growth.py", sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True)
    return result.returncode, result.stdout + result.stderr


def test_growth() -> None:
    """What a process, or one that it started, gets on the way is in the last third; else nothing grows."""
    wait = "import time\nfor i in range(40): time.sleep(0.25); {}"
    leak = wait.format("kept.append(bytearray(b'x') * (2 << 20))").replace("import time", "import time; kept = []")
    in_child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {leak!r}])"
    for code, grows in ((wait.format(""), False), (leak, True), (in_child, True)):
        status, printed = growth(code)
        thirds = [int(n) for n in printed.partition("seconds: ")[2].split(", ")]
        assert (status, len(thirds)) == (int(grows), 3), printed
        assert (thirds[2] - thirds[0] > 40) == grows, printed


def test_growth_needs_a_command_that_works_and_takes_long() -> None:
    assert growth("raise SystemExit(7)")[0] == 7
    status, printed = growth("pass")
    assert status == 1
    assert "give it more to do" in printed
