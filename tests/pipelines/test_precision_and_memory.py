"""Pipelines' switches for precision and memory work on our model: half precision, autocast, tiling, offload."""

import copy
from typing import Any

import diffusers
import pytest
import torch

from ssdd import AutoencoderSSDD
from tests.pipelines.components import build, generate

GPU = "needs a GPU: diffusers' offload moves models between it and the CPU"


@pytest.mark.parametrize("name", ["DiT", "SD img2img", "SDXL", "SD3", "FLUX", "PixArt"])
def test_half_precision(ae: AutoencoderSSDD, name: str) -> None:
    dtype = torch.bfloat16 if name == "FLUX" else torch.float16
    exact = generate(build(name, copy.deepcopy(ae)), output_type="pt")
    pipeline = build(name, ae).to(dtype)
    assert pipeline.vae.dtype == dtype
    image = generate(pipeline, output_type="pt")
    assert torch.isfinite(image).all()
    assert (image.float() - exact).abs().mean() < 0.1


@pytest.mark.parametrize("name", ["DiT", "SD img2img", "FLUX"])
def test_autocast(ae: AutoencoderSSDD, name: str) -> None:
    pipeline = build(name, ae)
    exact = generate(pipeline, output_type="pt")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        image = generate(pipeline, output_type="pt")
    assert torch.isfinite(image).all()
    assert (image.float() - exact).abs().mean() < 0.1


def test_upcasting_where_a_model_asks_for_it(ae: AutoencoderSSDD) -> None:
    """SDXL's pipeline decodes in float32 where ``force_upcast`` is set, and asks a layer of AutoencoderKL for it."""
    ae.register_to_config(force_upcast=True)
    pipeline, dtypes = build("SDXL", ae).to(torch.float16), []
    ae.decoder.register_forward_pre_hook(lambda module, inputs: dtypes.append(inputs[0].dtype))
    with pytest.warns(FutureWarning, match="upcast_vae"):
        image = generate(pipeline, output_type="pt")
    assert torch.isfinite(image).all()
    assert dtypes == [torch.float32]
    assert ae.dtype == torch.float16, "the pipeline puts it back"


def test_slicing_decodes_one_image_at_a_time(ae: AutoencoderSSDD) -> None:
    pipeline, batches = build("PixArt", ae), []
    whole = generate(pipeline, num_images_per_prompt=2, output_type="pt")
    ae.decoder.register_forward_pre_hook(lambda module, inputs: batches.append(len(inputs[0])))
    pipeline.vae.enable_slicing()
    sliced = generate(pipeline, num_images_per_prompt=2, output_type="pt")
    assert batches == [1, 1]
    torch.testing.assert_close(sliced, whole, atol=1e-4, rtol=0)


def test_tiling_by_the_switch_of_a_pipeline(ae: AutoencoderSSDD) -> None:
    """Wider than one tile of 512 pixels: two tiles, which meet without a seam."""
    pipeline, widths = build("SD", ae), []
    options: dict[str, Any] = {"height": 64, "width": 640, "num_inference_steps": 1, "output_type": "pt"}
    whole = generate(pipeline, **options)
    ae.decoder.register_forward_pre_hook(lambda module, inputs: widths.append(inputs[0].shape[-1]))
    for name in ("tiling", "slicing"):  # older releases of diffusers have them on the pipeline
        getattr(pipeline, f"enable_vae_{name}", getattr(pipeline.vae, f"enable_{name}"))()
    tiled = generate(pipeline, **options)
    assert len(widths) > 1
    assert max(widths) < 640, "the decoder saw the whole image"
    assert tiled.shape == whole.shape == (1, 3, 64, 640)
    assert (tiled - whole).abs().mean() < 0.1
    pipeline.vae.disable_tiling()
    torch.testing.assert_close(generate(pipeline, **options), whole, atol=1e-4, rtol=0)


def test_offload_of_each_layer(ae: AutoencoderSSDD) -> None:
    """What ``enable_sequential_cpu_offload`` attaches: the weights come for each layer, not only for ``forward``."""
    accelerate = pytest.importorskip("accelerate", reason="offload needs accelerate")
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    z = ae.encode(x).latent_dist.mode()
    image = ae.decode(z).sample
    accelerate.cpu_offload(ae, torch.device("cpu"))
    assert ae.decoder.conv_in.weight.is_meta, "nothing was offloaded"
    torch.testing.assert_close(ae.encode(x).latent_dist.mode(), z)
    torch.testing.assert_close(ae.decode(z).sample, image)


def test_offload_of_the_whole_model(ae: AutoencoderSSDD, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``enable_model_cpu_offload`` attaches brings the model for ``encode`` and ``decode`` too."""
    accelerate = pytest.importorskip("accelerate", reason="offload needs accelerate")
    _, hook = accelerate.cpu_offload_with_hook(ae, torch.device("cpu"))
    brought: list[Any] = []
    monkeypatch.setattr(ae._hf_hook, "pre_forward", lambda module, *inputs: brought.append(module))
    z = ae.encode(torch.zeros(1, 3, 32, 32)).latent_dist.mode()
    assert brought == [ae]
    ae.decode(z)
    assert brought == [ae, ae]
    hook.remove()


@pytest.mark.skipif(not torch.cuda.is_available(), reason=GPU)
@pytest.mark.parametrize("switch", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
@pytest.mark.parametrize("name", ["DiT", "SD img2img", "FLUX"])
def test_offload_of_a_pipeline(ae: AutoencoderSSDD, name: str, switch: str) -> None:
    pytest.importorskip("accelerate", reason="offload needs accelerate")
    pipeline: diffusers.DiffusionPipeline = build(name, ae)
    expected = generate(pipeline, output_type="pt")
    getattr(pipeline, switch)()
    image = generate(pipeline, output_type="pt")
    assert ae.device.type in ("cpu", "meta"), "the model stayed on the GPU"
    torch.testing.assert_close(image.cpu(), expected, atol=0.02, rtol=0)
