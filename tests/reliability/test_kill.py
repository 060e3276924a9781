"""``kill -9`` at every step of every kind of write: what has its final name is complete, and what was there is kept."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load

from ssdd.autoencoder import AutoencoderSSDD
from ssdd.training.checkpoint import list_checkpoints, newest_checkpoint, read_checkpoint
from tests.process import Ended, ssdd
from tests.reliability.commands import Inputs, arguments, visible
from tests.reliability.interventions import killed_at
from tests.training.runs import exported, newest

pytestmark = pytest.mark.slow

Tree = Callable[[Path], dict[str, bytes]]

OLD = b"a result of yesterday"


def assert_complete(name: str, content: bytes) -> None:
    """Raises, whatever that is, for a part of a file."""
    suffix = Path(name).suffix
    if suffix in (".png", ".jpg"):
        with Image.open(io.BytesIO(content)) as image:
            image.load()
    elif suffix == ".json":
        json.loads(content)
    elif suffix == ".safetensors":
        load(content)
    elif suffix == ".npz":
        with np.load(io.BytesIO(content)) as arrays:
            assert arrays.files == [name for name in arrays.files if arrays[name].dtype != object]
    elif suffix == ".html":
        assert content.rstrip().endswith(b"</html>"), name
    elif suffix == ".csv":
        assert content.count(b"\n") == 3, name
    else:
        assert content == b"", f"an unknown file {name}"  # a folder


def sweep(kill: Callable[[int], Ended], check: Callable[[], None]) -> int:
    """Kills a command at its first, second, ... step until it comes to its end. Returns how often it was killed."""
    count = 0
    while (ended := kill(count + 1)).status == -9:
        count += 1
        check()
        assert count < 100, "never comes to an end"
    assert ended.status == 0, ended.err
    return count


@pytest.mark.parametrize("command", ["encode", "decode", "reconstruct", "evaluate", "data"])
def test_results_are_old_or_new_and_never_a_part(command: str, inputs: Inputs, tmp_path: Path, tree: Tree) -> None:
    """With --overwrite a file is yesterday's or today's, whole, at every moment; the same command then finishes."""
    out = tmp_path / "out"
    typed = arguments(command, inputs, out)
    assert ssdd(*typed).status == 0
    names = [name for name, content in tree(out).items() if content]
    before = {**tree(inputs.photographs), **tree(inputs.model)}

    def kill(count: int) -> Ended:
        shutil.rmtree(out)
        for name in names:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_bytes(OLD)
        return ssdd(*typed, prepare=killed_at(count))

    def check() -> None:
        found = visible({name: content for name, content in tree(out).items() if content})
        assert sorted(found) == sorted(names), "a file is gone, or half of one has a name"
        for name, content in found.items():
            if content != OLD:
                assert_complete(name, content)

    assert sweep(kill, check) >= 2 * len(names), "killed before the writes alone"
    for name, content in tree(out).items():
        assert_complete(name, content)
    assert {**tree(inputs.photographs), **tree(inputs.model)} == before, "the inputs were touched"


def test_a_converted_model_is_there_or_not(inputs: Inputs, tmp_path: Path, tree: Tree) -> None:
    """Half a model folder would load as another model, or end every later command."""
    out = tmp_path / "out"

    def kill(count: int) -> Ended:
        shutil.rmtree(out, ignore_errors=True)
        return ssdd(*arguments("convert", inputs, out), prepare=killed_at(count))

    def check() -> None:
        if out.exists():
            AutoencoderSSDD.from_pretrained(out)

    assert sweep(kill, check) >= 1, "never killed before the model had its name"
    assert sorted(visible(tree(out))) == ["config.json", "diffusion_pytorch_model.safetensors"]


def test_a_run_killed_again_and_again_ends_in_the_same_weights(inputs: Inputs, tmp_path: Path) -> None:
    """In checkpoints, in the removal of old ones, in the result: every checkpoint that has its name is whole."""
    run = tmp_path / "run"
    assert ssdd(*arguments("train", inputs, tmp_path / "whole")).status == 0
    typed = arguments("train", inputs, run)
    kills = 0
    for count in (2, 5, 8, 9, 13, 16, 100):
        ended = ssdd(*typed, prepare=killed_at(count))
        assert "Traceback" not in ended.err, ended.err
        if ended.status == 0:
            break
        kills += 1
        assert ended.status == -9, ended.err
        for folder in list_checkpoints(run):
            read_checkpoint(folder)
        if (run / "model").exists():
            AutoencoderSSDD.from_pretrained(run / "model")
    assert kills >= 5, "hardly killed at all"
    assert newest_checkpoint(run) is not None
    assert newest(run) == newest(tmp_path / "whole"), "other weights, averages or optimisers"
    a, b = exported(run), exported(tmp_path / "whole")
    assert all(a[name].equal(b[name]) for name in a), "another exported model"
    assert not list(run.rglob("*.partial")), "half a checkpoint, or half a model, was left for ever"
