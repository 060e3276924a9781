"""What the tests of training share: options of a small run, and reading what a run left."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

SMALL = [
    *("--encoder", "f4c4", "--data.resolution", "16", "--data.workers", "0", "--loss.lpips", "0"),
    *("--optimizer.warmup-images", "16", "--optimizer.decay-images", "0", "--average.halflife-images", "16"),
    *("--total-images", "24", "--batch-size", "4", "--precision", "fp32"),
    *("--log.stats-images", "8", "--log.checkpoint-images", "12", "--log.sample-images", "0"),
]
"""XXS decoder and width-32 encoder on 16 px, without LPIPS, which needs weights: six updates of four images."""


def stats(run: Path) -> list[dict[str, Any]]:
    """The lines of ``stats.jsonl`` without what depends on the clock on the wall."""
    lines = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("images_per_second", "utilisation")} for line in lines]


def exported(run: Path) -> dict[str, torch.Tensor]:
    """Weights of a run's result."""
    return load_file(run / "model" / "diffusion_pytorch_model.safetensors")


def newest(run: Path) -> dict[str, bytes]:
    """The tensors' bytes of the newest checkpoint, by file and name."""
    folder = sorted(p for p in (run / "checkpoints").iterdir() if p.name.isdigit())[-1]
    return {
        f"{path.name}:{name}": tensor.numpy().tobytes()
        for path in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }
