"""A run is known by what it was trained on, not by where that lay: moved is the same, replaced is refused."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssdd.training.config import TrainConfig
from ssdd.training.loop import train
from tests.training.runs import newest

Small = Callable[..., TrainConfig]
Stopped = Callable[..., Path]
Model = Callable[[int], Path]


def files(run: Path) -> dict[str, tuple[int, bytes]]:
    """When each file of a run was written, and what is in it."""
    paths = [p for p in run.rglob("*") if p.is_file() and not p.name.startswith(".")]
    return {str(p.relative_to(run)): (p.stat().st_mtime_ns, p.read_bytes()) for p in paths}


def other_pictures(photographs: Path, folder: Path) -> Path:
    """A folder of the same names with other pictures."""
    folder.mkdir()
    for i, path in enumerate(sorted(photographs.iterdir())):
        Image.fromarray(np.full((40, 48, 3), 20 * i, np.uint8)).save(folder / path.name)
    return folder


def test_frozen_encoder_moved_or_replaced(small: Small, stopped: Stopped, small_model: Model, tmp_path: Path) -> None:
    """A decoder goes on in silence on another encoder, or not at all because a folder has another name now."""
    recipe, run = "tiny-pretraining", tmp_path / "run"
    shutil.copytree(small_model(0), tmp_path / "enc")
    stopped(run, "--encoder", str(tmp_path / "enc"), recipe=recipe)
    shutil.copytree(run, tmp_path / "unmoved")
    train(small("--encoder", str(tmp_path / "enc"), recipe=recipe), tmp_path / "unmoved")

    (tmp_path / "enc").rename(tmp_path / "moved")
    shutil.copytree(small_model(1), tmp_path / "enc")
    with pytest.raises(
        ValueError, match="expected the encoder that this run began with, found other weights"
    ) as caught:
        train(small("--encoder", str(tmp_path / "enc"), recipe=recipe), run)
    assert "\n" not in str(caught.value)
    train(small("--encoder", f"{tmp_path}/moved/", recipe=recipe), run)
    assert newest(run) == newest(tmp_path / "unmoved")


def test_teacher_replaced(small: Small, stopped: Stopped, small_model: Model, tmp_path: Path) -> None:
    """A distillation goes on towards the images of another teacher."""
    shutil.copytree(small_model(0), tmp_path / "teacher")
    options, recipe = ("--model", str(tmp_path / "teacher"), "--teacher-steps", "2"), "tiny-distillation"
    run = stopped(tmp_path / "run", *options, recipe=recipe)
    shutil.rmtree(tmp_path / "teacher")
    shutil.copytree(small_model(1), tmp_path / "teacher")
    with pytest.raises(ValueError, match=r"expected the (encoder|start) that this run began with"):
        train(small(*options, recipe=recipe), run)


def test_photographs_moved_or_replaced(
    small: Small,
    stopped: Stopped,
    start: tuple[str, ...],
    photographs: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One photograph more, or others under the same names, and every crop after the resumption is another."""
    run = stopped(tmp_path / "run", *start)
    moved = Path(shutil.copytree(photographs, tmp_path / "moved"))
    shutil.copytree(photographs, tmp_path / "more")
    shutil.copy(photographs / "00.png", tmp_path / "more" / "extra.png")
    others = other_pictures(photographs, tmp_path / "others")
    for folder, message in (
        (tmp_path / "more", "expected the 12 photographs that this run began with, found 13"),
        (others, "expected the photographs that this run began with, found others"),
    ):
        with pytest.raises(ValueError, match=message):
            train(small(*start, "--data.paths", str(folder)), run)
    train(small(*start, "--data.paths", str(moved)), run)

    # A finished run stays as it is, whatever the command says.
    before = files(run)
    assert {"config.json", "environment.jsonl", "trained_on.json"} <= before.keys()
    with caplog.at_level("INFO"):
        assert train(small(*start, "--log.stats-images", "4"), run) == run / "model"
    assert "finished" in caplog.text
    with pytest.raises(ValueError, match="found others"):
        train(small(*start, "--data.paths", str(others)), run)
    assert files(run) == before, "a finished run was written to"


def test_hostile_file(small: Small, stopped: Stopped, start: tuple[str, ...], tmp_path: Path) -> None:
    """What is not JSON ends in a traceback."""
    run = stopped(tmp_path / "run", *start)
    for text in ("[" * 100_000, "3", "{"):
        (run / "trained_on.json").write_text(text)
        with pytest.raises(ValueError, match=r"trained_on\.json: expected what the run was trained on"):
            train(small(*start), run)


def test_network_of_repa_moved_or_replaced(
    small: Small, stopped: Stopped, start: tuple[str, ...], tmp_path: Path
) -> None:
    """The features that a decoder is aligned with change in silence, or their folder may not move."""
    transformers = pytest.importorskip("transformers", reason="REPA needs transformers")
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    for name in ("dino", "other"):
        transformers.Dinov2Model(transformers.Dinov2Config(hidden_size=16, **sizes)).save_pretrained(tmp_path / name)
    options = (*start, "--loss.repa", "0.5", "--loss.repa-network")
    run = stopped(tmp_path / "run", *options, str(tmp_path / "dino"))
    (tmp_path / "dino").rename(tmp_path / "moved")
    with pytest.raises(ValueError, match="expected the features that this run began with, found other weights"):
        train(small(*options, str(tmp_path / "other")), run)
    train(small(*options, str(tmp_path / "moved")), run)
