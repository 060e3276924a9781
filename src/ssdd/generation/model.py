"""diffusers' ``DiTTransformer2DModel`` in named sizes, as a velocity network of the library's convention.

The network gets 1000 t and a class, and predicts ``v = x - noise`` (see ``flow``). Its last class is no label at all.

Shapes: B batch, c latent channels, g x g latent grid.
"""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiTTransformer2DModel
from diffusers.models.embeddings import LabelEmbedding
from torch import Tensor, nn

TIMESTEPS = 1000
"""What t = 1 is to the network, and to diffusers' schedulers."""


@dataclass(frozen=True)
class DiTSize:
    """Blocks, attention heads, width of a head, side of a patch in latent pixels."""

    layers: int
    heads: int
    head_width: int
    patch: int


_SIZES = {"XL": (28, 16, 72), "L": (24, 16, 64), "B": (12, 12, 64), "S": (12, 6, 64), "tiny": (4, 4, 32)}
"""Peebles & Xie 2023, table 1; tiny is ours."""


def dit_size(name: str) -> DiTSize:
    """The size of that name, such as ``XL/2``. Raises ValueError for another."""
    size, _, patch = name.partition("/")
    if size not in _SIZES or not patch.isdecimal() or not 1 <= int(patch) <= 16:
        raise ValueError(f"expected a DiT size like XL/2 ({', '.join(_SIZES)}, then the patch), found {name!r}")
    return DiTSize(*_SIZES[size], int(patch))


def build_dit(name: str, latent_shape: tuple[int, int, int], classes: int) -> Any:
    """A DiT with the published initial weights (adaLN-Zero), which diffusers leaves out: it predicts zero.

    Args:
        name: its size.
        latent_shape: (c, g, g).
        classes: how many; 0 for a model without labels.

    Raises ValueError for an unknown size, a grid that is not square, or not a multiple of the patch.
    """
    size = dit_size(name)
    channels, height, width = latent_shape
    if height != width:
        raise ValueError(f"a DiT needs square latents, found {height} x {width}: tokenize square crops")
    if height % size.patch:
        raise ValueError(
            f"expected a latent grid that is a multiple of the patch {size.patch}, found {height} x {width}: "
            f"use --size {name.partition('/')[0]}/1"
        )
    model = DiTTransformer2DModel(
        num_attention_heads=size.heads,
        attention_head_dim=size.head_width,
        in_channels=channels,
        out_channels=channels,
        num_layers=size.layers,
        sample_size=height,
        patch_size=size.patch,
        num_embeds_ada_norm=classes,
    )
    _initialize(model)
    return prepare(model)


def prepare(model: Any) -> Any:
    """Switches off diffusers' own label dropout, which draws from torch's global generator; ours is the run's."""
    for module in model.modules():
        if isinstance(module, LabelEmbedding):
            module.dropout_prob = 0.0
    return model


def null_class(model: Any) -> int:
    """The class that stands for no label."""
    return int(model.config.num_embeds_ada_norm)


def predict_velocity(network: Any, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    """v at x_t (B, c, g, g), t (B,) in [0, 1], classes (B,); ``network`` is a DiT, perhaps compiled or wrapped."""
    return network(x_t, timestep=TIMESTEPS * t, class_labels=labels, return_dict=False)[0]


@torch.no_grad()
def _initialize(model: Any) -> None:
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    patches = model.pos_embed.proj
    nn.init.xavier_uniform_(patches.weight.view(len(patches.weight), -1))
    nn.init.zeros_(patches.bias)
    for block in model.transformer_blocks:
        embedding = block.norm1.emb
        nn.init.normal_(embedding.class_embedder.embedding_table.weight, std=0.02)
        nn.init.normal_(embedding.timestep_embedder.linear_1.weight, std=0.02)
        nn.init.normal_(embedding.timestep_embedder.linear_2.weight, std=0.02)
        nn.init.zeros_(block.norm1.linear.weight)
    nn.init.zeros_(model.proj_out_1.weight)
    nn.init.zeros_(model.proj_out_2.weight)
