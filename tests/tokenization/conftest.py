"""Photographs in folders of classes, a broken one among them, and a small job on them."""

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ssdd import AutoencoderSSDD
from ssdd.tokenization import CropProtocol, TokenizeJob, tokenize

Job = Callable[..., TokenizeJob]

SIZE, SHARD = 32, 4
NAMES = ("ant/0.png", "ant/1.png", "bee/b.0.png", "bee/broken.jpg", "bee/c d.png", "cow/x.png", "cow/é.png")
"""Two shards: of four and of three images, one of them broken."""


TEMPORARY = re.compile(r"\.([0-9]+)-[0-9a-f]{12}-shard-.*")
"""Of a shard that is being written, with the process that writes it."""


class Bar:
    """A progress bar that does something when images are done."""

    def __init__(self, act: Callable[[int], object]) -> None:
        self.act, self.done = act, 0

    def update(self, images: int) -> None:
        self.done += images
        self.act(self.done)

    def __call__(self, total: int) -> contextlib.AbstractContextManager["Bar"]:
        self.total = total
        return contextlib.nullcontext(self)


@pytest.fixture(scope="package", autouse=True)
def threads() -> Iterator[None]:
    """One: how many there are may change the last digits, and networks this small gain nothing by more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory, picture: Callable[..., np.ndarray]) -> Path:
    folder = tmp_path_factory.mktemp("data") / "photographs"
    for i, name in enumerate(NAMES):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if "broken" in name:
            path.write_bytes(b"no image")
        else:
            Image.fromarray(picture(40 + i, 60 - 4 * i, i)).save(path)
    return folder


@pytest.fixture(scope="session")
def job(photographs: Path, tiny_model: Path) -> Job:
    """``job(flips=True, store="bf16", ...)``: fields of the job and of its protocol."""

    def make(**changes: Any) -> TokenizeJob:
        protocol = {f.name for f in dataclasses.fields(CropProtocol)} & changes.keys()
        crops = CropProtocol(**{"size": SIZE, **{name: changes.pop(name) for name in protocol}})
        fields = {"paths": (str(photographs),), "model": str(tiny_model), "shard_images": SHARD, "batch_size": 2}
        return TokenizeJob(protocol=crops, **{**fields, **changes})

    return make


@pytest.fixture(scope="session")
def other_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a model with one number more in its encoder."""
    folder = tmp_path_factory.mktemp("other-model")
    model = AutoencoderSSDD.from_pretrained(tiny_model)
    model.encoder.conv_in.bias.data[0] += 1  # type: ignore[union-attr]
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def whole(job: Job, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The set of an uninterrupted run, mirrored crops and all; tests copy it before they change it."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("whole") / "latents"
    tokenize(job(flips=True), out, workers=0)
    return out


@pytest.fixture(scope="session")
def single(job: Job, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven shards made by one process."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("single") / "latents"
    tokenize(job(shard_images=1), out, workers=0)
    return out
