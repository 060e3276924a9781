"""Where diffusers and PyTorch put an autoencoder: offloaded, spread, stored in fp8, compiled, under modes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model, infer_auto_device_map
from accelerate.hooks import remove_hook_from_module
from diffusers.hooks import group_offloading
from PIL import Image
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ssdd import AutoencoderSSDD, decode_pil, encode_pil

X = torch.rand(2, 3, 40, 56, generator=torch.Generator().manual_seed(0)) * 2 - 1
CPU = torch.device("cpu")


@pytest.fixture
def ae(tiny_model: Path) -> AutoencoderSSDD:
    model = AutoencoderSSDD.from_pretrained(tiny_model).eval().requires_grad_(False)
    nn.init.normal_(model.decoder.conv_out.weight, std=0.1)
    return model


def both_ways(ae: AutoencoderSSDD, x: Tensor = X) -> Tensor:
    with torch.no_grad():
        return ae.decode(ae.encode(x).latent_dist.mode(), num_inference_steps=2).sample.float()


def disk(ae: AutoencoderSSDD, folder: Path) -> None:
    disk_offload(ae, offload_dir=str(folder), execution_device=CPU)


def spread(ae: AutoencoderSSDD, folder: Path) -> None:
    """Half of the parts on the disk, as ``device_map`` has it where memory is short."""
    size = sum(parameter.numel() * 4 for parameter in ae.parameters())
    names = list(ae._no_split_modules)
    device_map = infer_auto_device_map(ae, {"cpu": size // 2, "disk": 2 * size}, no_split_module_classes=names)
    assert {"cpu", "disk"} == set(map(str, device_map.values()))
    dispatch_model(ae, device_map, main_device="cpu", offload_dir=str(folder), force_hooks=True)


@pytest.mark.parametrize("offload", [lambda ae, _: cpu_offload(ae, CPU), disk, spread], ids=["cpu", "disk", "spread"])
def test_offloaded_by_accelerate(
    ae: AutoencoderSSDD, tmp_path: Path, offload: Callable[[AutoencoderSSDD, Path], object]
) -> None:
    """Its hooks make new lists of what a module is called with: nothing may come back through an argument."""
    expected = both_ways(ae)
    offload(ae, tmp_path)
    # Weights from the disk have another layout in memory, and so another order of sums.
    torch.testing.assert_close(both_ways(ae), expected, atol=1e-4, rtol=1e-4)
    remove_hook_from_module(ae, recurse=True)


def test_photographs_and_attached_encoders_under_offload(tiny_model: Path) -> None:
    """Where weights wait there are no numbers: an image or an encoder that was sent there was gone."""
    whole = AutoencoderSSDD.from_pretrained(tiny_model).eval()
    photograph = Image.fromarray((X[0].permute(1, 2, 0).numpy() * 127.5 + 127.5).astype("uint8"))
    encoded = encode_pil(whole, photograph)
    decoded = np.asarray(decode_pil(whole, encoded))
    decoder = AutoencoderSSDD.from_preset("f8c4", "XXS", has_encoder=False).eval()
    decoder.decoder = whole.decoder
    encoder = whole.encoder
    encoder.spatial_factor, encoder.latent_channels = 8, 4
    decoder.attach_encoder(encoder)
    cpu_offload(decoder, CPU)
    assert torch.equal(encode_pil(decoder, photograph).mean, encoded.mean)
    assert abs(np.asarray(decode_pil(decoder, encoded)).astype(int) - decoded).max() <= 1
    remove_hook_from_module(decoder, recurse=True)


def test_device_map_of_from_pretrained(tiny_model: Path) -> None:
    plain = AutoencoderSSDD.from_pretrained(tiny_model).eval()
    mapped = AutoencoderSSDD.from_pretrained(tiny_model, device_map={"": "cpu"}).eval()
    assert torch.equal(both_ways(mapped), both_ways(plain))


@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
def test_group_offload(ae: AutoencoderSSDD, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = both_ways(ae)
    options = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    ae.enable_group_offload(onload_device=CPU, offload_device=CPU, offload_type=kind, **options)
    loaded: list[object] = []
    onload = group_offloading.ModuleGroup.onload_
    monkeypatch.setattr(group_offloading.ModuleGroup, "onload_", lambda self: loaded.append(self) or onload(self))
    assert torch.equal(both_ways(ae), expected)
    assert len(set(loaded)) >= 2, "encoder and decoder stay where they wait"


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_weights_stored_in_fp8(ae: AutoencoderSSDD, compute: torch.dtype) -> None:
    """One stored weight told in which type to compute: image, latent and noise became float8."""
    expected = both_ways(ae)
    ae.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=compute)
    assert ae.decoder.conv_in.weight.dtype == torch.float8_e4m3fn
    found = both_ways(ae)
    assert ae.decode(torch.zeros(1, 4, 2, 2)).sample.dtype == compute
    error = (found - expected).abs().mean() / expected.std()
    assert error < 0.2, f"{error}: more than the error of weights of three bits"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["decode", "encode", "forward"])
def test_compiled_as_one_graph(ae: AutoencoderSSDD, name: str) -> None:
    """As diffusers' guides compile a VAE."""
    input = torch.randn(1, 4, 5, 7) if name == "decode" else X[:1]
    plain, compiled = getattr(ae, name), torch.compile(getattr(ae, name), backend="eager", fullgraph=True)

    def image(result: object) -> Tensor:
        return result.sample if hasattr(result, "sample") else result.latent_dist.mean  # type: ignore[attr-defined]

    with torch.no_grad():
        torch.testing.assert_close(image(compiled(input)), image(plain(input)), atol=1e-4, rtol=1e-4)
    torch._dynamo.reset()


@pytest.mark.slow
def test_compiled_in_place_and_by_blocks(ae: AutoencoderSSDD) -> None:
    expected = both_ways(ae)
    ae.compile(backend="eager")
    torch.testing.assert_close(both_ways(ae), expected, atol=1e-4, rtol=1e-4)
    torch._dynamo.reset()
    ae._compiled_call_impl = None
    ae.compile_repeated_blocks(backend="eager")
    torch.testing.assert_close(both_ways(ae), expected, atol=1e-4, rtol=1e-4)
    torch._dynamo.reset()


def test_wrapped_parts_keep_their_names(ae: AutoencoderSSDD, tmp_path: Path) -> None:
    """``ae.decoder = torch.compile(ae.decoder)``, saved, could not be loaded."""
    names = list(ae.state_dict())
    expected = both_ways(ae)
    ae.decoder = torch.compile(ae.decoder, backend="eager")  # type: ignore[assignment]
    assert sorted(ae.state_dict()) == sorted(names)
    ae.load_state_dict(ae.state_dict())
    whole = nn.ModuleDict({"vae": ae})
    whole.load_state_dict(whole.state_dict())
    compiled = torch.compile(ae, backend="eager")
    compiled.load_state_dict(compiled.state_dict())
    ae.save_pretrained(tmp_path)
    assert torch.equal(both_ways(AutoencoderSSDD.from_pretrained(tmp_path).eval()), expected)
    torch._dynamo.reset()


class _Watch(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        return func(*args, **(kwargs or {}))


def test_torch_function_modes_change_nothing(ae: AutoencoderSSDD) -> None:
    """One, which profilers and ``set_default_device`` are, switched the accurate norms off."""
    ae = ae.to(memory_format=torch.channels_last)
    expected = both_ways(ae)
    with _Watch():
        assert torch.equal(both_ways(ae), expected)
    torch.set_default_device("cpu")
    try:
        assert torch.equal(both_ways(ae), expected)
    finally:
        torch.set_default_device(None)


def test_integers_are_refused(ae: AutoencoderSSDD) -> None:
    """0 ... 255 would be taken for -1 ... 1."""
    with pytest.raises(ValueError, match=r"floating-point numbers in \[-1, 1\], found torch.uint8"):
        ae.encode(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))


def test_default_noise_is_drawn_once_a_size(ae: AutoencoderSSDD) -> None:
    """It is drawn and copied at every call, for want of a cache; or noise of any size is kept."""
    from ssdd.nn import noise

    noise._cached.cache_clear()
    with torch.inference_mode():
        first = noise.fixed_noise(0, (3, 16, 24), CPU)
    assert torch.equal(first, torch.randn(3, 16, 24, generator=torch.Generator().manual_seed(0)))
    assert noise.fixed_noise(0, (3, 16, 24), CPU) is first
    assert not first.is_inference(), "no use where gradients are wanted"
    noise.fixed_noise(0, (3, 8, 4096 * 2049 // 8), CPU)
    assert noise._cached.cache_info().currsize == 1


def test_what_writes_into_the_input_of_the_decoder_does_not_reach_the_kept_noise(ae: AutoencoderSSDD) -> None:
    z = torch.randn(1, 4, 4, 4)
    with torch.no_grad():
        expected = ae.decode(z).sample
        hook = ae.decoder.register_forward_pre_hook(lambda _, inputs: (inputs[0].zero_(), *inputs[1:]))
        assert not torch.equal(ae.decode(z).sample, expected)
        hook.remove()
        assert torch.equal(ae.decode(z).sample, expected)


def test_tiles_of_the_size_that_users_set(ae: AutoencoderSSDD) -> None:
    """As with diffusers' autoencoders: smaller tiles for a GPU with less memory."""
    z = torch.randn(1, 4, 40, 24)
    ae.enable_tiling()
    assert (ae.tile_sample_min_size, ae.tile_latent_min_size) == (512, 64)
    with torch.no_grad():
        whole = ae.decode(z).sample
        ae.tile_latent_min_size = 20
        assert ae.tile_sample_min_size == 160
        tiles = ae._tiles((40, 24))
        assert tiles is not None
        assert [(span.start, span.stop) for span in tiles.rows] == [(0, 20), (10, 30), (20, 40)]
        assert not torch.equal(ae.decode(z).sample, whole)
        assert float((ae.decode(z).sample - whole).abs().mean()) < 0.25 * float(whole.std())
    with pytest.raises(ValueError, match="expected tiles of at least 128 pixels, found 64"):
        ae.tile_sample_min_size = 64
