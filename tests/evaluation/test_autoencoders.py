"""Check that every kind of autoencoder computes what its own library does, with the right counts, or is refused."""

import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ssdd import AutoencoderSSDD
from ssdd.checkpoints import adapters
from ssdd.checkpoints.layout import CheckpointError
from ssdd.checkpoints.names import AUTHORS_DECODER, AUTHORS_ENCODER, rename
from ssdd.data.pixels import image_to_tensor, tensor_to_image
from ssdd.evaluation.autoencoders import JPEG_AUTO, Bicubic, Jpeg, check_encoder_attached, load_autoencoder
from ssdd.evaluation.pairs import bicubic_baseline
from ssdd.nn.decoder import Decoder
from ssdd.nn.encoder import Encoder
from ssdd.nn.presets import decoder_size, encoder_size
from tests.evaluation.models import CONFIGS, LATENTS, images, model_class

VIDEO = (
    "AutoencoderKLHunyuanImageRefiner",
    "AutoencoderKLQwenImage",
    "AutoencoderKLQwenImage21",
    "AutoencoderKLWan",
)
HALF_PRECISION = (
    "AutoencoderSSDD",
    "AutoencoderKL",
    "AutoencoderTiny",
    "AutoencoderDC",
    "ConsistencyDecoderVAE",
    *VIDEO,
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> dict[str, Path]:
    """A saved model of each class, with random weights."""
    folders = {"AutoencoderSSDD": tiny_model}
    for kind, config in CONFIGS.items():
        if (cls := model_class(kind)) is None:
            continue
        folders[kind] = tmp_path_factory.mktemp("models") / kind.lower()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            cls(**config).save_pretrained(folders[kind])
    return folders


def folder_of(kind: str, folders: dict[str, Path]) -> Path:
    if kind not in folders:
        pytest.skip(f"this release of diffusers has no {kind}")
    return folders[kind]


def refused(name: str, match: str, kind: type[Exception] = ValueError) -> None:
    with pytest.raises(kind, match=match) as caught:
        load_autoencoder(name)
    assert "\n" not in str(caught.value)


def generator_of(seed: int, number: int) -> torch.Generator:
    """Return the generator of an image's noise; earlier reports hold only as long as this stays as it is."""
    state = np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


# ---- networks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [kind for kind in CONFIGS if kind != "ConsistencyDecoderVAE"])
def test_peers_compute_what_diffusers_does(kind: str, folders: dict[str, Path]) -> None:
    """Compare with diffusers: the latent is neither scaled nor sampled, and the image's range is [-1, 1]."""
    folder = folder_of(kind, folders)
    model = model_class(kind).from_pretrained(folder).eval()
    x = images(3, 32, 32)
    with torch.no_grad():
        y = torch.cat([x, torch.ones_like(x[:, :1])], dim=1) if kind == "AutoencoderKLQwenImage21" else x
        encoded = model.encode(y[:, :, None] if kind in VIDEO else (x + 1) / 2 if kind == "AutoencoderRAE" else x)
        z = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded[0]
        expected = model.decode(z).sample
        if kind in VIDEO:
            z, expected = z[:, :, 0], expected[:, :3, 0]
        if kind == "AutoencoderRAE":
            expected = expected * 2 - 1
    autoencoder = load_autoencoder(str(folder))
    torch.testing.assert_close(autoencoder.encode(x), z, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(autoencoder.decode(z), expected, atol=1e-5, rtol=1e-5)
    assert autoencoder.noise(z, 0, [0, 1, 2]) is None


def test_ours_computes_what_the_autoencoder_does(folders: dict[str, Path]) -> None:
    model = AutoencoderSSDD.from_pretrained(folders["AutoencoderSSDD"]).eval()
    autoencoder = load_autoencoder(str(folders["AutoencoderSSDD"]))
    numbers = [7, 0, 8]
    with torch.no_grad():
        z = model.encode(images()).latent_dist.mode()
        with torch.device("meta"):  # has no effect on the noise
            noise = autoencoder.noise(z, 5, numbers)
        expected = model.decode(z, num_inference_steps=2, noise=noise).sample
    torch.testing.assert_close(autoencoder.encode(images()), z, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(autoencoder.decode(z, 2, noise), expected, atol=1e-4, rtol=1e-4)
    shape = images().shape[1:]
    assert torch.equal(noise, torch.stack([torch.randn(shape, generator=generator_of(5, n)) for n in numbers]))
    assert autoencoder.steps == autoencoder.describe()["steps"] == model.config.num_inference_steps


def test_consistency_decoder_computes_what_diffusers_does(folders: dict[str, Path]) -> None:
    """Decode the raw latent, which this decoder normalises itself, with the noise of the image's number."""
    model = diffusers.ConsistencyDecoderVAE.from_pretrained(folders["ConsistencyDecoderVAE"]).eval()
    autoencoder = load_autoencoder(str(folders["ConsistencyDecoderVAE"]))
    z = autoencoder.encode(images(1))
    with torch.no_grad():
        torch.testing.assert_close(z, model.encode(images(1)).latent_dist.mode(), atol=1e-5, rtol=1e-5)
        expected = model.decode(z, generator=generator_of(5, 7)).sample
    decoded = autoencoder.decode(z, noise=autoencoder.noise(z, 5, [7]))
    torch.testing.assert_close(decoded, expected, atol=1e-4, rtol=1e-4)


def test_tiny_decodes_to_the_range_of_images(folders: dict[str, Path]) -> None:
    """Expect black, not grey, for a zero of the last layer of AutoencoderTiny, whose networks work in [0, 1]."""
    autoencoder = load_autoencoder(str(folders["AutoencoderTiny"]))
    assert autoencoder.decode(torch.full((1, 4, 2, 2), torch.nan)).isnan().any(), "an overflow is hidden"
    last = autoencoder.model.decoder.layers[-1]
    nn.init.zeros_(last.weight), nn.init.zeros_(last.bias)
    assert torch.equal(autoencoder.decode(torch.zeros(1, 4, 2, 2)), torch.full((1, 3, 8, 8), -1.0))


@pytest.mark.parametrize("kind", ["AutoencoderSSDD", "ConsistencyDecoderVAE"])
def test_noise_is_the_images_own(kind: str, folders: dict[str, Path]) -> None:
    """Expect the same images for any batch, and others for another number or seed."""
    autoencoder = load_autoencoder(str(folders[kind]))
    z = autoencoder.encode(images())[[0, 1, 0]]

    def decode(latent: Tensor, seed: int, numbers: list[int]) -> Tensor:
        return autoencoder.decode(latent, noise=autoencoder.noise(latent, seed, numbers))

    together = decode(z, 3, [10, 4, 12])
    apart = torch.cat([decode(z[i : i + 1], 3, [number]) for i, number in enumerate([10, 4, 12])])
    torch.testing.assert_close(together, apart, atol=1e-4, rtol=1e-4)
    torch.manual_seed(12)  # torch's own generator has no part in it
    assert torch.equal(decode(z, 3, [10, 4, 12]), together)
    assert torch.equal(autoencoder.decode(z), decode(z, 0, [0, 1, 2]))
    for other in (together[2:], decode(z[:1], 4, [10])):
        assert (other - together[:1]).abs().max() > 1e-3, "two indices or two seeds share their noise"


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        *((kind, torch.float32) for kind in LATENTS),
        *((kind, dtype) for kind in HALF_PRECISION for dtype in (torch.bfloat16, torch.float16)),
    ],
    ids=str,
)
def test_sizes_and_counts(kind: str, dtype: torch.dtype, folders: dict[str, Path]) -> None:
    """Check the columns of the table: parameters, bytes of the latent, FLOPs and dtype, also in half precision."""
    folder = folder_of(kind, folders)
    autoencoder = load_autoencoder(str(folder), "cpu", dtype)
    channels, factor = LATENTS[kind]
    z = autoencoder.encode(images(2, 32, 32))
    y = autoencoder.decode(z)
    assert (autoencoder.latent_channels, autoencoder.spatial_factor) == (channels, factor)
    assert z.shape == (2, channels, 32 // factor, 32 // factor)
    assert (z.dtype, y.dtype, y.shape) == (dtype, torch.float32, (2, 3, 32, 32))
    codes = 16 * 16 * 4 // 8  # 4 bits tell 10 codes apart
    assert autoencoder.latent_bytes(z) == [codes if kind == "VQModel" else z[0].numel() * 2] * 2
    model = autoencoder.model
    assert autoencoder.parameters == sum(p.numel() for p in model.parameters())
    others = r"(encoder|quant_conv)\."
    decoder = sum(p.numel() for name, p in model.named_parameters() if not re.match(others, name))
    assert 0 < autoencoder.decoder_parameters == decoder < autoencoder.parameters
    described = json.loads(json.dumps(autoencoder.describe()))
    assert (described["kind"], described["dtype"]) == (kind, str(dtype).removeprefix("torch."))
    assert described["latent"] == f"({channels}, H/{factor}, W/{factor})"
    assert [len(digest) for digest in described["sha256"].values()] == [64]
    if dtype == torch.float32:
        flops = autoencoder.flops(32, 32)
        assert min(flops) > 0
        if kind != "AutoencoderRAE":  # has one size alone
            assert sum(autoencoder.flops(64, 32)) > 1.9 * sum(flops)


def test_flops_by_hand(folders: dict[str, Path]) -> None:
    """Count the FLOPs of a network of convolutions alone, two for each multiply-add, and compare."""
    autoencoder = load_autoencoder(str(folders["AutoencoderTiny"]))
    counted = 0

    def add(module: nn.Conv2d, args: tuple[Tensor], output: Tensor) -> None:
        nonlocal counted
        counted += 2 * output[0].numel() * module.in_channels * module.kernel_size[0] * module.kernel_size[1]

    for module in autoencoder.model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(add)
    z = autoencoder.encode(images(2))
    encoding, counted = counted, 0
    autoencoder.decode(z)
    by_hand = (encoding, counted)
    assert autoencoder.flops(32, 48) == by_hand


def test_every_step_counts_in_flops(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["AutoencoderSSDD"], tmp_path / "eight"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_inference_steps": 8}))
    one = load_autoencoder(str(folders["AutoencoderSSDD"])).flops(32, 32)
    eight = load_autoencoder(str(folder))
    assert one is not None
    assert eight.flops(32, 32) == (one[0], 8 * one[1])
    assert eight.flops(32, 32, steps=3) == (one[0], 3 * one[1])


def test_steps_are_checked(folders: dict[str, Path]) -> None:
    for name in ("AutoencoderSSDD", "AutoencoderKL"):
        load_autoencoder(str(folders[name])).check_steps(4)
    autoencoder = load_autoencoder(str(folders["ConsistencyDecoderVAE"]))
    assert not autoencoder.has_steps, "evaluate --steps 1 2 would end at it"
    autoencoder.check_steps(None)
    autoencoder.check_steps(2)
    with pytest.raises(ValueError, match=r"^consistencydecodervae: expected 2 decoding steps, no other .*found 1"):
        autoencoder.check_steps(1)


def test_wrong_sizes(folders: dict[str, Path]) -> None:
    autoencoder = load_autoencoder(str(folders["AutoencoderKL"]))
    with pytest.raises(ValueError, match=r"^autoencoderkl: expected images with sides that are multiples of 2, found"):
        autoencoder.encode(torch.zeros(1, 3, 31, 32))
    rae = load_autoencoder(str(folder_of("AutoencoderRAE", folders)))
    with pytest.raises(ValueError, match=r"^autoencoderrae: expected images of 32 x 32 pixels, the only size"):
        rae.encode(images())


# ---- names and files -------------------------------------------------------------------------------------------------


def test_names_and_places(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Load a run, a pipeline, an embedded model and a snapshot of the hub, each under the name of the table."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    commit, entry = "0123456789" * 4, tmp_path / "hub" / "models--somebody--dc-ae"
    (entry / "refs").mkdir(parents=True)
    (entry / "refs" / "main").write_text(commit)
    for source, target in {
        "AutoencoderSSDD": "runs/best/model",
        "AutoencoderKL": "pipeline/vae",
        "AutoencoderDC": f"hub/models--somebody--dc-ae/snapshots/{commit}",
    }.items():
        shutil.copytree(folders[source], tmp_path / target)
    for typed, name, source in (
        ("runs/best", "best", "runs/best/model"),
        ("runs/best/model", "best", "runs/best/model"),
        ("pipeline", "pipeline", "pipeline/vae"),
        ("ssdd-f8c4-demo", "ssdd-f8c4-demo", "ssdd-f8c4-demo"),
        ("somebody/dc-ae", "somebody/dc-ae", f"somebody/dc-ae@{commit}"),
    ):
        autoencoder = load_autoencoder(typed)
        assert (autoencoder.name, autoencoder.describe()["source"]) == (name, source)


def test_half_precision_files_and_shards(folders: dict[str, Path], tmp_path: Path) -> None:
    model = diffusers.AutoencoderKL.from_pretrained(folders["AutoencoderKL"])
    expected = load_autoencoder(str(folders["AutoencoderKL"]))
    for number, options in enumerate(({"variant": "fp16"}, {"max_shard_size": "20KB"})):
        model.save_pretrained(tmp_path / str(number), **options)
        autoencoder = load_autoencoder(str(tmp_path / str(number)))
        torch.testing.assert_close(autoencoder.encode(images()), expected.encode(images()))
        assert len(autoencoder.describe()["sha256"]) == len(list((tmp_path / str(number)).glob("*.safetensors")))


def test_original_file(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        decoder, encoder = Decoder(decoder_size("XXS"), 4), Encoder(encoder_size("f8c4", 32))
    tensors = {f"decoder.{rename(k, AUTHORS_DECODER)}": v for k, v in decoder.state_dict().items()}
    alone = dict(tensors)
    tensors |= {f"encoder.{rename(k, AUTHORS_ENCODER)}": v for k, v in encoder.state_dict().items()}
    save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / "f8c4-S.safetensors")
    save_file({k: v.contiguous() for k, v in alone.items()}, tmp_path / "decoder.safetensors")
    autoencoder = load_autoencoder(str(tmp_path / "f8c4-S.safetensors"))
    assert (autoencoder.name, autoencoder.describe()["kind"]) == ("f8c4-S", "AutoencoderSSDD")
    assert autoencoder.steps == 8
    mean = encoder.eval()(images()).chunk(2, dim=1)[0]
    torch.testing.assert_close(autoencoder.encode(images()), mean, atol=1e-5, rtol=1e-5)
    refused(
        str(tmp_path / "decoder.safetensors"),
        "expected a model with an encoder, found one that only decodes: pass --encoder",
    )
    refused("no/such.safetensors", "^no/such.safetensors: expected a safetensors file, found none", CheckpointError)


def to_ldm(state: dict[str, Tensor], levels: int) -> dict[str, Tensor]:
    """Rename an AutoencoderKL's tensors as in latent diffusion, where attention has 1x1 convolutions."""
    rules = [
        (r"down_blocks\.(\d+)\.resnets", r"down.\1.block"),
        (r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample"),
        *[(rf"up_blocks\.{i}\.resnets", f"up.{levels - 1 - i}.block") for i in range(levels)],
        *[(rf"up_blocks\.{i}\.upsamplers\.0", f"up.{levels - 1 - i}.upsample") for i in range(levels)],
        (r"mid_block\.resnets\.0", "mid.block_1"),
        (r"mid_block\.resnets\.1", "mid.block_2"),
        (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
        (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
        (r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1"),
        ("conv_shortcut", "nin_shortcut"),
        ("conv_norm_out", "norm_out"),
    ]
    return {
        rename(name, rules): tensor[:, :, None, None] if "attentions" in name and tensor.dim() == 2 else tensor
        for name, tensor in state.items()
    }


@pytest.mark.parametrize(
    ("prefix", "options"),
    [
        ("first_stage_model.", {}),
        ("vae.", {"layers_per_block": 2}),
        ("", {"use_quant_conv": False, "use_post_quant_conv": False}),
        ("", {"mid_block_add_attention": False}),
    ],
)
def test_ldm_file(prefix: str, options: dict[str, object], tmp_path: Path) -> None:
    """Load a VAE, alone or in a whole model, from a file in LDM's layout, and refuse one with other tensors."""
    config = CONFIGS["AutoencoderKL"] | {"block_out_channels": (32, 64), "norm_num_groups": 32} | options
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = diffusers.AutoencoderKL(**config).eval()
    tensors = {prefix + name: tensor for name, tensor in to_ldm(model.state_dict(), levels=2).items()}
    path = tmp_path / "vae-ft.safetensors"
    save_file(tensors | {"model.diffusion_model.out.weight": torch.zeros(1)}, path)
    autoencoder = load_autoencoder(str(path))
    assert (autoencoder.name, autoencoder.describe()["kind"]) == ("vae-ft", "AutoencoderKL")
    assert list(autoencoder.describe()["sha256"]) == ["vae-ft.safetensors"]
    with torch.no_grad():
        z = model.encode(images()).latent_dist.mode()
        torch.testing.assert_close(autoencoder.encode(images()), z, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(autoencoder.decode(z), model.decode(z).sample, atol=1e-5, rtol=1e-5)
    assert load_autoencoder(str(path), dtype=torch.bfloat16).encode(images()).dtype == torch.bfloat16
    more = {f"{prefix}encoder.more.weight": torch.zeros(1)}
    fewer = {name: tensor for name, tensor in tensors.items() if name != f"{prefix}decoder.conv_out.bias"}
    for changed, found in (
        (fewer, "RuntimeError: .*decoder.conv_out.bias"),
        (tensors | more, "1 unexpected tensors"),
    ):
        save_file(changed, path)
        refused(str(path), f"^{path}: expected .* layout of LDM, found {found}", CheckpointError)


def test_what_is_no_autoencoder(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Expect one line for names of nothing and for folders whose weights are incomplete or not for RGB."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    refused("no-such", "^no-such: expected jpeg:BYTES, .*found none of them", FileNotFoundError)
    refused("somebody/nothing", "^somebody/nothing: .*the hub is offline", FileNotFoundError)
    refused("weights/taef2.pth", "found the name of a pickle, .* file.py:NAME", CheckpointError)
    for change, match in {
        "class": "expected one of AutoencoderSSDD, .* found AutoencoderKLMochi, an autoencoder of videos; wrap it",
        "width": "expected an AutoencoderKL with the weights that its config.json describes, found",
        "levels": "found 1 differences: unexpected quant_conv",
        "missing": "found 1 differences: no decoder.conv_out.bias",
        "cut": "expected an AutoencoderKL with the weights",
        "grey": "expected in_channels 3, for RGB, found 1",
        "pickle": "expected diffusion_pytorch_model.safetensors, found none; pickled weights",
    }.items():
        folder = Path(shutil.copytree(folders["AutoencoderKL"], tmp_path / change))
        config, weights = json.loads((folder / "config.json").read_text()), next(folder.glob("*.safetensors"))
        tensors = load_file(weights)
        if change == "missing":
            save_file({k: v for k, v in tensors.items() if k != "decoder.conv_out.bias"}, weights)
        elif change == "cut":
            weights.write_bytes(weights.read_bytes()[:-100])
        elif change == "pickle":
            weights.rename(folder / "diffusion_pytorch_model.bin")
        elif change == "levels":
            save_file({k: v for k, v in tensors.items() if k != "quant_conv.bias"}, weights)
            config["use_quant_conv"] = False
        elif change == "grey":
            tensors["encoder.conv_in.weight"] = tensors["encoder.conv_in.weight"][:, :1].contiguous()
            save_file(tensors, weights)
        config |= {
            "class": {"_class_name": "AutoencoderKLMochi"},
            "width": {"block_out_channels": [8, 16]},
            "grey": {"in_channels": 1},
        }.get(change, {})
        (folder / "config.json").write_text(json.dumps(config))
        refused(change, f"^{change}.*: .*{match}", CheckpointError)


def test_release_without_the_class(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "diffusers", SimpleNamespace(__version__="0.36.0"))
    refused(str(folders["AutoencoderTiny"]), "expected a release of diffusers with AutoencoderTiny, found 0.36.0")


def test_encoder_that_nobody_takes(folders: dict[str, Path]) -> None:
    autoencoder = load_autoencoder(str(folders["AutoencoderKL"]), encoder="f8c4.py:Mine")
    check_encoder_attached([autoencoder], None)
    with pytest.raises(ValueError, match=r"^autoencoderkl, bicubic:8: expected a model without an encoder"):
        check_encoder_attached([autoencoder, Bicubic(8), Bicubic(8)], "f8c4.py:Mine")


# ---- the user's own code ---------------------------------------------------------------------------------------------

CODE = '''
import torch
from torch import nn


class Patches(nn.Module):
    """Mean of 8 x 8 pixels, and back: 3 x 3 weights each way."""

    spatial_factor, latent_channels = 8, 3

    def __init__(self):
        super().__init__()
        self.mix, self.decoder = nn.Conv2d(3, 3, 1), nn.Linear(3, 3, bias=False)
        with torch.no_grad():
            for layer in (self.mix, self.decoder):
                layer.weight.copy_(torch.eye(3).view_as(layer.weight))
            self.mix.bias.zero_()

    def encode(self, x):
        return nn.functional.avg_pool2d(self.mix(x), 8)

    def decode(self, z):
        return self.decoder(z.movedim(1, -1)).movedim(-1, 1).repeat_interleave(8, 2).repeat_interleave(8, 3)


class Plain:
    """Modules that are attributes of a plain object, one of them twice."""

    spatial_factor, latent_channels = 8, 3

    def __init__(self):
        self.inner = self.again = Patches()

    def encode(self, x):
        return self.inner.encode(x)

    def decode(self, z):
        return self.inner.decode(z)


class Pixels:
    spatial_factor, latent_channels = 2, 12

    def encode(self, x):
        return nn.functional.pixel_unshuffle(x, 2)

    def decode(self, z):
        return nn.functional.pixel_shuffle(z, 2)


class EncoderAlone:
    spatial_factor, latent_channels = 8, 3

    def encode(self, x):
        return x[:, :, ::8, ::8]


class Small(Patches):
    def decode(self, z):
        return z


class Broken(Patches):
    def decode(self, z):
        raise RuntimeError("two\\nlines")
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, now the current one, with the user's code."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(CODE)
    return tmp_path


def test_own_code(own: Path) -> None:
    autoencoder = load_autoencoder("mine.py:Patches", "cpu", torch.bfloat16)
    assert (autoencoder.name, autoencoder.spatial_factor) == ("mine.py:Patches", 8)
    assert (autoencoder.parameters, autoencoder.decoder_parameters) == (12 + 9, 9)
    described = autoencoder.describe()
    assert (described["kind"], described["dtype"], described["steps"]) == ("Patches", "bfloat16", None)
    assert list(described["sha256"]) == ["mine.py"]
    z = autoencoder.encode(images())
    assert (z.dtype, z.shape, autoencoder.latent_bytes(z)) == (torch.bfloat16, (3, 3, 4, 6), [2 * 3 * 4 * 6] * 3)
    autoencoder = load_autoencoder("mine:Patches")
    means = nn.functional.avg_pool2d(images(), 8)
    torch.testing.assert_close(autoencoder.encode(images()), means)
    y = autoencoder.decode(means)
    torch.testing.assert_close(y, means.repeat_interleave(8, 2).repeat_interleave(8, 3))
    pixels, cells = 32 * 48, 4 * 6
    assert autoencoder.flops(32, 48) == (2 * 9 * pixels, 2 * 9 * cells)


def test_own_code_that_is_no_module(own: Path) -> None:
    """Count the parameters of a plain object's modules, those of a shared one once."""
    for name, counts in {"Plain": (12 + 9, 0), "Pixels": (0, 0)}.items():
        autoencoder = load_autoencoder(f"mine.py:{name}")
        assert (autoencoder.parameters, autoencoder.decoder_parameters) == counts
    assert torch.equal(autoencoder.decode(autoencoder.encode(images())), images())


@pytest.mark.parametrize(
    ("name", "match", "kind"),
    [
        (
            "mine.py:EncoderAlone",
            r"expected code with encode\(x\) and decode\(z\).* attribute 'decode'",
            ValueError,
        ),
        ("mine.py:Small", r".* found ValueError: .*expected images \(1, 3, 256, 256\)", ValueError),
        ("mine.py:Broken", ".* found RuntimeError: two lines", ValueError),
        ("mine.py:Nothing", "expected Nothing in mine.py", ImportError),
        ("other.py:Patches", "expected a Python file other.py", FileNotFoundError),
    ],
)
def test_own_code_that_does_not_fit(name: str, match: str, kind: type[Exception], own: Path) -> None:
    refused(name, f"^{name}: {match}", kind)


# ---- baselines -------------------------------------------------------------------------------------------------------


def test_jpeg_takes_the_best_quality_that_fits(picture: Callable[..., np.ndarray]) -> None:
    image = picture(64, 64)
    batch = image_to_tensor(image)[None]
    files = []
    for quality in range(1, 96):
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "JPEG", quality=quality)
        files.append(stream.getvalue())
    errors = []
    for budget in (len(files[0]), len(files[30]), len(files[60]), 100_000):
        autoencoder = load_autoencoder(f"jpeg:{budget}")
        latent = autoencoder.encode(batch)
        best = max((file for file in files if len(file) <= budget), key=len)
        assert autoencoder.latent_bytes(latent) == [len(best)]
        decoded = autoencoder.decode(latent)
        assert (decoded.shape, decoded.dtype) == (batch.shape, torch.float32)
        assert np.array_equal(tensor_to_image(decoded)[0], np.asarray(Image.open(io.BytesIO(best))))
        errors.append(float((decoded - batch).square().mean()))
    assert errors == sorted(set(errors), reverse=True)


def test_jpeg_that_does_not_fit(picture: Callable[..., np.ndarray]) -> None:
    """Decode NaN for an image that JPEG cannot make small enough, and count no bytes for it."""
    flat = np.full((32, 64, 3), 128, np.uint8)
    batch = torch.stack([image_to_tensor(pixels) for pixels in (flat, picture(32, 64))])
    smallest = Jpeg(10**6).latent_bytes(Jpeg(10**6).encode(batch))[0]
    for autoencoder, fits in ((Jpeg(smallest), [True, False]), (Jpeg(100), [False, False])):
        files = autoencoder.encode(batch)
        assert [size > 0 for size in autoencoder.latent_bytes(files)] == fits
        decoded = autoencoder.decode(files)
        assert decoded.shape == batch.shape
        assert [bool(image.isfinite().all()) for image in decoded] == fits
        assert [bool(image.isnan().all()) for image in decoded] == [not fit for fit in fits]


def test_bicubic_is_the_baseline_of_the_metrics(picture: Callable[..., np.ndarray]) -> None:
    pictures = [picture(64, 96, seed) for seed in range(2)]
    autoencoder = load_autoencoder("bicubic:8")
    latent = autoencoder.encode(torch.stack([image_to_tensor(p) for p in pictures]))
    decoded = tensor_to_image(autoencoder.decode(latent))
    assert all(np.array_equal(decoded[i], bicubic_baseline(pictures[i], 8)) for i in range(2))
    assert autoencoder.latent_bytes(latent) == [8 * 12 * 3] * 2
    with pytest.raises(ValueError, match="sides that are multiples of 8, found 60 x 64"):
        autoencoder.encode(torch.zeros(1, 3, 60, 64))


@pytest.mark.parametrize(
    ("name", "shown", "kind", "latent"),
    [
        ("jpeg:2000", "jpeg@2000B", "JPEG", "a file of at most 2000 bytes, quality 1 to 95, 4:2:0"),
        ("bicubic:8", "bicubic:8", "bicubic", "(3, H/8, W/8) of 8 bits"),
    ],
)
def test_baselines_describe_themselves(name: str, shown: str, kind: str, latent: str) -> None:
    autoencoder = load_autoencoder(name)
    assert autoencoder.name == shown
    described = autoencoder.describe()
    assert described.pop("source").startswith("Pillow ")
    assert described == {"kind": kind, "dtype": "uint8", "steps": None, "sha256": {}, "latent": latent}
    assert (autoencoder.parameters, autoencoder.decoder_parameters, autoencoder.flops(64, 96)) == (0, 0, None)
    assert autoencoder.noise(autoencoder.encode(images(1)), 0, [0]) is None


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("jpeg:big", "expected jpeg:BYTES, .* found 'big'"),
        ("jpeg:0", "expected jpeg:BYTES"),
        ("bicubic:", "expected bicubic:FACTOR"),
        (JPEG_AUTO, "expected jpeg:BYTES, .* found 'auto'"),
    ],
)
def test_baselines_with_wrong_numbers(name: str, match: str) -> None:
    refused(name, f"^{name}: {match}")
