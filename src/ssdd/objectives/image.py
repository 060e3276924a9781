"""What compares a predicted image with its target, the same for all stages: LPIPS and losses of the user's own.

Shapes: B batch, H x W pixels.
"""

import re
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoints.own_code import OWN_CODE, load_own, one_line
from . import LPIPSNetwork
from .perceptual import LPIPS

SHIFTS = 4
"""Positions of an image on LPIPS's grid, in each direction: its first layers have strides of 2 and 2."""


class LossInputs(NamedTuple):
    """What a loss may look at.

    Attributes:
        prediction: (B, 3, H, W) float32 in about [-1, 1], the image that the decoder's output stands for.
        target: (B, 3, H, W) in [-1, 1], the photograph, or the teacher's image in distillation.
        t: (B,) in [0, 1], the noise level that the decoder saw; 1 for the KL-VAE, which sees no noise.
    """

    prediction: Tensor
    target: Tensor
    t: Tensor


class ImageLosses(nn.Module):
    """Frozen networks and functions that map ``LossInputs`` to scalars, by name.

    Args:
        lpips: weight of LPIPS; 0 leaves it out.
        network: backbone of LPIPS.
        own: ``file.py:NAME`` or ``package.module:NAME``, with ``:WEIGHT`` behind it for another weight than 1.

    Raises:
        ValueError, ImportError, OSError, RuntimeError: a loss cannot be had; one line.
    """

    def __init__(self, lpips: float, network: LPIPSNetwork, own: Sequence[str] = ()) -> None:
        super().__init__()
        self.weights: dict[str, float] = {}
        self.networks = nn.ModuleDict()
        self.functions: dict[str, Callable[[LossInputs], Tensor]] = {}
        if lpips:
            self.weights["lpips"] = lpips
            self.networks["lpips"] = LPIPS(network)
        for spec in own:
            name, weight, loss = _load(spec)
            if name in self.weights:
                raise ValueError(f"{spec}: expected losses of different names, found two called {name}")
            self.weights[name], self.functions[name] = weight, loss
            if isinstance(loss, nn.Module):
                self.networks[name] = loss.eval()
        self.requires_grad_(False)

    def forward(self, inputs: LossInputs, positions: Tensor | None = None) -> dict[str, Tensor]:
        """Return the losses before their weights, float32 scalars.

        Args:
            inputs: what is compared.
            positions: (B, 2) in [0, 1): where each image lies on LPIPS's grid, vertically and horizontally. Without
                them every image begins at a multiple of LPIPS's strides, and so does every trace that they leave in
                its gradient: the decoder learns to draw a weave with their period.

        Raises:
            ValueError: a loss of the user's own fails, or is no scalar with a gradient.
        """
        values: dict[str, Tensor] = {}
        if "lpips" in self.networks:
            prediction, target = inputs.prediction, inputs.target
            if positions is not None:
                prediction, target = shifted(torch.cat([prediction, target], dim=1), positions).chunk(2, dim=1)
            values["lpips"] = self.networks["lpips"](prediction, target).float().mean()
        for name, loss in self.functions.items():
            value = _call(name, loss, inputs)
            if not isinstance(value, Tensor) or value.dim() != 0:
                what = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(f"--loss {name}: expected a scalar tensor, the mean over the batch, found {what}")
            if inputs.prediction.requires_grad and not value.requires_grad:
                raise ValueError(f"--loss {name}: expected a loss with a gradient, found a constant: is it detached?")
            values[name] = value.float()
        return values


def shifted(images: Tensor, positions: Tensor) -> Tensor:
    """Return images (B, C, H, W) as (B, C, H + 3, W + 3), moved by 0 to 3 pixels; what is added mirrors the border."""
    images = F.pad(images, (SHIFTS - 1,) * 4, mode="reflect")
    chosen = F.one_hot((positions * SHIFTS).long(), SHIFTS).to(images.dtype)  # (B, 2, 4): a GPU is not waited for
    for axis, dim in enumerate((2, 3)):
        size = images.shape[dim] - SHIFTS + 1
        parts = [images.narrow(dim, k, size) * chosen[:, axis, k, None, None, None] for k in range(SHIFTS)]
        images = torch.stack(parts).sum(0)
    return images


def _call(name: str, loss: Callable[[LossInputs], Tensor], inputs: LossInputs) -> Any:
    """Return what a user's loss gives. Raise ValueError with one line that says where its code failed."""
    try:
        return loss(inputs)
    except Exception as error:  # whatever the user's code raises
        frame = traceback.extract_tb(error.__traceback__)[-1]
        raise ValueError(f"--loss {name}: {one_line(error)} ({frame.filename}:{frame.lineno})") from error


def weighted_sum(terms: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """Return the sum of ``weights[name] * terms[name]`` over the terms that have a weight."""
    return sum((weights[name] * value for name, value in terms.items() if name in weights), start=0.0)  # type: ignore[return-value]


def _load(spec: str) -> tuple[str, float, Callable[[LossInputs], Tensor]]:
    """Return name, weight and loss of ``file.py:NAME[:WEIGHT]``; a class is called without arguments."""
    match = re.fullmatch(rf"(?P<code>{OWN_CODE})(:(?P<weight>[\d.]+(e-?\d+)?))?", spec)
    if match is None:
        raise ValueError(f"expected a loss as file.py:NAME or file.py:NAME:WEIGHT, found {spec!r}")
    path, name = match[2], match[3]
    loss = load_own(match["code"], path, name, make=False)
    loss = loss() if isinstance(loss, type) else loss
    if not callable(loss):
        raise ValueError(f"{spec}: expected a function of LossInputs, found {type(loss).__name__}")
    return name, float(match["weight"] or 1), loss
