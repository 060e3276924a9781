"""``ssdd`` itself: help, versions, wrong usage, and models that are not there."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import ssdd as package
from ssdd.cli.main import main
from ssdd.cli.parse import COMMANDS

Ssdd = Callable[..., Any]
Tree = Callable[[Path], dict[str, bytes]]

OPTIONS = {
    "demo": ("PATH ...", "--out", "--overwrite", "--model", "--device", "--dtype"),
    "app": ("--models", "--host", "--port", "--share", "--steps", "--latent-noise", "--max-pixels", "--device"),
    "reconstruct": ("--out", "--steps", "--no-sheets", "--overwrite", "--model", "--device", "--dtype"),
    "encode": ("--out", "--overwrite", "--model", "--device", "--dtype"),
    "decode": ("--out", "--steps", "--overwrite", "--model", "--device", "--dtype"),
    "convert": ("--out", "--steps"),
    "evaluate": ("--data", "--protocol", "--steps", "--lpips", "--extractors", "--out", "--device"),
    "export": ("--model", "--out", "--dtype", "--opset", "--no-check", "--overwrite"),
    "statistics": ("--data", "--protocol", "--limit", "--save", "--out", "--overwrite", "--device", "--dtype"),
    "tokenize": ("verify", "--out", "--model", "--size", "--crop", "--flips", "--only", "--labels", "--store"),
    "generate": ("train ", "sample ", "evaluate ", "classes ", "export "),
    "train": ("tiny-encoder", "demo", "pretraining", "finetune", "export"),
    "data": ("check",),
    "doctor": ("--json", "--no-compile"),
}


def test_help_lists_every_command(ssdd: Ssdd) -> None:
    for flag in ("--help", "-h"):
        result = ssdd(flag)
        assert result.status == 0, f"{flag} fails"
        missing = [c for c in COMMANDS if not re.search(rf"• {c} +\w", result.out)]
        assert not missing, f"{flag} does not tell of {missing}"
        assert result.err == "", f"{flag} writes on standard error"


def test_every_command_has_its_options_tested() -> None:
    assert OPTIONS.keys() == COMMANDS.keys(), "a command is not covered by the test of the help"


@pytest.mark.parametrize("command", OPTIONS)
def test_help_of_a_command_lists_its_options(ssdd: Ssdd, command: str) -> None:
    result = ssdd(command, "--help")
    assert result.status == 0, f"ssdd {command} --help fails: {result.err}"
    missing = [option for option in OPTIONS[command] if option not in result.out]
    assert not missing, f"ssdd {command} --help does not list {missing}"


def test_version(ssdd: Ssdd) -> None:
    result = ssdd("--version")
    assert (result.status, result.out) == (0, f"ssdd {package.__version__}\n"), "--version prints something else"


def test_no_command_prints_the_usage_and_fails(ssdd: Ssdd) -> None:
    result = ssdd()
    assert result.status == 2, "a script that forgot the command goes on"
    assert "usage: ssdd" in result.out, "the user is not told what to type"


@pytest.mark.parametrize("name", ["recontsruct", "../encode", "common", ""])
def test_unknown_command(ssdd: Ssdd, name: str) -> None:
    result = ssdd(name, "--help")
    assert result.status == 2, f"{name!r} counts as a command"
    assert len(result.err.splitlines()) == 1, f"not one clear line: {result.err}"
    assert repr(name) in result.err, "the line does not say which command is unknown"
    assert "reconstruct" in result.err or "did you mean" in result.err, "the line does not say which commands there are"


@pytest.mark.parametrize("arguments", [("reconstruct", "a.png"), ("encode", "a.png", "--out", "o", "--colour", "red")])
def test_wrong_usage_of_a_command(ssdd: Ssdd, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """No --out; an option that does not exist."""
    assert ssdd(*arguments).status == 2, "wrong usage is not told from failed work"
    assert list(tmp_path.iterdir()) == [], "something was written"


def test_main_exits_with_the_status(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, status in ((["--version"], 0), (["nonsense"], 2), (["convert", "/nowhere", "--out", "/x/y"], 1)):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == status, f"{arguments} exits with another status"
    capsys.readouterr()


def test_traceback_on_request(ssdd: Ssdd, monkeypatch: pytest.MonkeyPatch) -> None:
    """SSDD_TRACEBACK=1 lets the error through; without it there is one line."""
    ssdd("encode", "missing.png", "--out", "out").error_line()
    monkeypatch.setenv("SSDD_TRACEBACK", "1")
    with pytest.raises(ValueError, match=r"missing\.png"):
        ssdd("encode", "missing.png", "--out", "out")


def test_interruption_has_its_own_status(ssdd: Ssdd, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(options: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("ssdd.cli.encode.run", interrupted)
    result = ssdd("encode", "a.png", "--out", "out")
    assert result.status == 130, "Ctrl-C is not told from an error"
    assert result.err == "ssdd: interrupted\n", "Ctrl-C prints a traceback"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    Image.fromarray(np.full((8, 8, 3), 99, np.uint8)).save(path)
    return path


@pytest.mark.parametrize("model", ["/nowhere/model", "nowhere", "./no/where", "image.png"])
def test_model_that_does_not_exist(ssdd: Ssdd, tmp_path: Path, image: Path, tree: Tree, model: str) -> None:
    before = tree(tmp_path)
    line = ssdd("reconstruct", image, "--out", "out", "--model", model).error_line()
    assert model in line, f"the line does not name the model: {line}"
    assert "found none of them" in line or "found a file" in line, (
        f"the line does not say what is wrong with it: {line}"
    )
    assert tree(tmp_path) == before, "a failed command left something behind"


def test_folder_that_is_no_model(ssdd: Ssdd, tmp_path: Path, image: Path) -> None:
    line = ssdd("encode", image, "--out", "out", "--model", tmp_path).error_line()
    assert str(tmp_path) in line, "the folder is not named"
    assert "config.json" in line, "the line does not say what is missing"


def test_damaged_model_folders(ssdd: Ssdd, tmp_path: Path, image: Path, tiny_model: Path) -> None:
    """Cut weights, a config of another shape, a config that is no JSON: one line each, and no output."""
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    config, weights = broken / "config.json", broken / "diffusion_pytorch_model.safetensors"
    command = ("encode", image, "--out", tmp_path / "out", "--model", broken)

    good = json.loads(config.read_text())
    config.write_text(json.dumps({**good, "latent_channels": 8}))
    line = ssdd(*command).error_line()
    assert "encoder.conv_out.weight is [8, 128, 3, 3], expected [16, 128, 3, 3]" in line, f"the reason is lost: {line}"

    config.write_text(json.dumps(good))
    os.truncate(weights, weights.stat().st_size // 2)
    assert str(broken) in ssdd(*command).error_line(), "cut weights: the folder is not named"

    config.write_text("latent_channels: 8")
    assert "config.json" in ssdd(*command).error_line(), "a damaged config: the file is not named"
    assert not (tmp_path / "out").exists(), "a failed command left its folder behind"


def test_device_that_does_not_exist(ssdd: Ssdd, image: Path, tiny_model: Path) -> None:
    for device in ("gpu", "cuda:77"):
        line = ssdd("encode", image, "--out", "out", "--model", tiny_model, "--device", device).error_line()
        assert repr(device) in line, f"the line does not name the device: {line}"


def test_as_a_program(tmp_path: Path, image: Path) -> None:
    """``python -m ssdd`` in a process of its own: streams and status are those of a Unix command, help is quick."""
    source = str(Path(package.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": source, "PYTHONWARNINGS": "error::DeprecationWarning:ssdd"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ssdd", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300)

    done = run("--help")
    assert done.returncode == 0, done.stderr
    assert "usage: ssdd" in done.stdout, "python -m ssdd --help prints something else"
    failed = run("reconstruct", "image.png", "--out", "out", "--model", "nowhere")
    assert failed.returncode == 1, "a missing model does not fail the process"
    assert failed.stdout == "", "an error is printed among the results"
    assert len(failed.stderr.splitlines()) == 1, f"not one clear line: {failed.stderr}"
    assert not (tmp_path / "out").exists(), "a failed command left its folder behind"


@pytest.mark.parametrize("chosen", [{}, {"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "5"}, {"KMP_BLOCKTIME": "9"}])
def test_waiting_threads_do_not_spin(chosen: dict[str, str]) -> None:
    """OpenMP reads the policy when torch is imported; set later, it has no effect."""
    code = (
        "import os, sys\n"
        "class Watch:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch': sys.exit(os.environ.get('OMP_WAIT_POLICY', 'none'))\n"
        "sys.meta_path.insert(0, Watch())\n"
        "from ssdd.cli.main import run\n"
        "run(['encode', 'missing.png', '--out', 'out'])"
    )
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    environment = {name: value for name, value in os.environ.items() if name not in names} | chosen
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300)
    expected = chosen.get("OMP_WAIT_POLICY", "none") if chosen else "PASSIVE"
    assert done.stderr == f"{expected}\n", "another policy than expected when torch is imported"


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys; from ssdd.cli.main import run; run(['--help']); sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(Path(package.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, timeout=300)
    assert done.returncode == 0, "ssdd --help imports torch, which takes seconds"


@pytest.mark.parametrize("command", [["--version"], ["encode", "--help"], ["evaluate", "x", "--print-config"]])
def test_output_that_cannot_be_written(command: list[str]) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    run = [sys.executable, "-m", "ssdd", *command]
    with open("/dev/full", "w") as full:
        done = subprocess.run(run, stdout=full, stderr=subprocess.PIPE, text=True, env=environment)
    assert (done.returncode, done.stderr) == (1, "ssdd: error: [Errno 28] No space left on device\n")


def test_one_limit_on_pixels(tmp_path: Path) -> None:
    """In the commands and, through the environment, in their worker processes."""
    kinds = ("png", "tif", "gif", "webp")
    for kind in kinds:
        Image.new("RGB", (30, 20)).save(tmp_path / f"a.{kind}")

    def check(*limit: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ssdd", *limit, "data", "check", str(tmp_path), "--workers", "1"]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert check("--max-pixels", "600").returncode == 0, "an image of just the limit is refused"
    refused = check("--max-pixels", "599")
    assert refused.returncode == 1, "the limit has no effect"
    assert refused.stderr.count("at most 599 pixels, found 30 x 20") == len(kinds), "the limit is not named"
    wrong = check("--max-pixels", "many")
    expected = "ssdd: error: expected a number of pixels for --max-pixels, found 'many'\n"
    assert (wrong.returncode, wrong.stderr) == (2, expected)
