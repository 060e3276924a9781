"""LPIPS: the documented value, frozen, a safe gradient; and where it looks for its weights."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from ssdd.objectives.image import shifted
from ssdd.objectives.perceptual import LPIPS, backbone_path

needs_squeeze = pytest.mark.skipif(
    not backbone_path("squeeze").is_file(), reason=f"no LPIPS backbone at {backbone_path('squeeze')} (TORCH_HOME)"
)


@pytest.fixture(scope="module")
def lpips() -> LPIPS:
    return LPIPS("squeeze")


@needs_squeeze
def test_documented_example(lpips: LPIPS) -> None:
    """torchmetrics' documentation: seed 123, ten pairs of uniform noise, 0.1008 (the mean over pairs)."""
    torch.manual_seed(123)
    x, y = (torch.rand(10, 3, 100, 100) * 2 - 1 for _ in range(2))
    assert abs(lpips(x, y).mean().item() - 0.1008) < 5e-4


@needs_squeeze
def test_frozen_and_safe_at_equal_images(lpips: LPIPS) -> None:
    """It would be trained along, or its gradient is NaN where both images agree."""
    assert not any(p.requires_grad for p in lpips.parameters())
    assert not any(m.training for m in lpips.net.modules())
    x = (torch.rand(2, 3, 64, 64) * 2 - 1).requires_grad_()
    distance = lpips(x, x.detach())
    assert distance.shape == (2,)
    assert distance.abs().max() < 1e-6
    (gradient,) = torch.autograd.grad(distance.sum(), x)
    assert torch.isfinite(gradient).all()


@needs_squeeze
def test_one_graph_for_the_compiler(lpips: LPIPS) -> None:
    """torchmetrics' backbone makes a class in each call: eight compilations in vain, minutes on a CPU, then none."""
    x, y = torch.rand(2, 1, 3, 64, 64)
    assert torch._dynamo.explain(lpips)(x, y).graph_break_count == 0


@pytest.mark.parametrize("legacy", [False, True])
def test_a_damaged_backbone_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, legacy: bool) -> None:
    """A download that was cut off ends in a traceback, or in a line without the file's name."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    path = backbone_path("squeeze")
    path.parent.mkdir()
    torch.save({"weight": torch.zeros(30_000)}, path, _use_new_zipfile_serialization=not legacy)
    whole = path.read_bytes()
    for size in (0, 100, 100_000, len(whole)):  # whole, it is of another network
        path.write_bytes(whole[:size])
        with pytest.raises(RuntimeError, match="damaged: delete it") as caught:
            LPIPS("squeeze")
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_missing_weights_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The error must say which file goes where."""

    def no_network(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    with pytest.raises(RuntimeError, match=r"vgg16-397923af\.pth, which is missing and could not be downloaded"):
        LPIPS("vgg")


def test_images_move_under_the_network() -> None:
    """Each image begins at its own place on LPIPS's grid, whole, with its border mirrored around it."""
    images = torch.randn(3, 6, 16, 20)
    positions = torch.tensor([[0.0, 0.99], [0.3, 0.6], [0.8, 0.1]])
    padded = F.pad(images, (3, 3, 3, 3), mode="reflect")
    corners = [(0, 3), (1, 2), (3, 0)]
    moved = torch.stack([p[:, y : y + 19, x : x + 23] for p, (y, x) in zip(padded, corners, strict=True)])
    torch.testing.assert_close(shifted(images, positions), moved, rtol=0, atol=0)
