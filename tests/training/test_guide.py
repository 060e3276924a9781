"""docs/training.md: its script trains as a file of its own, also where worker processes are spawned and import it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

GUIDE = Path(__file__).parents[2] / "docs" / "training.md"
SPAWN = "import multiprocessing\nmultiprocessing.set_start_method('spawn', force=True)\n"


def test_script_where_processes_are_spawned(photographs: Path, tmp_path: Path) -> None:
    """Python 3.14 and macOS start workers that import the script: without a guard it would train in each of them."""
    (block,) = (b for b in re.findall(r"^```python\n(.*?)^```", GUIDE.read_text("utf-8"), re.S | re.M) if "train(" in b)
    small = "total_images=4, batch_size=4, loss=replace(config.loss, lpips=0.0, lpips_network='vgg'))"
    assert "total_images=320)" in block
    (tmp_path / "mine.py").write_text(SPAWN + block.replace("total_images=320)", small))
    (tmp_path / "photos").symlink_to(photographs)
    ended = subprocess.run([sys.executable, "mine.py"], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "runs" / "mine" / "model" / "config.json").is_file()
