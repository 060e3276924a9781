"""The nodes: what ComfyUI shows of each, and what it computes with ssdd."""

from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from ssdd.autoencoder.codec import pad_to_multiple

from .models import PRECISIONS, ManagedModel, fingerprint, load_model, model_names, progress
from .tensors import FORMATS, check_format, pixel_multiple, to_image, to_pixels, to_raw_latents, to_samples

Inputs = dict[str, dict[str, tuple[Any, ...]]]

_CATEGORY = "latent/SSDD"
_WHERE = "In the package, in models/ssdd and, as folders, in models/vae."
_PRECISION = "Of the weights. auto: what ComfyUI chooses for a VAE on this device."
_HUB_ID = "A Hugging Face id, OWNER/NAME; where it is filled in, the list above does not count."
_FORMAT = "Whose latents will be decoded: a decoder for others is refused. auto: channels alone are compared."
_TILING = "Overlapping tiles for large images. auto: where memory would not suffice."
_STEPS = "Decoding steps. 0: as many as the model's config says, 1 for a distilled model."
_SEED = "Of the decoder's noise, the same for each image of a batch; 0: the model's own. It changes fine detail only."

_TILES: dict[str, tuple[Any, ...]] = {
    "tiling": (["auto", "on", "off"], {"default": "auto", "tooltip": _TILING}),
    "tile_size": ("INT", {"default": 512, "min": 128, "max": 4096, "step": 64, "tooltip": "Side of a tile in pixels."}),
}


class SSDDLoadModel:
    """Load a model with its own encoder."""

    DESCRIPTION = "Load an SSDD image tokenizer: an encoder, and a decoder by diffusion in one or a few steps."
    CATEGORY, FUNCTION = _CATEGORY, "load"
    RETURN_TYPES, RETURN_NAMES = ("SSDD_MODEL",), ("model",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "model": (model_names(), {"tooltip": _WHERE}),
                "precision": (list(PRECISIONS), {"default": "auto", "tooltip": _PRECISION}),
            },
            "optional": {"hub_id": ("STRING", {"default": "", "tooltip": _HUB_ID})},
        }

    @classmethod
    def IS_CHANGED(cls, model: str, hub_id: str = "", **_: Any) -> str:
        return hub_id.strip() or fingerprint(model)

    def load(self, model: str, precision: str, hub_id: str = "") -> tuple[ManagedModel]:
        return (ManagedModel(load_model(hub_id.strip() or model, precision)),)


class SSDDLoadDecoder:
    """Load a decoder for another VAE's latents, and refuse one that is known to be for others than was said."""

    DESCRIPTION = "Load an SSDD decoder that was trained on the latents of another VAE, to stand in for VAE Decode."
    CATEGORY, FUNCTION = _CATEGORY, "load"
    RETURN_TYPES, RETURN_NAMES = ("SSDD_DECODER",), ("decoder",)
    IS_CHANGED = SSDDLoadModel.IS_CHANGED

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        inputs = SSDDLoadModel.INPUT_TYPES()
        inputs["required"]["latent_format"] = (["auto", *FORMATS], {"default": "auto", "tooltip": _FORMAT})
        return inputs

    def load(self, model: str, precision: str, latent_format: str, hub_id: str = "") -> tuple[ManagedModel]:
        loaded = load_model(hub_id.strip() or model, precision)
        if latent_format != "auto":
            check_format(loaded, latent_format)
        loaded.encoder = None  # VAE Encode has it
        return (ManagedModel(loaded),)


class SSDDEncode:
    """Encode images to the mode of the posterior."""

    DESCRIPTION = "Encode images of any size to the latents of an SSDD model."
    CATEGORY, FUNCTION = _CATEGORY, "encode"
    RETURN_TYPES = ("LATENT",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"model": ("SSDD_MODEL",), "image": ("IMAGE",)}, "optional": {**_TILES}}

    @torch.inference_mode()
    def encode(
        self, model: ManagedModel, image: Tensor, tiling: str = "auto", tile_size: int = 512
    ) -> tuple[dict[str, Any]]:
        ae = model.autoencoder
        encoder = ae.encoder or ae.attached_encoder
        if encoder is None:
            raise ValueError(
                "expected an SSDD model with an encoder, found one that only decodes: encode with VAE Encode and the "
                "VAE that it was trained on"
            )
        pixels = pad_to_multiple(to_pixels(image), pixel_multiple(ae))
        device = model.prepare(len(pixels), pixels.shape[2], pixels.shape[3], tiling, tile_size)
        with progress(encoder, 1):
            z = ae.encode(pixels.to(device)).latent_dist.mode()
        samples = to_samples(ae, z.float()).to(comfy.model_management.intermediate_device())
        return ({"samples": samples, "ssdd_size": tuple(image.shape[1:3])},)


class SSDDDecode:
    """Decode latents, and cut the images to the size of those that SSDD Encode got."""

    DESCRIPTION = "Decode the latents of an SSDD model. The same latent and seed give the same image."
    CATEGORY, FUNCTION = _CATEGORY, "decode"
    RETURN_TYPES = ("IMAGE",)
    MODEL = "SSDD_MODEL"

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        seed = {"default": 0, "min": 0, "max": 2**64 - 1, "control_after_generate": False, "tooltip": _SEED}
        return {
            "required": {"model": (cls.MODEL,), "samples": ("LATENT",)},
            "optional": {
                "steps": ("INT", {"default": 0, "min": 0, "max": 1000, "tooltip": _STEPS}),
                **_TILES,
                "seed": ("INT", seed),
            },
        }

    @torch.inference_mode()
    def decode(
        self,
        model: ManagedModel,
        samples: dict[str, Any],
        steps: int = 0,
        tiling: str = "auto",
        tile_size: int = 512,
        seed: int = 0,
    ) -> tuple[Tensor]:
        ae = model.autoencoder
        z = to_raw_latents(ae, samples)
        height, width = (n * ae.spatial_factor for n in z.shape[2:])
        device = model.prepare(len(z), height, width, tiling, tile_size)
        steps = steps or ae.config.num_inference_steps
        # 0 is the noise of config.noise_seed. One generator each: a batch changes no image.
        noise = [torch.Generator("cpu").manual_seed(seed) for _ in z] if seed else None
        with progress(ae.decoder, steps):
            pixels = ae.decode(z.to(device), generator=noise, num_inference_steps=steps).sample
        size = samples.get("ssdd_size", (height, width))
        if [n + -n % pixel_multiple(ae) for n in size] == [height, width]:  # not resized since
            pixels = pixels[:, :, : size[0], : size[1]]
        return (to_image(pixels).to(comfy.model_management.intermediate_device()),)


class SSDDDecodeVAELatent(SSDDDecode):
    """Decode latents of another VAE."""

    DESCRIPTION = "Decode the latents of SD, SDXL, SD3, FLUX, FLUX.2 and others with an SSDD decoder trained on them."
    MODEL = "SSDD_DECODER"


NODE_CLASS_MAPPINGS = {
    "SSDDLoadModel": SSDDLoadModel,
    "SSDDLoadDecoder": SSDDLoadDecoder,
    "SSDDEncode": SSDDEncode,
    "SSDDDecode": SSDDDecode,
    "SSDDDecodeVAELatent": SSDDDecodeVAELatent,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "SSDDLoadModel": "Load SSDD Model",
    "SSDDLoadDecoder": "Load SSDD Decoder",
    "SSDDEncode": "SSDD Encode",
    "SSDDDecode": "SSDD Decode",
    "SSDDDecodeVAELatent": "SSDD Decode (VAE latent)",
}
