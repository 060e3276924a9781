"""Saved models of every class."""

from pathlib import Path

import diffusers
import pytest
import torch

from tests.evaluation.contestants.models import CONFIGS


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> dict[str, Path]:
    """A saved model of each class, with random weights."""
    folders = {"AutoencoderSSDD": tiny_model}
    for kind, config in CONFIGS.items():
        folders[kind] = tmp_path_factory.mktemp("models") / kind.lower()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            getattr(diffusers, kind)(**config).save_pretrained(folders[kind])
    return folders
