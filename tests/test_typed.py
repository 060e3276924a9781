"""py.typed keeps its promise: a user's file that is checked strictly sees the types of the public API."""

import subprocess
import sys
from pathlib import Path

import pytest

import ssdd

pytestmark = pytest.mark.slow

CACHE = Path(__file__).parents[1] / ".mypy_cache" / "user"

# Without diffusers and what it imports mypy takes a third of the time; its classes are Any then.
CONFIG = """
[mypy]
strict = true
follow_imports = silent
[mypy-diffusers.*,transformers.*,torchmetrics.*,torchvision.*]
follow_imports = skip
"""

USER = """
from pathlib import Path
from typing import Any, assert_type

import numpy as np
import torch

from ssdd import AutoencoderSSDD, __version__
from ssdd.autoencoder.codec import EncodedImage, decode_image, encode_image
from ssdd.data.images import read_image
from ssdd.evaluation.pairs import ImageComparison, ImageMetrics
from ssdd.export.files import Export, export_model
from ssdd.generation.result import load_generator
from ssdd.generation.sampling import Sampling, generate
from ssdd.objectives.image import LossInputs
from ssdd.recipes import RECIPES
from ssdd.tokenization import CropProtocol, LatentDataset, TokenizeJob, tokenize
from ssdd.training.config import TrainConfig
from ssdd.training.loop import train

assert_type(__version__, str)


def reconstruct(path: str) -> ImageMetrics:
    ae = AutoencoderSSDD.from_pretrained("ssdd-f8c4-demo").to("cpu")
    assert_type(ae.optimize(dtype=torch.float32), AutoencoderSSDD)
    image = read_image(path)
    encoded = encode_image(ae, image)
    assert_type(encoded, EncodedImage)
    assert_type(ae.normalize_latents(encoded.mean), torch.Tensor)
    ae.decode(encoded.mean, num_inference_steps=1)
    ae.decode(encoded.mean, steps=1)  # expect: call-arg
    ae.encode(image)  # expect: arg-type
    return ImageComparison()(image, decode_image(ae, encoded, steps=1))


def edges(inputs: LossInputs) -> torch.Tensor:
    return (inputs.prediction - inputs.target).abs().mean()


def tokenized(folder: Path) -> tuple[int, int, int]:
    tokenize(TokenizeJob(("photos/",), "ssdd-f8c4-demo", CropProtocol(size=64)), folder)
    data = LatentDataset(folder)
    assert_type(data[0], dict[str, Any])
    return data.latent_shape


def trained(folder: Path) -> Path:
    config = RECIPES["tiny-encoder"]()
    assert_type(config, TrainConfig)
    return train(config, folder)


def generated(folder: str) -> torch.Tensor:
    return generate(load_generator(folder), [0, 1], Sampling(steps=10, sampler="heun"))


def exported(ae: AutoencoderSSDD) -> Export:
    return export_model(ae, "onnx", "mine")  # expect: arg-type
"""


def test_a_users_file_is_checked_strictly(tmp_path: Path) -> None:
    (tmp_path / "config.ini").write_text(CONFIG)
    (tmp_path / "user.py").write_text(USER)
    command = [sys.executable, "-m", "mypy", "--config-file", "config.ini", "--cache-dir", str(CACHE), "user.py"]
    source = {"MYPYPATH": str(Path(ssdd.__file__).parents[1])}
    ended = subprocess.run(command, cwd=tmp_path, env=source, capture_output=True, text=True, timeout=600)
    found = [line for line in ended.stdout.splitlines() if ": error: " in line]
    wanted = {f"user.py:{number}:": line for number, line in enumerate(USER.splitlines(), 1) if "# expect: " in line}
    assert [line.split(" ")[0] for line in found] == list(wanted), ended.stdout + ended.stderr
    for line, expected in zip(found, wanted.values(), strict=True):
        assert f"[{expected.split('# expect: ')[1]}]" in line
