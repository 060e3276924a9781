"""An autoencoder made ready for inference at full speed on the device where it is: ``AutoencoderSSDD.optimize``.

On a CPU: bfloat16 where the processor computes in it, fused norms where torch.compile works, and freed memory that
is kept (a decoding allocates and frees some hundred large tensors, and fresh memory is slow).
On a GPU: bfloat16, and encoder and decoder by torch.compile where it works.
"""

import logging
import warnings
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from ..nn.blocks import AdaptiveGroupNormSilu, GroupNormSilu
from ..runtime.dtypes import fastest_dtype
from ..runtime.memory import keep_freed_memory

if TYPE_CHECKING:
    from .model import AutoencoderSSDD


def optimize(
    autoencoder: "AutoencoderSSDD",
    dtype: torch.dtype | None,
    compile: bool | Literal["graphs"],
    encoder_dtype: torch.dtype | None = None,
) -> None:
    """See ``AutoencoderSSDD.optimize``."""
    device = autoencoder.device
    fastest = fastest_dtype(device)
    if fastest == torch.float16 and autoencoder.config.force_upcast:
        fastest = torch.float32
    dtype = dtype or fastest
    autoencoder.eval().requires_grad_(False)
    autoencoder.for_inference = True
    autoencoder.decoder.to(dtype)
    if autoencoder.encoder is not None:
        autoencoder.encoder.to(encoder_dtype or dtype)
    nn.Module.to(autoencoder, memory_format=torch.channels_last)
    if device.type == "cpu":
        keep_freed_memory()
        use_fused_norms(autoencoder, bool(compile) and can_compile(device))
    elif compile and can_compile(device):
        if autoencoder.encoder is not None:  # what graphs return is overwritten by their next run: latents are kept
            autoencoder.encoder.compile()
        if compile == "graphs":
            autoencoder.decoder.compile(mode="reduce-overhead", dynamic=False)
        else:
            autoencoder.decoder.compile()


def can_compile(device: torch.device) -> bool:
    """Return whether torch.compile works on a device, by trying it; warn with the reason if not.

    It needs a C++ compiler on a CPU, a C compiler and Python's headers on a GPU, and would fail at the first call only.
    """
    if not torch.cuda.is_available():  # a line that there is no GPU, from a build of PyTorch for GPUs
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    try:
        torch.compile(_trial)(torch.zeros(8, device=device))
    except Exception as error:  # of many kinds, by the backend
        reason = str(getattr(error, "inner_exception", error)).partition("\n")[0]
        warnings.warn(f"torch.compile does not work here: {reason}; slower without it", stacklevel=4)
        return False
    return True


def _trial(x: torch.Tensor) -> torch.Tensor:
    return x + 1


def has_fused_norms(network: nn.Module) -> bool:
    """Whether there are norms with a fused version."""
    return bool(_norms(network))


def use_fused_norms(network: nn.Module, use: bool = True) -> None:
    """Switches the fused version on or off in all of a network's norms."""
    for norm in _norms(network):
        norm.fused = use


def _norms(network: nn.Module) -> list[AdaptiveGroupNormSilu | GroupNormSilu]:
    """Those that have a fused version."""
    return [m for m in network.modules() if isinstance(m, (AdaptiveGroupNormSilu, GroupNormSilu))]
