"""Parameter names of other projects: rules that turn our names into theirs.

A name is a fact of a file format; no code of those projects is used.
"""

import re

Rules = list[tuple[str, str]]

AUTHORS_DECODER: Rules = [
    (r"^time\.mlp\.0\.", "time_embedding.linear_1."),
    (r"^time\.mlp\.2\.", "time_embedding.linear_2."),
    (r"^context\.", "ada_ctx_proj."),
    (r"^(down|up)\.(\d+)\.blocks\.(\d+)\.norm1\.modulation\.", r"\1.\2.blocks.\3.norm1.ctx_proj."),
    (r"^(down|up)\.(\d+)\.blocks\.", r"\1_blocks.\2.resnets."),
    (r"^down\.(\d+)\.downsample\.", r"down_blocks.\1.downsamplers.0."),
    (r"^up\.(\d+)\.upsample\.", r"up_blocks.\1.upsamplers.0."),
    (r"\.time\.", ".time_emb_proj."),
    (r"\.shortcut\.", ".conv_shortcut."),
    (r"^middle\.blocks\.", "mid_block.transformer_blocks."),
    (r"^middle\.", "mid_block."),
    (r"\.norm1\.modulation\.", ".norm1.linear."),
    (r"\.attention\.([qkv])\.", r".attn1.to_\1."),
    (r"\.attention\.out\.", ".attn1.out_proj."),
    (r"\.attention\.bias_table$", ".relative_position_bias.relative_bias_table"),
    (r"\.feed_forward\.expand\.", ".ff.proj_in_act.proj."),
    (r"\.feed_forward\.out\.", ".ff.proj_out."),
    (r"^norm_out\.", "conv_norm_out."),
]
"""Decoder of the authors' release, without the ``decoder.`` prefix."""

AUTHORS_ENCODER: Rules = [
    (r"^down\.(\d+)\.blocks\.", r"down.\1.block."),
    (r"^middle\.0\.", "mid.block_1."),
    (r"^middle\.1\.out\.", "mid.attn_1.proj_out."),
    (r"^middle\.1\.", "mid.attn_1."),
    (r"^middle\.2\.", "mid.block_2."),
    (r"\.shortcut\.", ".nin_shortcut."),
    (r"^moments\.", "out_proj."),
]
"""Encoder of the authors' release, without the ``encoder.`` prefix: latent-diffusion names."""

DIFFUSERS_ENCODER: Rules = [
    (r"^", "encoder."),
    (r"^encoder\.moments\.", "quant_conv."),
    (r"^encoder\.bn\.", "bn."),
    (r"\.down\.(\d+)\.blocks\.", r".down_blocks.\1.resnets."),
    (r"\.down\.(\d+)\.downsample\.", r".down_blocks.\1.downsamplers.0."),
    (r"\.middle\.0\.", ".mid_block.resnets.0."),
    (r"\.middle\.1\.norm\.", ".mid_block.attentions.0.group_norm."),
    (r"\.middle\.1\.out\.", ".mid_block.attentions.0.to_out.0."),
    (r"\.middle\.1\.([qkv])\.", r".mid_block.attentions.0.to_\1."),
    (r"\.middle\.2\.", ".mid_block.resnets.1."),
    (r"\.shortcut\.", ".conv_shortcut."),
    (r"\.norm_out\.", ".conv_norm_out."),
]
"""Encoder of a diffusers ``AutoencoderKL``, with its ``encoder.`` and ``quant_conv.``, and FLUX.2's ``bn.``."""


def rename(name: str, rules: Rules) -> str:
    """Return the name after every rule that applies, in order."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
