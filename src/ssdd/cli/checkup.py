"""What is installed, what each device computes, and whether it computes it right."""

import importlib.metadata
import platform
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import torch
from torch import Tensor

from ..autoencoder.optimization import can_compile
from ..checkpoints.own_code import one_line
from ..runtime.dtypes import Dtype, fastest_dtype, torch_dtype
from ..runtime.peak import timed
from ..runtime.text import aligned
from .common import DEFAULT_MODEL

if TYPE_CHECKING:
    from ..autoencoder import AutoencoderSSDD

_PACKAGES = ("torch", "torchvision", "diffusers", "accelerate", "transformers", "safetensors", "numpy", "pillow")
LEAST_DB: dict[Dtype, float] = {"fp32": 60.0, "fp16": 35.0, "bf16": 30.0}
"""PSNR of a reconstruction against that of float32 on the CPU: well below what rounding costs, far above a fault."""


@dataclass(frozen=True)
class RoundTrip:
    """A photograph encoded and decoded in one step in one way.

    Attributes:
        device, dtype: where and how.
        compiled: whether the model was made ready by ``optimize`` with compiling.
        db: PSNR against the same in float32 on the CPU, uncompiled; None where it did not run.
        seconds: of the second call.
        error: why it did not run.
    """

    device: str
    dtype: Dtype
    compiled: bool
    db: float | None
    seconds: float | None
    error: str | None = None

    @property
    def right(self) -> bool:
        """Return whether it ran, and no pixel is far from where it belongs."""
        return self.db is not None and self.db >= LEAST_DB[self.dtype]


def versions() -> dict[str, str]:
    """Return the versions of what matters, and the devices."""
    from .. import __version__

    found = {"ssdd": __version__, "python": platform.python_version(), "system": platform.platform()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    found["CPU threads"] = str(torch.get_num_threads())
    for device in devices()[1:]:
        found[str(device)] = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return found


def devices() -> list[torch.device]:
    """Return the CPU and every other device that PyTorch can use here."""
    found = [torch.device("cpu"), *(torch.device("cuda", i) for i in range(torch.cuda.device_count()))]
    return [*found, torch.device("mps")] if torch.backends.mps.is_available() else found


def quick_paths(compile: bool) -> dict[str, str]:
    """Return for each quick path whether it is used here, and why not. ``compile``: try torch.compile too."""
    found = {}
    for device in devices():
        found[f"precision of optimize() on {device}"] = str(fastest_dtype(device)).removeprefix("torch.")
        if not compile:
            found[f"torch.compile on {device}"] = "not tried, as --no-compile asks"
            continue
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            works = can_compile(device)
        reason = str(caught[0].message) if caught else ""
        what = "norms compiled" if device.type == "cpu" else "encoder and decoder compiled"
        found[f"torch.compile on {device}"] = f"{what} by optimize()" if works else reason
    return found


def round_trips(compile: bool) -> list[RoundTrip]:
    """Return a round trip for each device and precision, and with compiling for each device."""
    photograph = _photograph()
    expected = _reconstruct(_load(torch.device("cpu"), "fp32"), photograph)
    trips = []
    for device in devices():
        ways = [(dtype, False) for dtype in get_args(Dtype)]
        if device.type == "cpu":
            ways.remove(("fp16", False))  # minutes an image on many processors
        if compile and device.type != "mps":
            ways.append(("fp32", True))
        trips += [_try(device, *way, photograph, expected) for way in ways]
    return trips


def _load(device: torch.device, name: Dtype, compile: bool = False) -> "AutoencoderSSDD":
    from ..autoencoder import AutoencoderSSDD

    dtype = torch_dtype(name)
    model = AutoencoderSSDD.from_pretrained(DEFAULT_MODEL, torch_dtype=dtype).to(device).eval()
    return model.optimize(dtype) if compile else model


@torch.inference_mode()
def _reconstruct(model: "AutoencoderSSDD", photograph: Tensor) -> Tensor:
    x = photograph.to(model.device, model.dtype)
    return model.decode(model.encode(x).latent_dist.mode(), num_inference_steps=1).sample.float().cpu()


def _try(device: torch.device, dtype: Dtype, compile: bool, photograph: Tensor, expected: Tensor) -> RoundTrip:
    try:
        model = _load(device, dtype, compile)
        _reconstruct(model, photograph)
        image, seconds = timed(lambda: _reconstruct(model, photograph), device)
    except Exception as error:  # whatever a device or its driver comes to
        return RoundTrip(str(device), dtype, compile, None, None, one_line(error)[:220])
    squared_error = (image - expected).square().mean()
    db = float(10 * torch.log10(4 / squared_error.clamp(min=4e-12)))  # values span 2; no more than 120
    return RoundTrip(str(device), dtype, compile, db if image.isfinite().all() else 0.0, seconds)


def _photograph() -> Tensor:
    """Return a photograph of scikit-image, (1, 3, 256, 256) in [-1, 1]."""
    try:
        from skimage import data
    except ImportError as error:
        raise ImportError("the photograph comes with scikit-image: pip install 'ssdd[demo]'") from error

    from ..data.pixels import image_to_tensor

    return image_to_tensor(data.astronaut()[:256, 128:384])[None]


def table(trips: Sequence[RoundTrip]) -> list[str]:
    rows = [["device", "dtype", "compiled", "dB from float32", "seconds", ""]]
    for trip in trips:
        db, seconds = ("-" if v is None else f"{v:.{n}f}" for v, n in ((trip.db, 1), (trip.seconds, 2)))
        verdict = "ok" if trip.right else trip.error or f"WRONG: expected at least {LEAST_DB[trip.dtype]:.0f} dB"
        rows.append([trip.device, trip.dtype, "yes" if trip.compiled else "no", db, seconds, verdict])
    return aligned(rows, left=3)
