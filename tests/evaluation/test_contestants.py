"""Every kind of contestant: it computes what its own library does, and reports the right sizes and counts."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ssdd import AutoencoderSSDD
from ssdd.checkpoints.layout import CheckpointError
from ssdd.checkpoints.names import AUTHORS_DECODER, AUTHORS_ENCODER, rename
from ssdd.data.images import image_to_tensor, tensor_to_image
from ssdd.evaluation.contestants import JPEG_AUTO, Jpeg, load_contestant
from ssdd.evaluation.metrics import bicubic_baseline
from ssdd.nn.decoder import Decoder
from ssdd.nn.encoder import Encoder
from ssdd.nn.presets import decoder_size, encoder_size

CONFIGS: dict[str, dict[str, Any]] = {
    "AutoencoderKL": {
        "block_out_channels": (8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "norm_num_groups": 4,
        "latent_channels": 6,
    },
    "AutoencoderTiny": {
        "encoder_block_out_channels": (8, 8, 8),
        "decoder_block_out_channels": (8, 8, 8),
        "num_encoder_blocks": (1, 1, 1),
        "num_decoder_blocks": (1, 1, 1),
    },
    "AutoencoderDC": {
        "latent_channels": 8,
        "attention_head_dim": 4,
        "encoder_block_types": ("ResBlock", "EfficientViTBlock"),
        "decoder_block_types": ("ResBlock", "EfficientViTBlock"),
        "encoder_block_out_channels": (8, 8),
        "decoder_block_out_channels": (8, 8),
        "encoder_layers_per_block": (1, 1),
        "decoder_layers_per_block": (1, 1),
        "encoder_qkv_multiscales": ((), (5,)),
        "decoder_qkv_multiscales": ((), (5,)),
    },
    "ConsistencyDecoderVAE": {
        "encoder_block_out_channels": (8, 8),
        "encoder_down_block_types": ("DownEncoderBlock2D",) * 2,
        "encoder_norm_num_groups": 4,
        "encoder_layers_per_block": 1,
        "decoder_block_out_channels": (8, 8),
        "decoder_down_block_types": ("ResnetDownsampleBlock2D",) * 2,
        "decoder_up_block_types": ("ResnetUpsampleBlock2D",) * 2,
        "decoder_norm_num_groups": 4,
        "decoder_layers_per_block": 1,
    },
}
LATENTS = {
    "AutoencoderKL": (6, 2),
    "AutoencoderTiny": (4, 4),
    "AutoencoderDC": (8, 2),
    "ConsistencyDecoderVAE": (4, 2),
    "AutoencoderSSDD": (4, 8),
}
"""Channels and spatial factor."""

CODE = '''
import torch
from torch import nn


class Patches(nn.Module):
    """Mean of 8 x 8 pixels, and back: 3 x 3 weights each way, and a layer that is never used."""

    spatial_factor, latent_channels = 8, 3

    def __init__(self):
        super().__init__()
        self.there, self.back, self.idle = nn.Conv2d(3, 3, 1), nn.Linear(3, 3, bias=False), nn.Linear(100, 100)
        with torch.no_grad():
            for layer in (self.there, self.back):
                layer.weight.copy_(torch.eye(3).view_as(layer.weight))
            self.there.bias.zero_()

    def encode(self, x):
        return nn.functional.avg_pool2d(self.there(x), 8)

    def decode(self, z):
        return self.back(z.movedim(1, -1)).movedim(-1, 1).repeat_interleave(8, 2).repeat_interleave(8, 3)


class EncoderAlone:
    spatial_factor, latent_channels = 8, 3
    encode = Patches.encode


class Small(Patches):
    def decode(self, z):
        return z


class Broken(Patches):
    def decode(self, z):
        raise RuntimeError("two\\nlines")
'''


def images(count: int = 3, height: int = 32, width: int = 48) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> dict[str, Path]:
    """A saved model of each class, with random weights."""
    folders = {"AutoencoderSSDD": tiny_model}
    for kind, config in CONFIGS.items():
        folders[kind] = tmp_path_factory.mktemp("models") / kind.lower()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            getattr(diffusers, kind)(**config).save_pretrained(folders[kind])
    return folders


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, now the current one, with the user's code."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(CODE)
    return tmp_path


def refused(name: str, match: str, kind: type[Exception] = ValueError) -> None:
    with pytest.raises(kind, match=match) as caught:
        load_contestant(name)
    assert "\n" not in str(caught.value)


# ---- models of diffusers and ours --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["AutoencoderKL", "AutoencoderTiny", "AutoencoderDC"])
def test_peers_compute_what_diffusers_does(kind: str, folders: dict[str, Path]) -> None:
    """A peer is shown worse or better than it is: a latent that is scaled or sampled, another range of the image."""
    model = getattr(diffusers, kind).from_pretrained(folders[kind]).eval()
    with torch.no_grad():
        encoded = model.encode(images())
        z = encoded.latent_dist.mode() if kind == "AutoencoderKL" else encoded[0]
        expected = model.decode(z).sample
    contestant = load_contestant(str(folders[kind]))
    torch.testing.assert_close(contestant.encode(images()), z, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(contestant.decode(z), expected, atol=1e-5, rtol=1e-5)


def test_ours_computes_what_the_autoencoder_does(folders: dict[str, Path]) -> None:
    """Our own model is measured on another latent, another number of steps, or not on fresh noise for each image."""
    model = AutoencoderSSDD.from_pretrained(folders["AutoencoderSSDD"]).eval()
    contestant = load_contestant(str(folders["AutoencoderSSDD"]))
    with torch.no_grad():
        z = model.encode(images()).latent_dist.mode()
        torch.testing.assert_close(contestant.encode(images()), z, atol=1e-5, rtol=1e-5)
        seen: list[Tensor] = []
        model.decoder.register_forward_hook(lambda module, args, output: seen.append(args[0]))
        contestant.model.decoder.register_forward_hook(lambda module, args, output: seen.append(args[0]))
        y = contestant.decode(z, steps=2)
        noise = seen[0]
        torch.testing.assert_close(y, model.decode(z, num_inference_steps=2, noise=noise).sample, atol=1e-4, rtol=1e-4)
    assert len(seen) == 4
    assert noise.mean().abs() < 0.05
    assert abs(noise.std() - 1) < 0.05
    assert (noise[0] - noise[1]).std() > 1
    assert contestant.describe()["steps"] == model.config.num_inference_steps


def test_consistency_decoder_rescales_once(folders: dict[str, Path]) -> None:
    """The decoder that normalises its latent itself would get a normalised one, or its noise would not be ours."""
    model = diffusers.ConsistencyDecoderVAE.from_pretrained(folders["ConsistencyDecoderVAE"]).eval()
    contestant = load_contestant(str(folders["ConsistencyDecoderVAE"]))
    z = contestant.encode(images(1))
    state = np.random.SeedSequence([5, 7]).generate_state(1, np.uint64)[0]
    with torch.no_grad():
        torch.testing.assert_close(z, model.encode(images(1)).latent_dist.mode(), atol=1e-5, rtol=1e-5)
        expected = model.decode(z, generator=torch.Generator().manual_seed(int(state >> np.uint64(1)))).sample
    torch.testing.assert_close(contestant.decode(z, seed=5, first=7), expected, atol=1e-4, rtol=1e-4)
    assert contestant.describe()["steps"] == 2
    with pytest.raises(ValueError, match="expected 2 decoding steps, no other number, found 1"):
        contestant.decode(z, steps=1)


def test_tiny_decodes_to_the_range_of_images(folders: dict[str, Path]) -> None:
    """AutoencoderTiny's networks work in [0, 1]: a zero of its last layer is black, not grey."""
    contestant = load_contestant(str(folders["AutoencoderTiny"]))
    last = contestant.model.decoder.layers[-1]
    nn.init.zeros_(last.weight), nn.init.zeros_(last.bias)
    assert torch.equal(contestant.decode(torch.zeros(1, 4, 2, 2)), torch.full((1, 3, 8, 8), -1.0))


@pytest.mark.parametrize("kind", ["AutoencoderSSDD", "ConsistencyDecoderVAE"])
def test_noise_is_the_images_own(kind: str, folders: dict[str, Path]) -> None:
    """Results change with the batch size or the number of processes, or the seed does nothing."""
    contestant = load_contestant(str(folders[kind]))
    z = contestant.encode(images())[[0, 1, 0]]
    together = contestant.decode(z, seed=3, first=10)
    apart = torch.cat([contestant.decode(z[i : i + 1], seed=3, first=10 + i) for i in range(3)])
    torch.testing.assert_close(together, apart, atol=1e-4, rtol=1e-4)
    torch.manual_seed(12)  # torch's own generator has no part in it
    assert torch.equal(contestant.decode(z, seed=3, first=10), together)
    for other in (together[2:], contestant.decode(z[:1], seed=4, first=10)):
        assert (other - together[:1]).abs().max() > 1e-3, "two indices or two seeds share their noise"


@pytest.mark.parametrize("kind", LATENTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_sizes_and_counts(kind: str, dtype: torch.dtype, folders: dict[str, Path]) -> None:
    """A column of the table is wrong: parameters, bytes of the latent, FLOPs, the dtype; or half precision fails."""
    contestant = load_contestant(str(folders[kind]), "cpu", dtype)
    channels, factor = LATENTS[kind]
    z = contestant.encode(images(2))
    y = contestant.decode(z)
    assert contestant.spatial_factor == factor
    assert z.shape == (2, channels, 32 // factor, 48 // factor)
    assert (z.dtype, y.dtype, y.shape) == (dtype, torch.float32, (2, 3, 32, 48))
    assert contestant.latent_bytes(32, 48) == z[0].numel() * 2
    tensors = load_file(next(folders[kind].glob("*.safetensors")))
    decoder = sum(t.numel() for k, t in tensors.items() if not k.startswith(("encoder.", "quant_conv.")))
    assert contestant.parameters == sum(t.numel() for t in tensors.values())
    assert contestant.decoder_parameters == decoder < contestant.parameters
    described = json.loads(json.dumps(contestant.describe()))
    assert (described["kind"], described["dtype"]) == (kind, str(dtype).removeprefix("torch."))
    assert described["latent"] == f"({channels}, H/{factor}, W/{factor})"
    assert [len(digest) for digest in described["sha256"].values()] == [64]
    if dtype == torch.float32:
        flops = contestant.flops(32, 32)
        assert flops is not None
        assert min(flops) > 0
        assert sum(contestant.flops(64, 32) or ()) > 1.9 * sum(flops)


def test_flops_by_hand(folders: dict[str, Path]) -> None:
    """Multiplications and additions are counted once, for a batch, or without some layers: here convolutions alone."""
    contestant = load_contestant(str(folders["AutoencoderTiny"]))
    counted = 0

    def add(module: nn.Conv2d, args: tuple[Tensor], output: Tensor) -> None:
        nonlocal counted
        counted += 2 * output[0].numel() * module.in_channels * module.kernel_size[0] * module.kernel_size[1]

    for module in contestant.model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(add)
    z = contestant.encode(images(2))
    encoding, counted = counted, 0
    contestant.decode(z)
    by_hand = (encoding, counted)
    assert contestant.flops(32, 48) == by_hand


def test_default_steps_count_in_flops(folders: dict[str, Path], tmp_path: Path) -> None:
    """A decoder of eight steps would look as cheap as one of a single step."""
    folder = Path(shutil.copytree(folders["AutoencoderSSDD"], tmp_path / "eight"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_inference_steps": 8}))
    one = load_contestant(str(folders["AutoencoderSSDD"])).flops(32, 32)
    eight = load_contestant(str(folder)).flops(32, 32)
    assert one is not None
    assert eight == (one[0], 8 * one[1])


def test_wrong_shapes_and_steps(folders: dict[str, Path]) -> None:
    """A wrong batch gives a traceback of a library, or is measured; steps are ignored where there are none."""
    contestant = load_contestant(str(folders["AutoencoderKL"]))
    for wrong in (torch.zeros(1, 3, 31, 32), torch.zeros(1, 1, 32, 32), torch.zeros(3, 32, 32)):
        with pytest.raises(ValueError, match=r"^autoencoderkl: expected images \(B, 3, H, W\) with H and W multiples"):
            contestant.encode(wrong)
    with pytest.raises(ValueError, match=r"expected a latent \(1, 6, 2, 2\) .* found torch.float32 \(1, 4, 2, 2\)"):
        contestant.decode(torch.zeros(1, 4, 2, 2))
    with pytest.raises(ValueError, match=r"expected no number of decoding steps, .* found 4"):
        contestant.decode(torch.zeros(1, 6, 2, 2), steps=4)


def test_nan_is_shown(folders: dict[str, Path]) -> None:
    """An overflow in half precision would be hidden from the caller."""
    contestant = load_contestant(str(folders["AutoencoderTiny"]))
    assert contestant.decode(torch.full((1, 4, 2, 2), torch.nan)).isnan().any()


# ---- names ---------------------------------------------------------------------------------------------------------


def test_names_and_places(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run, a pipeline, an embedded model or a snapshot of the hub cannot be named, or has no name in the table."""
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
        contestant = load_contestant(typed)
        assert (contestant.name, contestant.describe()["source"]) == (name, source)


def test_half_precision_files_and_shards(folders: dict[str, Path], tmp_path: Path) -> None:
    """A peer that is published in half precision alone, or in parts, cannot be compared."""
    model = diffusers.AutoencoderKL.from_pretrained(folders["AutoencoderKL"])
    expected = load_contestant(str(folders["AutoencoderKL"]))
    for number, options in enumerate(({"variant": "fp16"}, {"max_shard_size": "20KB"})):
        model.save_pretrained(tmp_path / str(number), **options)
        contestant = load_contestant(str(tmp_path / str(number)))
        torch.testing.assert_close(contestant.encode(images()), expected.encode(images()))
        assert len(contestant.describe()["sha256"]) == len(list((tmp_path / str(number)).glob("*.safetensors")))


def test_original_file(tmp_path: Path) -> None:
    """The authors' released file cannot be compared, or runs with one step."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        decoder, encoder = Decoder(decoder_size("XXS"), 4), Encoder(encoder_size("f8c4", 32))
    tensors = {f"decoder.{rename(k, AUTHORS_DECODER)}": v for k, v in decoder.state_dict().items()}
    alone = dict(tensors)
    tensors |= {f"encoder.{rename(k, AUTHORS_ENCODER)}": v for k, v in encoder.state_dict().items()}
    save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / "f8c4-S.safetensors")
    save_file({k: v.contiguous() for k, v in alone.items()}, tmp_path / "decoder.safetensors")
    contestant = load_contestant(str(tmp_path / "f8c4-S.safetensors"))
    assert (contestant.name, contestant.describe()["kind"]) == ("f8c4-S", "AutoencoderSSDD")
    assert contestant.describe()["steps"] == 8
    mean = encoder.eval()(images()).chunk(2, dim=1)[0]
    torch.testing.assert_close(contestant.encode(images()), mean, atol=1e-5, rtol=1e-5)
    refused(str(tmp_path / "decoder.safetensors"), "expected an encoder and a decoder, found a decoder alone")
    refused("no/such.safetensors", "^no/such.safetensors: expected a safetensors file, found none", CheckpointError)


def test_what_is_no_contestant(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user reads a traceback, several lines, or figures of a network that is partly random."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    refused("no-such", "^no-such: expected jpeg:BYTES, .*found none of them", FileNotFoundError)
    refused("somebody/nothing", "^somebody/nothing: .*the hub is offline", FileNotFoundError)
    refused("weights/taef2.pth", "found the name of a pickle, .* file.py:NAME", CheckpointError)
    for change, match in {
        "class": "expected one of AutoencoderSSDD, .* found AutoencoderKLWan; wrap it",
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
            "class": {"_class_name": "AutoencoderKLWan"},
            "width": {"block_out_channels": [8, 16]},
            "grey": {"in_channels": 1},
        }.get(change, {})
        (folder / "config.json").write_text(json.dumps(config))
        refused(change, f"^{change}.*: .*{match}", CheckpointError)


# ---- the user's own code -------------------------------------------------------------------------------------------


def test_own_code(own: Path) -> None:
    """A tokenizer that is no class of diffusers cannot be compared, or with wrong counts."""
    contestant = load_contestant("mine.py:Patches", "cpu", torch.bfloat16)
    assert (contestant.name, contestant.spatial_factor) == ("mine.py:Patches", 8)
    assert (contestant.parameters, contestant.decoder_parameters) == (12 + 9, 9)
    described = contestant.describe()
    assert (described["kind"], described["dtype"], described["steps"]) == ("Patches", "bfloat16", None)
    assert list(described["sha256"]) == ["mine.py"]
    z = contestant.encode(images())
    assert (z.dtype, z.shape, contestant.latent_bytes(32, 48)) == (torch.bfloat16, (3, 3, 4, 6), 2 * 3 * 4 * 6)
    contestant = load_contestant("mine:Patches")
    means = nn.functional.avg_pool2d(images(), 8)
    torch.testing.assert_close(contestant.encode(images()), means)
    y = contestant.decode(means)
    torch.testing.assert_close(y, means.repeat_interleave(8, 2).repeat_interleave(8, 3))
    pixels, cells = 32 * 48, 4 * 6
    assert contestant.flops(32, 48) == (2 * 9 * pixels, 2 * 9 * cells)


def test_own_code_that_does_not_fit(own: Path) -> None:
    """What is wrong with the user's code comes to light after hours, or as a traceback."""
    refused("mine.py:EncoderAlone", r"^mine.py:EncoderAlone: expected an object with decode\(z\) besides encode\(x\)")
    refused("mine.py:Small", r"^mine.py:Small: .* found ValueError: .*expected images \(1, 3, 256, 256\)")
    refused("mine.py:Broken", "^mine.py:Broken: .* found RuntimeError: two lines")
    refused("mine.py:Nothing", "^mine.py:Nothing: expected Nothing in mine.py", ImportError)
    refused("other.py:Patches", "^other.py:Patches: expected a Python file other.py", FileNotFoundError)


# ---- JPEG and fewer pixels -----------------------------------------------------------------------------------------


def test_jpeg_keeps_its_budget(picture: Callable[..., np.ndarray]) -> None:
    """JPEG gets more bytes than the tokenizer it is compared with, or less quality than its bytes allow."""
    batch = torch.stack([image_to_tensor(picture(96, 128, seed)) for seed in range(2)])
    sizes, errors = [], []
    for budget in (1200, 2400, 4800, 100_000):
        contestant = load_contestant(f"jpeg:{budget}")
        assert contestant.name == f"jpeg@{budget}B"
        assert contestant.latent_bytes(96, 128) == budget
        files = contestant.encode(batch)
        assert all(0.7 * budget < len(file) <= budget for file in files) or budget == 100_000
        decoded = contestant.decode(files)
        assert (decoded.shape, decoded.dtype) == (batch.shape, torch.float32)
        sizes.append(sum(map(len, files)))
        errors.append(float((decoded - batch).square().mean()))
    assert sizes == sorted(set(sizes))
    assert errors == sorted(set(errors), reverse=True)
    expected = io.BytesIO()
    Image.fromarray(picture(96, 128, 0)).save(expected, "JPEG", quality=95)
    assert files[0] == expected.getvalue()
    assert (contestant.parameters, contestant.decoder_parameters, contestant.flops(96, 128)) == (0, 0, None)
    assert contestant.describe()["kind"] == "JPEG"


def test_jpeg_takes_the_best_quality_that_fits(picture: Callable[..., np.ndarray]) -> None:
    """The search stops early: the next quality would have met the budget as well."""
    image = picture(64, 64)
    sizes = []
    for quality in range(1, 96):
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "JPEG", quality=quality)
        sizes.append(stream.tell())
    for quality in (1, 30, 60, 94):
        (file,) = Jpeg(sizes[quality - 1]).encode(image_to_tensor(image)[None])
        assert len(file) == max(size for size in sizes if size <= sizes[quality - 1])


def test_bicubic_is_the_baseline_of_the_metrics(picture: Callable[..., np.ndarray]) -> None:
    """Two tables of this project show two different baselines."""
    pictures = [picture(64, 96, seed) for seed in range(2)]
    contestant = load_contestant("bicubic:8")
    latent = contestant.encode(torch.stack([image_to_tensor(p) for p in pictures]))
    decoded = tensor_to_image(contestant.decode(latent))
    assert all(np.array_equal(decoded[i], bicubic_baseline(pictures[i], 8)) for i in range(2))
    assert latent[0].nbytes == contestant.latent_bytes(64, 96) == 8 * 12 * 3
    assert (contestant.name, contestant.spatial_factor, contestant.flops(64, 96)) == ("bicubic:8", 8, None)
    assert contestant.describe()["latent"] == "(3, H/8, W/8) of 8 bits"
    with pytest.raises(ValueError, match="H and W multiples of 8"):
        contestant.encode(torch.zeros(1, 3, 60, 64))


def test_baselines_that_cannot_be(picture: Callable[..., np.ndarray]) -> None:
    """A wrong number is taken for a model of the hub, or gives a file over the budget."""
    refused("jpeg:big", "^jpeg:big: expected jpeg:BYTES, .* found 'big'")
    refused("jpeg:0", "^jpeg:0: expected jpeg:BYTES")
    refused("bicubic:", "^bicubic:: expected bicubic:FACTOR")
    refused(JPEG_AUTO, "^jpeg:auto: expected another contestant")
    with pytest.raises(ValueError, match="at least 1 byte"):
        Jpeg(0)
    with pytest.raises(ValueError, match=r"^jpeg@100B: .* 64 x 32 pixels can meet, found \d{3} bytes at quality 1"):
        Jpeg(100).encode(image_to_tensor(picture(32, 64))[None])
    for name in ("jpeg:2000", "bicubic:8"):
        contestant = load_contestant(name)
        with pytest.raises(ValueError, match="expected no number of decoding steps"):
            contestant.decode(contestant.encode(images(1)), steps=1)
