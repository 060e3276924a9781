"""A user's own autoencoder, named as code: ``file.py:NAME`` or ``package.module:NAME``.

Shapes: B batch, H x W pixels, f spatial factor, c latent channels, h x w = H/f x W/f latent grid.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from ...checkpoints.own_code import ForeignEncoder, load_own, one_line
from .networks import Network
from .pretrained import sha256

_TRIAL_SIDE = 256  # a multiple of every spatial factor that ``ForeignEncoder`` takes


class OwnCode(Network):
    """A user's encoder, as ``checkpoints.own_code.ForeignEncoder`` takes it, that has ``decode(z)`` besides.

    ``decode`` gets the mode of the latent, (B, c, h, w), and gives images (B, 3, h*f, w*f) in about [-1, 1], or an
    object of diffusers with them as ``sample``. It has no steps, and noise of its own would not follow the seed. A
    module that states a ``dtype`` runs in it, another one in the ``dtype`` given here.

    Raises ValueError, FileNotFoundError or ImportError with one line if the code is something else, or if an image of
    256 x 256 does not go through it: the parameters are those that take part then.
    """

    def __init__(
        self, typed: str, path: str, attribute: str, name: str, device: torch.device | str, dtype: torch.dtype
    ) -> None:
        own = load_own(typed, path, attribute)
        self.foreign = ForeignEncoder(own, typed).cast(dtype).to(device)
        if not callable(getattr(own, "decode", None)):
            raise ValueError(
                f"{typed}: expected an object with decode(z) besides encode(x), found {type(own).__name__} without it: "
                "give it one that makes images (B, 3, H, W) in [-1, 1] of the latent"
            )
        self.name, self.kind, self.source = name, type(own).__name__, typed
        file = Path(path)
        self.sha256 = {file.name: sha256(file)} if path.endswith(".py") else {}
        self.device, self.dtype = torch.device(device), self.foreign.dtype
        self.spatial_factor, self.latent_channels = self.foreign.spatial_factor, self.foreign.latent_channels
        self.parameters, self.decoder_parameters = self._try(typed)

    def _encode(self, x: Tensor) -> Tensor:
        return self.foreign(x)[:, : self.latent_channels].to(self.dtype)

    def _decode(self, z: Tensor, steps: int | None, seed: int, numbers: Sequence[int]) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            decoded = self.foreign.source.decode(z)
        return getattr(decoded, "sample", decoded)

    def _try(self, typed: str) -> tuple[int, int]:
        """Parameters of both and of the decoder, seen at work on one image."""
        try:
            with _ParametersSeen() as encoding:
                latent = self.encode(torch.zeros(1, 3, _TRIAL_SIDE, _TRIAL_SIDE))
            with _ParametersSeen() as decoding:
                self.decode(latent)
        except Exception as error:  # whatever the user's code raises
            raise ValueError(
                f"{typed}: expected code that encodes and decodes an image of {_TRIAL_SIDE} x {_TRIAL_SIDE} pixels, "
                f"found {one_line(error)}"
            ) from error
        return _total(encoding.found | decoding.found), _total(decoding.found)


class _ParametersSeen(TorchFunctionMode):
    """Notes every parameter that a function of torch is given, modules or none."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[int, nn.Parameter] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for value in pytree.tree_leaves((args, kwargs)):
            if isinstance(value, nn.Parameter):
                self.found[id(value)] = value
        return func(*args, **kwargs)


def _total(parameters: dict[int, nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters.values())
