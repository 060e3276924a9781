"""Several processes evaluate what one does: the same crops, the same noise, the same numbers but for rounding."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.process import Ended, ranks

pytestmark = pytest.mark.slow

SHOWN = ("psnr", "ssim_uniform_7", "high_frequency_ratio", "colour_shift_green")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory, picture: Callable[..., np.ndarray]) -> Path:
    """Pictures of several sizes, one too small and one broken among them: the numbers of crops must not shift."""
    folder = tmp_path_factory.mktemp("photographs")
    for i, size in enumerate([(130, 140), (20, 300), (128, 200)]):
        Image.fromarray(picture(*size, i)).save(folder / f"{i}.png")
    (folder / "0b.jpg").write_bytes(b"no image")
    return folder


def evaluate(out: Path, photographs: Path, model: Path, processes: int, protocol: str) -> tuple[int, str]:
    """``ssdd evaluate`` in processes; exit status of the first, and output of all."""
    options = ("--data", photographs, "--protocol", protocol, "--out", out, "--workers", 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(out / "none"))
        ended = ranks("evaluate", model, "jpeg:9000", *options, count=processes)
    return ended[0].status, "".join(one.out + one.err for one in ended)


def test_two_processes_are_one(photographs: Path, tiny_model: Path, tmp_path: Path) -> None:
    """A published number would depend on the number of GPUs."""
    found: list[dict[str, Any]] = []
    for processes in (1, 2):
        status, output = evaluate(tmp_path / str(processes), photographs, tiny_model, processes, "crops-128-v1")
        assert status == 3, f"two images cannot be used: {output}"
        assert output.count("skipped ") == 3, f"each is named once, and counted: {output}"
        assert output.count("left out: LPIPS-squeeze") == 1, "every process says it"
        found.append(json.loads((tmp_path / str(processes) / "evaluation.json").read_text()))
    one, two = found
    assert two["data"] == one["data"]
    crops = [dict(np.load(next((tmp_path / n).glob("crops-*.npz")))) for n in ("1", "2")]
    assert crops[1]["name"].tolist() == crops[0]["name"].tolist()
    for i, (a, b) in enumerate(zip(one["rows"], two["rows"], strict=True)):
        for name in SHOWN:
            first, second = (arrays[f"row/{i}/{name}"] for arrays in crops)
            assert second == pytest.approx(first, rel=1e-2, abs=1e-3), f"{name}: other noise?"
        for name in ("psnr", "pooled_psnr", "ssim_uniform_7"):
            assert b["image_metrics"][name]["mean"] == pytest.approx(a["image_metrics"][name]["mean"], rel=1e-4)
            assert b["image_metrics"][name]["low"] == pytest.approx(a["image_metrics"][name]["low"], rel=1e-4)
        if a["label"].startswith("jpeg"):
            for name in a["image_metrics"].keys() - {"pooled_psnr"}:
                np.testing.assert_array_equal(crops[0][f"row/{i}/{name}"], crops[1][f"row/{i}/{name}"])  # no network
            expected = np.array(a["spectrum"], float)  # None is NaN
            np.testing.assert_allclose(np.array(b["spectrum"], float), expected, rtol=1e-12)


def test_more_processes_than_images(tiny_model: Path, picture: Callable[..., np.ndarray], tmp_path: Path) -> None:
    """A process without an image must neither stop the others nor change the result."""
    (tmp_path / "photographs").mkdir()
    Image.fromarray(picture(130, 140)).save(tmp_path / "photographs" / "only.png")
    status, output = evaluate(tmp_path / "out", tmp_path / "photographs", tiny_model, 2, "paper-128-v1")
    assert status == 0, output
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["data"]["crops"] == 1


OWN = """
import os, signal
from pathlib import Path

class Own:
    spatial_factor, latent_channels = 8, 3

    def encode(self, x):
        return x[:, :, ::8, ::8]

    def decode(self, z):
        if os.environ.get("RANK") == "1" and z.shape[-1] == 16 and not Path("fine").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return z.repeat_interleave(8, 2).repeat_interleave(8, 3)
"""


def test_a_killed_process_loses_no_finished_row(
    tiny_model: Path, picture: Callable[..., np.ndarray], tmp_path: Path
) -> None:
    """One of eight GPUs fails in the third hour: what the others have measured until then was lost."""
    folder, out = tmp_path / "photographs", tmp_path / "out"
    folder.mkdir()
    for i in range(4):
        Image.fromarray(picture(130, 140, i)).save(folder / f"{i}.png")
    (tmp_path / "own.py").write_text(OWN)

    options = ("--data", folder, "--protocol", "paper-128-v1", "--out", out, "--workers", 0, "--lpips", "--extractors")

    def run() -> list[Ended]:
        return ranks("evaluate", tiny_model, "own.py:Own", *options, folder=tmp_path)

    statuses = [one.status for one in run()]
    assert statuses[1] == -signal.SIGKILL
    assert statuses[0] != 0
    left = json.loads((out / "evaluation.json").read_text())
    assert (left["finished"], [row["label"] for row in left["rows"]]) == (False, [tiny_model.name])
    (tmp_path / "fine").touch()
    again = run()
    assert [one.status for one in again] == [0, 0], again
    assert sum(one.err.count("goes on after 1 rows") for one in again) == 1
    found = json.loads((out / "evaluation.json").read_text())
    assert [row["label"] for row in found["rows"]] == [tiny_model.name, "own.py:Own"]
    assert found["rows"][0] == left["rows"][0], "a finished row was measured again"
