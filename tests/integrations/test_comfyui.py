"""The node pack for ComfyUI, loaded as ComfyUI's loader does, among a fake of ComfyUI's own modules."""

import inspect
import json
import shutil
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from ssdd import AutoencoderSSDD
from ssdd.autoencoder.codec import pad_to_multiple
from ssdd.checkpoints.embedded import embedded_names
from tests.checkpoints.test_original import authors_tensors
from tests.integrations.fake_comfyui import PACK, FakeComfyUI, InterruptProcessingException
from tests.pipelines.components import flux2_vae, kl_vae

SOCKETS = {"IMAGE", "LATENT", "SSDD_MODEL", "SSDD_DECODER"}
WIDGETS = {"INT", "STRING"}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """ComfyUI's folder of models."""
    for kind in ("ssdd", "vae"):
        (tmp_path / "models" / kind).mkdir(parents=True)
    return tmp_path / "models"


@pytest.fixture
def comfy(models: Path) -> FakeComfyUI:
    return FakeComfyUI({"vae": [str(models / "vae")]})


@pytest.fixture
def pack(comfy: FakeComfyUI, models: Path) -> Iterator[Any]:
    with comfy.installed(models) as module:
        yield module


@pytest.fixture
def run(pack: Any) -> Callable[..., Any]:
    """``run("SSDDDecode", model=...)``: the one output of a node, called as ComfyUI does."""

    def call(name: str, **inputs: Any) -> Any:
        cls = pack.NODE_CLASS_MAPPINGS[name]
        with torch.inference_mode():
            (output,) = getattr(cls(), cls.FUNCTION)(**inputs)
        return output

    return call


@pytest.fixture
def loaded(run: Callable[..., Any], models: Path, tiny_model: Path) -> Any:
    """The tiny model as the loader gives it."""
    shutil.copytree(tiny_model, models / "ssdd" / "tiny")
    return run("SSDDLoadModel", model="ssdd/tiny", precision="auto")


@pytest.fixture
def image(picture: Callable[..., np.ndarray]) -> Tensor:
    """Two images of a size that is no multiple of 8, with opacity."""
    images = torch.stack([torch.from_numpy(picture(60, 75, seed)) for seed in (0, 1)]).float() / 255
    return torch.cat([images, torch.zeros(2, 60, 75, 1)], dim=-1)


def decoder_for(vae: Any, folder: Path, **config: Any) -> AutoencoderSSDD:
    """Save a tiny decoder for a VAE's latents; return it."""
    torch.manual_seed(0)
    model = AutoencoderSSDD.from_kl_vae(vae, decoder="XXS", **config)
    model.save_pretrained(folder)
    return model


def as_image(pixels: Tensor) -> Tensor:
    return ((pixels + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1)


def test_nodes_have_the_interface_that_comfyui_asks_for(pack: Any) -> None:
    assert pack.NODE_DISPLAY_NAME_MAPPINGS.keys() == pack.NODE_CLASS_MAPPINGS.keys()
    for cls in pack.NODE_CLASS_MAPPINGS.values():
        inputs = cls.INPUT_TYPES()
        assert set(inputs) == {"required", "optional"}
        function = inspect.signature(getattr(cls(), cls.FUNCTION)).parameters
        assert list(function) == list(inputs["required"] | inputs["optional"])
        for name, (kind, *options) in (inputs["required"] | inputs["optional"]).items():
            assert isinstance(kind, list) or kind in SOCKETS | WIDGETS
            assert str(kind) in SOCKETS or options[0]["tooltip"]
            assert (function[name].default is inspect.Parameter.empty) == (name in inputs["required"])
            if name in inputs["optional"]:
                assert function[name].default == options[0]["default"]
        assert cls.CATEGORY == "latent/SSDD"
        assert cls.DESCRIPTION
        assert set(cls.RETURN_TYPES) <= SOCKETS


def test_reconstruction_is_that_of_the_library(loaded: Any, run: Any, image: Tensor, tiny_model: Path) -> None:
    ae = AutoencoderSSDD.from_pretrained(tiny_model).eval()
    x = pad_to_multiple(image[..., :3].permute(0, 3, 1, 2) * 2 - 1, 8)
    with torch.inference_mode():
        z = ae.encode(x).latent_dist.mode()
        expected = as_image(ae.decode(z, num_inference_steps=2).sample)[:, :60, :75]
    latent = run("SSDDEncode", model=loaded, image=image)
    assert torch.equal(latent["samples"], z)
    found = run("SSDDDecode", model=loaded, samples=latent, steps=2)
    assert torch.equal(found, expected)
    assert found.dtype == torch.float32
    assert found.is_contiguous()
    resized = latent | {"samples": F.interpolate(latent["samples"], scale_factor=2)}
    assert run("SSDDDecode", model=loaded, samples=resized).shape == (2, 128, 160, 3), "cut to the size before"


def test_seed_alone_decides_the_noise(loaded: Any, run: Any, image: Tensor) -> None:
    """An image would change with its place in a batch, or with each run of a workflow."""
    latent = run("SSDDEncode", model=loaded, image=image)
    both = run("SSDDDecode", model=loaded, samples=latent, seed=2**64 - 1)
    second = {"samples": latent["samples"][1:], "ssdd_size": (60, 75)}
    again = run("SSDDDecode", model=loaded, samples=second, seed=2**64 - 1)
    torch.testing.assert_close(again, both[1:], atol=1e-5, rtol=1e-5)
    assert torch.equal(run("SSDDDecode", model=loaded, samples=second, seed=2**64 - 1), again)
    assert not torch.equal(run("SSDDDecode", model=loaded, samples=second, seed=1), again)


def test_seed_zero_is_the_models_noise(loaded: Any, run: Any) -> None:
    """A model with a seed of its own decodes another image than everywhere else."""
    loaded.autoencoder.register_to_config(noise_seed=7)
    z = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = as_image(loaded.autoencoder.decode(z).sample)
    assert torch.equal(run("SSDDDecode", model=loaded, samples={"samples": z}), expected)
    assert torch.equal(run("SSDDDecode", model=loaded, samples={"samples": z}, seed=7), expected)


def test_tiles(loaded: Any, run: Any, comfy: FakeComfyUI, tiny_model: Path) -> None:
    z = torch.randn(1, 4, 24, 32, generator=torch.Generator().manual_seed(0))
    ae = AutoencoderSSDD.from_pretrained(tiny_model).eval()
    ae.tile_sample_min_size = 128
    ae.enable_tiling()
    with torch.inference_mode():
        expected = as_image(ae.decode(z).sample)
    tiled = run("SSDDDecode", model=loaded, samples={"samples": z}, tiling="on", tile_size=128)
    assert torch.equal(tiled, expected)
    assert comfy.progress[-1] == (6, 6), "two rows of three tiles"
    whole = run("SSDDDecode", model=loaded, samples={"samples": z}, tiling="off", tile_size=128)
    assert not torch.equal(tiled, whole)
    assert torch.equal(run("SSDDDecode", model=loaded, samples={"samples": z}), whole), "auto tiles a small image"
    assert comfy.loaded[0] == ae.estimate_memory(128, 128), "room for more than a tile"
    assert comfy.loaded[1] == ae.estimate_memory(192, 256)
    run("SSDDEncode", model=loaded, image=whole, tiling="on", tile_size=128)
    assert comfy.progress[-1] == (6, 6)


def test_progress_and_interruption(loaded: Any, run: Any, comfy: FakeComfyUI) -> None:
    samples = {"samples": torch.zeros(1, 4, 4, 4)}
    run("SSDDDecode", model=loaded, samples=samples, steps=3)
    assert comfy.progress == [(1, 3), (2, 3), (3, 3)]
    comfy.interrupted = True
    with pytest.raises(InterruptProcessingException):
        run("SSDDDecode", model=loaded, samples=samples)
    comfy.interrupted = False
    run("SSDDDecode", model=loaded, samples=samples)
    assert comfy.progress[3:] == [(1, 1)], "the hook of the interrupted run is still there"


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 16, 8, 8), r"expected a latent of 4 channels, .* found 16 \(as SD3 and FLUX have\): load an SSDD decoder"),
        ((1, 128, 8, 8), r"expected a latent of 4 channels, .* found 128 \(as FLUX.2 have\)"),
        ((1, 5, 8, 8), r"found 5: load"),
        ((4, 8, 8), r"found the shape \(4, 8, 8\)"),
        ((1, 4, 3, 8, 8), r"expected the latent of an image, found one of a video with 3 latent frames"),
    ],
)
def test_latents_that_do_not_fit(loaded: Any, run: Any, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run("SSDDDecode", model=loaded, samples={"samples": torch.zeros(shape)})


def test_one_frame_of_a_video_vae(loaded: Any, run: Any) -> None:
    z = torch.randn(1, 4, 1, 8, 8)
    found = run("SSDDDecode", model=loaded, samples={"samples": z})
    assert torch.equal(found, run("SSDDDecode", model=loaded, samples={"samples": z[:, :, 0]}))


def test_gray_image_is_refused(loaded: Any, run: Any) -> None:
    with pytest.raises(ValueError, match=r"expected an IMAGE \(B, H, W, 3\), found \(1, 8, 8, 1\)"):
        run("SSDDEncode", model=loaded, image=torch.zeros(1, 8, 8, 1))


def test_latents_of_a_kl_vae(run: Any, models: Path) -> None:
    """ComfyUI keeps them raw: its samplers scale them inside."""
    model = decoder_for(kl_vae(scaling_factor=0.18215), models / "vae" / "sd")
    z = 5 * torch.randn(1, 4, 8, 8)
    with torch.inference_mode():
        expected = as_image(model.decode(z).sample)
    decoder = run("SSDDLoadDecoder", model="vae/sd", precision="fp32", latent_format="SD")
    assert decoder.autoencoder.encoder is None
    assert torch.equal(run("SSDDDecodeVAELatent", model=decoder, samples={"samples": z}), expected)
    with pytest.raises(ValueError, match="expected an SSDD model with an encoder, found one that only decodes"):
        run("SSDDEncode", model=decoder, image=torch.zeros(1, 8, 8, 3))
    for other, message in {
        "SDXL": r"expected a decoder for latents of SDXL \(4 channels\), found that of SD: choose a decoder",
        "FLUX": r"expected a decoder for latents of FLUX \(16 channels\), found that of SD",
        "FLUX.2": r"latents of FLUX.2 \(128 channels\), found that of SD",
    }.items():
        with pytest.raises(ValueError, match=message):
            run("SSDDLoadDecoder", model="vae/sd", precision="fp32", latent_format=other)


def test_latents_of_flux2(run: Any, models: Path, image: Tensor) -> None:
    """In ComfyUI they are in patches and normalised, as FLUX.2's transformer has them."""
    vae = flux2_vae()
    model = decoder_for(vae, models / "ssdd" / "flux2")
    x = pad_to_multiple(image[..., :3].permute(0, 3, 1, 2) * 2 - 1, 16)
    with torch.inference_mode():
        raw = vae.encode(x).latent_dist.mode()
        packed = vae.bn(diffusers.Flux2Pipeline._patchify_latents(raw))
        expected = as_image(model.decode(raw).sample)
    ours = run("SSDDLoadModel", model="ssdd/flux2", precision="fp32")
    latent = run("SSDDEncode", model=ours, image=image)
    torch.testing.assert_close(latent["samples"], packed, atol=1e-4, rtol=1e-4)
    assert run("SSDDDecode", model=ours, samples=latent).shape == (2, 60, 75, 3)
    decoder = run("SSDDLoadDecoder", model="ssdd/flux2", precision="fp32", latent_format="auto")
    found = run("SSDDDecodeVAELatent", model=decoder, samples={"samples": packed})
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_latents_of_flux2_that_a_decoder_takes_normalised(run: Any, models: Path) -> None:
    """Such as those of TAEF2, which has no batch norm."""
    torch.manual_seed(0)
    model = AutoencoderSSDD.from_preset("f8c32", "XXS", has_encoder=False).eval()
    model.save_pretrained(models / "ssdd" / "taef2")
    decoder = run("SSDDLoadDecoder", model="ssdd/taef2", precision="fp32", latent_format="FLUX.2")
    z = torch.randn(1, 32, 8, 8)
    packed = diffusers.Flux2Pipeline._patchify_latents(z)
    with torch.inference_mode():
        expected = as_image(model.decode(z).sample)
    for samples in (z, packed):
        assert torch.equal(run("SSDDDecodeVAELatent", model=decoder, samples={"samples": samples}), expected)


def test_choices_and_changes(pack: Any, run: Any, models: Path, tiny_model: Path) -> None:
    """A model is missing in the list, somebody else's is in it, or a new one is not loaded again."""
    node = pack.NODE_CLASS_MAPPINGS["SSDDLoadDecoder"]
    shutil.copytree(tiny_model, models / "vae" / "mine")
    shutil.copytree(tiny_model, models / "ssdd" / "run" / "model")
    kl_vae().save_pretrained(models / "vae" / "theirs")
    (models / "vae" / "broken").mkdir()
    (models / "vae" / "broken" / "config.json").write_text("{")
    save_file({"x": torch.zeros(1)}, models / "vae" / "theirs.safetensors")
    tiny = AutoencoderSSDD.from_pretrained(tiny_model)
    theirs = authors_tensors(tiny.decoder, tiny.encoder)
    save_file({name: tensor.contiguous() for name, tensor in theirs.items()}, models / "ssdd" / "authors.safetensors")
    names = [*embedded_names(), "ssdd/authors.safetensors", "ssdd/run/model", "vae/mine"]
    assert node.INPUT_TYPES()["required"]["model"][0] == names
    authors = run("SSDDLoadModel", model="ssdd/authors.safetensors", precision="fp32").autoencoder
    assert torch.equal(authors.decoder.conv_in.weight, tiny.decoder.conv_in.weight)

    before = {name: node.IS_CHANGED(model=name, precision="auto", latent_format="auto", hub_id="") for name in names}
    (models / "vae" / "mine" / "config.json").touch()
    save_file({"x": torch.zeros(2)}, models / "ssdd" / "authors.safetensors")
    after = {name: node.IS_CHANGED(model=name, precision="auto", latent_format="auto", hub_id="") for name in names}
    assert [name for name in names if before[name] != after[name]] == ["ssdd/authors.safetensors", "vae/mine"]
    assert node.IS_CHANGED(model=names[0], hub_id=" OWNER/NAME ") == "OWNER/NAME"
    with pytest.raises(OSError, match="OWNER/NAME: expected a folder or a Hugging Face id"):
        run("SSDDLoadModel", model=names[0], precision="auto", hub_id="OWNER/NAME")


def test_precision(run: Any, comfy: FakeComfyUI, models: Path) -> None:
    comfy.vae_dtype = torch.bfloat16
    assert run("SSDDLoadModel", model="ssdd-f8c4-demo", precision="auto").autoencoder.dtype == torch.bfloat16
    decoder_for(kl_vae(force_upcast=True), models / "ssdd" / "sdxl")
    half = run("SSDDLoadModel", model="ssdd/sdxl", precision="fp16").autoencoder
    assert half.decoder.conv_in.weight.dtype == torch.float16
    assert half.encoder.conv_in.weight.dtype == torch.float32


@pytest.mark.parametrize("path", sorted((PACK / "example_workflows").glob("*.json")), ids=lambda path: path.stem)
def test_example_workflows(pack: Any, path: Path) -> None:
    """Nodes come up red, unconnected or with values in the wrong widgets."""
    workflow = json.loads(path.read_text())
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for node in nodes.values():
        if not node["type"].startswith("SSDD"):
            continue
        cls = pack.NODE_CLASS_MAPPINGS[node["type"]]
        inputs = {k: v for group in cls.INPUT_TYPES().values() for k, v in group.items()}
        sockets = {name: kind for name, (kind, *_) in inputs.items() if str(kind) in SOCKETS}
        assert {i["name"]: i["type"] for i in node["inputs"]} == sockets
        assert [o["type"] for o in node["outputs"]] == list(cls.RETURN_TYPES)
        widgets = [(name, kind, options[0]) for name, (kind, *options) in inputs.items() if name not in sockets]
        for (name, kind, options), value in zip(widgets, node["widgets_values"], strict=True):
            assert (
                value in kind if name != "model" and isinstance(kind, list) else value == options.get("default", value)
            )
    for link, source, output, target, socket, kind in workflow["links"]:
        assert link in nodes[source]["outputs"][output]["links"]
        assert nodes[source]["outputs"][output]["type"] == kind
        assert nodes[target]["inputs"][socket] | {"link": link, "type": kind} == nodes[target]["inputs"][socket]


def test_metadata_of_the_registry() -> None:
    found = tomllib.loads((PACK / "pyproject.toml").read_text())
    assert found["project"]["dependencies"] == (PACK / "requirements.txt").read_text().split()
    assert found["tool"]["comfy"] == {"PublisherId": "", "DisplayName": "SSDD"}, "only its publisher knows the id"
