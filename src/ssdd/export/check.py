"""Exported networks against the model that they come from, in ONNX Runtime.

Shapes: B batch, c latent channels, h x w latent grid, H x W pixels.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..autoencoder import AutoencoderSSDD
from .trace import DECODER, ENCODER, networks

TOLERANCE = {"fp32": 1e-3, "fp16": 0.1}
"""Largest difference from PyTorch in float32 that is taken for rounding, by the dtype of the export."""

_SIZES = ((1, 64, 64), (2, 44, 60), (1, 8, 24), (1, 200, 264))
"""Batch, height and width: square; odd levels; smaller than the attention's window; more blocks than one."""


@dataclass(frozen=True)
class Difference:
    """The largest difference of one output, and the (B, C, ...) where it was found."""

    file: str
    output: str
    largest: float
    shape: tuple[int, ...]


def check_finite(exported: AutoencoderSSDD) -> None:
    """Run the networks of an export in half precision in PyTorch, on random images and latents of several sizes.

    ONNX Runtime computes most of them in float32 on a CPU, where what overflows on a GPU does not.

    Args:
        exported: in half precision on the CPU, in eval mode.

    Raises:
        ArithmeticError: a number that is not finite.
    """
    for network in networks(exported):
        for shape in _pixel_shapes(exported):
            inputs = (_random_image(shape),) if network.file == ENCODER else _random_latent(exported, shape)
            with torch.inference_mode():
                outputs = network.module(*inputs)
            if not all(output.isfinite().all() for output in outputs):
                raise ArithmeticError(
                    f"{network.file}: expected finite numbers in half precision, found NaN or infinity at {shape}: "
                    "take --dtype fp32; --no-check writes it all the same"
                )


def check_files(autoencoder: AutoencoderSSDD, folder: Path, dtype: str) -> list[Difference]:
    """Run the files of a folder on random images and latents of several sizes.

    Args:
        autoencoder: in float32 on the CPU, in eval mode.
        dtype: that of the export.

    Returns:
        A line for each output.

    Raises:
        ArithmeticError: a difference above the tolerance, or a number that is not finite.
    """
    found = _check_decoder(autoencoder, folder / DECODER)
    if autoencoder.encoder is not None:
        found = _check_encoder(autoencoder, folder / ENCODER) + found
    for difference in found:
        if not difference.largest <= TOLERANCE[dtype]:
            raise ArithmeticError(
                f"{difference.file}: expected {difference.output} of ONNX Runtime within {TOLERANCE[dtype]:g} of "
                f"PyTorch's, found {difference.largest:.2g} at {difference.shape}; --no-check writes it all the same"
            )
    return found


def _check_encoder(autoencoder: AutoencoderSSDD, path: Path) -> list[Difference]:
    session, found = open_session(path), []
    for shape in _pixel_shapes(autoencoder):
        image = _random_image(shape)
        with torch.inference_mode():
            posterior = autoencoder.encode(image).latent_dist
        outputs = session.run(["mean", "logvar"], {"image": image.numpy()})
        for name, output, expected in zip(("mean", "logvar"), outputs, (posterior.mean, posterior.logvar), strict=True):
            found.append(_difference(path, name, output, expected))
    return [max((d for d in found if d.output == name), key=_size) for name in ("mean", "logvar")]


def _check_decoder(autoencoder: AutoencoderSSDD, path: Path) -> list[Difference]:
    session, found = open_session(path), []
    for shape in _pixel_shapes(autoencoder):
        latent, noise = _random_latent(autoencoder, shape)
        with torch.inference_mode():
            expected = autoencoder.decode(latent, noise=noise, num_inference_steps=1).sample
        output = session.run(["image"], {"latent": latent.numpy(), "noise": noise.numpy()})[0]
        found.append(_difference(path, "image", output, expected))
    return [max(found, key=_size)]


def open_session(path: Path) -> Any:
    """Return an ``onnxruntime.InferenceSession`` on the CPU with as many threads as PyTorch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _pixel_shapes(autoencoder: AutoencoderSSDD) -> list[tuple[int, int, int, int]]:
    factor = autoencoder.spatial_factor
    return [(batch, 3, -(-height // factor) * factor, -(-width // factor) * factor) for batch, height, width in _SIZES]


def _random_image(shape: tuple[int, int, int, int]) -> Tensor:
    return 2 * torch.rand(shape, generator=torch.Generator().manual_seed(0)) - 1


def _random_latent(autoencoder: AutoencoderSSDD, shape: tuple[int, int, int, int]) -> tuple[Tensor, Tensor]:
    """Return a raw latent and the noise, for images of a shape."""
    factor, generator = autoencoder.spatial_factor, torch.Generator().manual_seed(0)
    noise = torch.randn(shape, generator=generator)
    grid = (shape[0], autoencoder.config.latent_channels, shape[2] // factor, shape[3] // factor)
    with torch.inference_mode():
        return autoencoder.denormalize_latents(torch.randn(grid, generator=generator)), noise


def _difference(path: Path, name: str, output: np.ndarray, expected: Tensor) -> Difference:
    return Difference(path.name, name, float(np.abs(output - expected.numpy()).max()), tuple(expected.shape))


def _size(difference: Difference) -> float:
    """To find the largest; what is not a number counts as infinite."""
    return difference.largest if difference.largest == difference.largest else float("inf")
