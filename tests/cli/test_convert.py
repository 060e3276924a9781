"""``ssdd convert``: a file in the authors' layout becomes a model folder, and nothing else does."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ssdd.autoencoder import AutoencoderSSDD
from ssdd.checkpoints.names import AUTHORS_DECODER, AUTHORS_ENCODER, rename

Ssdd = Callable[..., Any]
Tree = Callable[[Path], dict[str, bytes]]


@pytest.fixture(scope="module")
def model() -> AutoencoderSSDD:
    """Small, with the 32 norm groups of every released file; the weights are random, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoencoderSSDD((32, 64, 128, 128), 4, decoder_channels=(32, 64, 96, 96), decoder_layers=2)
    return model.eval()


@pytest.fixture(scope="module")
def authors(model: AutoencoderSSDD) -> dict[str, Tensor]:
    """The model's tensors under the authors' names."""
    tensors = {}
    for name, tensor in model.state_dict().items():
        part, inner = name.split(".", 1)
        rules = {"encoder": AUTHORS_ENCODER, "decoder": AUTHORS_DECODER}[part]
        tensors[f"{part}.{rename(inner, rules)}"] = tensor.contiguous()
    return tensors


def test_round_trip(ssdd: Ssdd, tmp_path: Path, tree: Tree, model: AutoencoderSSDD, authors: dict[str, Tensor]) -> None:
    """The folder loads, and encodes and decodes exactly as the model that the file came from."""
    save_file(authors, tmp_path / "F8C4.safetensors")
    result = ssdd("convert", tmp_path / "F8C4.safetensors", "--out", tmp_path / "new" / "model", "--steps", 1)
    assert result.status == 0, f"a good file is refused: {result.err}"
    assert "encoder f8c4, decoder custom" in result.out, f"another size was recognised: {result.out}"
    assert set(tree(tmp_path)) == {
        "F8C4.safetensors",
        "new",
        "new/model",
        "new/model/config.json",
        "new/model/diffusion_pytorch_model.safetensors",
    }, "other files were left"
    converted = AutoencoderSSDD.from_pretrained(tmp_path / "new" / "model").eval()
    x = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        z = model.encode(x).latent_dist.mode()
        assert torch.equal(converted.encode(x).latent_dist.mode(), z), "the encoder is another"
        expected = model.decode(z, num_inference_steps=1).sample
        assert torch.equal(converted.decode(z).sample, expected), "the decoder is another, or --steps is lost"


def test_default_steps_suit_both_kinds_of_file(ssdd: Ssdd, tmp_path: Path, authors: dict[str, Tensor]) -> None:
    save_file({k: v for k, v in authors.items() if k.startswith("decoder.")}, tmp_path / "decoder.safetensors")
    result = ssdd("convert", tmp_path / "decoder.safetensors", "--out", tmp_path / "model")
    assert result.status == 0, f"a decoder alone is refused: {result.err}"
    converted = AutoencoderSSDD.from_pretrained(tmp_path / "model")
    assert converted.config.num_inference_steps == 8, "the default number of steps changed"
    assert not converted.config.has_encoder, "an encoder was made up"


def write_bad(kind: str, path: Path, authors: dict[str, Tensor]) -> str:
    """A file that is no checkpoint of ours; returns what the error has to tell."""
    name = "decoder.conv_in.weight"
    if kind == "foreign":
        save_file({"model.layers.0.weight": torch.zeros(4, 4)}, path)
        return name
    if kind == "shape":
        save_file({**authors, "decoder.conv_out.weight": torch.zeros(3, 1, 3, 3)}, path)
        return "decoder.conv_out.weight is [3, 1, 3, 3]"
    if kind == "more":
        save_file({**authors, "decoder.extra": torch.zeros(1)}, path)
        return "unexpected decoder.extra"
    if kind == "integers":
        save_file({**authors, name: authors[name].to(torch.int32)}, path)
        return f"{name} is torch.int32"
    if kind == "less":
        save_file({k: v for k, v in authors.items() if k != "decoder.conv_out.bias"}, path)
        return "no decoder.conv_out.bias"
    if kind == "cut":
        save_file(authors, path)
        os.truncate(path, path.stat().st_size // 2)
    if kind == "text":
        path.write_text("version https://git-lfs.github.com/spec/v1")
    if kind == "empty":
        path.touch()
    if kind == "folder":
        path.mkdir()
        return "found a folder"
    return "expected a complete safetensors file"


@pytest.mark.parametrize("kind", ["foreign", "shape", "more", "less", "integers", "cut", "text", "empty", "folder"])
def test_anything_else_is_refused(
    ssdd: Ssdd, tmp_path: Path, tree: Tree, authors: dict[str, Tensor], kind: str
) -> None:
    path = tmp_path / "file.safetensors"
    told = write_bad(kind, path, authors)
    before = tree(tmp_path)
    line = ssdd("convert", path, "--out", tmp_path / "model").error_line()
    assert str(path) in line, f"the file is not named: {line}"
    assert told in line, f"the difference is not told: {line}"
    assert tree(tmp_path) == before, "an output was left behind"


def test_missing_file(ssdd: Ssdd, tmp_path: Path) -> None:
    assert "nowhere.safetensors" in ssdd("convert", "nowhere.safetensors", "--out", "model").error_line()
    assert list(tmp_path.iterdir()) == [], "an output was left behind"


class Trap:
    """Unpickled, it makes a folder called sprung."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("sprung",)


def test_pickles_are_never_opened(ssdd: Ssdd, tmp_path: Path) -> None:
    """A pickle runs code of its author when it is loaded."""
    for name in ("model.pt", "model.safetensors"):
        (tmp_path / name).write_bytes(pickle.dumps(Trap()))
        ssdd("convert", tmp_path / name, "--out", tmp_path / "model").error_line()
        torch.save({"x": Trap()}, tmp_path / name)
        ssdd("convert", tmp_path / name, "--out", tmp_path / "model").error_line()
    assert {p.name for p in tmp_path.iterdir()} == {"model.pt", "model.safetensors"}, "code from a pickle was run"


def test_existing_folder_is_kept(ssdd: Ssdd, tmp_path: Path, authors: dict[str, Tensor]) -> None:
    save_file(authors, tmp_path / "file.safetensors")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("precious")
    line = ssdd("convert", tmp_path / "file.safetensors", "--out", tmp_path / "model").error_line()
    assert "choose another --out" in line, f"the way out is not told: {line}"
    assert (tmp_path / "model" / "config.json").read_text() == "precious", "an existing folder was changed"


def test_interrupted_saving_leaves_nothing(
    ssdd: Ssdd, tmp_path: Path, tree: Tree, authors: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: AutoencoderSSDD, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{")
        raise OSError("No space left on device")

    monkeypatch.setattr(AutoencoderSSDD, "save_pretrained", full)
    save_file(authors, tmp_path / "file.safetensors")
    before = tree(tmp_path)
    assert "No space left" in ssdd("convert", tmp_path / "file.safetensors", "--out", tmp_path / "m").error_line()
    assert tree(tmp_path) == before, "half a model was left behind"


def test_steps_that_make_no_sense(ssdd: Ssdd, tmp_path: Path, authors: dict[str, Tensor]) -> None:
    save_file(authors, tmp_path / "file.safetensors")
    result = ssdd("convert", tmp_path / "file.safetensors", "--out", tmp_path / "model", "--steps", 0)
    line = result.err
    assert result.status == 2
    assert "--steps" in line, f"the option is not named: {line}"
    assert not (tmp_path / "model").exists(), "a model that cannot decode was written"
