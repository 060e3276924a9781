"""Published pipelines run, save and load with our model as their ``vae``."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from ssdd import AutoencoderSSDD
from tests.pipelines.components import BUILDERS, build, generate, kl_vae

everywhere = pytest.mark.parametrize("name", BUILDERS)


@everywhere
def test_images_of_a_seed(ae: AutoencoderSSDD, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most pipelines decode without a generator: the global one must not matter. What a pipeline shows is what
    ``decode`` gives for the latents that it is called with."""
    pipeline, latents = build(name, ae), []
    decode = AutoencoderSSDD.decode

    def spy(self: AutoencoderSSDD, z: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        latents.append(z)
        return decode(self, z, *arguments, **options)

    torch.manual_seed(1)
    monkeypatch.setattr(AutoencoderSSDD, "decode", spy)
    first = generate(pipeline, output_type="pt")
    monkeypatch.undo()
    assert first.shape == (1, 3, 32, 32)
    assert torch.isfinite(first).all()
    assert first.std() > 0.05, "the image is flat"
    (z,) = latents
    assert z.shape == (1, 4, 4, 4)
    if name not in ("SD", "SD img2img"):  # these pass their generator on to decode
        torch.testing.assert_close(first, (ae.decode(z).sample / 2 + 0.5).clamp(0, 1), atol=1e-5, rtol=0)
    torch.manual_seed(2)
    again = generate(pipeline)[0]
    assert again.size == (32, 32)
    shown = torch.from_numpy(np.asarray(again) / 255).permute(2, 0, 1)
    torch.testing.assert_close(shown, first[0].double(), atol=1 / 255, rtol=0)  # of 8 bits; DiT's cuts off
    assert not torch.allclose(first, generate(pipeline, seed=1, output_type="pt"), atol=1e-2)


@everywhere
def test_whole_pipeline_saved_and_loaded(ae: AutoencoderSSDD, name: str, tmp_path: Path) -> None:
    pipeline = build(name, ae)
    expected = generate(pipeline, output_type="pt")
    pipeline.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["vae"] == ["ssdd.autoencoder", "AutoencoderSSDD"]
    assert sorted(p.name for p in (tmp_path / "vae").iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]
    loaded = diffusers.DiffusionPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded) is type(pipeline)
    assert isinstance(loaded.vae, AutoencoderSSDD)
    torch.testing.assert_close(generate(loaded, output_type="pt"), expected, atol=1e-4, rtol=0)


def test_arguments_of_saving_reach_the_model(ae: AutoencoderSSDD, tmp_path: Path) -> None:
    """Pipelines pass on only what they find in the signature."""
    build("DiT", ae).save_pretrained(tmp_path, variant="bf16", max_shard_size="1MB")
    names = {p.name for p in (tmp_path / "vae").iterdir()}
    assert "diffusion_pytorch_model.safetensors.index.bf16.json" in names
    assert sum(name.endswith(".safetensors") for name in names) > 1
    loaded = diffusers.DiTPipeline.from_pretrained(tmp_path, variant="bf16", torch_dtype=torch.bfloat16)
    assert loaded.vae.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="never saved as a pickle"):
        build("DiT", ae).save_pretrained(tmp_path / "pickle", safe_serialization=False)


def test_loading_in_another_process(ae: AutoencoderSSDD, tmp_path: Path) -> None:
    """A saved pipeline names the class; diffusers finds it where our package was imported, without ``vae=``."""
    build("DiT", ae).save_pretrained(tmp_path)
    code = """
import diffusers
try:  # older releases of diffusers import what a saved pipeline names
    found = diffusers.DiffusionPipeline.from_pretrained(".")
except ValueError as error:
    assert "import ssdd.autoencoder before calling" in str(error), error
    from ssdd import AutoencoderSSDD
    found = diffusers.DiffusionPipeline.from_pretrained(".")
print(type(found.vae).__name__)
"""
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert found.stdout.strip() == "AutoencoderSSDD", found.stderr


def test_an_existing_pipeline_gets_our_model(ae: AutoencoderSSDD, tmp_path: Path) -> None:
    """By assignment, and by ``vae=`` where it is loaded."""
    kl = kl_vae(block_out_channels=(32, 32, 32, 32))
    pipeline = build("SD", kl)
    pipeline.save_pretrained(tmp_path)
    pipeline.vae = ae
    assert pipeline.config.vae == ("ssdd.autoencoder", "AutoencoderSSDD")
    loaded = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path, vae=ae)
    loaded.set_progress_bar_config(disable=True)
    one, two = (generate(p, output_type="pt") for p in (pipeline, loaded))
    torch.testing.assert_close(one, two, atol=1e-4, rtol=0)


def test_latents_of_another_model(ae: AutoencoderSSDD) -> None:
    """A generative model of 16 channels with a decoder of 4: one clear line."""
    pipeline = build("DiT", AutoencoderSSDD.from_preset("f8c16", "XXS", encoder_width=32))
    pipeline.vae = ae
    with pytest.raises(ValueError, match=r"^expected a latent \(B, 4, h, w\), found \(1, 16, 4, 4\)$"):
        generate(pipeline)


def test_image_to_image_of_odd_size(ae: AutoencoderSSDD) -> None:
    """diffusers resizes images to whole latent cells, by the factor that it counts from our config."""
    pipeline = build("SD img2img", ae)
    sizes: list[tuple[int, ...]] = []
    ae.encoder.register_forward_pre_hook(lambda module, inputs: sizes.append(tuple(inputs[0].shape)))
    image = pipeline("a cat", image=torch.rand(1, 3, 60, 70), num_inference_steps=1, strength=1.0).images[0]
    assert (image.size, sizes) == ((64, 56), [(1, 3, 56, 64)])
    with pytest.raises(ValueError, match=r"^expected images .* multiples of 8, found \(1, 3, 60, 64\)"):
        pipeline.vae.encode(torch.rand(1, 3, 60, 64))
