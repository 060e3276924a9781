"""Photographs to latents and back: the model, what is around it, and a photograph of any size through it.

``model_index.json`` of a pipeline names this package, in which diffusers looks for the class and for its base.
"""

from diffusers import ModelMixin

from .model import AutoencoderSSDD

AutoencoderSSDD.__module__ = __name__

__all__ = ["AutoencoderSSDD", "ModelMixin"]
