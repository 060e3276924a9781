"""REPA: features on the right grid from a frozen network, a loss with a safe gradient, one clear line per error."""

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from ssdd.nn.decoder import Decoder
from ssdd.nn.presets import decoder_size
from ssdd.objectives.repa import DinoFeatures, Projection, feature_block, repa_loss

transformers = pytest.importorskip("transformers")

PATCH = 14
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def save_dino(folder: Path, registers: int = 0) -> Path:
    """A tiny DINOv2 with random weights, made for 3 x 3 patches; its position embeddings count."""
    kind = "Dinov2WithRegisters" if registers else "Dinov2"
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": PATCH, "image_size": 42}
    if registers:
        sizes["num_register_tokens"] = registers
    model = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**sizes))
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.data.normal_(0, 0.2, generator=generator)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_dino(tmp_path_factory.mktemp("dino"))


@pytest.fixture(scope="module")
def dino(folder: Path) -> DinoFeatures:
    return DinoFeatures(str(folder))


def pictures(count: int, height: int, width: int) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(3)) * 2 - 1


def refused(name: str | Path, error: type[Exception], message: str) -> None:
    """The checkpoint is refused with one line that names it."""
    with pytest.raises(error, match=message) as caught:
        DinoFeatures(str(name))
    assert "\n" not in str(caught.value)
    assert str(name) in str(caught.value)


def by_hand(net: Any, images: Tensor, first: int) -> Tensor:
    """Patch tokens of images that have the right size already."""
    x = ((images + 1) / 2 - MEAN[:, None, None]) / STD[:, None, None]
    return net(x).last_hidden_state[:, first:]


@pytest.mark.parametrize("size", [(64, 64), (40, 72), (37, 51), (300, 20)])
@pytest.mark.parametrize("grid", [(3, 3), (5, 9), (8, 3), (1, 1)])
def test_one_token_for_each_cell(dino: DinoFeatures, size: tuple[int, int], grid: tuple[int, int]) -> None:
    """Some size of image, or a grid that is not square, gives another number of tokens than the decoder has."""
    tokens = dino(pictures(2, *size), grid)
    assert tokens.shape == (2, grid[0] * grid[1], dino.width)
    assert torch.isfinite(tokens).all()


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("grid", [(3, 3), (2, 5)])
def test_tokens_are_those_of_the_network(tmp_path: Path, grid: tuple[int, int], registers: int) -> None:
    """The normalisation is another one, a wrong token is dropped, the resize blurs, or is no antialiased bicubic."""
    dino, size = DinoFeatures(str(save_dino(tmp_path, registers))), (grid[0] * PATCH, grid[1] * PATCH)
    images, large = pictures(2, *size), pictures(2, 60, 100)
    resized = F.interpolate(large, size=size, mode="bicubic", antialias=True)
    torch.testing.assert_close(dino(images, grid), by_hand(dino.net, images, 1 + registers))
    torch.testing.assert_close(dino(large, grid), by_hand(dino.net, resized, 1 + registers), atol=1e-4, rtol=1e-4)


def test_left_tokens_are_of_the_left_half(dino: DinoFeatures) -> None:
    """A token describes another place: the image is transposed or mirrored, or the tokens are not row-major."""
    image = torch.full((1, 3, 50, 80), -0.9)
    dark, bright = (dino(torch.full_like(image, value), (3, 6)) for value in (-0.9, 0.9))
    image[..., 40:] = 0.9
    tokens = dino(image, (3, 6))
    nearer_to_dark = (tokens - dark).norm(dim=-1) < (tokens - bright).norm(dim=-1)
    assert nearer_to_dark.flatten().tolist() == 3 * ([True] * 3 + [False] * 3)


def test_normalisation_of_the_checkpoint(tmp_path: Path) -> None:
    """A checkpoint's own mean and deviation are ignored."""
    save_dino(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}')
    dino, images = DinoFeatures(str(tmp_path)), pictures(1, 42, 42)
    torch.testing.assert_close(dino(images, (3, 3)), dino.net(images).last_hidden_state[:, 1:])


def test_frozen_and_in_float32_under_autocast(dino: DinoFeatures) -> None:
    """The network would be trained along, or drop out, or the targets carry bfloat16's errors."""
    assert not any(p.requires_grad for p in dino.parameters())
    assert not any(m.training for m in dino.modules())
    images = pictures(1, 42, 42).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        tokens = dino(images, (3, 3))
    assert not tokens.requires_grad
    assert torch.equal(tokens, dino(images, (3, 3)))
    assert dino(images.bfloat16(), (3, 3)).dtype == torch.float32


def test_gradient_reaches_decoder_and_projection_only(dino: DinoFeatures) -> None:
    """REPA trains nothing, or the wrong network; or the decoder's grid is not the one that the features are for."""
    torch.manual_seed(0)
    size = decoder_size("XXS")
    decoder, projection = Decoder(size, 4), Projection(size.channels[-1], dino.width)
    images = pictures(2, 40, 72)
    out = decoder(torch.randn_like(images), torch.rand(2), torch.randn(2, 4, 5, 9), feature_block(size.layers))
    assert out.features.shape == (2, 45, size.channels[-1])
    repa_loss(projection(out.features), dino(images, out.grid)).mean().backward()
    for p in (decoder.conv_in.weight, *projection.parameters()):
        assert p.grad is not None
        assert p.grad.abs().max() > 0
    assert all(p.grad is None for p in dino.parameters())
    assert decoder.conv_out.weight.grad is None, "the features come before the output"


def test_loss_is_a_mean_cosine_distance() -> None:
    """The number is not 1 - cos, depends on the length of vectors, or mixes images."""
    y = torch.randn(3, 7, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(repa_loss(y, y), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(repa_loss(-y, y), torch.full((3,), 2.0))
    other = torch.randn(3, 7, 16, generator=torch.Generator().manual_seed(1))
    loss = repa_loss(other, y)
    torch.testing.assert_close(loss, 1 - F.cosine_similarity(other, y, dim=-1).mean(1))
    torch.testing.assert_close(repa_loss(1e3 * other, 1e-3 * y), loss)
    torch.testing.assert_close(repa_loss(other[1:2], y[1:2]), loss[1:2])
    a, b = other.bfloat16(), y.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(repa_loss(a, b), repa_loss(a.float(), b.float())), "not computed in float32"


def test_gradient_is_finite_at_zero() -> None:
    """A token that is zero makes every weight NaN."""
    x = torch.zeros(1, 4, 8, requires_grad=True)
    loss = repa_loss(x, torch.ones(1, 4, 8))
    assert loss.item() == 1
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    assert gradient.abs().max() < 1e4


def test_feature_block() -> None:
    """Another block than the paper's is aligned, or one that the decoder does not have."""
    assert [feature_block(n) for n in (1, 4, 8, 10, 16)] == [0, 2, 4, 4, 4]


def test_loading_is_quiet_and_gives_float32(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """transformers' bars and load reports run over the log or stay off for others; half precision stays half."""
    with_head = transformers.Dinov2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28)
    transformers.Dinov2ForImageClassification(with_head).half().save_pretrained(tmp_path)
    logging = transformers.utils.logging
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    capfd.readouterr()
    dino = DinoFeatures(str(tmp_path))
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    assert all(p.dtype == torch.float32 for p in dino.parameters())


@pytest.mark.parametrize("name", ["nobody/no-such-dino", "./no/such/folder", "/no/such/folder"])
def test_unknown_name_is_refused_at_once(name: str) -> None:
    """Offline, the user waits for minutes or reads a page of the hub's errors."""
    start = time.monotonic()
    refused(name, RuntimeError, rf"^REPA needs {name}, .* --loss\.repa 0$")
    assert time.monotonic() - start < 20


def test_cached_checkpoint_needs_no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path) -> None:
    """Every start asks the network, or a cache that some other program left with only the config is not completed."""
    cached, local = folder, []

    def snapshot(name: str, local_files_only: bool = False, **options: Any) -> str:
        local.append(local_files_only)
        return str(cached if local_files_only else folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **options: options["timeout"])
    assert DinoFeatures("somebody/dino").width == 32
    assert local == [True]
    cached = tmp_path
    (cached / "config.json").write_text("{}")
    assert DinoFeatures("somebody/dino").width == 32
    assert local == [True, True, False]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "vit"}, "expected the architecture dinov2 or dinov2_with_registers, found vit"),
        ({"num_hidden_layers": 3}, r"\d+ tensors that config.json asks for are missing"),
        ({"hidden_size": 64}, r"\d+ tensors that config.json asks for are missing or of another shape"),
    ],
)
def test_unfit_config_is_refused(tmp_path: Path, folder: Path, config: dict[str, Any], message: str) -> None:
    """A wrong model, or random numbers in place of missing ones, would be the target."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    refused(tmp_path, ValueError, message)


def test_unfit_files_are_refused(tmp_path: Path, folder: Path) -> None:
    """Pickled or damaged weights are read, or the user sees an error from inside a library."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    torch.save(load_file(weights), tmp_path / "pytorch_model.bin")
    weights.write_bytes(weights.read_bytes()[:5000])
    refused(tmp_path, RuntimeError, "no readable weights in")
    weights.unlink()
    refused(tmp_path, RuntimeError, "no readable weights in")
    config.write_text("{")
    refused(tmp_path, ValueError, "expected a JSON object")
    config.unlink()
    refused(tmp_path, RuntimeError, "no config.json in")


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """The user would not learn what to install."""
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'ssdd\[train\]'"):
        DinoFeatures(str(folder))
