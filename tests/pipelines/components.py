"""Real diffusers pipelines from tiny random components, without any download.

Each builder takes the ``vae`` and gives the pipeline of that name as it is published, a few thousand parameters large.
"""

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import diffusers
import torch
from tokenizers import Tokenizer, models
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    PixtralVisionConfig,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

WIDTH = 16
"""Channels of every text encoder."""

SIDE = 32
"""Pixels of every image, of an autoencoder with factor 8."""

BATCH_NORM: dict[str, Any] = {
    "batch_norm_mean": tuple(0.1 * (i % 5) - 0.2 for i in range(16)),
    "batch_norm_var": tuple(0.5 + 0.25 * (i % 7) for i in range(16)),
    "batch_norm_eps": 1e-2,
}
"""Statistics of FLUX.2's batch norm for latents of four channels, different at each place of a patch."""


def kl_vae(**config: Any) -> diffusers.AutoencoderKL:
    """A small AutoencoderKL with random weights, of factor 4 where nothing else is said."""
    torch.manual_seed(0)
    config = {"block_out_channels": (32, 64, 64), "layers_per_block": 2, "latent_channels": 4, **config}
    levels = len(config["block_out_channels"])
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * levels, "up_block_types": ("UpDecoderBlock2D",) * levels}
    return diffusers.AutoencoderKL(**blocks, **config).eval().requires_grad_(False)


def flux2_vae(**config: Any) -> diffusers.AutoencoderKLFlux2:
    """A small AutoencoderKLFlux2 with random weights and the statistics ``BATCH_NORM``."""
    torch.manual_seed(0)
    config = {"block_out_channels": (32, 32, 32, 32), "latent_channels": 4, "batch_norm_eps": 1e-2, **config}
    vae = diffusers.AutoencoderKLFlux2(**config)
    vae.bn.running_mean.copy_(torch.tensor(BATCH_NORM["batch_norm_mean"]))
    vae.bn.running_var.copy_(torch.tensor(BATCH_NORM["batch_norm_var"]))
    return vae.eval().requires_grad_(False)


def clip_tokenizer() -> CLIPTokenizer:
    """Byte-pair encoding with letters alone, no merges."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    with TemporaryDirectory() as folder:
        Path(folder, "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
        Path(folder, "merges.txt").write_text("#version: 0.2\n")
        return CLIPTokenizer.from_pretrained(folder, model_max_length=16)


def clip_text_encoder(projection: bool = False) -> CLIPTextModel | CLIPTextModelWithProjection:
    config = CLIPTextConfig(
        vocab_size=54,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=52,
        eos_token_id=53,
        pad_token_id=53,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def t5_tokenizer() -> T5TokenizerFast:
    """Unigram model of letters."""
    special = ["<pad>", "</s>", "<unk>"]
    pieces = [*((token, 0.0) for token in special), *((letter, -1.0) for letter in "▁abcdefghijklmnopqrstuvwxyz")]
    tokenizer = T5TokenizerFast(tokenizer_object=Tokenizer(models.Unigram(pieces, unk_id=2)), extra_ids=0)
    with TemporaryDirectory() as folder:  # the class adds its own treatment of spaces where it loads
        tokenizer.save_pretrained(folder)
        return T5TokenizerFast.from_pretrained(folder, model_max_length=16)


def t5_text_encoder(width: int = WIDTH) -> T5EncoderModel:
    return T5EncoderModel(T5Config(vocab_size=40, d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2))


def mistral_tokenizer() -> PreTrainedTokenizerFast:
    """Unigram model of letters that takes conversations."""
    pieces = [("<pad>", 0.0), ("<unk>", 0.0), *((letter, -1.0) for letter in "▁abcdefghijklmnopqrstuvwxyz")]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.Unigram(pieces, unk_id=1)),
        pad_token="<pad>",
        unk_token="<unk>",
        chat_template="{% for message in messages %}{{ message['content'][0]['text'] }}{% endfor %}",
    )


def mistral_text_encoder() -> Mistral3ForConditionalGeneration:
    size = {"hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = MistralConfig(vocab_size=40, num_key_value_heads=1, head_dim=8, **size)
    vision = PixtralVisionConfig(image_size=32, patch_size=8, **size)
    return Mistral3ForConditionalGeneration(Mistral3Config(text_config=text, vision_config=vision))


def unet(channels: int, **config: Any) -> diffusers.UNet2DConditionModel:
    return diffusers.UNet2DConditionModel(
        sample_size=SIDE // 8,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **config,
    )


def dit(vae: Any) -> diffusers.DiTPipeline:
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=vae.config.latent_channels,
        out_channels=2 * vae.config.latent_channels,
        num_layers=1,
        sample_size=SIDE // 8,
        num_embeds_ada_norm=1000,
    )
    return diffusers.DiTPipeline(transformer=transformer, vae=vae, scheduler=diffusers.DDIMScheduler())


def stable_diffusion(vae: Any) -> diffusers.StableDiffusionPipeline:
    return diffusers.StableDiffusionPipeline(
        vae=vae,
        text_encoder=clip_text_encoder(),
        tokenizer=clip_tokenizer(),
        unet=unet(vae.config.latent_channels, cross_attention_dim=WIDTH),
        scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def image_to_image(vae: Any) -> diffusers.StableDiffusionImg2ImgPipeline:
    return diffusers.StableDiffusionImg2ImgPipeline(**stable_diffusion(vae).components, requires_safety_checker=False)


def stable_diffusion_xl(vae: Any) -> diffusers.StableDiffusionXLPipeline:
    return diffusers.StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=clip_text_encoder(),
        text_encoder_2=clip_text_encoder(projection=True),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=unet(
            vae.config.latent_channels,
            cross_attention_dim=2 * WIDTH,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=WIDTH + 6 * 8,
        ),
        scheduler=diffusers.EulerDiscreteScheduler(),
        add_watermarker=False,
    )


def stable_diffusion_3(vae: Any) -> diffusers.StableDiffusion3Pipeline:
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=SIDE // 8,
        patch_size=1,
        in_channels=vae.config.latent_channels,
        out_channels=vae.config.latent_channels,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=2 * WIDTH,
        pooled_projection_dim=2 * WIDTH,
    )
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=clip_text_encoder(projection=True),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip_text_encoder(projection=True),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5_text_encoder(2 * WIDTH),
        tokenizer_3=t5_tokenizer(),
    )


def flux(vae: Any) -> diffusers.FluxPipeline:
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=4 * vae.config.latent_channels,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
    )
    return diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=clip_text_encoder(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5_text_encoder(),
        tokenizer_2=t5_tokenizer(),
        transformer=transformer,
    )


def flux2(vae: Any) -> diffusers.Flux2Pipeline:
    transformer = diffusers.Flux2Transformer2DModel(
        in_channels=4 * vae.config.latent_channels,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
    )
    return diffusers.Flux2Pipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=mistral_text_encoder(),
        tokenizer=mistral_tokenizer(),
        transformer=transformer,
    )


def pixart_alpha(vae: Any) -> diffusers.PixArtAlphaPipeline:
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=SIDE // 8,
        patch_size=2,
        in_channels=vae.config.latent_channels,
        out_channels=2 * vae.config.latent_channels,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        cross_attention_dim=16,
        caption_channels=WIDTH,
        use_additional_conditions=False,
    )
    return diffusers.PixArtAlphaPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5_text_encoder(),
        vae=vae,
        transformer=transformer,
        scheduler=diffusers.DDIMScheduler(),
    )


BUILDERS: dict[str, Callable[[Any], Any]] = {
    "DiT": dit,
    "SD": stable_diffusion,
    "SD img2img": image_to_image,
    "SDXL": stable_diffusion_xl,
    "SD3": stable_diffusion_3,
    "FLUX": flux,
    "FLUX.2": flux2,
    "PixArt": pixart_alpha,
}


def build(name: str, vae: Any) -> Any:
    """The pipeline called ``name`` with random weights, always the same, silent and in eval mode."""
    torch.manual_seed(0)
    pipeline = BUILDERS[name](vae)
    pipeline.set_progress_bar_config(disable=True)
    for component in pipeline.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval().requires_grad_(False)
    return pipeline


def generate(pipeline: Any, seed: int = 0, **options: Any) -> Any:
    """What the pipeline makes of one request, as PIL images or as ``output_type`` says."""
    options = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(seed), **options}
    if isinstance(pipeline, diffusers.DiTPipeline):
        return pipeline(class_labels=[1], **options).images
    if isinstance(pipeline, diffusers.StableDiffusionImg2ImgPipeline):
        image = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
        return pipeline(prompt="a cat", image=image, strength=1.0, **options).images
    options = {"height": SIDE, "width": SIDE, **options}
    if isinstance(pipeline, diffusers.StableDiffusion3Pipeline | diffusers.FluxPipeline):
        options["max_sequence_length"] = 16
    if isinstance(pipeline, diffusers.Flux2Pipeline):
        options |= {"max_sequence_length": 16, "text_encoder_out_layers": (1,)}
    if isinstance(pipeline, diffusers.PixArtAlphaPipeline):
        options |= {"use_resolution_binning": False, "clean_caption": False, "max_sequence_length": 16}
    return pipeline(prompt="a cat", **options).images
