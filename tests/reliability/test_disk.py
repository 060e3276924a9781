"""A full disk, a folder that cannot be written to, two commands in one folder: one line, and nothing lost."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ssdd.autoencoder import AutoencoderSSDD
from tests.process import ssdd, start
from tests.reliability.commands import COMMANDS, Inputs, arguments, visible
from tests.reliability.interventions import small_disk

pytestmark = pytest.mark.slow

Tree = Callable[[Path], dict[str, bytes]]

SIZES = {"encode": 500, "decode": 500, "reconstruct": 500, "evaluate": 2000, "data": 300, "convert": 10**6}
"""Bytes of the largest file that fits: less than one result takes."""

NO_ROOM = ("File too large", "No space left", "make room")


@pytest.mark.parametrize("command", SIZES)
def test_full_disk(command: str, inputs: Inputs, tmp_path: Path, tree: Tree) -> None:
    """Results of yesterday are as they were, no part of a new one is left, and the reason is told."""
    out = tmp_path / "out"
    typed = arguments(command, inputs, out)
    if command != "convert":
        assert ssdd(*typed).status == 0
    before = tree(out)
    ended = ssdd(*typed, prepare=small_disk(SIZES[command]))
    assert ended.status == 1, f"expected exit status 1, found {ended.status}: {ended.err}"
    assert "Traceback" not in ended.err, ended.err
    assert any(reason in ended.lines()[-2 if ended.lines()[-1].endswith("failed") else -1] for reason in NO_ROOM), (
        f"the reason is not told: {ended.err}"
    )
    assert tree(out) == before, "results of before were changed, or half a result was left"
    assert {p.name for p in tmp_path.iterdir()} <= {"out"}, "a temporary was left beside the folder"


def test_full_disk_at_the_end_of_a_run(inputs: Inputs, tmp_path: Path) -> None:
    """The model is as large as a checkpoint: where that fits, the result need not. Nothing but the result is missing,
    and the same command writes it when there is room."""
    run = tmp_path / "run"
    typed = arguments("train", inputs, run)
    assert ssdd(*typed).status == 0
    shutil.rmtree(run / "model")
    ended = ssdd(*typed, prepare=small_disk(10**6))
    last = ended.lines()[-1]
    assert (ended.status, "Traceback" in ended.err) == (1, False), ended.err
    assert any(reason in last for reason in NO_ROOM), f"the reason is not told: {last}"
    assert not (run / "model").exists(), "half a model has its final name"
    assert ssdd(*typed).status == 0
    AutoencoderSSDD.from_pretrained(run / "model")


def test_full_disk_for_an_export(inputs: Inputs, tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="the export needs it")
    typed = ("export", "--model", inputs.model, "--out", tmp_path / "out", "--no-check")
    ended = ssdd(*typed, prepare=small_disk(10**5))
    assert (ended.status, "Traceback" in ended.err) == (1, False), ended.err
    assert ended.lines()[-1].startswith("ssdd: error: "), ended.err
    assert {p.name for p in tmp_path.iterdir()} == set(), "half an export was left"


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("place", ["under a file", "read-only"])
def test_a_folder_that_cannot_be_written_to(
    command: str, place: str, inputs: Inputs, tmp_path: Path, tree: Tree
) -> None:
    """Said at once in one line: not after hours of work, and not once for every photograph."""
    if place == "read-only" and (not os.path.isdir("/proc/sys") or os.access("/proc/sys", os.W_OK)):
        pytest.skip("no folder here that even root cannot write to")
    (tmp_path / "file").write_bytes(b"precious")
    out = Path("/proc/sys/ssdd") if place == "read-only" else tmp_path / "file" / "out"
    line = ssdd(*arguments(command, inputs, out)).one_line()
    assert line.startswith("ssdd: error: "), line
    assert str(out) in line or str(out.parent) in line, f"the folder is not named: {line}"
    assert (tmp_path / "file").read_bytes() == b"precious", "a file in the way was replaced"
    assert {p.name for p in tmp_path.iterdir()} == {"file"}, "something was left"


def test_two_evaluations_in_one_folder(inputs: Inputs, tmp_path: Path) -> None:
    """One of them writes its results; the other says at once that it does, or that they exist."""
    typed = [a for a in arguments("evaluate", inputs, tmp_path / "out") if a != "--overwrite"]
    both = [start(*typed) for _ in range(2)]
    ended = [command.wait() for command in both]
    assert sorted(e.status for e in ended) == [0, 1], [e.err for e in ended]
    loser = max(ended, key=lambda e: e.status)
    line = loser.one_line()
    assert "is being evaluated into by another process" in line or "exists already; pass --overwrite" in line
    json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert (tmp_path / "out" / "report.html").read_text().rstrip().endswith("</html>")


def test_two_trainings_in_one_run(inputs: Inputs, tmp_path: Path, tree: Tree) -> None:
    """The second says so at once, and changes nothing."""
    run = tmp_path / "run"
    typed = arguments("train", inputs, run)
    both = [start(*typed) for _ in range(2)]
    ended = sorted((command.wait() for command in both), key=lambda e: e.status)
    assert [e.status for e in ended] == [0, 1], [e.err for e in ended]
    assert f"{run} is being trained by another process" in ended[1].one_line()
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["000000000012", "000000000024"]
    AutoencoderSSDD.from_pretrained(run / "model")
    assert "model" in visible(tree(run))
