"""DreamSim by its authors' package, here a small stand-in with its interface: what it gets, and what is refused."""

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

from ssdd.data.sources import open_source
from ssdd.evaluation.compare import Entry, compare
from ssdd.evaluation.contestants import Bicubic
from ssdd.evaluation.dreamsim import KINDS, DreamSim, load_dreamsim
from ssdd.evaluation.protocols import EvaluationSet, Protocol
from ssdd.evaluation.results import as_dict, as_text
from ssdd.evaluation.weights import MissingWeights


class Network(nn.Module):
    """One minus the cosine of random projections; notes what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 224 * 224, 16)
        self.seen: list[Tensor] = []

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        self.seen += [a, b]
        return 1 - nn.functional.cosine_similarity(
            self.layer(a.flatten(1) - 0.5), self.layer(b.flatten(1) - 0.5), dim=-1
        )


def preprocess(picture: Image.Image) -> Tensor:
    assert isinstance(picture, Image.Image), "the package takes Pillow's images"
    image = picture.convert("RGB").resize((224, 224), Image.Resampling.BICUBIC)
    return v2.functional.to_dtype(v2.functional.to_image(image), scale=True)[None]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The arguments that the stand-in was called with. It moves torch.hub's folder and prints, as the package does."""
    found: list[dict[str, Any]] = []

    def dreamsim(**options: Any) -> tuple[nn.Module, Any]:
        found.append(options)
        torch.hub.set_dir(options["cache_dir"])
        print("Using cached", options["cache_dir"])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return Network(), preprocess

    module = ModuleType("dreamsim")
    module.dreamsim = dreamsim  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "dreamsim", module)
    monkeypatch.setattr(torch.hub, "_hub_dir", torch.hub._hub_dir)
    return found


def fill(folder: Path, kind: str, adapter: str = "adapter_model.safetensors") -> list[Path]:
    """Every file of the kind, with something in it. Returns them."""
    files = KINDS[kind]
    weights = [*(folder / name for name in files.backbones), folder / files.adapter / adapter]
    code = [folder / files.adapter / "adapter_config.json"]
    if files.dino:
        weights.append(folder / "checkpoints" / "dino_vitbase16_pretrain.pth")
        code.append(folder / "facebookresearch_dino_main" / "hubconf.py")
    for path in (*weights, *code):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    for path in weights:
        if path.suffix != ".safetensors":
            torch.save({"weight": torch.zeros(3)}, path)
    return [*weights, *code]


def images(count: int, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 40, 56, 3), dtype=torch.uint8, generator=random)


@pytest.fixture
def loaded(calls: list[dict[str, Any]], tmp_path: Path) -> DreamSim:
    fill(tmp_path, "clip_vitb32")
    return load_dreamsim("cpu", "clip_vitb32", tmp_path)


def missing(folder: Path, kind: str, *parts: object) -> None:
    with pytest.raises(MissingWeights) as caught:
        load_dreamsim("cpu", kind, folder)
    for part in (f"dreamsim-{kind}", *map(str, parts)):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_the_package_is_asked_for_the_kind(
    kind: str, calls: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path, kind)
    before = torch.hub.get_dir()
    assert load_dreamsim("cpu", kind, tmp_path).name == f"dreamsim-{kind}"
    expected = {"device": "cpu", "cache_dir": str(tmp_path), "dreamsim_type": kind}
    assert calls == [{"pretrained": True, "normalize_embeds": True, **expected}]
    assert torch.hub.get_dir() == before, "every other network is now looked for in DreamSim's folder"
    assert capsys.readouterr().out == "", "the package writes into the table"


def test_the_network_gets_what_its_documentation_says(loaded: DreamSim) -> None:
    """224 x 224 in [0, 1], by the package's own preprocessing; both pictures, each in its place."""
    x, y = images(3), images(3, seed=1)
    found = loaded(x, y)
    assert (found.shape, found.dtype) == ((3,), np.float64)
    a, b = loaded._model.seen
    for batch, pictures in ((a, x), (b, y)):
        assert (batch.shape, batch.dtype) == ((3, 3, 224, 224), torch.float32)
        assert 0 <= batch.min() < 0.1 < 0.9 < batch.max() <= 1, "another range than [0, 1]"
        assert torch.equal(batch, torch.cat([preprocess(Image.fromarray(p.numpy())) for p in pictures]))
    with torch.no_grad():
        np.testing.assert_allclose(found, loaded._model(a, b).numpy(), atol=1e-5)
    assert found.min() > 0.01, "this case would not tell two pictures apart"


def test_each_pair_is_independent_of_its_batch(loaded: DreamSim) -> None:
    x, y = images(4), images(4, seed=1)
    together = loaded(x, y)
    apart = np.concatenate([loaded(x[i : i + 1], y[i : i + 1]) for i in range(4)])
    np.testing.assert_allclose(together, apart, atol=1e-4)
    np.testing.assert_allclose(loaded(x, x), 0, atol=1e-6)
    assert loaded(x, x).min() >= 0, "rounding gives a negative distance"
    assert loaded(x[:0], y[:0]).shape == (0,)


def test_it_is_frozen_and_leaves_settings_alone(loaded: DreamSim) -> None:
    assert not any(p.requires_grad for p in loaded._model.parameters())
    assert not loaded._model.training
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            low = loaded(images(2), images(2, seed=1))
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
    np.testing.assert_array_equal(low, loaded(images(2), images(2, seed=1)))


def test_wrong_images_are_refused(loaded: DreamSim) -> None:
    x = images(2)
    for wrong in (x / 255, x.permute(0, 3, 1, 2), x[0], x[:, :0]):
        with pytest.raises(ValueError, match=r"expected uint8 images \(B, H, W, 3\), found"):
            loaded(x, wrong)
    with pytest.raises(ValueError, match="expected two batches of images of one size"):
        loaded(x, x[:, :30])


@pytest.mark.parametrize("kind", KINDS)
def test_every_missing_file_is_named_in_one_line(kind: str, calls: list[dict[str, Any]], tmp_path: Path) -> None:
    """The package would download it, and unpickle or run what came."""
    files = fill(tmp_path, kind)
    for path in files:
        content = path.read_bytes()
        path.unlink()
        missing(tmp_path, kind, path, "which is missing; ", "https://")
        path.write_bytes(content)
    assert calls == [], "the package was called without its files"


@pytest.mark.parametrize("kind", KINDS)
def test_a_pickle_that_would_run_code_is_refused(kind: str, calls: list[dict[str, Any]], tmp_path: Path) -> None:
    for path in fill(tmp_path, kind, adapter="adapter_model.bin"):
        if path.suffix in (".json", ".py"):
            continue
        content = path.read_bytes()
        torch.save({"weight": subprocess.Popen}, path)
        missing(tmp_path, kind, path, "damaged or no file of weights")
        path.write_bytes(content)
    assert calls == [], "the package was called with a pickle that runs code"
    load_dreamsim("cpu", kind, tmp_path)


def test_weights_of_another_network(
    calls: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(**_: Any) -> None:
        raise RuntimeError("Error(s) in loading state_dict\nsize mismatch")

    fill(tmp_path, "clip_vitb32")
    monkeypatch.setattr(sys.modules["dreamsim"], "dreamsim", fails)
    missing(tmp_path, "clip_vitb32", tmp_path, "RuntimeError: Error(s) in loading state_dict", "unpack it there again")


def test_the_hash_is_of_the_weights(calls: list[dict[str, Any]], tmp_path: Path) -> None:
    weights = [p for p in fill(tmp_path, "ensemble") if p.suffix not in (".json", ".py")]
    digests = {load_dreamsim("cpu", "ensemble", tmp_path).sha256}
    for i, path in enumerate(weights):
        path.write_text("{ }") if path.suffix == ".safetensors" else torch.save({"weight": torch.ones(i + 1)}, path)
        digests.add(load_dreamsim("cpu", "ensemble", tmp_path).sha256)
    assert len(digests) == len(weights) + 1, "a file changes and the report does not"
    assert {len(digest) for digest in digests} == {hashlib.sha256().digest_size * 2}


def test_an_evaluation_says_which_dreamsim(
    loaded: DreamSim, tmp_path: Path, picture: Callable[..., np.ndarray]
) -> None:
    """A number that nobody can repeat: of which of the kinds, with which weights?"""
    (tmp_path / "photographs").mkdir()
    Image.fromarray(picture(40, 48)).save(tmp_path / "photographs" / "a.png")
    photographs = EvaluationSet(open_source([tmp_path / "photographs"]), Protocol("test-v1", "centre", 32))
    comparison = compare([Entry(Bicubic(8))], photographs, workers=0, other_metrics={"dreamsim": loaded})
    found = as_dict(comparison)
    assert found["rows"][0]["image_metrics"]["dreamsim"]["mean"] > 0
    described = {"name": "dreamsim-clip_vitb32", "sha256": loaded.sha256, "preprocessing": loaded.preprocessing}
    assert found["other_metrics"] == {"dreamsim": described}
    table, _, notes = as_text(comparison).partition("\n\n")
    assert "DreamSim" in table
    note = f"DreamSim is dreamsim-clip_vitb32: {loaded.preprocessing}; sha256 {loaded.sha256[:16]}"
    assert note in notes.splitlines()
    without = compare([Entry(Bicubic(8))], photographs, workers=0)
    assert as_dict(without)["other_metrics"] == {}
    assert "DreamSim" not in as_text(without)


def test_by_default_beside_the_other_weights(
    calls: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    fill(tmp_path / "hub" / "dreamsim", "clip_vitb32")
    load_dreamsim(kind="clip_vitb32")
    assert calls[0]["cache_dir"] == str(tmp_path / "hub" / "dreamsim")


def test_package_and_kind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "dreamsim", None)
    with pytest.raises(ImportError, match="pip install dreamsim"):
        load_dreamsim("cpu", "ensemble", tmp_path)
    with pytest.raises(ValueError, match=r"expected a DreamSim of ensemble, .* found 'synclr_vitb16'"):
        load_dreamsim("cpu", "synclr_vitb16", tmp_path)
