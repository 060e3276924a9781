"""SSDD: an image tokenizer whose decoder is a single-step diffusion model (arXiv 2510.04961)."""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"
"""Version of the package."""

__all__ = ["AutoencoderSSDD", "LatentDataset", "__version__", "decode_pil", "encode_pil"]

if TYPE_CHECKING:
    from .autoencoder import AutoencoderSSDD
    from .autoencoder.codec import decode_pil, encode_pil
    from .tokenization import LatentDataset

_MODULES = {
    "AutoencoderSSDD": "autoencoder",
    "LatentDataset": "tokenization",
    "decode_pil": "autoencoder.codec",
    "encode_pil": "autoencoder.codec",
}


def __getattr__(name: str) -> Any:
    """Import a public name where it is first used, so that ``ssdd --help`` does not wait for torch."""
    if name not in _MODULES:
        raise AttributeError(f"module 'ssdd' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
