"""A user's own encoder, named as code: loaded, checked, frozen.

Shapes: B batch, H x W pixels, f spatial factor, c latent channels.
"""

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from . import kl_vae

_FACTORS = (2, 4, 8, 16, 32, 64)  # a saved decoder's config counts levels, each of which halves the image
_DETERMINISTIC = -30.0  # log-variance of a latent without noise: the least that diffusers' posterior keeps


class ForeignEncoder(nn.Module):
    """A user's encoder, frozen, always in eval mode, without autocast; in float32 unless it states a ``dtype``.

    ``source`` declares ``spatial_factor`` (f) and ``latent_channels`` (c), both int, and has ``encode(x)``: images
    (B, 3, H, W) in [-1, 1] -> a latent (B, c, H/f, W/f), or an object of diffusers with it as ``latents``, or with a
    Gaussian as ``latent_dist``. It may state ``scaling_factor`` and the other latent statistics. If it is an
    nn.Module, it moves with this one.

    Raises ValueError, also at each call, with one line for anything else.
    """

    def __init__(self, source: Any, name: str) -> None:
        super().__init__()
        if not callable(getattr(source, "encode", None)):
            raise ValueError(f"{name}: expected an object with encode(x), found {type(source).__name__} without it")
        f, c = _declared(source, "spatial_factor"), _declared(source, "latent_channels")
        if type(f) is not int or type(c) is not int or c < 1:
            raise ValueError(
                f"{name}: expected it to declare the integers spatial_factor and latent_channels, "
                f"found {kl_vae.short(f)} and {kl_vae.short(c)}"
            )
        if f not in _FACTORS:
            raise ValueError(
                f"{name}: expected a spatial_factor that is a power of two from 2 to 64, found {f}: resize the image "
                "inside encode (a ViT with patches of 14 pixels declares 16 and resizes to 14/16)"
            )
        self.name, self.spatial_factor, self.latent_channels = name, f, c
        self.statistics = kl_vae.read_statistics(name, {n: _declared(source, n) for n in kl_vae.STATISTICS}, c)
        dtype = getattr(source, "dtype", None)
        self.dtype = dtype if isinstance(dtype, torch.dtype) else torch.float32
        self.source: Any = source.float() if isinstance(source, nn.Module) and self.dtype is not dtype else source
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "ForeignEncoder":
        """Stays in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, 2c, H/f, W/f) in float32: mean, then log-variance (-30 for a plain latent)."""
        f = self.spatial_factor
        if x.dim() != 4 or x.shape[1] != 3 or x.shape[2] % f or x.shape[3] % f or 0 in x.shape:
            raise ValueError(f"expected images (B, 3, H, W), H and W multiples of {f}, found {tuple(x.shape)}")
        with torch.autocast(x.device.type, enabled=False):
            mean, logvar = self._moments(self.source.encode(x.to(self.dtype)))
        expected = (x.shape[0], self.latent_channels, x.shape[2] // f, x.shape[3] // f)
        for found in (mean, logvar):
            if not isinstance(found, Tensor) or found.shape != expected or not found.is_floating_point():
                what = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
                raise ValueError(
                    f"{self.name}: expected encode to give a floating-point latent {expected} for images "
                    f"{tuple(x.shape)}, found {what}"
                )
        return torch.cat([mean.float(), logvar.float()], dim=1)

    def _moments(self, encoded: Any) -> tuple[Any, Any]:
        """Mean and log-variance of what ``encode`` gave."""
        if (posterior := getattr(encoded, "latent_dist", None)) is not None:
            return getattr(posterior, "mean", None), getattr(posterior, "logvar", None)
        latent = getattr(encoded, "latents", encoded)
        return latent, torch.full_like(latent, _DETERMINISTIC) if isinstance(latent, Tensor) else None


def _declared(source: Any, name: str) -> Any:
    """An attribute, None where there is none; tensors as numbers."""
    with warnings.catch_warnings():  # models of diffusers answer from their config, and warn
        warnings.simplefilter("ignore", FutureWarning)
        value = getattr(source, name, None)
    return value.squeeze().tolist() if isinstance(value, Tensor) else value


def load_own(name: str, path: str, attribute: str) -> Any:
    """The object ``attribute`` of a file or module, or what it makes where it is a class or a function."""
    file = Path(path) if path.endswith(".py") else None
    if file is not None and not file.is_file():
        raise FileNotFoundError(f"{name}: expected a Python file {file}, found none")
    with _importable(Path.cwd()):
        try:
            module = importlib.import_module(path) if file is None else _import_file(file)
        except (Exception, SystemExit) as error:  # whatever the user's code raises
            raise ImportError(
                f"{name}: expected a module {path} that can be imported, found {one_line(error)}"
            ) from error
        if not hasattr(module, attribute):
            raise ImportError(f"{name}: expected {attribute} in {path}, found no such name there")
        found = getattr(module, attribute)
        if not isinstance(found, type) and (hasattr(found, "encode") or not callable(found)):
            return found
        try:
            return found()
        except Exception as error:
            raise ValueError(
                f"{name}: expected an encoder, or a class or function that makes one without arguments, "
                f"found {one_line(error)}"
            ) from error


def _import_file(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"_ssdd_encoder_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and others look up the module of a class
    spec.loader.exec_module(module)
    return module


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Modules in the folder can be imported, before others of the same name, as with ``python -m``."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with suppress(ValueError):  # the user's code may have taken it out
            sys.path.remove(str(folder))


def one_line(error: BaseException) -> str:
    """Type and message of any exception."""
    return " ".join(f"{type(error).__name__}: {error}".split())
