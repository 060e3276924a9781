"""The transformer: the published network number by number, LightningDiT's parts, grids that are not square."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel

from ssdd.generation.data import Shape
from ssdd.generation.model import build_dit, dit_size, model_class, null_class, predict_velocity, sample_shape
from ssdd.generation.transformer import (
    LatentTransformer,
    RMSNorm,
    SwiGLU,
    axial_rotation,
    rotate,
    sincos_positions,
)
from ssdd.training.config import OptimizerConfig
from ssdd.training.optimizers import build_optimizer
from ssdd.training.parts import part_name

PARTS = {"qk_norm": True, "rope": True, "swiglu": True, "rms_norm": True}


def small(**settings: Any) -> LatentTransformer:
    """Two blocks of width 32 for grids of 4 x 6, with weights that are nowhere zero."""
    torch.manual_seed(0)
    sizes = {"sample_size": (4, 6), "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16}
    model = LatentTransformer(**{**sizes, "num_classes": 3, **settings}).eval()
    for p in model.parameters():
        p.data += torch.randn_like(p) * 0.1
    return model


def call(model: Any, side: tuple[int, int] = (4, 6), channels: int = 4) -> torch.Tensor:
    random = torch.Generator().manual_seed(1)
    x = torch.randn(3, channels, *side, generator=random)
    return predict_velocity(model, x, torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0, 2, 3]))


@pytest.mark.parametrize("network", ["dit", "lightning", "diffusers"])
def test_parameters_in_millions(network: str) -> None:
    """Those of Peebles & Xie 2023, table 1; diffusers' has an embedding of time and class in each block."""
    with torch.device("meta"):
        models = [build_dit(name, (4, 32, 32), 1000, network) for name in ("XL/2", "L/2", "B/2", "S/2")]  # type: ignore[arg-type]
    counts = [sum(p.numel() for p in model.parameters()) / 1e6 for model in models]
    expected = [749.8, 511.6, 147.4, 39.8] if network == "diffusers" else [675, 458, 130, 33]
    assert [round(n, 1) if network == "diffusers" else round(n) for n in counts] == expected


@torch.no_grad()
def test_is_the_dit_of_diffusers_with_one_embedding() -> None:
    """Same numbers where diffusers' blocks all have the same embedding, and its times the published frequencies."""
    theirs = DiTTransformer2DModel(2, 16, num_layers=2, sample_size=6, num_embeds_ada_norm=3, norm_eps=1e-6).eval()
    random = torch.Generator().manual_seed(0)
    for p in theirs.parameters():
        p.copy_(torch.randn(p.shape, generator=random) * 0.1)
    embedding = theirs.transformer_blocks[0].norm1.emb
    embedding.time_proj.downscale_freq_shift = 0
    ours = small(sample_size=(6, 6))
    pairs = [
        (ours.patch_embedding, theirs.pos_embed.proj),
        (ours.time_embedding.linear_1, embedding.timestep_embedder.linear_1),
        (ours.time_embedding.linear_2, embedding.timestep_embedder.linear_2),
        (ours.class_embedding, embedding.class_embedder.embedding_table),
        (ours.modulation_out, theirs.proj_out_1),
        (ours.patch_out, theirs.proj_out_2),
    ]
    for block, their_block in zip(ours.blocks, theirs.transformer_blocks, strict=True):
        their_block.norm1.emb = embedding
        attention = their_block.attn1
        for name in ("weight", "bias"):
            parts = [getattr(linear, name) for linear in (attention.to_q, attention.to_k, attention.to_v)]
            getattr(block.attention.qkv, name).copy_(torch.cat(parts))
        pairs += [
            (block.modulation, their_block.norm1.linear),
            (block.attention.out, attention.to_out[0]),
            (block.mlp.expand, their_block.ff.net[0].proj),
            (block.mlp.out, their_block.ff.net[2]),
        ]
    for module, their_module in pairs:
        module.load_state_dict(their_module.state_dict())
    torch.testing.assert_close(call(ours, (6, 6)), call(theirs, (6, 6)), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("network", ["dit", "lightning", "diffusers"])
def test_fresh_network_predicts_zero(network: str) -> None:
    model = build_dit("tiny/2", (4, 6, 6), 3, network)  # type: ignore[arg-type]
    assert not call(model, (6, 6)).any()
    assert (null_class(model), sample_shape(model)) == (3, (4, 6, 6))


@torch.no_grad()
def test_each_part_changes_the_network() -> None:
    plain = call(small())
    for part in PARTS:
        assert not torch.allclose(call(small(**{part: True})), plain, atol=1e-3), part
    block = small(**PARTS).blocks[0]
    assert isinstance(block.norm_1, RMSNorm)
    assert isinstance(block.mlp, SwiGLU)
    assert block.mlp.out.in_features == 88  # 2/3 * 4 * 32, rounded up to a multiple of 8
    x = torch.tensor([[3.0, -4.0] * 8])
    torch.testing.assert_close(block.attention.norm_q(x) / block.attention.norm_q.weight, x / 12.5**0.5)


def test_rotary_scores_depend_on_distances_alone() -> None:
    """q at (r, c) and k at (r + 2, c + 1) give the same score wherever they are, and another at other distances."""
    rows, columns = (part.flatten().float() for part in torch.meshgrid(torch.arange(5), torch.arange(7), indexing="ij"))
    rotation = axial_rotation(rows, columns, 16)
    q, k = (rotate(torch.randn(1, 1, 1, 16).expand(-1, -1, 35, -1), rotation) for _ in range(2))
    scores = (q @ k.transpose(-1, -2)).reshape(5, 7, 5, 7)
    there = [scores[r, c, r + 2, c + 1] for r in range(3) for c in range(6)]
    torch.testing.assert_close(torch.stack(there), torch.full((18,), float(there[0])), atol=1e-5, rtol=1e-5)
    for other in (scores[0, 0, 2, 2], scores[0, 0, 1, 1]):
        assert abs(float(other - there[0])) > 1e-3


def test_sincos_positions_tell_all_tokens_of_a_grid_apart() -> None:
    rows, columns = (part.flatten().float() for part in torch.meshgrid(torch.arange(4), torch.arange(9), indexing="ij"))
    positions = sincos_positions(rows, columns, 64)
    distances = torch.cdist(positions, positions) + 10 * torch.eye(36)
    assert float(distances.min()) > 0.5
    torch.testing.assert_close(positions[:, :16], (columns[:, None] * 1e4 ** (-torch.arange(16) / 16)).sin())


@torch.no_grad()
def test_patches_come_out_where_they_went_in() -> None:
    """Without blocks each patch is on its own: on a grid of 4 x 6, a change in one changes that alone."""
    model = small(num_layers=0, in_channels=3)
    x = torch.randn(1, 3, 8, 12)
    changed = x.clone()
    changed[:, :, 2:4, 6:8] += 1
    t, label = torch.tensor([0.5]), torch.tensor([0])
    difference = predict_velocity(model, changed, t, label) - predict_velocity(model, x, t, label)
    assert bool((difference[:, :, 2:4, 6:8].abs() > 1e-4).all())
    difference[:, :, 2:4, 6:8] = 0
    assert float(difference.abs().max()) < 1e-5


def test_recomputing_gives_the_same_gradients() -> None:
    model = small(**PARTS).train()
    call(model).square().mean().backward()
    expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    assert len(expected) == len(list(model.parameters())), "some weights have no gradient"
    model.zero_grad()
    model.enable_gradient_checkpointing()
    call(model).square().mean().backward()
    torch.testing.assert_close([p.grad for p in model.parameters()], expected)


def test_half_precision() -> None:
    model = small(**PARTS)
    with torch.no_grad():
        expected = call(model)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(call(model).float(), expected, atol=0.1, rtol=0.1)
        half = model.to(torch.bfloat16)
        x = torch.randn(3, 4, 4, 6, generator=torch.Generator().manual_seed(1)).bfloat16()
        found = predict_velocity(half, x, torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0, 2, 3]))
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, atol=0.15, rtol=0.15)


def test_saved_and_loaded(tmp_path: Path) -> None:
    model = small(**PARTS)
    model.save_pretrained(tmp_path)
    loaded = model_class("LatentTransformer").from_pretrained(tmp_path)
    assert (sample_shape(loaded), null_class(loaded), loaded.config.rope) == ((4, 4, 6), 3, True)
    with torch.no_grad():
        assert torch.equal(call(loaded), call(model))
    with pytest.raises(ValueError, match="expected a network, LatentTransformer or DiTTransformer2DModel, found UNet"):
        model_class("UNet")


@pytest.mark.parametrize(
    ("name", "shapes", "factor", "patch"),
    [
        ("XL", [(4, 32, 32)], 8, 2),  # f8c4, KL-VAE
        ("XL", [(32, 32, 32)], 8, 2),  # FLUX.2
        ("XL", [(4, 31, 31)], 8, 1),
        ("XL", [(4, 16, 16)], 16, 1),  # f16c4, f16c16
        ("XL", [(64, 8, 8)], 32, 1),
        ("XL", [(4, 8, 8), (4, 6, 10)], 8, 2),
        ("XL", [(4, 8, 8), (4, 7, 9)], 8, 1),
        ("XL", [(4, 8, 8)], None, 2),
        ("XL/2", [(4, 16, 16)], 16, 2),
        ("XL/1", [(4, 32, 32)], 8, 1),
    ],
)
def test_patch_of_a_size(name: str, shapes: list[Shape], factor: int | None, patch: int) -> None:
    assert dit_size(name, shapes, factor).patch == patch


def test_muon_has_the_hidden_matrices_and_each_block_a_line_in_the_table() -> None:
    for network, ends in (
        ("lightning", {"patch_embedding.weight", "class_embedding.weight", "patch_out.weight"}),
        ("diffusers", {"pos_embed.proj.weight", "proj_out_2.weight", "embedding_table.weight"}),
    ):
        model = build_dit("tiny/2", (4, 8, 8), 3, network)  # type: ignore[arg-type]
        names = {p: name for name, p in model.named_parameters()}
        hidden, others, _ = build_optimizer(model, OptimizerConfig("muon")).param_groups
        assert all(p.dim() == 2 for p in hidden["params"])
        found = {".".join(names[p].split(".")[-2 if "table" in names[p] else 0 :]) for p in others["params"]}
        assert found == ends
    model = build_dit("tiny/2", (4, 8, 8), 3, "lightning")
    assert list(dict.fromkeys(part_name(name) for name, _ in model.named_parameters())) == [
        *("patch_embedding", "time_embedding.linear_1", "time_embedding.linear_2", "class_embedding"),
        *("blocks.0", "blocks.1", "blocks.2", "blocks.3", "norm_out", "modulation_out", "patch_out"),
    ]
