"""Small autoencoders of every class, and images for them."""

from typing import Any

import diffusers
import torch
from torch import Tensor

from ssdd.nn.kl_baseline import AutoencoderKLBaseline

_KL: dict[str, Any] = {
    "block_out_channels": (8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 4,
    "latent_channels": 6,
}
_WAN: dict[str, Any] = {
    "base_dim": 4,
    "z_dim": 6,
    "dim_mult": [1, 1, 1],
    "num_res_blocks": 1,
    "temperal_downsample": [False, True],
    "latents_mean": [0.0] * 6,
    "latents_std": [1.0] * 6,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "AutoencoderKL": _KL,
    "AutoencoderKLBaseline": {
        "block_out_channels": (8, 8),
        "decoder_block_out_channels": (8, 16),
        "encoder_groups": 4,
        "decoder_groups": 4,
    },
    "AutoencoderTiny": {
        "encoder_block_out_channels": (8, 8, 8),
        "decoder_block_out_channels": (8, 8, 8),
        "num_encoder_blocks": (1, 1, 1),
        "num_decoder_blocks": (1, 1, 1),
    },
    "AutoencoderDC": {
        "latent_channels": 8,
        "attention_head_dim": 4,
        "encoder_block_types": ("ResBlock", "EfficientViTBlock"),
        "decoder_block_types": ("ResBlock", "EfficientViTBlock"),
        "encoder_block_out_channels": (8, 8),
        "decoder_block_out_channels": (8, 8),
        "encoder_layers_per_block": (1, 1),
        "decoder_layers_per_block": (1, 1),
        "encoder_qkv_multiscales": ((), (5,)),
        "decoder_qkv_multiscales": ((), (5,)),
    },
    "ConsistencyDecoderVAE": {
        "encoder_block_out_channels": (8, 8),
        "encoder_down_block_types": ("DownEncoderBlock2D",) * 2,
        "encoder_norm_num_groups": 4,
        "encoder_layers_per_block": 1,
        "decoder_block_out_channels": (8, 8),
        "decoder_down_block_types": ("ResnetDownsampleBlock2D",) * 2,
        "decoder_up_block_types": ("ResnetUpsampleBlock2D",) * 2,
        "decoder_norm_num_groups": 4,
        "decoder_layers_per_block": 1,
    },
    "AsymmetricAutoencoderKL": {
        "down_block_out_channels": (8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_out_channels": (8, 8),
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "norm_num_groups": 4,
    },
    "AutoencoderKLFlux2": _KL,
    "AutoencoderKLHunyuanImage": {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 8,
        "block_out_channels": (32, 32, 32),
        "layers_per_block": 1,
        "spatial_compression_ratio": 4,
        "sample_size": 32,
    },
    "AutoencoderKLHunyuanImageRefiner": {
        "latent_channels": 8,
        "block_out_channels": (16, 16, 16),
        "layers_per_block": 1,
        "spatial_compression_ratio": 4,
        "temporal_compression_ratio": 2,
    },
    "AutoencoderKLKVAE": {"channels": 32, "num_enc_blocks": 1, "num_dec_blocks": 1, "z_channels": 6, "ch_mult": (1, 1)},
    "AutoencoderKLQwenImage": _WAN,
    "AutoencoderKLQwenImage21": _WAN | {"decoder_base_dim": 4},
    "AutoencoderKLWan": _WAN | {"patch_size": 2, "in_channels": 12, "out_channels": 12, "is_residual": True},
    "AutoencoderRAE": {
        "encoder_hidden_size": 64,
        "encoder_patch_size": 4,
        "encoder_num_hidden_layers": 1,
        "decoder_hidden_size": 16,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 16,
        "patch_size": 8,
        "encoder_input_size": 16,
    },
    "VQModel": _KL | {"num_vq_embeddings": 10},
}
LATENTS = {
    "AutoencoderSSDD": (4, 8),
    "AutoencoderKL": (6, 2),
    "AutoencoderKLBaseline": (4, 2),
    "AutoencoderTiny": (4, 4),
    "AutoencoderDC": (8, 2),
    "ConsistencyDecoderVAE": (4, 2),
    "AsymmetricAutoencoderKL": (4, 2),
    "AutoencoderKLFlux2": (6, 2),
    "AutoencoderKLHunyuanImage": (8, 4),
    "AutoencoderKLHunyuanImageRefiner": (8, 4),
    "AutoencoderKLKVAE": (6, 2),
    "AutoencoderKLQwenImage": (6, 4),
    "AutoencoderKLQwenImage21": (6, 4),
    "AutoencoderKLWan": (6, 8),
    "AutoencoderRAE": (64, 8),
    "VQModel": (6, 2),
}
"""Channels and spatial factor."""


def model_class(kind: str) -> Any:
    """Return the class of this name, None where this release of diffusers has none."""
    return AutoencoderKLBaseline if kind == "AutoencoderKLBaseline" else getattr(diffusers, kind, None)


def images(count: int = 3, height: int = 32, width: int = 48) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1
