"""What the commands share: going through files, refusing outputs, choosing a device, tiling."""

import errno
import logging
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from ssdd.checkpoints.layout import CheckpointError
from ssdd.cli.common import ModelOptions, check_outputs, for_each, require, run_training, summarize
from ssdd.runtime.files import OutputExists
from ssdd.training.watch import TrainingStopped


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x is\nbad"),
        OSError("disk full"),
        MemoryError(),
        torch.OutOfMemoryError("too large"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
    ],
)
def test_one_failure_is_named_and_the_rest_done(capsys: pytest.CaptureFixture[str], error: Exception) -> None:
    done = []

    def work(item: str) -> None:
        if item == "b":
            raise error
        done.append(item)

    assert for_each(["a", "b", "c"], lambda i: f"in/{i}", work) == 1, "a failure is not counted"
    assert done == ["a", "c"], "one failure stopped the others"
    err = capsys.readouterr().err
    reason = " ".join(str(error).split()) or "MemoryError"
    assert f"skipped in/b: {reason}\n" in err, f"the file or the reason is missing: {err}"


@pytest.mark.parametrize(
    ("done", "kept", "failed", "status", "said"),
    [
        (3, 0, 0, 0, "turned 3 files into out"),
        (2, 2, 1, 3, "turned 2 files into out (2 were there before)"),
        (0, 2, 0, 0, "turned 0 files into out (2 were there before)"),
        (0, 0, 1, 1, ""),
        (0, 1, 1, 3, "turned 0 files into out (1 was there before)"),
    ],
)
def test_summary(done: int, kept: int, failed: int, status: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Statuses: 0 all is done; 3 but for some; 1 nothing is."""
    assert summarize("turned", done, kept, failed, Path("out")) == status
    out, err = capsys.readouterr()
    assert out.strip() == said
    assert err == (f"turned {done} of {done + failed} files; {failed} failed\n" if failed else "")


def test_where_an_error_came_from(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks for tracebacks wants the other files done all the same."""

    def work(item: str) -> None:
        if item == "b":
            raise ValueError("bad")

    monkeypatch.setenv("SSDD_TRACEBACK", "1")
    assert for_each(["a", "b", "c"], str, work) == 1
    assert "Traceback" in capsys.readouterr().err


def test_all_well_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    assert for_each([1], str, lambda item: None) == 0, "success counts as a failure"
    assert capsys.readouterr().err == "", "a single file that went well needs no words"


def test_the_name_is_there_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Errors that begin with the name are left alone; one that merely holds the same letters is not one."""

    def work(item: str) -> None:
        raise ValueError({"e": "expected a latent", "in/x": "in/x: expected a latent"}[item])

    for_each(["e"], str, work)
    assert "skipped e: expected a latent\n" in capsys.readouterr().err, "a short name is lost"
    for_each(["in/x"], str, work)
    assert "skipped in/x: expected a latent\n" in capsys.readouterr().err, "the name is there twice"


@pytest.mark.parametrize("error", [KeyError("bug"), RuntimeError("shapes do not match")])
def test_an_error_of_the_program_is_not_hidden(error: Exception) -> None:
    def work(item: str) -> None:
        raise error

    with pytest.raises(type(error)):
        for_each(["a"], str, work)


@pytest.mark.parametrize("rank", [0, 1])
def test_end_of_a_training(rank: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler starts a stopped run again by its status; of several processes one prints."""

    def stopped() -> Path:
        raise TrainingStopped(signal.SIGTERM, 640)

    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setattr(logging.getLogger("httpx"), "level", logging.NOTSET)
    assert run_training("train", lambda: Path("run/model")) == 0
    assert capsys.readouterr().out == ("trained model in run/model\n" if rank == 0 else "")
    assert run_training("generate", stopped) == 143
    err = capsys.readouterr().err
    assert ("ssdd generate: stopped by SIGTERM at 640 images" in err) == (rank == 0)
    assert logging.getLogger("httpx").level == logging.WARNING, "every request to the hub is a line of the log"


def test_require() -> None:
    assert require([1], "images", ["a"]) == [1], "items are changed"
    with pytest.raises(ValueError, match="expected images in a, b, found none"):
        require([], "images", ["a", "b"])
    with pytest.raises(ValueError, match="expected images or folders of them, found no path"):
        require([], "images", [])


def test_check_outputs(tmp_path: Path) -> None:
    (tmp_path / "old.png").touch()
    check_outputs(tmp_path, ["old.png", "a.png", "b/a.png"], new=["a.png"])
    check_outputs(tmp_path / "new" / "folder", ["a.png"], new=["a.png"])
    assert not (tmp_path / "new").exists(), "a check makes a folder"
    for names in (["a.png", "a.png"], ["A.png", "a.png"]):
        with pytest.raises(ValueError, match=r"(?i)a\.png: expected one result of this name, found two"):
            check_outputs(tmp_path, names)
    with pytest.raises(OutputExists, match=r"old\.png exists already; pass --overwrite"):
        check_outputs(tmp_path, ["old.png"], new=["old.png"])
    with pytest.raises(ValueError, match=r"old\.png: expected a folder where no result replaces this photograph"):
        check_outputs(tmp_path, ["old.png"], new=["old.png"], photographs=[tmp_path / "old.png"])
    check_outputs(tmp_path, ["old.png"], photographs=[tmp_path / "a.png"])
    with pytest.raises(NotADirectoryError, match=r"old\.png: expected a folder for the results, found a file"):
        check_outputs(tmp_path / "old.png", ["a.png"])


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a file system that takes no folder, Linux' /proc")
def test_a_place_that_takes_no_folder_is_named() -> None:
    """Each photograph would be blamed, after it was encoded."""
    with pytest.raises(PermissionError, match=r"/proc/x/y: expected a folder to write to, found .* at /proc"):
        check_outputs(Path("/proc/x/y"), ["a.png"])


def test_device() -> None:
    assert ModelOptions(device="cpu").torch_device() == torch.device("cpu"), "cpu is not taken"
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert ModelOptions().torch_device().type == expected, "auto leaves a GPU unused, or takes one that is not there"
    with pytest.raises(ValueError, match="expected a device like cpu or cuda, found 'nonsense'"):
        ModelOptions(device="nonsense").torch_device()


@pytest.mark.parametrize(("dtype", "expected"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_model_is_loaded_for_use(tiny_model: Path, dtype: str, expected: torch.dtype) -> None:
    model = ModelOptions(model=str(tiny_model), device="cpu", dtype=dtype).load()  # type: ignore[arg-type]
    assert not model.training, "the model is in training mode"
    assert {p.dtype for p in model.parameters()} == {expected}, f"--dtype {dtype} is not followed"


def test_training_run_stands_for_its_model(tiny_model: Path, tmp_path: Path) -> None:
    """Training takes ``runs/x`` as a start; everything else must take it too, and say if it is not finished."""
    run = tmp_path / "run"
    shutil.copytree(tiny_model, run / "model")
    (run / "config.json").write_text("{}")
    (run / "checkpoints").mkdir()
    found = ModelOptions(model=str(run), device="cpu").load()
    assert found.config.latent_channels == 4
    shutil.rmtree(run / "model")
    with pytest.raises(CheckpointError, match="found one that is not finished yet"):
        ModelOptions(model=str(run), device="cpu").load()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_or_read_only_file_system_ends_the_command(number: int) -> None:
    """The other inputs could not be written either."""
    tried: list[int] = []

    def work(item: int) -> None:
        tried.append(item)
        try:
            raise OSError(number, os.strerror(number))
        except OSError as error:
            raise OSError("out/a.png: expected to write it") from error

    with pytest.raises(OSError, match="expected to write it"):
        for_each([1, 2, 3], str, work)
    assert tried == [1]
