"""How a command line becomes options: from a file, to a file, in time, and which words stand for which files."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ssdd as package
from ssdd.cli.encode import Encode
from ssdd.cli.parse import COMMANDS, parse
from ssdd.cli.train import Train
from ssdd.data import find
from ssdd.data.find import expand
from ssdd.data.images import ImageError

Ssdd = Callable[..., Any]

ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "TQDM_DISABLE"}
ENVIRONMENT["PYTHONPATH"] = str(Path(package.__file__).parents[1])


@pytest.mark.parametrize("command", [*COMMANDS, "train demo", "train export", "data check", "generate sample"])
def test_help_does_not_wait_for_torch(command: str) -> None:
    code = (
        "import sys\n"
        "from ssdd.cli.main import run\n"
        "try: run(sys.argv[1:])\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'pyarrow', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    command_line = [sys.executable, "-c", code, *command.split(), "--help"]
    done = subprocess.run(command_line, capture_output=True, env=ENVIRONMENT, text=True, timeout=300)
    assert done.returncode == 0, f"its help imports what takes seconds: {done.stderr}"


def test_options_to_a_file_and_back(ssdd: Ssdd, tmp_path: Path) -> None:
    typed = ("encode", "a b.png", "c.png", "--out", "latents", "--dtype", "bf16", "--overwrite")
    printed = ssdd(*typed, "--print-config")
    assert printed.status == 0, printed.err
    assert not (tmp_path / "latents").exists(), "it did the work as well"
    (tmp_path / "options.yaml").write_text(printed.out)
    assert parse(["encode", "--config", "options.yaml"]) == parse(typed)
    changed = parse(["encode", "d.png", "--config", "options.yaml", "--no-overwrite", "--out", "x"])
    assert isinstance(changed, Encode)
    assert (changed.paths, changed.out, changed.overwrite, changed.model.dtype) == (
        ("d.png",),
        Path("x"),
        False,
        "bf16",
    )


def test_typed_paths_count_more_than_a_files(ssdd: Ssdd, tmp_path: Path) -> None:
    """Wherever they stand on the line; the file's would be done besides."""
    (tmp_path / "options.yaml").write_text("paths: [a.png]\nout: x\n")
    for typed in (["--out", "y", "b.png"], ["b.png", "--out", "y"], ["--overwrite", "b.png", "--out", "y"]):
        assert parse(["encode", *typed, "--config", "options.yaml"]).paths == ("b.png",)
    assert parse(["encode", "--overwrite", "--config", "options.yaml"]).paths == ("a.png",)


@pytest.mark.parametrize(
    "typed",
    [
        ["data", "check", "photos", "more"],
        ["generate", "sample", "run", "--count", "3"],
        ["statistics", "model", "--data", "photos"],
        ["evaluate", "model", "--data", "photos", "--lpips", "--extractors"],
    ],
)
def test_options_come_back_from_a_file(ssdd: Ssdd, tmp_path: Path, typed: list[str]) -> None:
    (tmp_path / "options.yaml").write_text(ssdd(*typed, "--print-config").out)
    words = 2 if typed[0] in ("data", "generate") else 1
    assert parse([*typed[:words], "--config", "options.yaml"]) == parse(typed)


def test_options_of_a_training(ssdd: Ssdd, tmp_path: Path) -> None:
    typed = ["train", "tiny-encoder", "--data", "a", "b", "--optimizer.learning-rate", "0.5", "--no-tf32"]
    (tmp_path / "options.yaml").write_text(ssdd(*typed, "--print-config").out)
    again, expected = parse(["train", "tiny-encoder", "--config", "options.yaml"]), parse(typed)
    assert (again.recipe, again.out, again.check) == (expected.recipe, expected.out, expected.check)
    (tmp_path / "some.yaml").write_text("optimizer:\n  learning_rate: 0.25\nseed: 3\n")
    some = parse(["train", "tiny-encoder", "--config", "some.yaml", "--seed", "4"])
    assert isinstance(some, Train)
    assert (some.recipe.optimizer.learning_rate, some.recipe.seed) == (0.25, 4)


@pytest.mark.parametrize("content", ["- a\n- b\n", "x: [", "\x00"])
def test_files_that_are_no_options(ssdd: Ssdd, tmp_path: Path, content: str) -> None:
    (tmp_path / "options.yaml").write_text(content)
    line = ssdd("encode", "--config", "options.yaml").error_line()
    assert "options.yaml: expected options as name: value" in line
    assert "nowhere.yaml" in ssdd("encode", "--config", "nowhere.yaml").error_line()


def test_unknown_option_in_a_file(ssdd: Ssdd, tmp_path: Path) -> None:
    (tmp_path / "options.yaml").write_text(json.dumps({"paths": ["a.png"], "out": "x", "colour": "red"}))
    result = ssdd("encode", "--config", "options.yaml")
    assert result.status == 2
    assert "--colour" in result.err


def test_completion() -> None:
    command = [sys.executable, "-m", "ssdd", "--tyro-print-completion", "bash"]
    done = subprocess.run(command, capture_output=True, env=ENVIRONMENT, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for word in ("reconstruct", "--latent-noise", "tiny-encoder", "check"):
        assert word in done.stdout


@pytest.mark.slow
def test_quiet_and_verbose(tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ssdd", *arguments]
        return subprocess.run(command, capture_output=True, env=ENVIRONMENT, text=True, cwd=tmp_path, timeout=300)

    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    (tmp_path / "photos" / "a.ppm").write_bytes(b"P6 1 1 255 abc")
    loud = run("data", "check", "photos")
    assert "1 other file left out: .txt 1" in loud.stderr
    quiet = run("-q", "data", "check", "photos")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, loud.stdout, "")
    assert "Traceback" in run("-v", "data", "check", "nowhere").stderr
    (tmp_path / "photos" / "b.ppm").write_bytes(b"P6 1 1 255 abc")
    assert "%|" not in run("data", "check", "photos").stderr, "a progress bar in a pipe"


def test_a_reader_that_has_enough() -> None:
    """``ssdd --help | head -1``: no line about a broken pipe."""
    code = "import time; time.sleep(3)"  # the pipe is closed by then
    command = f"({sys.executable} -c '{code}'; {sys.executable} -m ssdd --help; echo $? >&2) | true"
    done = subprocess.run(command, shell=True, capture_output=True, env=ENVIRONMENT, text=True, timeout=300)
    assert done.stderr.strip() in ("0", "141"), done.stderr


def test_what_paths_stand_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("b.png", "a.png", "sub/c.png", "odd[1].png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "list.txt").write_text("a.png\n\n sub/*.png\n")
    find._standard_input.cache_clear()
    monkeypatch.setattr(sys, "stdin", io.StringIO("b.png\n"))
    assert expand(["?.png", "@list.txt"]) == ["a.png", "b.png", "a.png", "sub/c.png"]
    assert expand(["**/c.png", "odd[1].png", "{a,b}.png", "-"]) == [
        "sub/c.png",
        "odd[1].png",
        "a.png",
        "b.png",
        "b.png",
    ]
    assert expand(["hf:owner/name", "folder"]) == ["hf:owner/name", "folder"]
    find._standard_input.cache_clear()
    for path, message in (("*.gif", "fit this pattern"), ("@nowhere", "a list of paths"), ("{a", "balanced braces")):
        with pytest.raises(ImageError, match=message):
            expand([path])
