"""A user's own encoder, named as code: loaded, checked, frozen or trained, its trained weights saved.

Shapes: B batch, H x W pixels, f spatial factor, c latent channels.
"""

import copy
import importlib
import importlib.util
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..nn.encoder import LOGVAR_RANGE
from ..runtime.files import share
from .config import BATCH_NORM, MOST_LEVELS, STATISTICS, read_batch_norm, read_statistics, short
from .layout import CheckpointError, Expectation, take
from .weights import read_tensors

OWN_CODE = r"((?:.*/)?[^/:]+\.py|[^\W\d]\w*(?:\.[^\W\d]\w*)*):([^\W\d]\w*)"
"""``file.py:NAME`` or ``package.module:NAME``."""

OWN_ENCODER = "own_encoder.safetensors"
"""Weights of a trained encoder of the user's own, beside those of the decoder that was trained with it."""

_FACTORS = [2**n for n in range(1, MOST_LEVELS)]  # a saved decoder's config counts levels, which halve the image
_DETERMINISTIC = LOGVAR_RANGE[0]  # log-variance of a latent without noise


class ForeignEncoder(nn.Module):
    """A user's encoder, in float32 unless it states a ``dtype``.

    By default it is frozen, always in eval mode, and runs without autocast. A trainable one has gradients, follows
    ``train()`` and ``eval()``, and runs under the caller's autocast.

    Args:
        source: declares ``spatial_factor`` (f) and ``latent_channels`` (c), both int, and has ``encode(x)``: images
            (B, 3, H, W) in [-1, 1] -> a latent (B, c, H/f, W/f), or an object of diffusers with it as ``latents``, or
            with a Gaussian as ``latent_dist``. It may state ``scaling_factor`` and the other latent statistics, or
            FLUX.2's ``batch_norm_mean``, ``_var`` and ``_eps``. If it is an nn.Module, it moves with this one.
        name: as the user typed it, for errors.
        trainable: train the parameters that require gradients; ``source`` must be an nn.Module that has some.

    Raises ValueError, also at each call, with one line for anything else.
    """

    def __init__(self, source: Any, name: str, trainable: bool = False) -> None:
        super().__init__()
        if not callable(getattr(source, "encode", None)):
            raise ValueError(f"{name}: expected an object with encode(x), found {type(source).__name__} without it")
        f, c = _declared(source, "spatial_factor"), _declared(source, "latent_channels")
        if type(f) is not int or type(c) is not int or c < 1:
            raise ValueError(
                f"{name}: expected it to declare the integers spatial_factor and latent_channels, "
                f"found {short(f)} and {short(c)}"
            )
        if f not in _FACTORS:
            raise ValueError(
                f"{name}: expected a spatial_factor that is a power of two from 2 to {_FACTORS[-1]}, found {f}: "
                "resize the image inside encode (a ViT with patches of 14 pixels declares 16 and resizes to 14/16)"
            )
        if trainable and not (isinstance(source, nn.Module) and any(p.requires_grad for p in source.parameters())):
            raise ValueError(
                f"{name}: expected an nn.Module with parameters that require gradients to train, found "
                f"{type(source).__name__} without any"
            )
        self.name, self.spatial_factor, self.latent_channels = name, f, c
        stated = {entry: _declared(source, entry) for entry in (*STATISTICS, *BATCH_NORM)}
        self.statistics = read_statistics(name, stated, c) | read_batch_norm(name, stated, c)
        dtype = getattr(source, "dtype", None)
        self.dtype = dtype if isinstance(dtype, torch.dtype) else torch.float32
        self.source: Any = source.float() if isinstance(source, nn.Module) and self.dtype is not dtype else source
        self.trainable = trainable
        if not trainable:
            self.requires_grad_(False)
        self.train(trainable)

    def train(self, mode: bool = True) -> "ForeignEncoder":
        """Set the mode of a trainable encoder; a frozen one stays in eval mode."""
        return super().train(mode and self.trainable)

    def cast(self, dtype: torch.dtype) -> "ForeignEncoder":
        """Run the user's module in this dtype, unless it states its own; return this encoder."""
        if isinstance(self.source, nn.Module) and not isinstance(getattr(self.source, "dtype", None), torch.dtype):
            self.source.to(dtype)
            self.dtype = dtype
        return self

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, 2c, H/f, W/f) in float32: mean, then log-variance (-30 for a plain latent)."""
        f = self.spatial_factor
        if x.dim() != 4 or x.shape[1] != 3 or x.shape[2] % f or x.shape[3] % f or 0 in x.shape:
            raise ValueError(f"expected images (B, 3, H, W), H and W multiples of {f}, found {tuple(x.shape)}")
        if self.trainable:
            mean, logvar = self._moments(self.source.encode(x.to(self.dtype)))
        else:
            with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
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
    """Return an attribute, None where there is none; tensors as numbers."""
    with warnings.catch_warnings():  # models of diffusers answer from their config, and warn
        warnings.simplefilter("ignore", FutureWarning)
        value = getattr(source, name, None)
    return value.squeeze().tolist() if isinstance(value, Tensor) else value


def save_own_encoder(encoder: ForeignEncoder, folder: str | Path) -> None:
    """Write the weights of a trained encoder's ``source`` to ``folder/own_encoder.safetensors``."""
    # Copies, because safetensors refuses tensors that share memory, such as tied weights.
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in encoder.source.state_dict().items()}
    path = Path(folder) / OWN_ENCODER
    save_file(state, path)
    share(path)


def load_own_encoder(name: str, folder: str | Path) -> ForeignEncoder:
    """Return the frozen encoder that ``name`` says, with the weights that were trained for the model in ``folder``.

    Without ``own_encoder.safetensors`` in the folder, the encoder stays as the code makes it.

    Args:
        name: ``file.py:NAME`` or ``package.module:NAME``.
        folder: the model's folder.

    Raises CheckpointError with one line for weights that are not this encoder's; for code, see ``load_own``.
    """
    code = re.fullmatch(OWN_CODE, name)
    if code is None:
        raise ValueError(f"{name}: expected an encoder as file.py:NAME or package.module:NAME")
    source = load_own(name, code[1], code[2])
    if isinstance(source, nn.Module):  # two models may name the same instance and differ in weights or dtype
        source = copy.deepcopy(source)
    encoder = ForeignEncoder(source, name)
    load_trained_weights(encoder, folder)
    return encoder


def load_trained_weights(encoder: ForeignEncoder, folder: str | Path) -> None:
    """Load ``folder/own_encoder.safetensors``, if it is there. Raise CheckpointError if it is of another encoder."""
    source, path = encoder.source, Path(folder) / OWN_ENCODER
    if not path.is_file():
        return
    if not isinstance(source, nn.Module):
        raise CheckpointError(
            f"{path}: expected {encoder.name} as an nn.Module, which these weights are of, found none"
        )
    what = f"{path}: expected the weights of {encoder.name}"
    source.load_state_dict(take(what, read_tensors(path), Expectation(source, [])))


def code_file(name: str) -> Path:
    """Return the Python file of own code that is loaded."""
    path = name.rpartition(":")[0]
    return Path(path if path.endswith(".py") else str(sys.modules[path].__file__))


def load_own(name: str, path: str, attribute: str, make: bool = True) -> Any:
    """Return the object ``attribute`` of a file or module, or, with ``make``, what a class or function there makes."""
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
        if not make or (not isinstance(found, type) and (hasattr(found, "encode") or not callable(found))):
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
