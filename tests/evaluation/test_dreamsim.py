"""DreamSim by its authors' package, here a small stand-in with its interface: what it gets, and what is refused."""

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

from ssdd.evaluation.dreamsim import FILES, dreamsim_metric
from ssdd.evaluation.metrics import ImagePairs
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
            network = Network()
            found[-1]["network"] = network
            return network, preprocess

    module = ModuleType("dreamsim")
    module.dreamsim = dreamsim  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "dreamsim", module)
    monkeypatch.setattr(torch.hub, "_hub_dir", torch.hub._hub_dir)
    return found


@pytest.fixture
def folder(calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """DreamSim's folder beside the other weights, with something in every file."""
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "dreamsim"
    for path in (folder / name for name in FILES):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
        if path.suffix in (".pth", ".tar"):
            torch.save({"weight": torch.zeros(3)}, path)
    return folder


def images(count: int, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 40, 56, 3), dtype=torch.uint8, generator=random)


Distance = Callable[[Tensor, Tensor], np.ndarray]


@pytest.fixture
def loaded(folder: Path) -> Distance:
    compute = dreamsim_metric().compute
    assert compute is not None
    return lambda x, y: compute(ImagePairs(x, y))


@pytest.fixture
def network(loaded: Distance, calls: list[dict[str, Any]]) -> Network:
    return calls[-1]["network"]


def missing(*parts: object) -> None:
    with pytest.raises(MissingWeights) as caught:
        dreamsim_metric()
    for part in ("dreamsim-ensemble", *map(str, parts)):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_package_is_asked_for_the_ensemble(
    calls: list[dict[str, Any]], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = torch.hub.get_dir()
    assert "dreamsim-ensemble" in dreamsim_metric().description
    expected = {"device": "cpu", "cache_dir": str(folder), "dreamsim_type": "ensemble"}
    (found,) = calls
    del found["network"]
    assert found == {"pretrained": True, "normalize_embeds": True, **expected}
    assert torch.hub.get_dir() == before, "every other network is now looked for in DreamSim's folder"
    assert capsys.readouterr().out == "", "the package writes into the table"


def test_the_network_gets_what_its_documentation_says(loaded: Distance, network: Network) -> None:
    """224 x 224 in [0, 1], by the package's own preprocessing; both pictures, each in its place."""
    x, y = images(3), images(3, seed=1)
    found = loaded(x, y)
    assert (found.shape, found.dtype) == ((3,), np.float64)
    a, b = network.seen
    for batch, pictures in ((a, x), (b, y)):
        assert (batch.shape, batch.dtype) == ((3, 3, 224, 224), torch.float32)
        assert 0 <= batch.min() < 0.1 < 0.9 < batch.max() <= 1, "another range than [0, 1]"
        assert torch.equal(batch, torch.cat([preprocess(Image.fromarray(p.numpy())) for p in pictures]))
    with torch.no_grad():
        np.testing.assert_allclose(found, network(a, b).numpy(), atol=1e-5)
    assert found.min() > 0.01, "this case would not tell two pictures apart"


def test_each_pair_is_independent_of_its_batch(loaded: Distance) -> None:
    x, y = images(4), images(4, seed=1)
    together = loaded(x, y)
    apart = np.concatenate([loaded(x[i : i + 1], y[i : i + 1]) for i in range(4)])
    np.testing.assert_allclose(together, apart, atol=1e-4)
    np.testing.assert_allclose(loaded(x, x), 0, atol=1e-6)
    assert loaded(x, x).min() >= 0, "rounding gives a negative distance"


def test_it_is_frozen(network: Network) -> None:
    assert not any(p.requires_grad for p in network.parameters())
    assert not network.training


@pytest.mark.parametrize("name", FILES)
def test_every_missing_file_is_named_in_one_line(calls: list[dict[str, Any]], folder: Path, name: str) -> None:
    """The package would download it, and unpickle or run what came."""
    (folder / name).unlink()
    missing(folder / name, "which is missing; get it from https://")
    assert calls == [], "the package was called without its files"


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(("pth", "tar"))])
def test_a_pickle_that_would_run_code_is_refused(calls: list[dict[str, Any]], folder: Path, name: str) -> None:
    path = folder / name
    torch.save({"weight": subprocess.Popen}, path)
    missing(path, "damaged or no file of its weights")
    assert calls == [], "the package was called with a pickle that runs code"
    torch.save({"weight": torch.zeros(3)}, path)
    dreamsim_metric()


def test_weights_of_another_network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(**_: Any) -> None:
        raise RuntimeError("Error(s) in loading state_dict\nsize mismatch")

    monkeypatch.setattr(sys.modules["dreamsim"], "dreamsim", fails)
    missing(folder, "RuntimeError: Error(s) in loading state_dict", "https://")


def test_the_hash_is_of_the_weights(folder: Path) -> None:
    weights = [folder / name for name in FILES if not name.endswith(("json", "py"))]
    digests = {dreamsim_metric().description}
    for i, path in enumerate(weights):
        path.write_text("{ }") if path.suffix == ".safetensors" else torch.save({"weight": torch.ones(i + 1)}, path)
        digests.add(dreamsim_metric().description)
    assert len(digests) == len(weights) + 1, "a file changes and the report does not"


def test_the_package_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dreamsim", None)
    with pytest.raises(ImportError, match=r"pip install 'ssdd\[dreamsim\]'"):
        dreamsim_metric()
