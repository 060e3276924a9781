"""A small autoencoder for pipelines, and silence."""

from collections.abc import Iterator

import diffusers
import pytest
import torch
from transformers.utils import logging

from ssdd import AutoencoderSSDD
from tests.pipelines.components import BATCH_NORM


@pytest.fixture(scope="package", autouse=True)
def quiet() -> Iterator[None]:
    """No progress bars and advice of other packages; one thread, which is quicker for such small tensors."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    levels = diffusers.utils.logging.get_verbosity(), logging.get_verbosity()
    for module in (diffusers.utils.logging, logging):
        module.set_verbosity_error()
        module.disable_progress_bar()
    yield
    torch.set_num_threads(threads)
    for module, level in zip((diffusers.utils.logging, logging), levels, strict=True):
        module.set_verbosity(level)
        module.enable_progress_bar()


@pytest.fixture
def ae(request: pytest.FixtureRequest) -> AutoencoderSSDD:
    """f8c4 with random weights and measured statistics, and a batch norm for the pipeline that needs one."""
    torch.manual_seed(0)
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    model = AutoencoderSSDD.from_preset(
        "f8c4",
        "XXS",
        encoder_width=32,
        scaling_factor=0.5,
        shift_factor=0.25,
        latents_mean=(0.1, -0.2, 0.3, 0.8),
        latents_std=(1.0, 2.0, 0.5, 3.0),
        **(BATCH_NORM if parameters.get("name") == "FLUX.2" else {}),
    )
    return model.eval().requires_grad_(False)
