"""Every kind of encoder that ``--model.encoder`` takes gives its own posterior, and a wrong name one clear line."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor, nn

from ssdd import AutoencoderSSDD
from ssdd.checkpoints.layout import CheckpointError
from ssdd.nn.encoder import Encoder
from ssdd.training.config import ModelConfig, TeacherConfig
from ssdd.training.encoders import EncoderChoice, ForeignEncoder, choose_encoder
from ssdd.training.starting import find_start, start_flow

MODULE = '''
from __future__ import annotations
import torch
from dataclasses import dataclass
from torch import nn


class Patches(nn.Module):
    """The mean colour and brightness of each patch."""

    spatial_factor, latent_channels = 16, 4

    def __init__(self):
        super().__init__()
        self.mix = nn.Conv2d(3, 4, 16, stride=16).double()
        self.drop = nn.Dropout(0.5)

    def encode(self, x):
        return self.drop(self.mix(x))


@dataclass
class Plain:
    """No nn.Module; with a dataclass, which looks up its own module."""

    spatial_factor: int = 4
    latent_channels: int = 3
    scaling_factor: float = 0.5

    def encode(self, x):
        return nn.functional.avg_pool2d(x, 4)


def factory():
    return Patches()


def with_argument(size):
    return Patches()


def failing():
    raise RuntimeError("two\\nlines")


instance = Plain()
number = 3
'''


def images(height: int = 32, width: int = 64, batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    assert len(str(error.value).splitlines()) == 1, f"expected one clear line, found {error.value}"
    return str(error.value)


@pytest.fixture(scope="module")
def kl(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AutoencoderKL]:
    """A small AutoencoderKL like FLUX's, in the vae/ folder of a pipeline."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=2,
        latent_channels=16,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()
    pipeline = tmp_path_factory.mktemp("pipeline")
    vae.save_pretrained(pipeline / "vae")
    (pipeline / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    return pipeline, vae


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, now the current one, with the user's code as a file and in a package."""
    monkeypatch.chdir(tmp_path)
    for file in ("code/encoders.py", "my_package/encoders.py"):
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).write_text(MODULE)
    yield tmp_path
    for name in ("my_package", "my_package.encoders"):
        sys.modules.pop(name, None)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """``hub("owner/name", folder)``: the folder as a repository in the hub's cache. The hub itself is out of reach."""
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))

    def store(repository: str, folder: Path) -> Path:
        entry, commit = cache / f"models--{repository.replace('/', '--')}", "0123456789" * 4
        (entry / "refs").mkdir(parents=True)
        (entry / "refs" / "main").write_text(commit)
        return Path(shutil.copytree(folder, entry / "snapshots" / commit))

    return store


def assert_is(choice: EncoderChoice, vae: Any) -> None:
    """The choice computes the posterior of a diffusers autoencoder, and carries its statistics."""
    with torch.no_grad():
        expected = vae.encode(images()).latent_dist
        mean, logvar = choice.module(images()).chunk(2, dim=1)
    torch.testing.assert_close(mean, expected.mean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logvar, expected.logvar, atol=1e-5, rtol=1e-5)
    assert isinstance(choice.module, Encoder)
    assert choice.module.latent_channels == vae.config.latent_channels
    assert choice.module.size.channels == tuple(vae.config.block_out_channels)
    assert choice.module.spatial_factor == 32 // mean.shape[2]
    assert choice.statistics["scaling_factor"] == vae.config.scaling_factor
    assert choice.statistics["shift_factor"] == vae.config.shift_factor


# ---- ours and AutoencoderKL ----------------------------------------------------------------------------------------


def test_preset() -> None:
    """A new encoder of a named size could not be trained."""
    choice = choose_encoder("f16c6", width=32, groups=8)
    assert choice.module(images()).shape == (2, 12, 2, 4)
    assert isinstance(choice.module, Encoder)
    assert (choice.module.latent_channels, choice.module.spatial_factor, choice.statistics) == (6, 16, {})
    assert (choice.module.size.channels, choice.module.size.groups) == ((32, 64, 128, 128, 128), 8)
    assert all(p.requires_grad for p in choice.module.parameters())
    with pytest.raises(ValueError, match=r"expected an encoder like f8c4, .* found 'f7c4'"):
        choose_encoder("f7c4")


def test_autoencoder_kl_folder(kl: tuple[Path, AutoencoderKL]) -> None:
    """The latents to be trained on are not those of the VAE that is named."""
    pipeline, vae = kl
    assert_is(choose_encoder(str(pipeline / "vae")), vae)
    assert_is(choose_encoder(str(pipeline)), vae)


def test_our_own_folder_and_embedded_name(tiny_model: Path) -> None:
    """A decoder could not be trained for an encoder of ours."""
    assert_is(choose_encoder(str(tiny_model)), AutoencoderSSDD.from_pretrained(tiny_model))
    embedded = AutoencoderSSDD.from_pretrained("ssdd-f8c4-demo")
    choice = choose_encoder("ssdd-f8c4-demo")
    assert_is(choice, embedded)
    assert choice.statistics["latents_std"] == tuple(embedded.config.latents_std)


def test_training_run(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run's folder, which is what `ssdd train` prints, could not be named; an unfinished one is told as such."""
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "x"
    (run / "checkpoints" / "000000000064").mkdir(parents=True)
    (run / "config.json").write_text('{"stage": "flow"}')
    for take in (choose_encoder, lambda name: find_start(name, "AutoencoderSSDD")):
        with pytest.raises(CheckpointError, match=r"^runs/x: expected a finished run .* not finished yet") as error:
            take("runs/x")
        one_line(error)
    shutil.copytree(tiny_model, run / "model")
    assert_is(choose_encoder("runs/x"), AutoencoderSSDD.from_pretrained(tiny_model))
    for name in ("runs/x", "runs/x/model"):
        assert find_start(name, "AutoencoderSSDD") == Path("runs/x/model")


def test_a_model_to_start_from(kl: tuple[Path, AutoencoderKL], hub: Callable[..., Path]) -> None:
    """A model could not be named, or a decoder would start from a model of another class."""
    assert find_start("ssdd-f8c4-demo", "AutoencoderSSDD").is_dir()
    stored = hub("somebody/pipeline", kl[0])
    assert find_start("somebody/pipeline", "AutoencoderKL") == stored / "vae"
    with pytest.raises(
        CheckpointError, match="expected an AutoencoderSSDD to start from, found AutoencoderKL; name it"
    ):
        find_start(str(kl[0]), "AutoencoderSSDD")
    assert find_start(str(kl[0]), "AutoencoderKL") == kl[0] / "vae"
    for name in ("my/no/such", "./no-such", "no-such"):
        with pytest.raises(FileNotFoundError, match=f"^{name}: expected a (model )?folder.*found n"):
            find_start(name, "AutoencoderSSDD")


def test_a_decoder_of_other_latents_to_start_from(small_model: Callable[..., Path], tmp_path: Path) -> None:
    """All that it has learned but how to read its latents was thrown away with them."""
    folder = str(small_model(0))
    encode = "encode = staticmethod(lambda x: x[..., ::8, ::8])"
    (tmp_path / "mine.py").write_text(f"class Points:\n    spatial_factor, latent_channels = 8, 3\n    {encode}\n")
    mine = f"{tmp_path / 'mine.py'}:Points"
    start = start_flow(ModelConfig(encoder=mine, start_from=folder, train_encoder=False), train_encoder=False)
    assert start.normalize
    given, state = AutoencoderSSDD.from_pretrained(folder).decoder.state_dict(), start.decoder.state_dict()
    fresh = {name for name in state if not torch.equal(state[name], given[name])}
    assert fresh == {"context.0.weight", "conv_in.weight"}
    assert state["conv_in.weight"].shape[1] == 3 + 3
    assert torch.equal(state["conv_in.weight"][:, :3], given["conv_in.weight"][:, :3])
    assert start.given is not None
    assert start.given.latent_channels == 4, "the run's provenance is that of random weights"
    with pytest.raises(ValueError, match="expected a teacher of 3 latent channels for the encoder"):
        start_flow(TeacherConfig(start_from=folder, encoder=mine), train_encoder=False)


def test_a_decoder_of_somebody_elses_latents_to_start_from(
    small_model: Callable[..., Path], kl: tuple[Path, AutoencoderKL], tmp_path: Path
) -> None:
    """Latents of as many channels, but of another encoder and scale, were read by what it had learned of its own."""
    vae = str(kl[0] / "vae")
    channels = kl[1].config.latent_channels
    ae = AutoencoderSSDD.from_preset(f"f{2 ** (len(kl[1].config.block_out_channels) - 1)}c{channels}", "XXS")
    ae.save_pretrained(tmp_path / "ours")
    start = start_flow(ModelConfig(encoder=vae, start_from=str(tmp_path / "ours"), train_encoder=False), False)
    assert start.normalize
    assert start.decoder is not start.given
    drop_in = AutoencoderSSDD.from_kl_vae(vae, decoder="XXS")
    drop_in.save_pretrained(tmp_path / "drop-in")
    start = start_flow(ModelConfig(encoder=vae, start_from=str(tmp_path / "drop-in"), train_encoder=False), False)
    assert start.decoder is start.given, "it reads these latents already"


def test_hub_id(kl: tuple[Path, AutoencoderKL], hub: Callable[..., Path]) -> None:
    """A VAE of the hub could not be named: at its root, in a named subfolder, in the vae/ of a pipeline."""
    pipeline, vae = kl
    hub("somebody/pipeline", pipeline)
    hub("somebody/vae-16", pipeline / "vae")
    assert_is(choose_encoder("somebody/vae-16"), vae)
    assert_is(choose_encoder("somebody/pipeline/vae"), vae)
    assert_is(choose_encoder("somebody/pipeline"), vae)


def test_hub_id_out_of_reach(kl: tuple[Path, AutoencoderKL], hub: Callable[..., Path], tmp_path: Path) -> None:
    """Without a network the user would read a traceback, or that weights are missing which are only not cached."""
    (tmp_path / "part").mkdir()
    shutil.copy(kl[0] / "vae" / "config.json", tmp_path / "part")
    hub("somebody/part", tmp_path / "part")
    for name in ("somebody/nothing", "somebody/nothing/vae", "somebody/part"):
        with pytest.raises(
            FileNotFoundError, match=f"^{name}: expected a folder or a Hugging Face id, .*offline"
        ) as error:
            choose_encoder(name)
        one_line(error)


def test_hub_answers(kl: tuple[Path, AutoencoderKL], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the hub says (no such file, no such repository, an error) is told in one line; weights of another model,
    which can be large, would be downloaded before its config is read."""
    from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

    asked: list[str] = []
    answer: type[BaseException] = EntryNotFoundError

    def download(repository: str, file: str, revision: str | None, local_files_only: bool) -> str:
        asked.append(file)
        if answer is EntryNotFoundError and (tmp_path / "0123" / file).is_file():
            return str(tmp_path / "0123" / file)
        raise answer.__new__(answer)

    monkeypatch.setattr("ssdd.checkpoints.places.hf_hub_download", download)
    with pytest.raises(FileNotFoundError, match=r"^a/b: expected config\.json in this Hugging Face repository"):
        choose_encoder("a/b")
    assert asked == ["config.json", "vae/config.json"]

    (tmp_path / "0123").mkdir()
    (tmp_path / "0123" / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    asked.clear()
    with pytest.raises(CheckpointError, match=r"^a/b: expected one of .*, found UNet2DConditionModel"):
        choose_encoder("a/b")
    assert asked == ["config.json"]

    shutil.copy(kl[0] / "vae" / "config.json", tmp_path / "0123")
    with pytest.raises(CheckpointError, match=r"^a/b: expected diffusion_pytorch_model\.safetensors, found none"):
        choose_encoder("a/b")

    answer = RepositoryNotFoundError
    with pytest.raises(FileNotFoundError, match=r"^a/b: .* no repository that you may read: accept its licence"):
        choose_encoder("a/b")
    answer = ZeroDivisionError
    with pytest.raises(OSError, match=r"^a/b: cannot download config\.json from Hugging Face: ZeroDivisionError"):
        choose_encoder("a/b")


def test_other_names_are_refused(tmp_path: Path) -> None:
    """A typing error would be taken for something else, or told in several lines."""
    for file in ("vae.safetensors", "vae.ckpt"):
        (tmp_path / file).write_bytes(b"")
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "vit"}')
    for name, message in {
        str(tmp_path / "vae.safetensors"): "expected a complete safetensors file, found something else",
        str(tmp_path / "vae.ckpt"): "expected a size like f8c4, .* a single file of safetensors, .* found a file",
        str(tmp_path / "none"): "expected a size like f8c4, .* found none of them",
        "ssdd-f8c4-dmeo": r"an embedded model \(.*ssdd-f8c4-demo.*found none of them",
        str(tmp_path / "empty"): r"expected a model folder, found no config\.json in it, in model/ or in vae/",
        str(tmp_path / "other"): r"found no _class_name in its config\.json",
    }.items():
        with pytest.raises((ValueError, OSError), match=message) as error:
            choose_encoder(name)
        one_line(error)


# ---- the user's own ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["code/encoders.py", "my_package.encoders"], ids=["file", "module"])
@pytest.mark.parametrize("attribute", ["Patches", "factory", "instance", "Plain"])
def test_users_code(user: Path, source: str, attribute: str) -> None:
    """A class, a function that makes an encoder or an encoder itself could not be named, in a file or a module."""
    path = list(sys.path)
    choice = choose_encoder(f"{source}:{attribute}")
    plain = attribute in ("instance", "Plain")
    assert isinstance(choice.module, ForeignEncoder)
    assert (choice.module.spatial_factor, choice.module.latent_channels) == ((4, 3) if plain else (16, 4))
    assert choice.statistics == ({"scaling_factor": 0.5} if plain else {})
    choice.module.train()
    moments = choice.module(images(32, 64))
    mean, logvar = moments.chunk(2, dim=1)
    assert mean.shape == ((2, 3, 8, 16) if plain else (2, 4, 2, 4))
    assert logvar.eq(-30).all()
    assert torch.equal(moments, choice.module(images(32, 64))), "dropout is at work: not in eval mode"
    assert moments.dtype == torch.float32
    assert not moments.requires_grad
    assert not any(p.requires_grad or p.dtype != torch.float32 for p in choice.module.parameters())
    assert sys.path == path, "the current folder stays importable"


def test_users_module_moves_and_keeps_its_precision() -> None:
    """An encoder is left on the CPU, or computes in bfloat16 under the autocast of training."""
    seen: list[Tensor] = []

    class Half(nn.Module):
        spatial_factor, latent_channels, dtype = 8, 2, torch.float16

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2, 3, 8, 8, dtype=torch.float16))

        def encode(self, x: Tensor) -> Tensor:
            seen.append(x)
            return nn.functional.conv2d(x.float(), self.weight.float(), stride=8).half()

    half = ForeignEncoder(Half(), "half")
    assert half(images()).dtype == torch.float32
    assert (seen[-1].dtype, half.source.weight.dtype) == (torch.float16, torch.float16)
    assert half.to("meta").source.weight.device.type == "meta"

    patches = ForeignEncoder(_Kernel(), "kernel")
    with torch.autocast("cpu", torch.bfloat16):
        inside = patches(images())
    assert torch.equal(inside, patches(images()))


class _Kernel(nn.Module):
    spatial_factor, latent_channels = 8, 2

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 8, stride=8)

    def encode(self, x: Tensor) -> Tensor:
        return self.conv(x)


def test_tiny_autoencoder(user: Path) -> None:
    """The deterministic latents of TAESD, by a class of six lines."""
    torch.manual_seed(0)
    tiny = AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
        latent_channels=4,
    ).eval()
    tiny.save_pretrained(user / "taesd")
    (user / "taesd.py").write_text(
        "from diffusers import AutoencoderTiny\n\n"
        "class Taesd:\n"
        "    spatial_factor, latent_channels = 4, 4\n"
        "    vae = AutoencoderTiny.from_pretrained('taesd', low_cpu_mem_usage=False)\n"
        "    def encode(self, x): return self.vae.encode(x)\n"
    )
    choice = choose_encoder("taesd.py:Taesd")
    mean, logvar = choice.module(images()).chunk(2, dim=1)
    with torch.no_grad():
        torch.testing.assert_close(mean, tiny.encode(images()).latents)
    assert logvar.eq(-30).all()


def test_a_model_of_diffusers_as_it_is(kl: tuple[Path, AutoencoderKL]) -> None:
    """Its Gaussian's log-variance is lost, or its config is not asked."""
    vae = AutoencoderKL.from_pretrained(kl[0] / "vae", low_cpu_mem_usage=False)
    vae.spatial_factor = 4
    foreign = ForeignEncoder(vae, "vae")
    with torch.no_grad():
        expected = kl[1].encode(images()).latent_dist
    mean, logvar = foreign(images()).chunk(2, dim=1)
    torch.testing.assert_close(mean, expected.mean)
    torch.testing.assert_close(logvar, expected.logvar)
    assert foreign.statistics == {"scaling_factor": 0.3611, "shift_factor": 0.1159}


@pytest.mark.parametrize(
    ("result", "found"),
    [
        (torch.zeros(2, 4, 3, 4), r"found torch\.float32 \(2, 4, 3, 4\)"),
        (torch.zeros(2, 5, 2, 4), r"found torch\.float32 \(2, 5, 2, 4\)"),
        (torch.zeros(2, 8, 4), r"found torch\.float32 \(2, 8, 4\)"),
        (torch.zeros(2, 4, 2, 4, dtype=torch.int64), r"found torch\.int64"),
        ((torch.zeros(2, 4, 2, 4),), "found tuple"),
        (None, "found NoneType"),
    ],
    ids=["grid", "channels", "tokens", "indices", "tuple", "none"],
)
def test_wrong_latents_are_told_at_once(result: object, found: str) -> None:
    """The decoder would fail far away from the reason, or train on something else."""
    encoder = ForeignEncoder(_Fixed(16, 4, result), "my.py:Mine")
    message = (
        r"^my\.py:Mine: expected encode to give a floating-point latent \(2, 4, 2, 4\) for images \(2, 3, 32, 64\), "
    )
    with pytest.raises(ValueError, match=message + found) as error:
        encoder(images())
    one_line(error)


def test_wrong_images_are_told_at_once() -> None:
    with pytest.raises(ValueError, match=r"expected images \(B, 3, H, W\), H and W multiples of 16, found \(2, 3, 40"):
        ForeignEncoder(_Fixed(16, 4, None), "mine")(images(40, 64))


class _Fixed:
    def __init__(self, spatial_factor: Any, latent_channels: Any, result: Any) -> None:
        self.spatial_factor, self.latent_channels, self.result = spatial_factor, latent_channels, result

    def encode(self, x: Tensor) -> Any:
        return self.result


@pytest.mark.parametrize(
    ("factor", "channels", "message"),
    [
        (14, 768, r"expected a spatial_factor that is a power of two from 2 to 128, found 14: resize .* inside encode"),
        (256, 4, "expected a spatial_factor that is a power of two from 2 to 128, found 256"),
        (1, 4, "expected a spatial_factor that is a power of two from 2 to 128, found 1"),
        (8.0, 4, r"expected it to declare the integers spatial_factor and latent_channels, found 8\.0 and 4"),
        (None, 4, "expected it to declare the integers .* found None and 4"),
        (8, 0, "expected it to declare the integers .* found 8 and 0"),
    ],
)
def test_what_must_be_declared(factor: object, channels: object, message: str) -> None:
    """A factor that the saved decoder cannot state, or none at all, would be found out after the training."""
    with pytest.raises(ValueError, match=f"^mine: {message}") as error:
        ForeignEncoder(_Fixed(factor, channels, None), "mine")
    one_line(error)


def test_users_mistakes(user: Path) -> None:
    """Code that cannot be imported, or makes no encoder, would end in a traceback."""
    (user / "broken.py").write_text("import json\nraise RuntimeError('first\\nsecond')\n")
    (user / "leaves.py").write_text("raise SystemExit(3)\n")
    file = "code/encoders.py"
    for name, kind, message in (
        ("no/such.py:Mine", FileNotFoundError, r"expected a Python file no/such\.py, found none"),
        ("no_such_package.encoders:Mine", ImportError, "that can be imported, found ModuleNotFoundError: No module"),
        ("broken.py:Mine", ImportError, "that can be imported, found RuntimeError: first second"),
        ("leaves.py:Mine", ImportError, "that can be imported, found SystemExit: 3"),
        (f"{file}:Missing", ImportError, r"expected Missing in code/encoders\.py, found no such name there"),
        (f"{file}:with_argument", ValueError, "that makes one without arguments, found TypeError"),
        (f"{file}:failing", ValueError, "without arguments, found RuntimeError: two lines"),
        (f"{file}:number", ValueError, r"expected an object with encode\(x\), found int without it"),
    ):
        with pytest.raises(kind, match=message) as error:
            choose_encoder(name)
        assert one_line(error).startswith(f"{name}: ")


def test_json_config_of_a_run_without_checkpoints(tmp_path: Path) -> None:
    """A run that was stopped before its first checkpoint is not finished either."""
    (tmp_path / "config.json").write_text(json.dumps({"stage": "flow"}))
    (tmp_path / "stats.jsonl").write_text("")
    with pytest.raises(CheckpointError, match="not finished yet"):
        choose_encoder(str(tmp_path))
