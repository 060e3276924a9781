"""The networks that learn latents, in named sizes, in the library's convention.

A network gets 1000 t and a class, and predicts ``v = x - noise`` (see ``flow``). Its last class is no label at all.

Shapes: B batch, c latent channels, h x w latent grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiTTransformer2DModel
from diffusers.models.embeddings import LabelEmbedding
from torch import Tensor, nn

from .config import NetworkName
from .data import Shape
from .transformer import LatentTransformer

TIMESTEPS = 1000
"""What t = 1 is to the network, and to diffusers' schedulers."""

TITLES: dict[NetworkName, str] = {"dit": "DiT", "lightning": "LightningDiT", "diffusers": "diffusers' DiT"}
"""What the networks are called in logs."""

_LIGHTNING = {"qk_norm": True, "rope": True, "swiglu": True, "rms_norm": True}
_SIZES = {"XL": (28, 16, 72), "L": (24, 16, 64), "B": (12, 12, 64), "S": (12, 6, 64), "tiny": (4, 4, 32)}
"""Blocks, heads, width of a head; Peebles & Xie 2023, table 1; tiny is ours."""

_FINE_FACTOR = 8
"""Largest spatial factor of a tokenizer whose latents are cut into patches of 2 by themselves."""


@dataclass(frozen=True)
class DiTSize:
    """Blocks, attention heads, width of a head, side of a patch in latent pixels."""

    layers: int
    heads: int
    head_width: int
    patch: int


def dit_size(name: str, shapes: Sequence[Shape] = (), factor: int | None = None) -> DiTSize:
    """Return the size of a name such as ``XL/2``, or ``XL`` with the patch that the latents ask for.

    That is 2 where the tokenizer's factor is at most 8 and the sides of all grids are even, else 1.

    Args:
        name: of the size.
        shapes: of the latents.
        factor: of the tokenizer; None counts as 8.

    Raises:
        ValueError: there is no such size, or the patch does not divide a grid.
    """
    size, slash, patch = name.partition("/")
    if size not in _SIZES or (slash and not (patch.isdecimal() and 1 <= int(patch) <= 16)):
        raise ValueError(f"expected a DiT size like XL/2 ({', '.join(_SIZES)}, then the patch) or XL, found {name!r}")
    if not slash:
        even = all(side % 2 == 0 for shape in shapes for side in shape[1:])
        patch = "2" if even and (factor or _FINE_FACTOR) <= _FINE_FACTOR else "1"
    for _, height, width in shapes:
        if height % int(patch) or width % int(patch):
            raise ValueError(
                f"expected a latent grid that is a multiple of the patch {patch}, found {height} x {width}: "
                f"use --size {size}/1"
            )
    return DiTSize(*_SIZES[size], int(patch))


def build_dit(size: str | DiTSize, latent_shape: Shape, classes: int, network: NetworkName = "dit") -> Any:
    """Return a network with the published initial weights (adaLN-Zero): it predicts zero.

    Args:
        size: of the network, or its name.
        latent_shape: (c, h, w); the transformers of this library take other grids too.
        classes: how many; 0 for a model without labels.
        network: ``dit`` and ``lightning``: ``LatentTransformer`` with the published block and with LightningDiT's.
            ``diffusers``: ``DiTTransformer2DModel``, which embeds time and class in each block: XL/2 has 749.8 million
            parameters there, and 675 million as published.

    Raises:
        ValueError: unknown size, or a grid that the network does not take.
    """
    channels, height, width = latent_shape
    if isinstance(size, str):
        size = dit_size(size, [latent_shape])
    if network != "diffusers":
        return LatentTransformer(
            in_channels=channels,
            sample_size=(height, width),
            patch_size=size.patch,
            num_layers=size.layers,
            num_attention_heads=size.heads,
            attention_head_dim=size.head_width,
            num_classes=classes,
            **(_LIGHTNING if network == "lightning" else {}),
        )
    if height != width:
        raise ValueError(
            f"diffusers' DiT needs square latents, found {height} x {width}: use --network dit or lightning"
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


def model_class(name: str | None) -> Any:
    """Return the class of a saved network by the ``_class_name`` of its config. Raise ValueError for another."""
    classes = {kind.__name__: kind for kind in (LatentTransformer, DiTTransformer2DModel)}
    if name not in classes:
        raise ValueError(f"expected a network, {' or '.join(classes)}, found {name}")
    return classes[name]


def prepare(model: Any) -> Any:
    """Switch off diffusers' own label dropout, which draws from torch's global generator; ours is the run's."""
    for module in model.modules():
        if isinstance(module, LabelEmbedding):
            module.dropout_prob = 0.0
    return model


def null_class(model: Any) -> int:
    """Return the class that stands for no label: the number of classes."""
    config = model.config
    return int(config.num_classes if "num_classes" in config else config.num_embeds_ada_norm)


def sample_shape(model: Any) -> Shape:
    """Return the shape of the latents that a network is for, (c, h, w)."""
    side = model.config.sample_size
    height, width = (side, side) if isinstance(side, int) else side
    return model.config.in_channels, height, width


def predict_velocity(network: Any, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    """Return v at x_t (B, c, h, w), t (B,) in [0, 1], classes (B,); ``network`` may be compiled or wrapped."""
    return network(x_t, timestep=TIMESTEPS * t, class_labels=labels, return_dict=False)[0]


@torch.no_grad()
def _initialize(model: Any) -> None:
    """Draw the published initial weights of diffusers' DiT, which diffusers leaves out."""
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
