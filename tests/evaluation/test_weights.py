"""Files of weights: a download is whole and the right one, or not there."""

import hashlib
from pathlib import Path

import pytest
import torch

from ssdd.evaluation.weights import MissingWeights, hub_file


def test_download_is_put_in_the_cache_if_its_hash_is_right(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A download that was cut off, or tampered with, stays in the cache for ever."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    torch.save({"weight": torch.zeros(3)}, tmp_path / "weights")
    digest = hashlib.sha256((tmp_path / "weights").read_bytes()).hexdigest()[:8]
    wrong, right = tmp_path / "net-00000000.pth", tmp_path / f"net-{digest}.pth"
    for path in (wrong, right):
        path.write_bytes((tmp_path / "weights").read_bytes())
    with pytest.raises(MissingWeights, match="could not be downloaded"):
        hub_file("net", wrong.as_uri(), download=True)
    assert hub_file("net", right.as_uri(), download=True).read_bytes() == right.read_bytes()
    assert [p.name for p in (tmp_path / "home" / "hub" / "checkpoints").iterdir()] == [right.name]


def test_a_file_with_another_hash_than_its_name_is_told_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody else's weights pass for the published ones, and so do the numbers that are measured with them."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub" / "checkpoints" / "net-00000000.pth"
    path.parent.mkdir(parents=True)
    torch.save({"weight": torch.zeros(3)}, path)
    assert hub_file("net", f"https://somewhere/{path.name}", download=False) == path
    assert f"{path} is another file than that of https://somewhere/" in caplog.text
    with pytest.raises(MissingWeights, match=r"does not begin with 00000000.*delete it"):
        hub_file("net", f"https://somewhere/{path.name}", download=False, exact=True)
