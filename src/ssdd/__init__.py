"""SSDD: an image tokenizer whose decoder is a single-step diffusion model (arXiv 2510.04961)."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["AutoencoderSSDD", "__version__"]

if TYPE_CHECKING:
    from .autoencoder import AutoencoderSSDD


def __getattr__(name: str) -> Any:
    """Imports the model where it is first used, so that ``ssdd --help`` does not wait for torch."""
    if name == "AutoencoderSSDD":
        from .autoencoder import AutoencoderSSDD

        return AutoencoderSSDD
    raise AttributeError(f"module 'ssdd' has no attribute {name!r}")
