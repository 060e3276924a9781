"""Every command that writes, on small inputs: its arguments, and where its results lie."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file

from ssdd.autoencoder import AutoencoderSSDD
from ssdd.checkpoints.names import AUTHORS_DECODER, AUTHORS_ENCODER, rename
from tests.training.runs import SMALL

COMMANDS = ("encode", "decode", "reconstruct", "evaluate", "data", "convert", "train")
"""``export`` has a test of its own: it needs other packages."""


@dataclass(frozen=True)
class Inputs:
    """What commands read. authors: a checkpoint in the authors' layout. latents: a folder of two latent files."""

    photographs: Path
    model: Path
    authors: Path
    latents: Path


def arguments(command: str, inputs: Inputs, out: Path) -> list[object]:
    """What to type for a command that writes to ``out``; those that can replace results do."""
    photographs, model = inputs.photographs, ["--model", inputs.model, "--device", "cpu"]
    typed: dict[str, list[object]] = {
        "encode": ["encode", photographs, "--out", out, "--overwrite", *model],
        "decode": ["decode", inputs.latents, "--out", out, "--overwrite", "--steps", 1, *model],
        "reconstruct": ["reconstruct", photographs, "--out", out, "--overwrite", "--steps", 1, *model],
        "evaluate": [
            *("evaluate", "bicubic:8", "--data", photographs, "--protocol", "paper-128-v1", "--workers", 0),
            *("--lpips", "--extractors", "--out", out, "--overwrite"),
        ],
        "data": ["data", "check", photographs, "--out", out, "--overwrite", "--workers", 0],
        "convert": ["convert", inputs.authors, "--out", out],
        "train": ["train", "tiny-encoder", "--out", out, "--data.paths", photographs, *SMALL],
    }
    return typed[command]


def write_authors_file(path: Path) -> None:
    """A checkpoint in the authors' layout, with random weights, as small as it can be."""
    model = AutoencoderSSDD((32, 64, 128, 128), 4, decoder_channels=(32, 64, 96, 96), decoder_layers=2)
    rules = {"encoder": AUTHORS_ENCODER, "decoder": AUTHORS_DECODER}
    tensors = {}
    for name, tensor in model.state_dict().items():
        part, inner = name.split(".", 1)
        tensors[f"{part}.{rename(inner, rules[part])}"] = tensor.contiguous()
    save_file(tensors, path)


Tree = Callable[[Path], dict[str, bytes]]


def visible(files: dict[str, bytes]) -> dict[str, bytes]:
    """Without what a killed process may leave behind: hidden temporaries, ``.partial`` folders."""
    hidden = (".partial",)
    return {
        name: content
        for name, content in files.items()
        if not any(part.startswith(".") or part.endswith(hidden) for part in name.split("/"))
    }
