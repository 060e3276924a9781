"""``AutoencoderSSDD.optimize``: the same images, whatever was made quicker."""

import copy

import pytest
import torch

from ssdd import AutoencoderSSDD
from ssdd.autoencoder.optimization import optimize
from ssdd.nn.blocks import AdaptiveGroupNormSilu, GroupNormSilu
from ssdd.runtime.dtypes import fastest_dtype


@pytest.fixture(scope="module")
def plain() -> AutoencoderSSDD:
    """With modulations that do something: fresh ones are nearly zero."""
    torch.manual_seed(0)
    ae = AutoencoderSSDD.from_preset("f8c4", "XXS", encoder_width=32, encoder_groups=8)
    for parameter in ae.parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return ae.eval()


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """Of images in [-1, 1]."""
    return float(10 * torch.log10(4 / (a.double() - b.double()).square().mean()))


@torch.no_grad()
def test_float32_is_equal_to_rounding(plain: AutoencoderSSDD) -> None:
    fast = copy.deepcopy(plain).optimize(dtype=torch.float32)
    assert all(m.fused for m in fast.modules() if isinstance(m, (AdaptiveGroupNormSilu, GroupNormSilu)))
    x = torch.rand(2, 3, 40, 72) * 2 - 1
    z = plain.encode(x).latent_dist.mode()
    torch.testing.assert_close(fast.encode(x).latent_dist.mode(), z, atol=1e-5, rtol=1e-5)
    for steps in (1, 3):
        images = [ae.decode(z, num_inference_steps=steps).sample for ae in (plain, fast)]
        torch.testing.assert_close(images[1], images[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_half_precision_is_far_above_what_is_seen(plain: AutoencoderSSDD) -> None:
    fast = copy.deepcopy(plain).optimize(dtype=torch.bfloat16)
    z = torch.randn(1, 4, 8, 8)
    image = plain.decode(z).sample
    scale = float(image.abs().max())
    assert psnr(fast.decode(z).sample / scale, image / scale) > 40


def test_a_precision_that_is_asked_for(plain: AutoencoderSSDD) -> None:
    """Also of a model whose pipelines are told to decode in float32."""
    ae = copy.deepcopy(plain)
    ae.register_to_config(force_upcast=True)
    assert ae.optimize(dtype=torch.float16, compile=False).dtype == torch.float16


def test_returns_itself_ready_for_inference(plain: AutoencoderSSDD) -> None:
    ae = copy.deepcopy(plain).train()
    assert ae.optimize(compile=False) is ae
    assert not ae.training
    assert not any(p.requires_grad for p in ae.parameters())
    assert ae.dtype == fastest_dtype(torch.device("cpu"))
    assert not any(m.fused for m in ae.modules() if isinstance(m, (AdaptiveGroupNormSilu, GroupNormSilu)))
    weight = ae.decoder.conv_in.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_a_decoder_alone(plain: AutoencoderSSDD) -> None:
    ae = AutoencoderSSDD.from_preset("f8c4", "XXS", has_encoder=False).optimize(compile=False)
    assert ae.decode(torch.randn(1, 4, 4, 4)).sample.shape == (1, 3, 32, 32)


def test_without_a_compiler_it_says_so(plain: AutoencoderSSDD, no_compiler: None) -> None:
    ae = copy.deepcopy(plain)
    with pytest.warns(UserWarning, match=r"torch\.compile does not work here: No working C\+\+ compiler") as warned:
        ae.optimize()
    assert warned[0].filename == __file__
    assert not any(m.fused for m in ae.modules() if isinstance(m, (AdaptiveGroupNormSilu, GroupNormSilu)))


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_bfloat16_where_the_processor_has_it(monkeypatch: pytest.MonkeyPatch, native: bool, dtype: torch.dtype) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    assert fastest_dtype(torch.device("cpu")) == dtype


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@torch.no_grad()
def test_compiled_on_a_gpu(plain: AutoencoderSSDD) -> None:
    z = torch.randn(2, 4, 8, 8)
    fast = copy.deepcopy(plain).cuda()
    optimize(fast, torch.float32, compile=True)
    torch.testing.assert_close(fast.decode(z.cuda()).sample.cpu(), plain.decode(z).sample, atol=1e-4, rtol=1e-4)


def test_graphs_are_of_the_decoder_alone(plain: AutoencoderSSDD, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a graph returns is overwritten by its next run: an image is used up by then, a latent may be kept."""
    compiled: list[tuple[str, dict[str, object]]] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **how: compiled.append((type(self).__name__, how)))
    monkeypatch.setattr("ssdd.autoencoder.optimization.can_compile", lambda device: True)
    ae = copy.deepcopy(plain)
    monkeypatch.setattr(AutoencoderSSDD, "device", torch.device("meta"))  # neither a CPU nor there
    optimize(ae, torch.float32, compile="graphs")
    assert compiled == [("Encoder", {}), ("Decoder", {"mode": "reduce-overhead", "dynamic": False})]
