"""Names and places of models, and what is refused: a model is read whole, and the right one, or not at all."""

import json
import shutil
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from ssdd.checkpoints.layout import CheckpointError
from ssdd.checkpoints.names import AUTHORS_DECODER, AUTHORS_ENCODER, rename
from ssdd.evaluation.contestants import load_contestant
from ssdd.nn.decoder import Decoder
from ssdd.nn.encoder import Encoder
from ssdd.nn.presets import decoder_size, encoder_size
from tests.evaluation.contestants.models import images, refused


def test_names_and_places(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run, a pipeline, an embedded model or a snapshot of the hub cannot be named, or has no name in the table."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    commit, entry = "0123456789" * 4, tmp_path / "hub" / "models--somebody--dc-ae"
    (entry / "refs").mkdir(parents=True)
    (entry / "refs" / "main").write_text(commit)
    for source, target in {
        "AutoencoderSSDD": "runs/best/model",
        "AutoencoderKL": "pipeline/vae",
        "AutoencoderDC": f"hub/models--somebody--dc-ae/snapshots/{commit}",
    }.items():
        shutil.copytree(folders[source], tmp_path / target)
    for typed, name, source in (
        ("runs/best", "best", "runs/best/model"),
        ("runs/best/model", "best", "runs/best/model"),
        ("pipeline", "pipeline", "pipeline/vae"),
        ("ssdd-f8c4-demo", "ssdd-f8c4-demo", "ssdd-f8c4-demo"),
        ("somebody/dc-ae", "somebody/dc-ae", f"somebody/dc-ae@{commit}"),
    ):
        contestant = load_contestant(typed)
        assert (contestant.name, contestant.describe()["source"]) == (name, source)


def test_half_precision_files_and_shards(folders: dict[str, Path], tmp_path: Path) -> None:
    """A peer that is published in half precision alone, or in parts, cannot be compared."""
    model = diffusers.AutoencoderKL.from_pretrained(folders["AutoencoderKL"])
    expected = load_contestant(str(folders["AutoencoderKL"]))
    for number, options in enumerate(({"variant": "fp16"}, {"max_shard_size": "20KB"})):
        model.save_pretrained(tmp_path / str(number), **options)
        contestant = load_contestant(str(tmp_path / str(number)))
        torch.testing.assert_close(contestant.encode(images()), expected.encode(images()))
        assert len(contestant.describe()["sha256"]) == len(list((tmp_path / str(number)).glob("*.safetensors")))


def test_original_file(tmp_path: Path) -> None:
    """The authors' released file cannot be compared, or runs with one step."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        decoder, encoder = Decoder(decoder_size("XXS"), 4), Encoder(encoder_size("f8c4", 32))
    tensors = {f"decoder.{rename(k, AUTHORS_DECODER)}": v for k, v in decoder.state_dict().items()}
    alone = dict(tensors)
    tensors |= {f"encoder.{rename(k, AUTHORS_ENCODER)}": v for k, v in encoder.state_dict().items()}
    save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / "f8c4-S.safetensors")
    save_file({k: v.contiguous() for k, v in alone.items()}, tmp_path / "decoder.safetensors")
    contestant = load_contestant(str(tmp_path / "f8c4-S.safetensors"))
    assert (contestant.name, contestant.describe()["kind"]) == ("f8c4-S", "AutoencoderSSDD")
    assert contestant.describe()["steps"] == 8
    mean = encoder.eval()(images()).chunk(2, dim=1)[0]
    torch.testing.assert_close(contestant.encode(images()), mean, atol=1e-5, rtol=1e-5)
    refused(
        str(tmp_path / "decoder.safetensors"),
        "expected a model with an encoder, found one that only decodes: pass --encoder",
    )
    refused("no/such.safetensors", "^no/such.safetensors: expected a safetensors file, found none", CheckpointError)


def test_what_is_no_contestant(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user reads a traceback, several lines, or figures of a network that is partly random."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    refused("no-such", "^no-such: expected jpeg:BYTES, .*found none of them", FileNotFoundError)
    refused("somebody/nothing", "^somebody/nothing: .*the hub is offline", FileNotFoundError)
    refused("weights/taef2.pth", "found the name of a pickle, .* file.py:NAME", CheckpointError)
    for change, match in {
        "class": "expected one of AutoencoderSSDD, .* found AutoencoderKLWan; wrap it",
        "width": "expected an AutoencoderKL with the weights that its config.json describes, found",
        "levels": "found 1 differences: unexpected quant_conv",
        "missing": "found 1 differences: no decoder.conv_out.bias",
        "cut": "expected an AutoencoderKL with the weights",
        "grey": "expected in_channels 3, for RGB, found 1",
        "pickle": "expected diffusion_pytorch_model.safetensors, found none; pickled weights",
    }.items():
        folder = Path(shutil.copytree(folders["AutoencoderKL"], tmp_path / change))
        config, weights = json.loads((folder / "config.json").read_text()), next(folder.glob("*.safetensors"))
        tensors = load_file(weights)
        if change == "missing":
            save_file({k: v for k, v in tensors.items() if k != "decoder.conv_out.bias"}, weights)
        elif change == "cut":
            weights.write_bytes(weights.read_bytes()[:-100])
        elif change == "pickle":
            weights.rename(folder / "diffusion_pytorch_model.bin")
        elif change == "levels":
            save_file({k: v for k, v in tensors.items() if k != "quant_conv.bias"}, weights)
            config["use_quant_conv"] = False
        elif change == "grey":
            tensors["encoder.conv_in.weight"] = tensors["encoder.conv_in.weight"][:, :1].contiguous()
            save_file(tensors, weights)
        config |= {
            "class": {"_class_name": "AutoencoderKLWan"},
            "width": {"block_out_channels": [8, 16]},
            "grey": {"in_channels": 1},
        }.get(change, {})
        (folder / "config.json").write_text(json.dumps(config))
        refused(change, f"^{change}.*: .*{match}", CheckpointError)
