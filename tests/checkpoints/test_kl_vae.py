"""The encoder of a diffusers KL-VAE under our names computes the same posterior; anything else is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ssdd import AutoencoderSSDD
from ssdd.checkpoints import weights
from ssdd.checkpoints.kl_vae import KLEncoder, read_encoder, read_kl_encoder
from ssdd.checkpoints.layout import CheckpointError
from ssdd.nn.encoder import Encoder

WEIGHTS = "diffusion_pytorch_model.safetensors"
FLUX = {"scaling_factor": 0.3611, "shift_factor": 0.1159, "use_quant_conv": False, "use_post_quant_conv": False}


def make(folder: Path, seed: int = 0, shards: str = "1GB", **config: Any) -> AutoencoderKL:
    """A small AutoencoderKL with random weights, saved to the folder."""
    torch.manual_seed(seed)
    config = {"block_out_channels": (32, 64, 64), "layers_per_block": 2, **config}
    levels = len(config["block_out_channels"])
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels, **config
    )
    vae.save_pretrained(folder, max_shard_size=shards)
    return vae.eval()


def assert_same_posterior(read: KLEncoder, vae: AutoencoderKL) -> None:
    """Mean and log-variance of two image sizes are those of diffusers."""
    encoder = Encoder(read.size)
    encoder.load_state_dict(read.state)
    for shape in ((2, 3, 32, 48), (1, 3, 64, 16)):
        x = torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
        with torch.no_grad():
            expected = vae.encode(x).latent_dist
            mean, logvar = encoder(x).chunk(2, dim=1)
        torch.testing.assert_close(mean, expected.mean, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(logvar, expected.logvar, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AutoencoderKL]:
    folder = tmp_path_factory.mktemp("vae")
    return folder, make(folder)


@pytest.fixture
def copy(saved: tuple[Path, AutoencoderKL], tmp_path: Path) -> Path:
    """A copy of the saved folder that a test may spoil."""
    return Path(shutil.copytree(saved[0], tmp_path / "vae"))


@pytest.fixture
def reconfigured(copy: Path) -> Callable[..., Path]:
    """``reconfigured(key=value)``: the copy with other config entries; None takes the key out."""

    def change(**entries: Any) -> Path:
        path = copy / "config.json"
        config = json.loads(path.read_text()) | entries
        path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
        return copy

    return change


@pytest.mark.parametrize(
    "config",
    [
        {"latent_channels": 4},
        {"latent_channels": 16, **FLUX},
        {"norm_num_groups": 8, "latent_channels": 6},
        {"block_out_channels": (32, 96, 64, 32), "norm_num_groups": 16},
        {"shards": "300KB"},
        {"shards": "300KB", **FLUX},
    ],
    ids=["sd", "flux", "groups", "widths", "shards", "flux-shards"],
)
def test_same_posterior(tmp_path: Path, config: dict[str, Any]) -> None:
    """A tensor under a wrong name or in a shard not read, or an encoder that computes something else."""
    vae = make(tmp_path, **config)
    assert (tmp_path / WEIGHTS).is_file() == ("shards" not in config), "the test did not write what it is about"
    assert_same_posterior(read_kl_encoder(tmp_path), vae)


def test_no_quant_conv_is_the_exact_identity(tmp_path: Path) -> None:
    """FLUX's moments would be changed by our last convolution."""
    make(tmp_path, **FLUX)
    state = read_kl_encoder(tmp_path).state
    assert torch.equal(state["moments.weight"][:, :, 0, 0], torch.eye(8))
    assert not state["moments.bias"].any()


@pytest.mark.parametrize("convolution", [False, True], ids=["linear", "convolution"])
def test_old_attention_names(saved: tuple[Path, AutoencoderKL], copy: Path, convolution: bool) -> None:
    """SD 1.x files of 2022 name the attention otherwise: they could not be read."""
    tensors = load_file(copy / WEIGHTS)
    for new, old in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items():
        for name in [n for n in tensors if f".attentions.0.{new}." in n]:
            tensor = tensors.pop(name)
            shape = (*tensor.shape, 1, 1) if convolution and tensor.dim() == 2 else tensor.shape
            tensors[name.replace(new, old)] = tensor.reshape(shape)
    assert any(".query." in name for name in tensors)
    save_file(tensors, copy / WEIGHTS)
    assert_same_posterior(read_kl_encoder(copy), saved[1])


@pytest.mark.parametrize("shards", ["1GB", "300KB"])
def test_half_precision_files_where_there_are_no_others(tmp_path: Path, shards: str) -> None:
    """Repositories with an fp16 variant only could not be read."""
    vae = make(tmp_path)
    expected = {k: v.clone() for k, v in vae.state_dict().items()}
    (tmp_path / WEIGHTS).unlink()
    vae.half().save_pretrained(tmp_path, variant="fp16", max_shard_size=shards)
    state = read_kl_encoder(tmp_path).state
    torch.testing.assert_close(state["conv_in.weight"], expected["encoder.conv_in.weight"].half())


def test_old_config_without_later_keys(saved: tuple[Path, AutoencoderKL], reconfigured: Callable[..., Path]) -> None:
    """The config of an SD-VAE of 2022 has none of these keys."""
    later = ("use_quant_conv", "mid_block_add_attention", "norm_num_groups", "scaling_factor", "shift_factor", "act_fn")
    read = read_kl_encoder(reconfigured(**dict.fromkeys((*later, "latents_mean", "latents_std", "force_upcast"))))
    assert_same_posterior(read, saved[1])
    assert read.statistics == {"scaling_factor": 0.18215, "shift_factor": 0.0}


def test_statistics(reconfigured: Callable[..., Path]) -> None:
    """A pipeline would unscale the latents of a drop-in decoder otherwise than those of the VAE it replaces."""
    mean, std = [0.5, -1, 0.25, 2.0], [1, 2.0, 3.0, 0.5]
    folder = reconfigured(scaling_factor=0.13025, shift_factor=0.0609, latents_mean=mean, latents_std=std)
    assert read_kl_encoder(folder).statistics == {
        "scaling_factor": 0.13025,
        "shift_factor": 0.0609,
        "latents_mean": (0.5, -1.0, 0.25, 2.0),
        "latents_std": (1.0, 2.0, 3.0, 0.5),
    }


def test_our_own_model(tiny_model: Path) -> None:
    """The encoder of an SSDD could not start another decoder."""
    read, model = read_encoder(tiny_model), AutoencoderSSDD.from_pretrained(tiny_model)
    assert read.size == model.encoder.size
    assert read.statistics == {"scaling_factor": 1.0, "shift_factor": 0.0}
    for name, tensor in model.encoder.state_dict().items():
        assert torch.equal(read.state[name], tensor), name


def test_a_decoder_alone_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    config = json.loads((tiny_model / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"has_encoder": False}))
    with pytest.raises(CheckpointError, match="expected a model with an encoder, found one that only decodes"):
        read_encoder(tmp_path)


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"found no config\.json"):
        read_kl_encoder(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderTiny"}')
    (tmp_path / WEIGHTS).write_bytes(b"")
    with pytest.raises(CheckpointError, match="expected an AutoencoderKL, found AutoencoderTiny"):
        read_kl_encoder(tmp_path)
    with pytest.raises(CheckpointError, match="expected AutoencoderKL or AutoencoderSSDD, found AutoencoderTiny"):
        read_encoder(tmp_path)


HUGE = 10**15

REFUSED = [
    ({"layers_per_block": 3}, "expected layers_per_block 2 as in ours, found 3"),
    ({"layers_per_block": None}, "expected layers_per_block 2 as in ours, found 1"),
    ({"mid_block_add_attention": False}, "expected mid_block_add_attention True as in ours, found False"),
    ({"act_fn": "gelu"}, "expected act_fn silu as in ours, found gelu"),
    ({"in_channels": 4}, "expected in_channels 3 as in ours, found 4"),
    ({"down_block_types": ["AttnDownEncoderBlock2D"] * 3}, "expected down_block_types .* found .*AttnDownEncoder"),
    ({"down_block_types": ["DownEncoderBlock2D"]}, "expected down_block_types"),
    ({"down_block_types": {"a": HUGE}}, "expected down_block_types"),
    ({"block_out_channels": None}, r"expected block_out_channels of 2 to 8 levels, found \[64\]"),
    ({"block_out_channels": [32] * 1000}, "expected block_out_channels of 2 to 8 levels"),
    ({"block_out_channels": "32"}, "expected block_out_channels of 2 to 8 levels, found 32"),
    ({"block_out_channels": [32, 64, float("nan")]}, "as integers from 1 to 16384, found .*nan"),
    ({"block_out_channels": [32, 64, HUGE]}, "as integers from 1 to 16384"),
    ({"block_out_channels": [32, 64, -64]}, "as integers from 1 to 16384"),
    ({"block_out_channels": [32, 64, 16384]}, "differences from the expected layout"),
    ({"block_out_channels": [32, 64, 50]}, "multiples of 32 norm groups"),
    ({"norm_num_groups": 0}, "as integers from 1 to 16384"),
    ({"norm_num_groups": True}, "as integers from 1 to 16384"),
    ({"latent_channels": "4"}, "as integers from 1 to 16384"),
    ({"latent_channels": 5}, "differences from the expected layout: .*conv_out"),
    ({"use_quant_conv": False, "latent_channels": 16384}, "differences from the expected layout"),
    ({"scaling_factor": 0}, "expected scaling_factor as a number above zero, found 0"),
    ({"scaling_factor": float("inf")}, "expected scaling_factor as a number above zero, found inf"),
    ({"scaling_factor": 10**400}, "expected scaling_factor as a number"),
    ({"shift_factor": "0.1"}, "expected shift_factor as a number, found '?0.1"),
    ({"latents_mean": [0.0, 0.0]}, r"expected latents_mean as 4 numbers \(one per channel\), found"),
    ({"latents_mean": 1.0}, "expected latents_mean as 4 numbers"),
    ({"latents_std": [1, 1, 1, 0]}, r"expected latents_std as 4 numbers \(one per channel\) above zero"),
    ({"latents_std": [1, 1, 1, float("nan")]}, "expected latents_std as 4 numbers"),
]


@pytest.mark.parametrize(
    ("entries", "message"), REFUSED, ids=[f"{next(iter(e))}-{i}" for i, (e, _) in enumerate(REFUSED)]
)
def test_other_configurations_are_refused(
    reconfigured: Callable[..., Path], entries: dict[str, Any], message: str
) -> None:
    """Another network's weights would be read as ours, or a hostile number would end in a traceback."""
    with pytest.raises(CheckpointError, match=message) as error:
        read_kl_encoder(reconfigured(**entries))
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 700


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '"AutoencoderKL"', "\udcff"], ids=range(6))
def test_a_config_that_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match="expected a JSON object, found"):
        read_kl_encoder(tmp_path)


def test_weights_that_do_not_fit_are_refused(copy: Path) -> None:
    """Weights that are cut off, lack a tensor, or are no floating-point numbers would be taken."""
    weights, complete = copy / WEIGHTS, (copy / WEIGHTS).read_bytes()
    weights.write_bytes(complete[: len(complete) // 2])
    with pytest.raises(CheckpointError, match=r"expected a complete safetensors file.*delete it"):
        read_kl_encoder(copy)
    weights.rename(copy / "blob")  # the hub's cache would link it again
    weights.symlink_to("blob")
    with pytest.raises(CheckpointError, match=f"^{copy / 'blob'}: expected"):
        read_kl_encoder(copy)
    weights.unlink()
    weights.write_bytes(complete)
    tensors = load_file(weights)
    save_file({k: v for k, v in tensors.items() if not k.startswith("quant_conv")}, weights)
    with pytest.raises(CheckpointError, match=r"2 differences from the expected layout: no quant_conv"):
        read_kl_encoder(copy)
    save_file(tensors | {"encoder.conv_in.weight": torch.zeros(32, 3, 3, 3, dtype=torch.int32)}, weights)
    with pytest.raises(CheckpointError, match=r"expected encoder\.conv_in\.weight as .*, found I32"):
        read_kl_encoder(copy)
    save_file(tensors | {"encoder.conv_in.weight": torch.zeros(0, 3, 3, 3)}, weights)
    with pytest.raises(CheckpointError, match=r"encoder\.conv_in\.weight is \[0, 3, 3, 3\], expected \[32, 3, 3, 3\]"):
        read_kl_encoder(copy)


def test_nothing_is_read_before_the_shapes_are_right(
    reconfigured: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hostile file of huge tensors would fill the memory before it is refused."""

    class HeaderOnly:
        def __init__(self, path: Path, framework: str) -> None:
            file = safe_open(path, framework)
            self.keys, self.get_slice = file.keys, file.get_slice

        def __enter__(self) -> "HeaderOnly":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def get_tensor(self, name: str) -> torch.Tensor:
            raise AssertionError(f"{name} was read")

    monkeypatch.setattr(weights, "safe_open", HeaderOnly)
    with pytest.raises(AssertionError, match="was read"):
        read_kl_encoder(reconfigured(sample_size=32))
    with pytest.raises(CheckpointError, match="differences from the expected layout"):
        read_kl_encoder(reconfigured(latent_channels=5))


def test_pickled_weights_are_refused(copy: Path) -> None:
    """A pickle can run code."""
    (copy / WEIGHTS).rename(copy / "diffusion_pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pickled weights \(\.bin\) can run code and are never loaded: convert"):
        read_kl_encoder(copy)


@pytest.mark.parametrize(
    ("shards", "message"),
    [
        ({"encoder.conv_in.weight": "../../secret.safetensors"}, "expected the names of safetensors files beside it"),
        ({"encoder.conv_in.weight": "/etc/secret.safetensors"}, "expected the names of safetensors files beside it"),
        ({"encoder.conv_in.weight": "weights.bin"}, "expected the names of safetensors files beside it"),
        ({"encoder.conv_in.weight": ["x"]}, "expected the names of safetensors files beside it"),
        ({}, "expected the names of safetensors files beside it"),
        (3, "expected the names of safetensors files beside it"),
        ({"a": "shard-1.safetensors", "b": "shard-2.safetensors"}, r"expected all 2 shards of .*, found no shard-1"),
    ],
    ids=["above", "absolute", "pickle", "list", "empty", "number", "missing"],
)
def test_a_wrong_index_is_refused(copy: Path, shards: object, message: str) -> None:
    """A hostile index would read files outside its folder."""
    (copy / WEIGHTS).unlink()
    (copy / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(CheckpointError, match=message):
        read_kl_encoder(copy)
