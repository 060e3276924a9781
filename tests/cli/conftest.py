"""Fixtures that tests of several commands share."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def photos(tmp_path: Path, picture: Callable[..., np.ndarray]) -> Path:
    """Two photographs, 0.png and 1.png of the folder ``photos``."""
    (tmp_path / "photos").mkdir()
    for i in range(2):
        Image.fromarray(picture(136, 144, i)).save(tmp_path / "photos" / f"{i}.png")
    return tmp_path / "photos"
